"""Building each stage's network: from pretrained files for training, from run folders for use."""
import copy
from pathlib import Path

import numpy as np
import torch

from dataset import classes
from engine import checkpoints, files, hardware
from engine.errors import InputError
from engine.images import resize_rgb
from engine.settings import options
from mbdcnn.inference import Classifier, Segmenter, for_inference
from net import weights
from net.inputs import SCALINGS, to_input
from net.models import EPSILON, STRIDE, Xception_dilation, deeplabv3plus, deeplabv3plus_d, deeplabv3plus_en

NETWORKS = 'CoarseSN', 'MaskCN', 'EnhancedSN'   # in the order of their training
PRETRAINED_SN = ('auto', 'voc', 'xception65', 'xception', 'none')
PRETRAINED_CN = ('auto', 'xception', 'none')
ENHANCED = {'e-layer': deeplabv3plus_en, 'd-net': deeplabv3plus_d, 'mdc': deeplabv3plus,
            'none': deeplabv3plus}   # by TRANSFER
GUIDED = ('e-layer', 'd-net')        # those that see mask-CN's maps; mdc has learnt from them
WHERE = 'see models/README.md for where the file comes from, or start without: --PRETRAINED=none'
REPOSITORY = Path(__file__).resolve().parent.parent
PUBLISHED = REPOSITORY / 'models' / 'isic2017'   # made by models/pack.py
CALIBRATION_IMAGES = 32
MEANINGLESS = 'What they find in a photograph means nothing.'
E_LAYER_STARTS = ('identity', 'random')
STARTS = ('coarse-sn', 'pretrained')   # of enhanced-SN
# Of batch norms: the ImageNet Xceptions were trained by Keras and TensorFlow. With 1e-5, two channels of the
# Xception's stem that hardly vary are amplified 3- and 5-fold, and its features change by 4 % in evaluation
# and by 13 % in training mode (16 pictures at 224 px).
EPSILONS = {'xception': 1e-3, 'xception65': 1e-3}
# What the settings may be in a config.json that somebody wrote for weights of the released code.
WRITTEN_BY_HAND = {'INPUT_SCALING': SCALINGS, 'RELU_SKIP': (False, True), 'TRANSFER': tuple(ENHANCED),
                   'INPUT_SIZE': range(STRIDE, 1 << 14, STRIDE)}


def coarse_for_training(cfg, images):
    """A new coarse-SN from the best pretrained weights that are present, or from trained ones.

    cfg : INITIAL_WEIGHTS, PRETRAINED, *_WEIGHTS, INPUT_SIZE, INPUT_SCALING, NUM_CLASSES, DROPOUT, BN_EPS,
        SMALL_START
    images : (N, S, S, 3) uint8 training pictures; a transplant sets its batch norms from some
    Returns (network, what it starts from); also prints the latter.
    """
    unit = cfg.INPUT_SCALING == 'unit'
    network = deeplabv3plus(cfg.NUM_CLASSES, cfg.DROPOUT, epsilon(cfg), cfg.SMALL_START)
    return network, _start('coarse-SN', network, cfg, {
        'voc': ('PASCAL VOC weights', weights.load_voc),
        'xception65': ("timm's ImageNet Xception-65 as its encoder",
                       lambda *given: weights.load_timm_xception65(*given, unit)),
        'xception': ('an encoder transplanted from the ImageNet Xception',
                     lambda *given: weights.transplant_xception(
                         *given, _calibration_inputs(images, cfg), unit))})


def mask_for_training(cfg, table=classes.PAPER):
    """A new mask-CN from the ImageNet Xception when it is present, or from trained weights.

    cfg : INITIAL_WEIGHTS, PRETRAINED, XCEPTION_WEIGHTS, PRETRAINED_EXIT_FLOW, RELU_SKIP, INPUT_SCALING,
        INPUT_CHANNEL, BN_EPS; table : ClassTable, of which weights to fine-tune must be, too
    Returns (network, what it starts from); also prints the latter.
    """
    if cfg.INITIAL_WEIGHTS:
        require_classes(checkpoints.found(cfg.INITIAL_WEIGHTS), table)
    network = Xception_dilation(cfg.INPUT_CHANNEL, len(table), cfg.RELU_SKIP, epsilon(cfg))
    return network, _start('mask-CN', network, cfg, {'xception': (
        'the ImageNet Xception',
        lambda *given: weights.load_imagenet_xception(*given, cfg.PRETRAINED_EXIT_FLOW))})


