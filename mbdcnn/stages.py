"""What the training stages bring to the shared loop: samples, losses and validation."""
import torch

from dataset.isic import CLASSES, TASKS
from engine import hardware, metrics
from engine.augment import INTERPOLATIONS, Ranges
from engine.errors import InputError
from engine.samples import Pictures
from engine.trainer import Stage
from mbdcnn import evaluation, networks, panels
from mbdcnn.inference import Classifier, Segmenter
from net.inputs import SCALINGS, to_input, to_maskcn_input
from net.loss import hybrid_loss
from net.models import STRIDE

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
    'PRETRAINED': networks.PRETRAINED_CN, 'INPUT_CHANNEL': (3, 4), 'NUM_CLASSES': (len(CLASSES),),
    'VALIDATION_CROPS': (1, 9), 'INPUT_SCALING': SCALINGS, 'AFFINE_FILTER': tuple(INTERPOLATIONS)}
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
             'ROTATION': 0, 'SHEAR': 0, 'RANK_WEIGHT': 0, 'BN_EPS': 0}
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


def steps_in_epoch(cfg, dataset):
    """Optimisation steps that see as many samples as there are pictures, at least one."""
    return max(1, round(len(dataset) / cfg.BATCH_SIZE))


def ranges(cfg):
    """The augmentation of a script's constants; mask-CN has no centre crop (its crops are files)."""
    return Ranges(cfg.ROTATION, cfg.SHEAR, cfg.SHIFT, cfg.ZOOM, cfg.FLIPS,
                  getattr(cfg, 'CENTRE_CROP', (1.0, 1.0)), getattr(cfg, 'CENTRE_CROP_PROBABILITY', 0.0))


def segmentation(cfg, process, network, classifier, train, validation):
    """Stage of a network that sees no maps (classifier None) or of one with the mask-CN that draws them.

    train, validation : dataset.splits.Segmentation, with coarse masks where mask-CN reads them
    """
    masks = {'mask': train.masks} | ({} if train.coarse is None else {'coarse': train.coarse})
    samples = Pictures(train.images, masks, None, cfg.INPUT_SIZE, ranges(cfg), cfg.AFFINE_FILTER, cfg.SEED)
    segmenter = Segmenter(network, cfg.INPUT_SCALING,
                          hardware.choose_precision(cfg.AMP, process.device), classifier)

    def loss(model, batch):
        extra = () if classifier is None else (classifier(batch['image'], batch.get('coarse'))[1],)
        logits = model(to_input(batch['image'], cfg.INPUT_SCALING), *extra)
        total, dice, rank = hybrid_loss(logits, batch['mask'], cfg.RANK_WEIGHT, cfg.HARD_PIXELS,
                                        cfg.MARGIN, cfg.DICE_CLASSES, cfg.RANK_PADDED)
        return total, {'dice': dice, 'rank': rank}

    def validate():
        return evaluation.quick_segmentation(segmenter.folded(), validation, cfg.BATCH_SIZE, process)

    def panel(path):
        panels.segmentation(segmenter, validation, process.device, path)

    return Stage(network, samples, loss, validate, panel, 'JA')


def classification(cfg, process, network, train, validation):
    """Stage of mask-CN. train, validation : dataset.splits.Classification."""
    masks = {'coarse': train.coarse} if cfg.INPUT_CHANNEL == 4 else {}
    samples = Pictures(train.images, masks, train.labels, cfg.INPUT_SIZE, ranges(cfg),
                       cfg.AFFINE_FILTER, cfg.SEED)
    classifier = Classifier(network, cfg.INPUT_SCALING,
                            hardware.choose_precision(cfg.AMP, process.device))

    def loss(model, batch):
        logits = model(to_maskcn_input(batch['image'], batch.get('coarse'), cfg.INPUT_SCALING))
        return torch.nn.functional.cross_entropy(logits.float(), batch['label']), {}

    def validate():
        crops = evaluation.crop_probabilities(classifier.folded(), validation, cfg.BATCH_SIZE, process)
        probabilities, labels = evaluation.image_probabilities(crops, validation)
        accuracy = float((probabilities.argmax(1) == labels).mean())
        scores = metrics.classification_scores(probabilities, labels, TASKS)
        areas = {f'{task} AUC': _number(scores[task]['AUC']) for task in TASKS}
        return {'mean AUC': _number(scores['mean AUC']), **areas, 'accuracy': accuracy}

    def panel(path):
        panels.classification(classifier, validation, process.device, path)

    return Stage(network, samples, loss, validate, panel, 'mean AUC')


def _number(score):
    return float('nan') if score is None else score
