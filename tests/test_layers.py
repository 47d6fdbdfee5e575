"""Convolutions and dropout whose training steps are faster give what PyTorch's give."""
import copy

import pytest
import torch
from torch import nn

from benchmarks import plain
from net.layers import Conv2d, Dropout
from net.models import deeplabv3plus

OWN_WAY = '_GradientsBackward'


@pytest.mark.parametrize('settings', [
    {'stride': 2, 'padding': 1, 'groups': 12, 'bias': False}, {'stride': (1, 3), 'padding': 0, 'groups': 12},
    {'stride': 2, 'padding': 2, 'dilation': 2, 'groups': 12}, {'padding': 6, 'dilation': 6},
    {'padding': 18, 'dilation': 18, 'bias': False}, {'padding': 2, 'dilation': 2, 'groups': 12},
    {'padding': (2, 3), 'dilation': (2, 3), 'groups': 12},
], ids=str)
@pytest.mark.parametrize('side', [(14, 14), (9, 20)], ids=str)
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=str)
def test_gradients_are_those_of_pytorch(settings, side, layout):
    torch.manual_seed(0)
    ours = Conv2d(**{'in_channels': 12, 'out_channels': 12, 'kernel_size': 3} | settings).double()
    theirs = nn.Conv2d(**{'in_channels': 12, 'out_channels': 12, 'kernel_size': 3} | settings).double()
    theirs.load_state_dict(ours.state_dict())
    ours.to(memory_format=layout)
    x = torch.randn(2, 12, *side).double().to(memory_format=layout).requires_grad_()
    same = x.detach().clone().requires_grad_()
    found, right = ours(x), theirs(same)
    assert type(found.grad_fn).__name__ == OWN_WAY and torch.equal(found, right)
    gradient = torch.randn_like(right)
    found.backward(gradient)
    right.backward(gradient)
    torch.testing.assert_close(x.grad, same.grad)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad)


def test_a_step_in_bf16_is_as_near_to_float32_as_that_of_pytorch(monkeypatch):
    """Coarse-SN's gradients under autocast, with PyTorch's and with our backward passes."""
    torch.manual_seed(1)
    start = deeplabv3plus(dropout=False).to(memory_format=torch.channels_last)
    x = torch.rand(2, 3, 64, 64)

    def gradients(bf16, own):
        trained = copy.deepcopy(start)
        with monkeypatch.context() as patch, torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            if not own:
                patch.setattr(Conv2d, '_conv_forward', nn.Conv2d._conv_forward)
            (trained(x).float() ** 2).mean().backward()
        return torch.cat([each.grad.flatten() for each in trained.parameters()])

    right = gradients(False, False)

    def away(*way):
        return 1 - torch.cosine_similarity(gradients(*way), right, 0).item()

    assert away(False, True) < 1e-5
    assert away(True, True) < 1.2 * away(True, False) + 1e-3


def test_frozen_parts_get_no_gradient_and_inference_goes_the_plain_way():
    layer = Conv2d(4, 4, 3, padding=2, dilation=2)
    layer.weight.requires_grad_(False)
    x = torch.randn(1, 4, 5, 5, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None and x.grad is not None
    layer.weight.requires_grad_(True)
    layer(x.detach()).sum().backward()   # as the first layer of a network
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert layer(x).grad_fn is None


@pytest.mark.parametrize('p', [0.1, 0.5])
@pytest.mark.parametrize('layout', [torch.channels_last, torch.contiguous_format], ids=str)
def test_dropout_drops_its_share_and_scales_the_rest(p, layout):
    torch.manual_seed(2)
    layer, x = Dropout(p), torch.ones(3, 7, 101, 99).to(memory_format=layout).requires_grad_()
    y = layer(x)
    share = (y == 0).double().mean().item()
    assert abs(share - p) < 5 * (p * (1 - p) / x.numel()) ** 0.5
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)), rtol=2e-5, atol=0)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())   # since x is one everywhere
    assert y.is_contiguous(memory_format=layout)
    # Neighbours are dropped independently of each other: those that share a word, too.
    dropped = (y.detach() == 0).double().flatten() - p
    for step in (1, 2, 3, 4, 7, 99):
        assert abs((dropped[step:] * dropped[:-step]).mean().item()) < 5 * p * (1 - p) / x.numel() ** 0.5
    torch.manual_seed(2)
    assert torch.equal(layer(x), y)
    assert not torch.equal(layer(x), y)


def test_dropout_is_the_identity_where_nothing_is_trained():
    x = torch.randn(2, 3)
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(Dropout(0.0)(x), x)
    assert not Dropout(1.0)(x).any()


def test_plain_networks_of_the_bench_have_pytorchs_own_layers():
    network = plain.with_usual_layers(deeplabv3plus())
    network.load_state_dict(deeplabv3plus().state_dict())
    assert not any(isinstance(layer, (Conv2d, Dropout)) for layer in network.modules())
    assert sum(type(layer) is nn.Conv2d for layer in network.modules()) == 142
