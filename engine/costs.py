"""What a step costs, counted in arithmetic: enough to plan a day, not to judge a kernel."""
from dataset import isic
from dataset.layout import SPLITS
from engine.inference import VIEWS

# GFLOP of one forward pass of one 224 x 224 px picture; a training step costs three times that.
SEGMENTATION, CLASSIFICATION = 31.7, 10.7
DECODER = 12.0   # of SEGMENTATION, what the decoder alone takes at 48 channels less: D-Net
SIDE = 224
SCALE_OF_TRAINING = 3


def of_step(step, values, layout):
    """PFLOP of a Step. values : its settings; layout : of the root whose dataset/ it reads."""
    count = _Counts(layout)
    if step.script == 'train_MaskCN.py':
        validation = count.images('Validation') * values['VALIDATION_CROPS'] * _times(values['STEPS'], values)
        return _pflop(CLASSIFICATION, values['INPUT_SIZE'],
                      SCALE_OF_TRAINING * values['STEPS'] * values['BATCH_SIZE'] + validation)
    if step.network:
        pictures = count.pictures('Training')
        pictures = min(values['TRAIN_IMAGES'] or pictures, pictures)
        if values.get('TRANSFER') == 'mdc':   # and those that get a proxy mask
            pictures = max(pictures, count.images('Training'))
        folds = values.get('CROSS_FIT', 0)
        trained = pictures * values['EPOCH'] * (folds - 1 if folds else 1)
        seen = trained * SCALE_OF_TRAINING + (
            count.pictures('Validation') * _times(values['EPOCH'], values) * (folds or 1))
        transfer = values.get('TRANSFER', 'none')
        own = DECODER if transfer == 'd-net' else SEGMENTATION
        maps = CLASSIFICATION * (seen - 2 * trained) if transfer in ('e-layer', 'd-net') else 0
        return _pflop(own, values['INPUT_SIZE'], seen) + _pflop(1, values['INPUT_SIZE'], maps)
    if step.script == 'generate_Coarse_mask.py':
        drawn = sum(count.pictures(split) + count.crops(split) for split in SPLITS)
        if 0 < values['CROPS_OF_IMAGES'] < count.images('Training'):
            left_out = 1 - values['CROPS_OF_IMAGES'] / count.images('Training')
            drawn -= count.crops('Training') * left_out   # images differ in their number of crops
        return _pflop(SEGMENTATION, values['INPUT_SIZE'], drawn * (len(VIEWS) if values['TTA'] else 1))
    if step.script == 'eval_MaskCN.py':
        return _pflop(CLASSIFICATION, values['INPUT_SIZE'], count.crops(values['SPLIT']))
    one = SEGMENTATION + (CLASSIFICATION if values['NETWORK'] == 'EnhancedSN' else 0)
    views, scales = (len(VIEWS), values['SCALES']) if values['TTA'] else (1, values['SCALES'][:1])
    return sum(_pflop(one, scale, count.pictures(values['SPLIT']) * views) for scale in scales)


class _Counts:
    """Lengths of the lists of a root; 0 for a list that is not there."""

    def __init__(self, layout):
        self.layout = layout

    def pictures(self, split):
        return len(_lines(self.layout.segmentation_list(split)))

    def crops(self, split):
        return len(_lines(self.layout.classification_list(split)))

    def images(self, split):
        layout = self.layout
        return len({isic.image_id_of(layout.root / line.split()[0])
                    for line in _lines(layout.classification_list(split)) if line.strip()})


def _lines(path):
    return path.read_text(encoding='utf-8', errors='replace').splitlines() if path.is_file() else []


def _times(length, values):
    """How often a training of `length` validates."""
    return -(-length // values['VALIDATE_EVERY'])


def _pflop(gflop, side, pictures):
    return gflop * (side / SIDE) ** 2 * pictures / 1e6
