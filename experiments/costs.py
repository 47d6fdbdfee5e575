"""What a step costs, counted in arithmetic: enough to plan a day, not to judge a kernel."""
from experiments import inputs
from mbdcnn.inference import VIEWS

# GFLOP of one forward pass of one 224 x 224 px picture; a training step costs three times that.
COARSE_SN, MASK_CN, D_NET = 31.7, 10.7, 7.4
SIDE = 224
STEP = 3


def of_step(step, values, layout):
    """PFLOP of a Step. values : its settings; layout : of the root whose dataset/ it reads."""
    if step.script == 'train_MaskCN.py':
        return _pflop(MASK_CN, values['INPUT_SIZE'], _seen_by_classifier(values, layout))
    if step.network:
        return _segmentation_training(values, layout)
    if step.script == 'generate_Coarse_mask.py':
        drawn = _drawn(values, layout) * (len(VIEWS) if values['TTA'] else 1)
        return _pflop(COARSE_SN, values['INPUT_SIZE'], drawn)
    if step.script == 'eval_MaskCN.py':
        return _pflop(MASK_CN, values['INPUT_SIZE'], inputs.entries(layout, 'cls', values['SPLIT']))
    # With the E-layer; the other ways of TRANSFER cost less.
    one = COARSE_SN + (MASK_CN if values['NETWORK'] == 'EnhancedSN' else 0)
    views, scales = (len(VIEWS), values['SCALES']) if values['TTA'] else (1, values['SCALES'][:1])
    return sum(_pflop(one, scale, inputs.count(layout, 'seg', values['SPLIT']) * views) for scale in scales)


def _seen_by_classifier(values, layout):
    """Forward passes of a training of mask-CN, a step's counted as three."""
    validated = inputs.count(layout, 'cls', 'Validation') * values['VALIDATION_CROPS']
    return STEP * values['STEPS'] * values['BATCH_SIZE'] + validated * _times(values['STEPS'], values)


def _segmentation_training(values, layout):
    pictures = inputs.count(layout, 'seg', 'Training')
    pictures = min(values['TRAIN_IMAGES'] or pictures, pictures)
    if values.get('TRANSFER') == 'mdc':   # and those that get a proxy mask
        pictures = max(pictures, inputs.count(layout, 'cls', 'Training'))
    folds = values.get('CROSS_FIT', 0)
    trained = pictures * values['EPOCH'] * (folds - 1 if folds else 1)
    validated = inputs.count(layout, 'seg', 'Validation') * _times(values['EPOCH'], values) * (folds or 1)
    transfer = values.get('TRANSFER', 'none')
    own = D_NET if transfer == 'd-net' else COARSE_SN
    maps = MASK_CN * (trained + validated) if transfer in ('e-layer', 'd-net') else 0
    return _pflop(1, values['INPUT_SIZE'], own * (STEP * trained + validated) + maps)


def _drawn(values, layout):
    """Crops and pictures of all splits that get a coarse mask."""
    drawn = sum(inputs.entries(layout, *each) for each in inputs.EVERYTHING)
    images, crops = inputs.count(layout, 'cls', 'Training'), inputs.entries(layout, 'cls', 'Training')
    if 0 < values['CROPS_OF_IMAGES'] < images:   # about: images differ in their number of crops
        drawn -= crops * (1 - values['CROPS_OF_IMAGES'] / images)
    return drawn


def _times(length, values):
    """How often a training of `length` validates."""
    return -(-length // values['VALIDATE_EVERY'])


def _pflop(gflop, side, pictures):
    return gflop * (side / SIDE) ** 2 * pictures / 1e6