def enhanced_for_training(cfg, layout, images):
    """A new enhanced-SN that starts from coarse-SN, or as a new coarse-SN does; or from trained weights.

    cfg : INITIAL_WEIGHTS, TRANSFER, START, E_LAYER_START, E_LAYER_STD, INPUT_SIZE, INPUT_SCALING,
        NUM_CLASSES, DROPOUT, BN_EPS; with START='pretrained' those of coarse_for_training, too
    images : (N, S, S, 3) uint8 training pictures; the identity's batch norm is set from some
    Returns (network, what it starts from); also prints the latter.
    """
    network = ENHANCED[cfg.TRANSFER](cfg.NUM_CLASSES, cfg.DROPOUT, epsilon(cfg, layout))
    if cfg.INITIAL_WEIGHTS:
        return network, _fine_tuned('enhanced-SN', network, cfg)
    path = layout.weights('CoarseSN')
    if cfg.START == 'pretrained':
        coarse, first = coarse_for_training(cfg, images)
        state, file = coarse.state_dict(), None
    else:
        state = checkpoints.load_state(path, training(layout, 'CoarseSN'))
        _say_what_differs(path, cfg)
        first, file = 'coarse-SN', path
    load_into, words, options = checkpoints.load_parameters, first, {}
    if cfg.TRANSFER == 'd-net':
        load_into = weights.load_coarse_decoder
        words = f"{first}'s decoder, its first layer from random weights"
    elif cfg.TRANSFER == 'e-layer':
        as_identity = cfg.E_LAYER_START == 'identity'
        load_into = weights.load_coarse_into_enhanced
        words = f'{first}, its E-layer {"as the identity" if as_identity else "from random weights"}'
        if as_identity:
            options = {'inputs': _calibration_inputs(images, cfg), 'std': cfg.E_LAYER_STD}
    checkpoints.apply(load_into, network, state, path, 'NUM_CLASSES must be that of coarse-SN', **options)
    return network, _announce('enhanced-SN', words, file)


def _start(name, network, cfg, sources):
    """Load INITIAL_WEIGHTS, or else the file that PRETRAINED names; returns what the network starts from.

    sources : {name in PRETRAINED: (in words, loader)}
    """
    if cfg.INITIAL_WEIGHTS:
        return _fine_tuned(name, network, cfg)
    choice, path = choose_pretrained(cfg.PRETRAINED, _pretrained_files(cfg))
    if choice == 'none':
        return _announce(name, 'random weights (no pretrained file; see models/README.md)')
    words, load_into = sources[choice]
    checkpoints.apply(load_into, network, checkpoints.load_state(path, WHERE), path, WHERE)
    return _announce(name, words, path)


def _calibration_inputs(images, cfg):
    """Some training pictures as the network will see them, evenly spread: (n, 3, S, S) float32."""
    # Two at least: pooled to one cell each, fewer have no variance, which PyTorch refuses.
    some = np.linspace(0, len(images) - 1, max(2, min(CALIBRATION_IMAGES, len(images)))).astype(int)
    squares = [resize_rgb(images[number], (cfg.INPUT_SIZE, cfg.INPUT_SIZE)) for number in some]
    return to_input(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), cfg.INPUT_SCALING)


def _fine_tuned(name, network, cfg):
    """Load all of INITIAL_WEIGHTS into a network; returns what it starts from, also printed."""
    path = checkpoints.found(cfg.INITIAL_WEIGHTS)
    _say_what_differs(path, cfg)
    remedy = f'INITIAL_WEIGHTS must be weights of {name} with the same constants of the group Network'
    state = checkpoints.load_state(path, remedy)
    checkpoints.apply(checkpoints.load_parameters, network, state, path, remedy)
    return _announce(name, 'weights to fine-tune', path)


def _say_what_differs(path, cfg):
    """Print which settings of first weights are others now; these do not show in the shapes."""
    trained = trained_settings(path)
    for constant in ('INPUT_SCALING', 'RELU_SKIP'):
        now = getattr(cfg, constant, None)
        if trained.get(constant, now) != now:
            print(f'note: {path} was trained with {constant}={trained[constant]} and goes on with {now}')


def _announce(network, source, path=None):
    """Print and return what a network starts from; path : of its file, None where `source` says it all."""
    start = f'{source} ({path.name}, sha256 {files.fingerprint(path)}...)' if path else source
    print(f'{network} starts from {start}')
    return start


def initial_inputs(cfg, layout=None):
    """What a run takes over from the weights that it starts from, for its record; arguments as `epsilon`.

    {'initial_weights': fingerprint of those that it fine-tunes, '' for none, 'bn_eps': epsilon,
    'coarse_sn': fingerprint, where it starts from coarse-SN}
    """
    path = cfg.INITIAL_WEIGHTS
    inputs = {'initial_weights': files.fingerprint(checkpoints.found(path)) if path else '',
              'bn_eps': epsilon(cfg, layout)}
    if layout is not None and not path and cfg.START == 'coarse-sn':
        inputs['coarse_sn'] = files.fingerprint(layout.weights('CoarseSN'))
    return inputs


