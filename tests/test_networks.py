"""The three networks: names, shapes, reference outputs, and that tools can trace them.

Weights are made by a rule from the parameters' names, so that the released architecture's outputs
can be written down here without its files; `../shared/compat` is compared as well where it exists.
"""
import hashlib
import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from net.models import ASPP, Xception_dilation, deeplabv3plus, deeplabv3plus_en
from net.xception import Block

COMPAT = Path(__file__).resolve().parent.parent.parent / 'shared' / 'compat'
TOLERANCE = 1e-4
BUILD = {'coarse': deeplabv3plus, 'enhanced': deeplabv3plus_en, 'mask': Xception_dilation}
SHARED_NAMES = {'coarse': 'deeplabv3plus(num_classes=2)', 'enhanced': 'deeplabv3plus_en(num_classes=2)',
                'mask': 'Xception_dilation(input_channel=4, num_classes=3)'}

# Entries of the state dict, millions of parameters, sha256 of its sorted 'name shape' lines.
FACTS = {
    'coarse': (857, 54.7, 'd321cebb9f9666b45071007c1893883773e546a6e5e35db98dd930a7f0ecbd88'),
    'enhanced': (864, 54.8, '16c54bef57f17c44904405352ae49446f64395cc99e569f27232b7b1241f1454'),
    'mask': (276, 20.8, 'a6bf29f9dcfd4fa4d9f9bb7c2c185d3794d454dfa3753fd855af43227d6941eb')}

# Logits at [:, :, 16::64, 8::40] of a (2, 2, 96, 96) output.
COARSE = [0.677843, 0.703217, 0.679129, 0.947908, 0.742815, 0.4312, 0.664273, 0.689456, 0.754309,
          0.491391, 0.701688, 0.471984, 0.724503, 0.683892, 0.686702, 0.930034, 0.705216, 0.413773,
          0.682439, 0.666296, 0.791324, 0.509047, 0.766718, 0.44283]
ENHANCED = [0.320456, 0.485182, 0.381597, 0.39857, 0.355514, 0.435578, 0.022506, 0.128405, -0.004632,
            0.19825, 0.23066, 0.192071, 0.349979, 0.455352, 0.362941, 0.436181, 0.323376, 0.426945,
            0.036063, 0.127367, 0.00358, 0.216317, 0.217609, 0.20042]
# relu_skip -> logits (2, 3), spatial means of every 350th of the 2048 channels.
MASK = {
    False: ([0.199786, 0.704486, 0.545934, 0.223681, 0.698681, 0.555137],
            [0.117793, 0.254555, 0.369309, 0.097689, 0.279126, 0.018378, 0.128585, 0.252186, 0.415796,
             0.127382, 0.293601, 0.008167]),
    True: ([0.602385, 0.753773, 0.419074, 0.588884, 0.743213, 0.399188],
           [0.255967, 0.456212, 0.825822, 0.172693, 0.418334, 0.084748, 0.260459, 0.48469, 0.815996,
            0.175694, 0.420919, 0.081898])}


def made_by_rule(name, like):
    """A parameter's value from its name alone; `like` gives the shape."""
    shape, g = like.shape, torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith('num_batches_tracked'):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith('running_var'):
        return 0.5 + torch.rand(shape, generator=g)
    if len(shape) >= 2:
        return torch.randn(shape, generator=g) * math.sqrt(1 / like[0].numel())
    if name.endswith('.weight'):
        return 0.5 + torch.rand(shape, generator=g)
    return 0.1 * torch.randn(shape, generator=g)


def build(kind):
    with torch.device('meta'):
        network = BUILD[kind]()
    state = {name: made_by_rule(name, tensor) for name, tensor in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope='module')
def networks():
    return {kind: build(kind) for kind in BUILD}


