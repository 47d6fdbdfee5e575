"""Public weight files under our names: what loads, what must stay as it was, and what is refused.

Networks are built on the meta device and filled with UNTOUCHED, so that what a loader left alone is
seen exactly; files are synthetic, each tensor one constant, so that a mix-up of names is seen too.
"""
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from engine import checkpoints
from net import weights
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en
from net.xception import AlignedXception65

XCEPTION_FILE = (Path(__file__).resolve().parent.parent.parent / 'shared' / 'weights'
                 / 'xception_imagenet_notop_fp16.pth')
UNTOUCHED = -7.0

# Mask-CN's exit flow -> Cadene's names (section 4 of the facts), written out the other way round.
CADENE = {'residual.0': 'block12.skip', 'residual.1': 'block12.skipbn', 'SepConv1.1': 'block12.rep.1',
          'SepConv1.2': 'block12.rep.2', 'SepConv2.1': 'block12.rep.4', 'SepConv2.2': 'block12.rep.5',
          'SepConv3.0': 'conv3', 'SepConv3.1': 'bn3', 'SepConv4.0': 'conv4', 'SepConv4.1': 'bn4',
          'cls': 'fc'}
EXIT_FLOW = ('residual.', 'SepConv1.', 'SepConv2.', 'SepConv3.', 'SepConv4.')


def untouched(build, *options):
    with torch.device('meta'):
        network = build(*options)
    network.to_empty(device='cpu')
    for tensor in network.state_dict().values():
        tensor.fill_(UNTOUCHED)
    return network


def cadene_name(name):
    place = next((place for place in CADENE if name.startswith(place + '.')), '')
    return CADENE[place] + name[len(place):] if place else name


def constants(shapes):
    """name -> shape or tensor, each filled with a number of its own (memory for one number)."""
    return {name: torch.tensor(number, dtype=like.dtype, device='cpu').expand(like.shape)
            for number, (name, like) in enumerate(shapes.items(), 1)}


@pytest.fixture(scope='module')
def imagenet():
    """An ImageNet Xception file of constants under Cadene's names, with fc.* and without counters."""
    with torch.device('meta'):
        own = Xception_dilation(3, 1000).state_dict()
    return constants({cadene_name(name): tensor for name, tensor in own.items()
                      if not name.endswith('num_batches_tracked')})


COUNTER = 'num_batches_tracked'   # of no use here; files may lack it


def left_alone(network):
    return {name for name, tensor in network.state_dict().items()
            if (tensor == UNTOUCHED).all() and not name.endswith(COUNTER)}


def names(network, *prefixes):
    return {name for name in network.state_dict() if name.startswith(prefixes) and not name.endswith(COUNTER)}


# --- Mask-CN from the ImageNet Xception

@pytest.mark.parametrize('channels', [3, 4])
def test_the_imagenet_file_fills_all_but_the_classifier(imagenet, channels):
    network = untouched(Xception_dilation, channels)
    weights.load_imagenet_xception(network, imagenet)
    assert left_alone(network) == {'cls.weight', 'cls.bias'}
    for name, tensor in network.state_dict().items():
        if not name.startswith('cls.') and not name.endswith(COUNTER):
            assert (tensor == imagenet[cadene_name(name)].flatten()[0]).all(), name


def test_the_released_filter_leaves_exactly_the_exit_flow_random(imagenet):
    network = untouched(Xception_dilation)
    weights.load_imagenet_xception(network, imagenet, exit_flow=False)
    assert left_alone(network) == names(network, 'cls.', *EXIT_FLOW)
    share = sum(tensor.numel() for name, tensor in network.named_parameters() if name in
                names(network, *EXIT_FLOW)) / sum(tensor.numel() for tensor in network.parameters())
    assert share > 0.3