def epsilon(cfg, layout=None):
    """Epsilon of the batch norms of a network to be trained: BN_EPS, or with 0 that of its first weights.

    layout : of enhanced-SN's root, which starts from the coarse-SN there; None for the other networks
    """
    if cfg.BN_EPS:
        return cfg.BN_EPS
    if cfg.INITIAL_WEIGHTS:
        return trained_epsilon(checkpoints.found(cfg.INITIAL_WEIGHTS))
    if layout is not None and cfg.START == 'coarse-sn':
        return trained_epsilon(layout.weights('CoarseSN'))
    return EPSILONS.get(choose_pretrained(cfg.PRETRAINED, _pretrained_files(cfg))[0], EPSILON)


def _pretrained_files(cfg):
    """{name in PRETRAINED: path of its file}, the best first."""
    names = ('VOC_WEIGHTS', 'XCEPTION65_WEIGHTS', 'XCEPTION_WEIGHTS')
    return {name.removesuffix('_WEIGHTS').lower(): getattr(cfg, name) for name in names if hasattr(cfg, name)}


def choose_pretrained(choice, files):
    """(choice, path) of the pretrained file: the named one, which must exist, or the first there is.

    choice : 'auto', 'none' or a name; files : {name: path}, the best first. Paths are looked up from
    here and then from the repository; path is None with 'none'.
    """
    paths = {name: checkpoints.found(path) for name, path in files.items()}
    if choice == 'auto':
        choice = next((name for name, path in paths.items() if path.is_file()), 'none')
    if choice != 'none' and not paths[choice].is_file():
        raise InputError(f'PRETRAINED={choice}: no weight file', [f'{files[choice]}: is missing'], WHERE)
    return choice, paths.get(choice)


# --- Trained networks, ready to use


def or_published(layout):
    """A layout, or, where none of the three networks was trained below it, the same with the networks that
    come with the repository as its models; says so."""
    trained = any(layout.weights(name).is_file() for name in NETWORKS)
    if trained or not PUBLISHED.is_dir():
        return layout
    published = copy.copy(layout)
    published.models = PUBLISHED
    about = checkpoints.read_config(published.weights('CoarseSN')).get('packed', {}).get('about', '')
    print(f'{layout.models} holds no trained networks; using those of {PUBLISHED}: {about}')
    return published


def load_segmenter(layout, name, device, precision):
    """A trained 'CoarseSN' or 'EnhancedSN' below a root, ready to use; with mask-CN where it needs maps.

    precision : 'bf16', 'fp16', 'fp32', or 'auto'
    """
    precision = hardware.choose_precision(precision, device)
    path, make, state, settings = _trained(layout, name, INPUT_SCALING='unit')
    transfer = settings.get('TRANSFER', 'e-layer') if name == 'EnhancedSN' else 'none'
    network = ENHANCED[transfer](_rows(state, 'cls_conv.weight', path, (1, 2)), bn_eps=trained_epsilon(path))
    checkpoints.apply(checkpoints.load_parameters, network, state, path, make)
    classifier = None
    if transfer in GUIDED:
        classifier = load_classifier(layout, device, precision, settings.get('CAM_RELU', False))
    network = placed(network, device, precision)
    return Segmenter(network, settings['INPUT_SCALING'], precision, classifier, path)


def load_classifier(layout, device, precision, cam_relu=False):
    """The trained mask-CN below a root, ready to use; channels are read from the weights."""
    precision = hardware.choose_precision(precision, device)
    path, make, state, settings = _trained(layout, 'MaskCN', INPUT_SCALING='symmetric', RELU_SKIP=False)
    table = trained_classes(path)
    rows = _rows(state, 'cls.weight', path, (len(table),))
    network = Xception_dilation(_channels(state), rows, settings['RELU_SKIP'], trained_epsilon(path))
    checkpoints.apply(checkpoints.load_parameters, network, state, path, make)
    network = placed(network, device, precision)
    return Classifier(network, settings['INPUT_SCALING'], precision, cam_relu, path, table)


def _trained(layout, name, **assumed):
    """(path of the weights, command that makes them, their parameters, the settings of their training)."""
    path, make = layout.weights(name), training(layout, name)
    return path, make, checkpoints.load_state(path, make), trained_settings(path, **assumed)


def placed(network, device, precision):
    """A trained network as it is used with a `precision`: on the device, never trained again."""
    network = for_inference(network, precision).requires_grad_(False)
    return network.to(device, memory_format=torch.channels_last)


