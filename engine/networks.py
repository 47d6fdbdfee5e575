"""Building each stage's network: from pretrained files for training, from run folders for use."""
from pathlib import Path

import numpy as np
import torch

from dataset.errors import InputError
from dataset.samples import SCALINGS
from engine import checkpoints
from engine.inference import Classifier, Segmenter
from net import weights
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en

PRETRAINED_SN = ('auto', 'voc', 'xception', 'none')
PRETRAINED_CN = ('auto', 'xception', 'none')
MADE_BY = {'CoarseSN': 'python train_CoarseSN.py', 'MaskCN': 'python train_MaskCN.py',
           'EnhancedSN': 'python train_EnhancedSN.py'}
WHERE = 'see models/README.md for where the file comes from, or start without: --PRETRAINED=none'
CALIBRATION_IMAGES = 32


def coarse_for_training(cfg, images):
    """A new coarse-SN with the best pretrained weights that are present; says in one line which.

    cfg : PRETRAINED, VOC_WEIGHTS, XCEPTION_WEIGHTS, NUM_CLASSES, DROPOUT
    images : (N, S, S, 3) uint8 training pictures; a transplant sets its batch norms from some
    """
    network = deeplabv3plus(cfg.NUM_CLASSES, cfg.DROPOUT)
    choice = _choose(cfg.PRETRAINED, {'voc': cfg.VOC_WEIGHTS, 'xception': cfg.XCEPTION_WEIGHTS})
    if choice == 'voc':
        state = checkpoints.load_state(Path(cfg.VOC_WEIGHTS), WHERE)
        checkpoints.apply(weights.load_voc, network, state, cfg.VOC_WEIGHTS, WHERE)
        print(f'coarse-SN starts from PASCAL VOC weights ({cfg.VOC_WEIGHTS})')
    elif choice == 'xception':
        state = checkpoints.load_state(Path(cfg.XCEPTION_WEIGHTS), WHERE)
        some = np.linspace(0, len(images) - 1, min(CALIBRATION_IMAGES, len(images))).astype(int)
        side = min(224, images.shape[1] // 16 * 16)
        sample = torch.from_numpy(np.stack([images[i] for i in some])).permute(0, 3, 1, 2).float() / 255
        sample = torch.nn.functional.interpolate(sample, (side, side), mode='area')
        checkpoints.apply(weights.transplant_xception, network, state, cfg.XCEPTION_WEIGHTS, WHERE,
                          images=sample)
        print(f'coarse-SN starts from an encoder transplanted from the ImageNet Xception '
              f'({cfg.XCEPTION_WEIGHTS})')
    else:
        print('coarse-SN starts from random weights (no pretrained file; see models/README.md)')
    return network


def mask_for_training(cfg):
    """A new mask-CN from the ImageNet Xception when it is present; says in one line which.

    cfg : PRETRAINED, XCEPTION_WEIGHTS, PRETRAINED_EXIT_FLOW, RELU_SKIP, INPUT_CHANNEL, NUM_CLASSES
    """
    network = Xception_dilation(cfg.INPUT_CHANNEL, cfg.NUM_CLASSES, cfg.RELU_SKIP)
    if _choose(cfg.PRETRAINED, {'xception': cfg.XCEPTION_WEIGHTS}) == 'xception':
        state = checkpoints.load_state(Path(cfg.XCEPTION_WEIGHTS), WHERE)
        checkpoints.apply(weights.load_imagenet_xception, network, state, cfg.XCEPTION_WEIGHTS, WHERE,
                          exit_flow=cfg.PRETRAINED_EXIT_FLOW)
        print(f'mask-CN starts from the ImageNet Xception ({cfg.XCEPTION_WEIGHTS})')
    else:
        print('mask-CN starts from random weights (no pretrained file; see models/README.md)')
    return network


def enhanced_for_training(cfg, coarse_path):
    """A new enhanced-SN that starts from coarse-SN's weights, its E-layer random."""
    network = deeplabv3plus_en(cfg.NUM_CLASSES, cfg.DROPOUT)
    state = checkpoints.load_state(coarse_path, MADE_BY['CoarseSN'])
    checkpoints.apply(weights.load_coarse_into_enhanced, network, state, coarse_path,
                      'NUM_CLASSES must be that of coarse-SN')
    print(f'enhanced-SN starts from coarse-SN ({coarse_path}), its E-layer from random weights')
    return network


def _choose(choice, files):
    """The pretrained file to use: the named one (which must exist), or with 'auto' the first there is."""
    if choice == 'auto':
        return next((name for name, path in files.items() if Path(path).is_file()), 'none')
    if choice != 'none' and not Path(files[choice]).is_file():
        raise InputError(f'PRETRAINED={choice}: no weight file', [f'{files[choice]}: is missing'], WHERE)
    return choice


def load_segmenter(layout, name, device, precision):
    """A trained 'CoarseSN' or 'EnhancedSN' (then with its mask-CN) below a root, ready to use."""
    path = layout.weights(name)
    state = checkpoints.load_state(path, MADE_BY[name])
    build = deeplabv3plus if name == 'CoarseSN' else deeplabv3plus_en
    network = build(_rows(state, 'cls_conv.weight', path))
    checkpoints.apply(weights.load, network, state, path, MADE_BY[name])
    settings = checkpoints.read_config(path).get('settings', {})
    classifier = None
    if name == 'EnhancedSN':
        classifier = load_classifier(layout, device, precision, settings.get('CAM_RELU', False))
    return Segmenter(_placed(network, device), _scaling(settings, 'unit', path), precision, classifier)


def load_classifier(layout, device, precision, cam_relu=False):
    """The trained mask-CN below a root, ready to use; channels are read from the weights."""
    path = layout.weights('MaskCN')
    state = checkpoints.load_state(path, MADE_BY['MaskCN'])
    settings = checkpoints.read_config(path).get('settings', {})
    stem = state.get('conv1.weight')
    channels = stem.shape[1] if stem is not None and stem.dim() == 4 else 4
    network = Xception_dilation(channels, _rows(state, 'cls.weight', path),
                                settings.get('RELU_SKIP', False))
    checkpoints.apply(weights.load, network, state, path, MADE_BY['MaskCN'])
    return Classifier(_placed(network, device), _scaling(settings, 'symmetric', path), precision,
                      cam_relu)


def _placed(network, device):
    return network.to(device, memory_format=torch.channels_last).requires_grad_(False)


def _rows(state, name, path):
    """Number of outputs of the last layer, from its weight."""
    if name not in state:
        raise InputError('A checkpoint does not fit the network', [f'{path}: has no {name}'],
                         'use the file of the stage that the message names')
    return state[name].shape[0]


def _scaling(settings, default, path):
    scaling = settings.get('INPUT_SCALING', default)
    if scaling not in SCALINGS:
        raise InputError('A run folder is damaged',
                         [f'{path.parent / "config.json"}: INPUT_SCALING is {scaling!r}'],
                         f'must be one of {", ".join(SCALINGS)}')
    return scaling
