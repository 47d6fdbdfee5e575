"""Building each stage's network: from pretrained files for training, from run folders for use."""
from pathlib import Path

import numpy as np
import torch

from dataset.errors import InputError
from dataset.images import resize_rgb
from dataset.samples import SCALINGS, to_input
from engine import checkpoints
from engine.inference import Classifier, Segmenter
from net import weights
from net.models import STRIDE, Xception_dilation, deeplabv3plus, deeplabv3plus_en

PRETRAINED_SN = ('auto', 'voc', 'xception65', 'xception', 'none')
PRETRAINED_CN = ('auto', 'xception', 'none')
WHERE = 'see models/README.md for where the file comes from, or start without: --PRETRAINED=none'
REPOSITORY = Path(__file__).resolve().parent.parent
CALIBRATION_IMAGES = 32


def coarse_for_training(cfg, images):
    """A new coarse-SN from the best pretrained weights that are present.

    cfg : PRETRAINED, *_WEIGHTS, INPUT_SCALING, NUM_CLASSES, DROPOUT
    images : (N, S, S, 3) uint8 training pictures; a transplant sets its batch norms from some
    Returns (network, what it starts from); also prints the latter.
    """
    network = deeplabv3plus(cfg.NUM_CLASSES, cfg.DROPOUT)
    choice, path = _choose(cfg.PRETRAINED, {'voc': cfg.VOC_WEIGHTS, 'xception65': cfg.XCEPTION65_WEIGHTS,
                                            'xception': cfg.XCEPTION_WEIGHTS})
    if choice == 'voc':
        _load_pretrained(weights.load_voc, network, path)
    elif choice == 'xception65':
        _load_pretrained(weights.load_timm_xception65, network, path, unit=cfg.INPUT_SCALING == 'unit')
    elif choice == 'xception':
        _load_pretrained(weights.transplant_xception, network, path,
                         inputs=_calibration_inputs(images, cfg.INPUT_SCALING),
                         unit=cfg.INPUT_SCALING == 'unit')
    words = {'voc': 'PASCAL VOC weights', 'xception65': "timm's ImageNet Xception-65 as its encoder",
             'xception': 'an encoder transplanted from the ImageNet Xception'}
    return network, _announce('coarse-SN', words.get(choice), path)


def _calibration_inputs(images, scaling):
    """Some training pictures as network input, evenly spread: (n, 3, S, S) float32."""
    some = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int)
    side = min(224, images.shape[1] // STRIDE * STRIDE)
    squares = [resize_rgb(images[number], (side, side)) for number in some]
    return to_input(torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2), scaling)


def mask_for_training(cfg):
    """A new mask-CN from the ImageNet Xception when it is present.

    cfg : PRETRAINED, XCEPTION_WEIGHTS, PRETRAINED_EXIT_FLOW, RELU_SKIP, INPUT_CHANNEL, NUM_CLASSES
    Returns (network, what it starts from); also prints the latter.
    """
    network = Xception_dilation(cfg.INPUT_CHANNEL, cfg.NUM_CLASSES, cfg.RELU_SKIP)
    choice, path = _choose(cfg.PRETRAINED, {'xception': cfg.XCEPTION_WEIGHTS})
    if choice == 'xception':
        _load_pretrained(weights.load_imagenet_xception, network, path,
                         exit_flow=cfg.PRETRAINED_EXIT_FLOW)
    return network, _announce('mask-CN', {'xception': 'the ImageNet Xception'}.get(choice), path)


def enhanced_for_training(cfg, layout):
    """A new enhanced-SN that starts from coarse-SN's weights, its E-layer random.

    Returns (network, what it starts from); also prints the latter.
    """
    path = layout.weights('CoarseSN')
    network = deeplabv3plus_en(cfg.NUM_CLASSES, cfg.DROPOUT)
    state = checkpoints.load_state(path, layout.command('train_CoarseSN.py'))
    checkpoints.apply(weights.load_coarse_into_enhanced, network, state, path,
                      'NUM_CLASSES must be that of coarse-SN')
    return network, _announce('enhanced-SN', 'coarse-SN, its E-layer from random weights', path)