def _rows(state, name, path, allowed):
    """Number of outputs of the last layer, from its weight; InputError when it is not among `allowed`."""
    rows = state[name].shape[:1] if name in state else ()
    if rows not in [(count,) for count in allowed]:
        fault = f'{path}: {name} has {rows[0]} outputs' if rows else f'{path}: has no {name}'
        raise InputError('A checkpoint does not fit the network', [fault],
                         'use the file of the stage that the message names')
    return rows[0]


def _channels(state):
    """Mask-CN's input channels, from its weights."""
    stem = state.get('conv1.weight', torch.empty(0))
    return 3 if stem.shape[1:2] == (3,) else 4   # `checkpoints.load_parameters` refuses any other


def maskcn_reads_masks(layout):
    """Whether the trained mask-CN below a root needs coarse masks; True where there is none yet."""
    path = layout.weights('MaskCN')
    return not path.is_file() or _channels(
        checkpoints.load_state(path, training(layout, 'MaskCN'))) == 4


# --- What config.json says of trained weights


def training(layout, name):
    """The command that trains a network as its config.json says it was; plain where there is none."""
    script = f'train_{name}.py'
    recorded = files.read_json(layout.run(name) / 'config.json', 'settings').get('settings', {})
    return layout.command(script, *options(REPOSITORY / script, recorded))


def trained_settings(path, **assumed):
    """The settings that weights were trained with: config.json beside them over what is assumed.

    Says so where there is no config.json: weights of the released code need one, see models/README.md.
    Raises InputError for a value that no network has.
    """
    config = checkpoints.read_config(path)
    settings, network = config.get('settings'), config.get('network', path.stem)
    if path.stem in NETWORKS and network != path.stem:
        raise InputError('A run folder is damaged', [
            f'{path.parent / "config.json"}: is of {network}, not of {path.stem}'],
            'restore the file, or train again')
    if settings is None and assumed:
        words = ', '.join(f'{name}={value}' for name, value in assumed.items())
        print(f'{path}: no config.json beside it; assuming {words}')
    settings = assumed | (settings or {})
    for name, allowed in WRITTEN_BY_HAND.items():
        if settings.get(name, allowed[0]) not in allowed:
            words = ', '.join(map(str, allowed[:4])) + (', ...' if len(allowed) > 4 else '')
            raise InputError('A run folder is damaged', [
                f'{path.parent / "config.json"}: {name} is {settings[name]!r}'], f'must be one of {words}')
    return settings


def trained_classes(path):
    """The ClassTable that weights of mask-CN were trained with: config.json's, without one the paper's."""
    record = checkpoints.read_config(path).get('inputs', {}).get('classes')
    return classes.of_record(record, path.parent / 'config.json')


def require_classes(path, table):
    """Raise InputError for weights of mask-CN (path) whose classes are not those of a ClassTable."""
    trained = trained_classes(path)
    if trained.names != table.names:
        raise InputError('These weights tell other classes apart', [
            f'{path}: {", ".join(trained.names)}', f'the class table here: {", ".join(table.names)}'],
            f'the {classes.FILE} that the weights were trained with, or weights that were trained with '
            'this one')


def trained_transfer(layout):
    """How mask-CN's maps reach the trained enhanced-SN below a root: its TRANSFER, 'e-layer' without one."""
    return trained_settings(layout.weights('EnhancedSN')).get('TRANSFER', 'e-layer')


def trained_epsilon(path):
    """Epsilon of the batch norms that weights were trained with; where there is no record, the release's."""
    return checkpoints.read_config(path).get('inputs', {}).get('bn_eps', EPSILON)


def scales_of(side):
    """Sides in px at which a segmentation network of a trained side sees a picture, multiples of 16 near
    1, 8/7 and 9/7 of it: 224, 256, 288 in the released code."""
    return tuple(dict.fromkeys(round(side * factor / STRIDE) * STRIDE for factor in (1, 8 / 7, 9 / 7)))


def scales_of_evaluation(path, scales):
    """SCALES in px: for (0,) those of the side that the weights (path) were trained at."""
    return scales_of(trained_settings(path).get('INPUT_SIZE', 224)) if tuple(scales) == (0,) else scales


def warn_of_other_size(path, side):
    """Print a line when weights were trained at another input side than they are used at (px)."""
    trained = trained_settings(path).get('INPUT_SIZE', side)
    if trained != side:
        print(f'note: {path} was trained at {trained} px and is used at {side} px')


def of_drawn_pictures(configs):
    """A sentence on which networks were trained on pictures that a program drew; '' for none.

    configs : {name: what config.json says of the network's training}
    """
    names = [name for name, config in configs.items() if config.get('inputs', {}).get('drawn_pictures')]
    # Without a comma: in a csv the line stays as it is.
    return f'Trained on pictures that a program drew: {" and ".join(names)}. {MEANINGLESS}' if names else ''