def random(seed, *shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(kind, batch=2, side=96):
    """Inputs of the reference outputs, cut down to a smaller batch and side."""
    if kind == 'mask':
        return (random(2, 2, 4, 96, 96)[:batch, :, :side, :side],)
    rgb = random(0, 2, 3, 96, 96)[:batch, :, :side, :side]
    cam = random(1, 2, 1, 6, 6)[:batch, :, :side // 16, :side // 16]
    return (rgb, cam) if kind == 'enhanced' else (rgb,)


def set_relu_skip(network, value):
    """Turn mask-CN into the released variant or back; what its constructor does with relu_skip."""
    for block in network.modules():
        if isinstance(block, Block):
            block.relu_skip = value and isinstance(block.rep[0], torch.nn.ReLU)


def assert_near(found, expected):
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < TOLERANCE


# --- Identity with the released architecture

@pytest.mark.parametrize('kind', BUILD)
def test_names_and_shapes_are_the_released_codes(kind):
    with torch.device('meta'):
        network = BUILD[kind]()
    state = network.state_dict()
    lines = '\n'.join(sorted(f'{name} {tuple(tensor.shape)}' for name, tensor in state.items()))
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert (len(state), round(millions, 1), hashlib.sha256(lines.encode()).hexdigest()) == FACTS[kind]


def test_names_and_shapes_are_those_of_the_shared_file():
    path = COMPAT / 'state_dict_keys.json'
    if not path.is_file():
        pytest.skip(f'{path} is not here')
    expected = json.loads(path.read_text())
    for kind, name in SHARED_NAMES.items():
        with torch.device('meta'):
            state = BUILD[kind]().state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == expected[name]


@pytest.mark.parametrize('kind, expected', [('coarse', COARSE), ('enhanced', ENHANCED)])
def test_segmentation_logits_are_the_reference(networks, kind, expected):
    logits = networks[kind](*inputs(kind))
    assert logits.shape == (2, 2, 96, 96)
    assert_near(logits[:, :, 16::64, 8::40].flatten(), expected)


@pytest.mark.parametrize('relu_skip', [False, True])
def test_mask_cn_is_the_reference_in_both_variants(networks, relu_skip):
    logits, means = maskcn_outputs(networks['mask'], relu_skip)
    assert_near(logits.flatten(), MASK[relu_skip][0])
    assert_near(means[:, ::350].flatten(), MASK[relu_skip][1])


def maskcn_outputs(network, relu_skip):
    """Logits (2, 3) and spatial feature means (2, 2048) of one variant; the network stays 'clean'."""
    set_relu_skip(network, relu_skip)
    features = network.features(*inputs('mask'))
    set_relu_skip(network, False)
    return network.classify(features), features.mean((2, 3))


def test_the_whole_outputs_are_those_of_the_shared_file(networks):
    path = COMPAT / 'reference_outputs.npz'
    if not path.is_file():
        pytest.skip(f'{path} is not here')
    expected = np.load(path)
    for kind in ('coarse', 'enhanced'):
        assert_near(networks[kind](*inputs(kind)), expected[f'{kind}_logits'])
    for relu_skip, name in ((False, 'clean'), (True, 'released')):
        logits, means = maskcn_outputs(networks['mask'], relu_skip)
        assert_near(logits, expected[f'maskcn_{name}_logits'])
        assert_near(means, expected[f'maskcn_{name}_features_mean'])


@pytest.mark.parametrize('relu_skip', [False, True])
def test_the_constructor_chooses_the_variant(relu_skip):
    with torch.device('meta'):
        network = Xception_dilation(relu_skip=relu_skip)
    chosen = {name: block.relu_skip for name, block in network.named_modules() if isinstance(block, Block)}
    assert chosen.pop('block1') is False   # has no leading ReLU in either variant
    assert set(chosen.values()) == {relu_skip} and len(chosen) == 10


@pytest.mark.parametrize('branch, rate', [('branch1', 0), ('branch2', 6), ('branch3', 12), ('branch4', 18)])
def test_the_pyramids_branches_look_this_far(branch, rate):
    """The reference outputs cannot tell: on their 6 x 6 maps every rate reaches the padding alone."""
    convolution, impulse = getattr(ASPP(1, 1), branch)[0], torch.zeros(1, 1, 41, 41)
    impulse[0, 0, 20, 20] = 1
    response = (convolution(impulse) - convolution.bias[:, None, None])[0, 0]
    reached = {20 - rate, 20, 20 + rate}
    assert set(map(tuple, response.nonzero().tolist())) == {(y, x) for y in reached for x in reached}


@pytest.mark.parametrize('side, cells', [(224, 14), (256, 16), (288, 18)])
def test_input_sides_and_map_sides(side, cells):
    with torch.device('meta'):
        coarse, enhanced, mask = deeplabv3plus(), deeplabv3plus_en(1), Xception_dilation()
        rgb, cam, rgbm = (torch.empty(2, channels, size, size)
                          for channels, size in ((3, side), (1, cells), (4, side)))
    features, low_level = coarse.backbone(rgb)
    assert features.shape == (2, 2048, cells, cells)
    assert low_level.shape == (2, 256, side // 4, side // 4)
    assert mask.features(rgbm).shape == (2, 2048, cells, cells) and mask(rgbm).shape == (2, 3)
    assert coarse(rgb).shape == (2, 2, side, side) and enhanced(rgb, cam).shape == (2, 1, side, side)


def test_a_new_network_starts_with_identity_batch_norms_and_finite_outputs():
    network = Xception_dilation(input_channel=3)
    norms = [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)
    with torch.no_grad():
        logits = network.train()(random(3, 2, 3, 64, 64))
    assert logits.isfinite().all() and logits.abs().max() < 100


def test_dropout_can_be_turned_off():
    with torch.device('meta'):
        networks = {on: deeplabv3plus(dropout=on) for on in (True, False)}
    rates = {on: [layer.p for layer in network.modules() if isinstance(layer, torch.nn.Dropout)]
             for on, network in networks.items()}
    assert rates == {True: [0.5, 0.5, 0.1], False: [0.0, 0.0, 0.0]}


# --- What tools and callers rely on

@pytest.mark.parametrize('kind', BUILD)
def test_export_gives_the_same_outputs(networks, kind):
    small = inputs(kind, 1, 64)
    exported = torch.export.export(networks[kind], small)
    torch.testing.assert_close(exported.module()(*small), networks[kind](*small))


@pytest.mark.parametrize('kind', BUILD)
def test_compile_meets_no_graph_break(networks, kind):
    small = inputs(kind, 1, 64)
    compiled = torch.compile(networks[kind], fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(*small), networks[kind](*small))
    torch.compiler.reset()


@pytest.mark.parametrize('kind', BUILD)
def test_forward_leaves_no_state_behind(networks, kind):
    network, small = networks[kind], inputs(kind, 1, 64)
    copies = [tensor.clone() for tensor in small]
    parameters = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = {name: dict(vars(module)) for name, module in network.named_modules()}
    first, second = network(*small), network(*small)
    assert torch.equal(first, second)
    for name, module in network.named_modules():
        now = vars(module)
        assert now.keys() == before[name].keys()
        assert all(now[key] is before[name][key] for key in now)
    assert all(torch.equal(tensor, parameters[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(small, copies, strict=True))


def test_features_and_classify_make_up_forward(networks):
    network, x = networks['mask'], inputs('mask', 2, 64)[0]
    assert torch.equal(network.classify(network.features(x)), network(x))


@pytest.mark.parametrize('kind', ['coarse', 'mask'])
def test_bf16_autocast_stays_close_to_float32(networks, kind):
    network, x = networks[kind], inputs(kind)[0]
    encode = network.features if kind == 'mask' else lambda x: network.backbone(x)[0]
    exact = encode(x)
    with torch.autocast('cpu', torch.bfloat16):
        rough = encode(x)
    assert rough.dtype is torch.bfloat16
    assert (rough.float() - exact).norm() < 0.03 * exact.norm()