def _choose(choice, files):
    """(choice, path) of the pretrained file: the named one, which must exist, or the first there is.

    Paths are looked up from here and then from the repository.
    """
    paths = {name: path if Path(path).is_file() else REPOSITORY / path for name, path in files.items()}
    if choice == 'auto':
        choice = next((name for name, path in paths.items() if Path(path).is_file()), 'none')
    if choice != 'none' and not Path(paths[choice]).is_file():
        raise InputError(f'PRETRAINED={choice}: no weight file', [f'{files[choice]}: is missing'], WHERE)
    return choice, Path(paths[choice]) if choice != 'none' else None


def _load_pretrained(load_into, network, path, **options):
    checkpoints.apply(load_into, network, checkpoints.load_state(path, WHERE), path, WHERE, **options)


def _announce(network, source, path):
    """Print and return what a network starts from."""
    if source is None:
        start = 'random weights (no pretrained file; see models/README.md)'
    else:
        start = f'{source} ({path.name}, sha256 {checkpoints.fingerprint(path)}...)'
    print(f'{network} starts from {start}')
    return start


def load_segmenter(layout, name, device, precision):
    """A trained 'CoarseSN' or 'EnhancedSN' (then with its mask-CN) below a root, ready to use."""
    path, make = layout.weights(name), layout.command(f'train_{name}.py')
    state = checkpoints.load_state(path, make)
    build = deeplabv3plus if name == 'CoarseSN' else deeplabv3plus_en
    network = build(_rows(state, 'cls_conv.weight', path))
    checkpoints.apply(weights.load, network, state, path, make)
    settings = trained_settings(path, INPUT_SCALING='unit')
    classifier = None
    if name == 'EnhancedSN':
        classifier = load_classifier(layout, device, precision, settings.get('CAM_RELU', False))
    return Segmenter(_placed(network, device), _scaling(settings, path), precision, classifier)


def load_classifier(layout, device, precision, cam_relu=False):
    """The trained mask-CN below a root, ready to use; channels are read from the weights."""
    path, make = layout.weights('MaskCN'), layout.command('train_MaskCN.py')
    state = checkpoints.load_state(path, make)
    settings = trained_settings(path, INPUT_SCALING='symmetric', RELU_SKIP=False)
    stem = state.get('conv1.weight')
    channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 4
    network = Xception_dilation(channels, _rows(state, 'cls.weight', path), settings['RELU_SKIP'])
    checkpoints.apply(weights.load, network, state, path, make)
    return Classifier(_placed(network, device), _scaling(settings, path), precision, cam_relu)


def trained_settings(path, **assumed):
    """The settings that weights were trained with: config.json beside them over what is assumed.

    Says so where there is no config.json: weights of the released code need one, see models/README.md.
    """
    settings = checkpoints.read_config(path).get('settings')
    if settings is None and assumed:
        words = ', '.join(f'{name}={value}' for name, value in assumed.items())
        print(f'{path}: no config.json beside it; assuming {words}')
    return assumed | (settings or {})


def warn_of_other_size(path, side):
    """Print a line when weights were trained at another input side than they are used at (px)."""
    trained = trained_settings(path).get('INPUT_SIZE', side)
    if trained != side:
        print(f'note: {path} was trained at {trained} px and is used at {side} px')


def _placed(network, device):
    return network.to(device, memory_format=torch.channels_last).requires_grad_(False)


def _rows(state, name, path):
    """Number of outputs of the last layer, from its weight."""
    if name not in state:
        raise InputError('A checkpoint does not fit the network', [f'{path}: has no {name}'],
                         'use the file of the stage that the message names')
    return state[name].shape[0]


def _scaling(settings, path):
    scaling = settings['INPUT_SCALING']
    if scaling not in SCALINGS:
        raise InputError('A run folder is damaged',
                         [f'{path.parent / "config.json"}: INPUT_SCALING is {scaling!r}'],
                         f'must be one of {", ".join(SCALINGS)}')
    return scaling
