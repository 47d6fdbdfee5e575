"""From public weight files to our parameter names, with exact checks of what does and does not load.

Everything here works on state dicts (name -> tensor); files are opened in `engine.checkpoints`.
"""
import torch
from torch import nn

from engine.checkpoints import load_parameters, strip_prefixes
from net.models import EPSILON, STRIDE

# ImageNet Xception (Cadene's names) -> mask-CN. The released code filtered these names away and
# trained two thirds of mask-CN from random weights.
EXIT_FLOW = {'block12.skip': 'residual.0', 'block12.skipbn': 'residual.1',
             'block12.rep.1': 'SepConv1.1', 'block12.rep.2': 'SepConv1.2',
             'block12.rep.4': 'SepConv2.1', 'block12.rep.5': 'SepConv2.2',
             'conv3': 'SepConv3.0', 'bn3': 'SepConv3.1', 'conv4': 'SepConv4.0', 'bn4': 'SepConv4.1'}
CLASSIFIERS = ('fc.', 'last_linear.', 'classifier.')

# timm's aligned Xception-65 -> the encoder of coarse-SN, within a separable convolution.
TIMM_LAYERS = {'conv_dw': 'depthwise', 'bn_dw': 'bn1', 'conv_pw': 'pointwise', 'bn_pw': 'bn2'}
TIMM_VARIANCE = 1e-3 - EPSILON   # timm's batch norms add 1e-3 to the variance, the renamed file's 1e-5
BEFORE_DECODER = ('backbone.', 'aspp.', 'shortcut_conv.')
AFTER_ENCODER = ('aspp.', 'shortcut_conv.', 'cat_conv.', 'cls_conv.')

# Separable convolutions of the encoder that the 36-layer Xception has no counterpart of. Left random in the
# middle of the main path they would scramble all that is copied around them.
WITHOUT_SOURCE = ('block1.sepconv3', 'block2.sepconv3', 'block3.sepconv3', 'block20.sepconv3', 'conv4')


def load_voc(network, state):
    """Load DeepLabv3+ trained on PASCAL VOC (21 classes): everything but the last 1x1 convolution."""
    load_parameters(network, state, missing=('cls_conv.',), ignored=('cls_conv.',))


