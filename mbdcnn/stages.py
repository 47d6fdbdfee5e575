"""What the training scripts share: what their constants may be, their samples, steps and run folders."""
import re

from dataset.classes import PAPER
from engine import hardware
from engine.augment import INTERPOLATIONS, Ranges
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures
from mbdcnn import coarse_masks, networks
from net.inputs import SCALINGS
from net.models import STRIDE

# Of runs without record, where that is no file top's.
BEFORE = {'E_LAYER_START': 'random', 'E_LAYER_STD': 0.0, 'BN_EPS': 1e-5, 'bn_eps': 1e-5,
          'classes': PAPER.record()}
MACHINE_CHOICES = {'DEVICE': hardware.DEVICES, 'AMP': hardware.PRECISIONS}
TRAINING_CHOICES = MACHINE_CHOICES | {'PICTURES_ON': ('auto', 'device', 'host'),
                                      'COMPILE': ('off', *hardware.COMPILATIONS)}
EVALUATION_CHOICES = MACHINE_CHOICES | {'SPLIT': ('Validation', 'Testing')}
SEGMENTATION_CHOICES = TRAINING_CHOICES | {
    'NUM_CLASSES': (1, 2), 'DICE_CLASSES': ('both', 'lesion'), 'INPUT_SCALING': SCALINGS,
    'AFFINE_FILTER': tuple(INTERPOLATIONS)}
SEGMENTATION_POSITIVE = ('EPOCH', 'BATCH_SIZE', 'LEARNING_RATE', 'INPUT_SIZE', 'CACHE_SIZE',
                         'HARD_PIXELS', 'VALIDATE_EVERY')
CLASSIFICATION_CHOICES = TRAINING_CHOICES | {
    'PRETRAINED': networks.PRETRAINED_CN, 'INPUT_CHANNEL': (3, 4), 'VALIDATION_CROPS': (1, 9),
    'INPUT_SCALING': SCALINGS, 'AFFINE_FILTER': tuple(INTERPOLATIONS)}
CLASSIFICATION_POSITIVE = ('STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'INPUT_SIZE', 'VALIDATE_EVERY')


def check_sides(sides):
    """Raise InputError for an input side (px) that is no positive multiple of 16."""
    faults = [f'{side} px' for side in sides if side <= 0 or side % STRIDE]
    if faults or not sides:
        raise InputError(f'The input side must be a multiple of {STRIDE}', faults)


def check_numbers(cfg, process):
    """Raise InputError for numbers that no training can use, or a batch that cannot be shared."""
    check_sides([cfg.INPUT_SIZE])
    least = {'SEED': 0, 'NUM_WORKERS': hardware.WORKERS_AUTO, 'PATIENCE': 0, 'TRAIN_IMAGES': 0,
             'ROTATION': 0, 'SHEAR': 0, 'RANK_WEIGHT': 0, 'BN_EPS': 0, 'E_LAYER_STD': 0}
    faults = [f'{name}={getattr(cfg, name)}: must be at least {low}' for name, low in least.items()
              if getattr(cfg, name, low) < low]
    for name, low, high in (('ZOOM', 0.1, 10), ('CENTRE_CROP', 0.05, 1), ('SHIFT', 0, 1)):
        values = getattr(cfg, name, (high, high))
        if not all(low <= value <= high for value in values) or (name != 'SHIFT' and values[0] > values[1]):
            faults.append(f'{name}={values}: must be rising numbers from {low} to {high}')
    if getattr(cfg, 'BN_EPS', 0) >= 1:
        faults.append(f'BN_EPS={cfg.BN_EPS}: must be below 1')
    if not 0 < getattr(cfg, 'PROXY_THRESHOLD', 1) <= 1:
        faults.append(f'PROXY_THRESHOLD={cfg.PROXY_THRESHOLD}: must be above 0 and at most 1')
    if not 0 <= getattr(cfg, 'CENTRE_CROP_PROBABILITY', 0) <= 1:
        faults.append(f'CENTRE_CROP_PROBABILITY={cfg.CENTRE_CROP_PROBABILITY}: must be from 0 to 1')
    if cfg.SHEAR >= 1.5:
        faults.append(f'SHEAR={cfg.SHEAR}: must be below a right angle (radians)')
    if faults:
        raise InputError('Settings that no training can use', faults)
    if cfg.BATCH_SIZE % process.world:
        raise InputError(f'BATCH_SIZE={cfg.BATCH_SIZE} cannot be shared by {process.world} processes',
                         remedy='choose a multiple')


def pictures(cfg, images, planes, labels=None):
    """engine.samples.Pictures under a script's constants; mask-CN's crops are files, it crops no more."""
    ranges = Ranges(cfg.ROTATION, cfg.SHEAR, cfg.SHIFT, cfg.ZOOM, cfg.FLIPS,
                    getattr(cfg, 'CENTRE_CROP', (1.0, 1.0)), getattr(cfg, 'CENTRE_CROP_PROBABILITY', 0.0))
    return Pictures(images, planes, labels, cfg.INPUT_SIZE, ranges, cfg.AFFINE_FILTER, cfg.SEED)


def steps(cfg, count):
    """(Steps of EPOCH epochs, steps between validations); an epoch sees as many samples as pictures."""
    epoch = max(1, round(count / cfg.BATCH_SIZE))
    return cfg.EPOCH * epoch, cfg.VALIDATE_EVERY * epoch


def open_run(layout, network, cfg, process, train, validation, start, inputs=None):
    """The Run of 'CoarseSN', 'MaskCN' or 'EnhancedSN' below a root, which records all that it reads.

    train, validation : what dataset.splits loads; start : what the network starts from, in words
    inputs : fingerprints of what earlier stages made
    """
    first = networks.initial_inputs(cfg, layout if network == 'EnhancedSN' else None)
    inputs = {**(inputs or {}), 'training': train.fingerprint, 'validation': validation.fingerprint,
              'drawn_pictures': layout.drawn, **first}
    return Run(layout.run(network), network, cfg, inputs, start, process, read_config=read_config)


def read_config(path):
    """The config.json beside a path, whichever version wrote it, and what runs did before they said so."""
    config = coarse_masks.read_config(path)
    # Runs of before named the coarse-SN that they began from only in words.
    found = re.match(r'coarse-SN.* sha256 (\w+)\.\.\.\)', str(config.get('start')))
    if found and config.get('inputs'):
        config['inputs'] = {'coarse_sn': found[1]} | config['inputs']
    return config | {part: BEFORE | config[part] for part in ('settings', 'inputs') if config.get(part)}


def coarse_sn_below(path, inputs):
    """Fingerprint of the coarse-SN whose masks an enhanced-SN reads, or else from which it began to learn.

    path : of its weights; inputs : what transfer.require returned. None where its record does not say.
    """
    return (inputs.get('coarse_masks') or read_config(path).get('inputs', {})).get('coarse_sn')