def test_the_fourth_input_channel_is_the_mean_of_rgb(imagenet):
    rgb = torch.randn(32, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    network = untouched(Xception_dilation)
    weights.load_imagenet_xception(network, imagenet | {'conv1.weight': rgb})
    assert torch.equal(network.conv1.weight[:, :3], rgb)
    torch.testing.assert_close(network.conv1.weight[:, 3], (rgb[:, 0] + rgb[:, 1] + rgb[:, 2]) / 3)


def test_half_precision_files_and_wrapper_prefixes_load(imagenet):
    state = {f'module._orig_mod.{name}': tensor.half() for name, tensor in imagenet.items()}
    network = untouched(Xception_dilation)
    weights.load_imagenet_xception(network, state)
    assert left_alone(network) == {'cls.weight', 'cls.bias'}
    assert {tensor.dtype for tensor in network.parameters()} == {torch.float32}


@pytest.mark.parametrize('change, complaint', [
    ({'block5.rep.1.conv1.weight': None}, 'block5.rep.1.conv1.weight is missing'),
    ({'conv1.weight': None}, 'conv1.weight is missing'),
    ({'conv1.weight': torch.zeros(32)}, 'conv1.weight has shape (32,) instead of (32, 4, 3, 3)'),
    ({'block12.rep.4.pointwise.weight': None}, 'SepConv2.1.pointwise.weight is missing'),
    ({'block13.skip.weight': torch.zeros(1)}, 'block13.skip.weight is not a parameter of Xception_dilation'),
    ({'conv2.weight': torch.zeros(64, 3, 3, 3)}, 'conv2.weight has shape (64, 3, 3, 3) instead of'),
    ({'cls.weight': torch.zeros(3, 2048)}, 'cls.weight should not be in the file'),
])
def test_names_and_shapes_at_fault_are_named(imagenet, change, complaint):
    state = {name: tensor for name, tensor in (imagenet | change).items() if tensor is not None}
    network = untouched(Xception_dilation)
    with pytest.raises(ValueError) as error:
        weights.load_imagenet_xception(network, state)
    assert complaint in str(error.value)
    assert left_alone(network) == names(network, '')   # nothing was half loaded


def test_of_many_faults_five_are_named_and_the_rest_counted():
    network = untouched(Xception_dilation)
    with pytest.raises(ValueError, match=r'\(and 231 more\)') as error:
        checkpoints.load_parameters(network, {})
    assert str(error.value).count('is missing') == 5


def test_the_real_imagenet_file_fills_all_but_the_classifier():
    if not XCEPTION_FILE.is_file():
        pytest.skip(f'{XCEPTION_FILE} is not here')
    state = checkpoints.load_state(XCEPTION_FILE, '')
    network = untouched(Xception_dilation)
    weights.load_imagenet_xception(network, state)
    assert left_alone(network) == {'cls.weight', 'cls.bias'}
    assert torch.equal(network.SepConv4[0].pointwise.weight, state['conv4.pointwise.weight'].float())
    torch.testing.assert_close(network.conv1.weight[:, 3], state['conv1.weight'].float().mean(1))


# --- Prefixes, VOC weights, enhanced-SN from coarse-SN

def test_wrapper_prefixes_are_stripped_wherever_they_begin_a_name():
    state = {'module.a': 1, '_orig_mod.module.b': 2, 'module._orig_mod.c.module.d': 3, 'modules.e': 4}
    assert checkpoints.strip_prefixes(state) == {'a': 1, 'b': 2, 'c.module.d': 3, 'modules.e': 4}


@pytest.fixture(scope='module')
def voc():
    """DeepLabv3+ of 21 classes as DataParallel saves it, of constants."""
    with torch.device('meta'):
        own = deeplabv3plus(21).state_dict()
    return constants({f'module.{name}': tensor for name, tensor in own.items()})


@pytest.mark.parametrize('classes', [1, 2, 21])
def test_the_voc_file_fills_all_but_the_last_convolution(voc, classes):
    network = untouched(deeplabv3plus, classes)
    weights.load_voc(network, voc)
    assert left_alone(network) == {'cls_conv.weight', 'cls_conv.bias'}
    for name, tensor in network.state_dict().items():
        if not name.startswith('cls_conv.'):
            assert (tensor == voc[f'module.{name}'].flatten()[0]).all(), name


def test_a_voc_file_without_a_tensor_is_refused(voc):
    state = {name: tensor for name, tensor in voc.items() if 'block7.sepconv2.bn1' not in name}
    with pytest.raises(ValueError, match='backbone.block7.sepconv2.bn1.weight is missing'):
        weights.load_voc(untouched(deeplabv3plus), state)


def test_enhanced_from_coarse_leaves_exactly_the_e_layer(voc):
    with torch.device('meta'):
        state = constants(deeplabv3plus(2).state_dict())
    network = untouched(deeplabv3plus_en)
    weights.load_coarse_into_enhanced(network, state)
    assert left_alone(network) == names(network, 'cam_conv.') and len(left_alone(network)) == 6
    with pytest.raises(ValueError, match='cls_conv.weight has shape'):
        weights.load_coarse_into_enhanced(untouched(deeplabv3plus_en, 1), state)
    with pytest.raises(ValueError, match='cam_conv.0.weight should not be in the file'):
        weights.load_coarse_into_enhanced(network, network.state_dict())


# --- Section 3b: the ImageNet Xception transplanted into the 65-layer encoder

def drawn(shapes, seed=0):
    """name -> random tensor on a scale that keeps activations near one."""
    g, state = torch.Generator().manual_seed(seed), {}
    for name, like in shapes.items():
        if like.dim() >= 2:
            state[name] = torch.randn(like.shape, generator=g) * math.sqrt(2 / like[0].numel())
        elif name.endswith(('.weight', 'running_var')):
            state[name] = 0.5 + torch.rand(like.shape, generator=g)
        else:
            state[name] = 0.1 * torch.randn(like.shape, generator=g)
    return state


def source_of(kind):
    if kind == 'real':
        if not XCEPTION_FILE.is_file():
            pytest.skip(f'{XCEPTION_FILE} is not here')
        return checkpoints.load_state(XCEPTION_FILE, '')
    with torch.device('meta'):
        own = Xception_dilation(3).state_dict()
    return drawn({cadene_name(name): tensor for name, tensor in own.items()
                  if not name.startswith('cls.') and not name.endswith('num_batches_tracked')})


@pytest.fixture(scope='module', params=['synthetic', 'real'])
def transplant(request):
    """Encoder after the transplant, its parameters before, the source, and the calibration images."""
    source = source_of(request.param)
    with torch.device('meta'):
        encoder = AlignedXception65()
    encoder.to_empty(device='cpu')
    before = {name: tensor.clone() for name, tensor in drawn(encoder.state_dict(), seed=1).items()}
    encoder.load_state_dict(before)
    for norm in norms_of(encoder):
        norm.reset_parameters()
    images = F.interpolate(torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(2)), (64, 64),
                           mode='bilinear')
    encoder.eval()
    weights.transplant_xception(SimpleNamespace(backbone=encoder), source, images)
    return SimpleNamespace(encoder=encoder, before=before, source=source, images=images)


