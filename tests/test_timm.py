"""Our encoder against timm's aligned Xception-65: equal features once the three differences are set aside.

The differences are those that `net.weights.load_timm_xception65` names. The tests take them away one
by one, in timm's network or in ours, and otherwise leave both as they are.
"""
import types

import pytest
import torch
import torch.nn.functional as F

from net import weights
from net.models import deeplabv3plus

timm = pytest.importorskip('timm')

RELATIVE = 1e-5   # of the largest value; float32 sums in another order


def randomise(network, seed):
    """Weights that keep activations near one, and batch norm statistics that are far from (0, 1)."""
    g = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.dim() == 4:
            tensor.copy_(torch.randn(tensor.shape, generator=g) * tensor[0].numel() ** -0.5)
        elif name.endswith(('running_var', '.weight')):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=g))
        elif tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=g))
    for norm in network.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):   # channels that hardly vary: 1e-3 is not 1e-5 there
            norm.running_var[::7], norm.weight[::7] = 1e-3, 0.03


@pytest.fixture(scope='module')
def pair():
    """timm's network at output stride 16 and ours with its weights, both in evaluation mode."""
    theirs = timm.create_model('xception65', pretrained=False, output_stride=16, num_classes=3)
    with torch.no_grad():
        randomise(theirs, seed=0)
        ours = deeplabv3plus()
        before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        weights.load_timm_xception65(ours, theirs.state_dict())
    return theirs.eval(), ours.eval(), before


@pytest.fixture(scope='module')
def images():
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_equal(a, b):
    assert a.shape == b.shape
    assert float((a - b).abs().max() / b.abs().max()) < RELATIVE


def stem(network, x):
    x = F.relu(network.backbone.bn1(network.backbone.conv1(x)))
    return F.relu(network.backbone.bn2(network.backbone.conv2(x)))


def grey_border(network, monkeypatch):
    """Let our first convolution pad with grey, which timm's does since it pads after the scaling."""
    conv = network.backbone.conv1
    monkeypatch.setattr(conv, 'forward', lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1), value=0.5),
                                                            conv.weight, stride=2))


@torch.no_grad()
def test_the_stem_differs_at_the_border_alone(pair, images):
    theirs, ours, _ = pair
    a, b = stem(ours, images), theirs.stem(2 * images - 1)
    assert_equal(a[:, :, 2:, 2:], b[:, :, 2:, 2:])
    assert not torch.allclose(a[:, :, 0], b[:, :, 0], rtol=1e-2)
    symmetric = deeplabv3plus().eval()
    weights.load_timm_xception65(symmetric, theirs.state_dict(), unit=False)
    assert_equal(stem(symmetric, 2 * images - 1), b)


@torch.no_grad()
def test_entry_flow_and_low_level_features_are_timms(pair, images, monkeypatch):
    theirs, ours, _ = pair
    grey_border(ours, monkeypatch)
    x, expected = stem(ours, images), theirs.stem(2 * images - 1)
    assert_equal(x, expected)
    for number in (1, 2, 3):
        x, middle = getattr(ours.backbone, f'block{number}')(x)
        stack = theirs.blocks[number - 1].stack
        assert_equal(middle, stack.conv2(stack.act2(stack.conv1(F.relu(expected)))))
        expected = theirs.blocks[number - 1](expected)
        assert_equal(x, expected)
    assert x.shape == (2, 728, 6, 4)


@torch.no_grad()
def test_middle_blocks_are_timms_on_inputs_without_negatives(pair):
    theirs, ours, _ = pair
    x = torch.randn(1, 728, 6, 4, generator=torch.Generator().manual_seed(2))
    for number in range(4, 20):
        block, reference = getattr(ours.backbone, f'block{number}'), theirs.blocks[number - 1]
        assert_equal(block(x.relu())[0], reference(x.relu()))
        assert_equal(block(x)[0] - x.relu(), reference(x) - x)   # the residuals are equal, the skips not
        assert not torch.allclose(block(x)[0], reference(x), rtol=0.1)


def without_dilation(theirs, monkeypatch):
    for k in (1, 2, 3):
        conv = theirs.blocks[20].stack.get_submodule(f'conv{k}').conv_dw
        assert conv.dilation == (2, 2)
        monkeypatch.setattr(conv, 'dilation', (1, 1))
        monkeypatch.setattr(conv, 'padding', (1, 1))


@torch.no_grad()
def test_exit_flow_is_timms_without_dilation(pair, monkeypatch):
    theirs, ours, _ = pair
    without_dilation(theirs, monkeypatch)
    x = torch.randn(1, 728, 6, 4, generator=torch.Generator().manual_seed(3))
    expected = theirs.blocks[20](theirs.blocks[19](x))
    encoder = ours.backbone
    assert_equal(encoder.conv5(encoder.conv4(encoder.conv3(encoder.block20(x)[0]))), expected)