def load_coarse_into_enhanced(network, state, inputs=None, std=1.0):
    """Initialise enhanced-SN from coarse-SN: everything but the E-layer (section III-C).

    inputs : (B, 3, H, W) of training pictures, scaled as the network will see them: with them the
        pyramid passes the E-layer as through the identity; None leaves the E-layer as it is
    std : with inputs, standard deviation of the E-layer's weights for the map, beside ones for the pyramid

    Without a map the identity holds for evaluation, and up to the choice of the pictures for training, too:
    the batch norm is set from what enters it in training, batch statistics and dropout included. The map
    then comes on top, a little more or less in each of the 256 channels, which the decoder hardly notices.
    With std = 0 enhanced-SN begins as coarse-SN exactly, but a few hundred steps do not teach it to use even
    the true mask as its map (docs/measurements.md).
    """
    load_parameters(network, state, missing=('cam_conv.',))
    if inputs is not None:
        conv, norm, _ = network.cam_conv   # the ReLU changes nothing: the pyramid has no negative values
        nn.init.dirac_(conv.weight)        # (256, 257, 1, 1): the pyramid's part I, the map's column 0
        nn.init.zeros_(conv.bias)
        rows, columns = (side // STRIDE for side in inputs.shape[2:])
        _calibrate(network, [norm], inputs, inputs.new_zeros(len(inputs), 1, rows, columns))
        with torch.no_grad():
            conv.weight[:, -1].normal_(std=std)


def load_coarse_decoder(network, state):
    """Initialise D-Net from coarse-SN's decoder: everything but the 1x1 convolution on the map.

    Of the 304 input channels of `cat_conv` it has the first 256, those of the pyramid.
    """
    state, first = strip_prefixes(state), 'cat_conv.0.weight'   # (256, 304, 3, 3)
    if first in state and state[first].shape[1:2] == (304,):
        state[first] = state[first][:, :256]
    load_parameters(network, state, missing=('cam_conv.',), ignored=BEFORE_DECODER)


def load_imagenet_xception(network, state, exit_flow=True):
    """Load the ImageNet Xception into mask-CN: everything but the classifier.

    The filters of a 4th input channel are the mean of the RGB filters.
    exit_flow : False leaves the exit flow random, as the released code's name filter did
    """
    state = {_maskcn_name(name): tensor.float() if tensor.is_floating_point() else tensor
             for name, tensor in strip_prefixes(state).items()}
    rgb = state.get('conv1.weight', torch.empty(0))   # (32, 3, 3, 3)
    extra = network.conv1.in_channels - 3
    if extra > 0 and rgb.dim() == 4 and rgb.is_floating_point():
        state['conv1.weight'] = torch.cat([rgb, rgb.mean(1, keepdim=True).expand(-1, extra, -1, -1)], 1)
    missing, ignored = ['cls.'], list(CLASSIFIERS)
    if not exit_flow:
        random = sorted({target.partition('.')[0] + '.' for target in EXIT_FLOW.values()})
        missing, ignored = missing + random, ignored + random
    load_parameters(network, state, missing=missing, ignored=ignored)


def _maskcn_name(name):
    for source, target in EXIT_FLOW.items():
        if name.startswith(source + '.'):
            return target + name[len(source):]
    return name


def load_timm_xception65(network, state, unit=True):
    """Load timm's aligned Xception-65 (`xception65.tf_in1k`, ImageNet) into the encoder alone.

    network : deeplabv3plus; its ASPP, decoder and last convolution keep their random values
    state : timm's names, or the `backbone.*` names that `encoder_from_timm` makes of them
    unit : inputs will be x/255; the stem is adapted from timm's (x/255 - 0.5)/0.5
    Raises ValueError like `load_parameters`.

    With these weights our encoder computes what timm's computes, save for three things: our
    blocks 4..19 add relu(input) where timm's add the input (see AlignedBlock); at output stride
    16 timm dilates the last three separable convolutions by 2, ours do not; and with `unit` the
    stem pads x with zeros, so black, where timm pads 2x - 1 with zeros, so grey.
    """
    load_parameters(network, encoder_from_timm(state), missing=AFTER_ENCODER)
    for norm in _norms(network.backbone):   # what the network's own epsilon adds need not be in the variance
        norm.running_var.add_(EPSILON - norm.eps).clamp_(min=0)
    if unit:
        _read_unit_inputs(network.backbone)


def encoder_from_timm(state):
    """Rename timm's `xception65` to our `backbone.*`; `head.*` is dropped.

    The different epsilon of the batch norms goes into their running variance, so that the file serves
    networks that add 1e-5; `load_timm_xception65` takes it out again for others. Names that timm's
    encoder does not have stay as they are, for `load_parameters` to refuse; so does a state that is renamed.
    """
    state, layers, renamed = strip_prefixes(state), _timm_layers(), {}
    if any(name.startswith('backbone.') for name in state):
        return state
    for name, tensor in state.items():
        layer, _, part = name.rpartition('.')
        tensor = tensor.float() if tensor.is_floating_point() else tensor
        if part == 'running_var':
            tensor = tensor + TIMM_VARIANCE
        if not name.startswith('head.'):
            renamed[f'backbone.{layers[layer]}.{part}' if layer in layers else name] = tensor
    return renamed


def _timm_layers():
    """{timm's layer: our layer} of the whole encoder."""
    layers = {f'stem.{k}.{kind}': f'{kind}{k + 1}' for k in (0, 1) for kind in ('conv', 'bn')}
    for number in range(21):
        layers[f'blocks.{number}.shortcut.conv'] = f'block{number + 1}.skip'
        layers[f'blocks.{number}.shortcut.bn'] = f'block{number + 1}.skipbn'
        for k in (1, 2, 3):
            sepconv = f'block{number + 1}.sepconv{k}' if number < 20 else f'conv{k + 2}'
            layers |= {f'blocks.{number}.stack.conv{k}.{theirs}': f'{sepconv}.{ours}'
                       for theirs, ours in TIMM_LAYERS.items()}
    return layers


def transplant_xception(network, state, inputs, unit=True):
    """Start coarse-SN's 65-layer encoder from the 36-layer ImageNet Xception (our own, not the paper's).

    Where layers correspond they are copied; blocks 12..19 repeat 4..11 with their last batch
    norm at zero, so that they start as the identity. So do WITHOUT_SOURCE, but for their ReLU and
    stride, where the source pools. The source has no batch norm between depthwise and pointwise
    convolution, so ours is set from data to be the identity.

    network : deeplabv3plus; state : names of `xception-43020ad28.pth`
    inputs : (B, 3, H, W) of training pictures, scaled as the network will see them
    unit : their scaling is x/255; the stem is adapted from the source's (x/255 - 0.5)/0.5
    Raises ValueError when the file lacks a needed tensor.
    """
    source = {name: tensor.float() for name, tensor in strip_prefixes(state).items()}
    encoder, layers = network.backbone, _transplanted_layers()
    try:
        for ours, theirs in layers.items():
            _copy(encoder.get_submodule(ours), source, theirs)
    except KeyError as error:
        raise ValueError(f'{error.args[0]} is missing: not an ImageNet Xception') from None
    if unit:
        _read_unit_inputs(encoder)
    for number in range(12, 20):
        last = encoder.get_submodule(f'block{number}.sepconv3.bn2')
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    identities = [name.replace('depthwise', 'bn1') for name in layers if name.endswith('depthwise')]
    for place in WITHOUT_SOURCE:
        layer = encoder.get_submodule(place)
        nn.init.dirac_(layer.depthwise.weight, groups=layer.depthwise.groups)
        nn.init.dirac_(layer.pointwise.weight)
        identities += [f'{place}.bn1', f'{place}.bn2']
    _calibrate(encoder, [encoder.get_submodule(name) for name in identities], inputs)


def _transplanted_layers():
    """{our layer: the source's layer} of all that is copied."""
    layers = {name: name for name in ('conv1', 'bn1', 'conv2', 'bn2')}
    sepconvs = {'conv3': ('conv3', 'bn3'), 'conv5': ('conv4', 'bn4')}   # ours: convolution, batch norm
    for number in range(1, 21):
        origin = number if number < 12 else 12 if number == 20 else number - 8
        for k in range(3 if 4 <= number < 20 else 2):
            place = 3 * k + (number > 1)   # the source's block1 has no leading ReLU
            sepconvs[f'block{number}.sepconv{k + 1}'] = (f'block{origin}.rep.{place}',
                                                         f'block{origin}.rep.{place + 1}')
        if number in (1, 2, 3, 20):
            layers |= {f'block{number}.{part}': f'block{origin}.{part}' for part in ('skip', 'skipbn')}
    for ours, (convolution, norm) in sepconvs.items():
        layers |= {f'{ours}.depthwise': f'{convolution}.conv1', f'{ours}.bn2': norm,
                   f'{ours}.pointwise': f'{convolution}.pointwise'}
    return layers


def _read_unit_inputs(encoder):
    """Adapt a stem that expects 2x - 1 to reading x: w * (2x - 1) = 2w * x - sum(w)."""
    with torch.no_grad():
        encoder.bn1.running_mean += encoder.conv1.weight.sum((1, 2, 3))
        encoder.conv1.weight *= 2


def _copy(layer, source, place):
    for name in layer.state_dict():
        if name != 'num_batches_tracked':
            own, other = getattr(layer, name).data, source[f'{place}.{name}']
            if own.shape != other.shape:
                raise ValueError(f'{place}.{name} has shape {tuple(other.shape)} instead of '
                                 f'{tuple(own.shape)}')
            own.copy_(other)


def _norms(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def _calibrate(network, identities, *inputs):
    """Set each batch norm to weight = std, bias = mean of its input, in one forward pass in order."""
    def become_identity(norm, entering):
        variance, mean = torch.var_mean(entering[0].float(), (0, 2, 3), correction=0)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)

    norms = _norms(network)
    momenta = [norm.momentum for norm in norms]
    hooks = [norm.register_forward_pre_hook(become_identity) for norm in identities]
    was_training = network.training
    for norm in norms:
        norm.momentum = 0.0   # the copied running statistics stay
    with torch.no_grad():
        network.train()(*inputs)
    network.train(was_training)
    for hook in hooks:
        hook.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