def norms_of(network):
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


OWN = [f'block{b}.sepconv3' for b in (1, 2, 3, 20)] + ['conv4']   # separable convolutions without a source


def calibrated(encoder):
    """The batch norms that the source does not have."""
    chosen = {f'block{b}.sepconv{k}.bn1' for b in range(1, 21) for k in (1, 2, 3)}
    chosen |= {'conv3.bn1', 'conv4.bn1', 'conv5.bn1', *(f'{place}.bn2' for place in OWN)}
    return {name: layer for name, layer in encoder.named_modules() if name in chosen}


def test_transplanted_tensors_are_the_sources(transplant):
    state = transplant.encoder.state_dict()
    pairs = {'block1.sepconv1.depthwise': 'block1.rep.0.conv1', 'block1.sepconv2.bn2': 'block1.rep.4',
             'block2.sepconv1.pointwise': 'block2.rep.1.pointwise', 'block3.skip': 'block3.skip',
             'block3.sepconv2.bn2': 'block3.rep.5', 'block9.sepconv3.pointwise': 'block9.rep.7.pointwise',
             'block9.sepconv3.bn2': 'block9.rep.8', 'block14.sepconv2.depthwise': 'block6.rep.4.conv1',
             'block14.sepconv2.bn2': 'block6.rep.5', 'block20.sepconv2.bn2': 'block12.rep.5',
             'block20.skipbn': 'block12.skipbn', 'conv3.pointwise': 'conv3.pointwise', 'conv3.bn2': 'bn3',
             'conv5.depthwise': 'conv4.conv1', 'conv5.bn2': 'bn4'}
    for ours, theirs in pairs.items():
        parts = [part for part in ('weight', 'bias', 'running_mean', 'running_var')
                 if f'{theirs}.{part}' in transplant.source]
        assert parts
        for part in parts:
            assert torch.equal(state[f'{ours}.{part}'], transplant.source[f'{theirs}.{part}'].float()), ours


def test_no_layer_keeps_its_random_weights(transplant):
    assert not [name for name, tensor in transplant.encoder.state_dict().items()
                if tensor.dim() >= 2 and torch.equal(tensor, transplant.before[name])]