@torch.no_grad()
def test_the_whole_encoder_is_timms(pair, images, monkeypatch):
    """All three differences set aside: grey border, no dilation, skips that carry relu(input)."""
    theirs, ours, _ = pair
    grey_border(ours, monkeypatch)
    without_dilation(theirs, monkeypatch)
    for block in theirs.blocks:
        if block.shortcut is None and not block.no_skip:
            original = type(block).forward
            monkeypatch.setattr(block, 'forward', types.MethodType(
                lambda self, x, original=original: original(self, F.relu(x)), block))
    features, low_level = ours.backbone(images)
    assert low_level.shape == (2, 256, 24, 16)
    expected = theirs.forward_features(2 * images - 1)   # (2, 2048, 6, 4)
    assert_equal(features, expected)
    assert float((expected > 0).float().mean()) > 0.2 and float(expected.std()) > 0.1   # not all alike


def test_only_what_follows_the_encoder_keeps_its_values(pair):
    _, ours, before = pair
    kept = {name for name, tensor in ours.state_dict().items()
            if tensor.is_floating_point() and torch.equal(tensor, before[name])}
    assert kept == {name for name in before if name.startswith(weights.AFTER_ENCODER)
                    and before[name].is_floating_point()}


@torch.no_grad()
def test_a_network_with_timms_epsilon_gets_timms_variances(pair):
    theirs, ours, _ = pair
    network = deeplabv3plus(bn_eps=1e-3).eval()
    weights.load_timm_xception65(network, theirs.state_dict())
    x = torch.rand(1, 728, 4, 4, generator=torch.Generator().manual_seed(3))
    place = 'block9.sepconv2'
    own, reference = (one.backbone.get_submodule(place) for one in (network, ours))
    norm = theirs.blocks[8].stack.conv2.bn_dw
    torch.testing.assert_close(own.bn1.running_var, norm.running_var)
    assert_equal(own(x), reference(x))               # in evaluation the variance may hold it as well
    trained = F.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    assert_equal(own.bn1.train()(x), trained)        # in training it could not


def test_batch_norms_differ_unless_the_epsilon_moves_into_the_variance(pair, monkeypatch):
    theirs, ours, _ = pair
    reference, name = theirs.blocks[8].stack.conv2.bn_dw, 'backbone.block9.sepconv2.bn1'
    x = torch.randn(1, 728, 4, 4, generator=torch.Generator().manual_seed(4))
    norm = ours.get_submodule(name)
    assert (reference.eps, norm.eps) == (1e-3, 1e-5)
    assert_equal(norm(x), reference(x))
    monkeypatch.setattr(weights, 'TIMM_VARIANCE', 0.0)
    plain = weights.encoder_from_timm(theirs.state_dict())
    parts = [plain[f'{name}.{part}'] for part in ('running_mean', 'running_var', 'weight', 'bias')]
    assert not torch.allclose(F.batch_norm(x, *parts, eps=norm.eps), reference(x), rtol=0.1)


@pytest.fixture
def constants():
    """timm's state dict of zeros, without memory for them."""
    with torch.device('meta'):
        network = timm.create_model('xception65', pretrained=False)
    return {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
            for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize('change, complaint', [
    ({'blocks.20.stack.conv3.bn_pw.bias': None}, 'backbone.conv5.bn2.bias is missing'),
    ({'stem.0.conv.weight': None}, 'backbone.conv1.weight is missing'),
    ({'blocks.5.norm.weight': torch.zeros(728)}, 'blocks.5.norm.weight is not a parameter of deeplabv3plus'),
    ({'stem.0.conv.weight': torch.zeros(32, 4, 3, 3)}, 'backbone.conv1.weight has shape'),
    ({'stem.0.conv.weight': torch.zeros(32)}, 'backbone.conv1.weight has shape (32,)'),
])
def test_names_and_shapes_at_fault_are_named(constants, change, complaint):
    with torch.device('meta'):
        network = deeplabv3plus()
    state = {name: tensor for name, tensor in (constants | change).items() if tensor is not None}
    with pytest.raises(ValueError) as error:
        weights.load_timm_xception65(network, state)
    assert complaint in str(error.value)


def test_half_precision_renamed_files_and_files_without_counters_load(pair):
    theirs, ours, _ = pair
    state = {f'module.{name}': tensor.half() for name, tensor in theirs.state_dict().items()
             if not name.endswith('num_batches_tracked')}
    network = deeplabv3plus()
    weights.load_timm_xception65(network, state)
    assert_equal(network.backbone.conv5.pointwise.weight, ours.backbone.conv5.pointwise.weight.half().float())
    renamed = weights.encoder_from_timm(theirs.state_dict())
    weights.load_timm_xception65(network, renamed)   # as models/download.py writes them
    assert torch.equal(network.backbone.conv1.weight, ours.backbone.conv1.weight)
    assert torch.equal(network.backbone.bn2.running_var, ours.backbone.bn2.running_var)