@pytest.mark.parametrize('training', [False, True])
def test_layers_without_a_source_pass_their_input_through(transplant, training):
    """Rectified, and every second cell of it in the blocks with stride 2."""
    encoder, met = transplant.encoder, {}
    hooks = [encoder.get_submodule(place).register_forward_hook(
        lambda layer, inputs, output, place=place: met.update({place: (layer, inputs[0], output)}))
        for place in OWN]
    saved = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if tensor.dim() < 2}
    with torch.no_grad():
        encoder.train(training)(transplant.images)
    for hook in hooks:
        hook.remove()
    encoder.eval().load_state_dict(saved, strict=False)
    assert list(met) == OWN
    for layer, x, output in met.values():
        stride = layer.depthwise.stride[0]
        expected = F.relu(x)[:, :, ::stride, ::stride]
        assert float((output - expected).abs().max() / expected.abs().max()) < 1e-4
        assert expected.std() > 0.01


def test_calibrated_batch_norms_are_the_identity_on_the_calibration_images(transplant):
    encoder, met = transplant.encoder, []

    def compare(_norm, inputs, output):
        scale = inputs[0].abs().max()
        met.append(float((output - inputs[0]).abs().max() / scale))

    chosen = calibrated(encoder)
    hooks = [norm.register_forward_hook(compare) for norm in chosen.values()]
    saved = {name: tensor.clone() for name, tensor in encoder.state_dict().items() if tensor.dim() < 2}
    with torch.no_grad():
        encoder.train()(transplant.images)
    for hook in hooks:
        hook.remove()
    encoder.eval().load_state_dict(saved, strict=False)
    assert len(met) == len(chosen) == 60 + 3 + 5
    assert max(met) < 1e-4


def test_calibrated_batch_norms_are_the_identity_in_evaluation_mode_too(transplant):
    for norm in calibrated(transplant.encoder).values():
        x = torch.randn(1, norm.num_features, 2, 2, generator=torch.Generator().manual_seed(3))
        x = norm.running_mean[:, None, None] + norm.running_var.sqrt()[:, None, None] * x
        torch.testing.assert_close(norm.eval()(x), x, rtol=1e-3, atol=1e-4)


def test_the_transplant_leaves_mode_momentum_and_hooks_as_they_were(transplant):
    encoder = transplant.encoder
    assert not encoder.training and {norm.momentum for norm in norms_of(encoder)} == {0.1}
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())


@pytest.mark.parametrize('training', [False, True])
def test_repeated_blocks_start_as_the_identity(transplant, training):
    x = torch.randn(2, 728, 4, 4, generator=torch.Generator().manual_seed(4))
    for number in range(12, 20):
        block = getattr(transplant.encoder, f'block{number}')
        saved = {name: tensor.clone() for name, tensor in block.state_dict().items()}
        with torch.no_grad():
            output, _ = block.train(training)(x)
        block.eval().load_state_dict(saved)
        assert torch.equal(output, F.relu(x))   # the skip of a block without convolution is relu(x)


def test_the_stem_is_the_sources_on_symmetric_input(transplant):
    """The source pads nothing and reads 2x - 1; ours pads by one, so an image less its first row and
    column gives the same values inside, one cell further on."""
    encoder, source = transplant.encoder, {k: v.float() for k, v in transplant.source.items()}
    with torch.no_grad():
        x, ours = 2 * transplant.images - 1, transplant.images[:, :, 1:, 1:]
        for name, stride in (('conv1', 2), ('conv2', 1)):
            norm = [source[f'bn{name[-1]}.{part}'] for part in ('running_mean', 'running_var', 'weight',
                                                               'bias')]
            x = F.relu(F.batch_norm(F.conv2d(x, source[f'{name}.weight'], stride=stride), *norm))
            layer, norm = getattr(encoder, name), getattr(encoder, f'bn{name[-1]}')
            ours = F.relu(norm(layer(ours)))
    torch.testing.assert_close(ours[:, :, 2:30, 2:30], x[:, :, 1:29, 1:29], rtol=1e-3, atol=1e-4)


def test_a_file_that_is_no_xception_is_refused_by_name(imagenet):
    state = {name: tensor for name, tensor in imagenet.items() if not name.startswith('block12.rep.2')}
    encoder = untouched(AlignedXception65)
    with pytest.raises(ValueError, match='block12.rep.2.weight is missing: not an ImageNet Xception'):
        weights.transplant_xception(SimpleNamespace(backbone=encoder), state, torch.rand(1, 3, 32, 32))
