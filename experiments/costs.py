"""What a job costs, counted in arithmetic: enough to plan a day, not to judge a kernel."""
from dataclasses import dataclass

from engine import settings
from experiments import inputs
from experiments.toml_schema import DRAWERS, WEAK_EVALUATION, WEAK_TRAINING
from mbdcnn.inference import VIEWS
from mbdcnn.networks import REPOSITORY, scales_of

# GFLOP of one forward pass of one picture of SIDE px; enhanced-SN's E-layer adds next to nothing.
FORWARD = {'CoarseSN': 31.7, 'MaskCN': 10.7, 'EnhancedSN': 31.7, 'D-Net': 7.4,
           'Mask2Lesion': 9.3, 'PatchGAN': 4.9}   # of width 64, generator and discriminator
WEAK = {'resnet18': 7.0, 'resnet34': 12.1, 'resnet50': 16.0, 'resnet101': 21.4}   # DeepLabv3+ of this encoder
SIDE = 224
STEP = 3       # forward passes that an optimiser step costs
GAN_STEP = 8   # of a discriminator: two pictures to learn from, and one that it judges for the generator
SAVES = 0.1    # checkpoints for each validation: each best score saves, and each minute


@dataclass(frozen=True)
class Training:
    """What a training goes through: `steps` of `batch` pictures, `validations` of `validated` pictures."""
    steps: float
    batch: int
    validations: int
    validated: int

    @property
    def forwards(self):
        """Forward passes of single pictures, an optimiser step's counted as STEP."""
        return STEP * self.steps * self.batch + self.validations * self.validated

    def seconds(self, step, validation, save):
        """How long it takes, from the seconds of a step, of validating one picture, and of one save."""
        return self.steps * step + self.validations * (self.validated * validation + SAVES * save)


def of_training(values, pictures, validated):
    """The Training of a script with settings `values` on so many pictures and validation images."""
    if 'STEPS' in values:   # mask-CN
        steps, length, validated = values['STEPS'], values['STEPS'], validated * values['VALIDATION_CROPS']
    else:
        steps, length = pictures * values['EPOCH'] / values['BATCH_SIZE'], values['EPOCH']
    return Training(steps, values['BATCH_SIZE'], -(-length // values['VALIDATE_EVERY']), validated)


def of_job(job, values, layout):
    """PFLOP of a Job. values : its settings; layout : of the root whose dataset/ it reads."""
    if job.script in DRAWERS:   # seconds
        return 0.0
    if job.script in (WEAK_TRAINING, WEAK_EVALUATION):
        return _of_weak_labels(job, values, layout)
    kind = 'cls' if 'MaskCN' in job.script else 'seg'
    scale = (values.get('INPUT_SIZE', SIDE) / SIDE) ** 2 / 1e6
    if job.network:
        pictures = inputs.count(layout, kind, 'Training')
        pictures = min(values['TRAIN_IMAGES'] or pictures, pictures)
        if job.companion:
            steps = values['STEPS'] or pictures * values['EPOCH'] / values['BATCH_SIZE']
            one = STEP * FORWARD['Mask2Lesion'] * values['WIDTH']**2 + (
                GAN_STEP * FORWARD['PatchGAN'] * values['D_WIDTH']**2)
            return scale * one / 64**2 * steps * values['BATCH_SIZE']
        if values.get('TRANSFER') == 'mdc':   # and those that get a proxy mask
            pictures = max(pictures, inputs.count(layout, 'cls', 'Training'))
        folds = values.get('CROSS_FIT', 0)    # each network leaves one of them out
        work = of_training(values, pictures * (folds - 1) / folds if folds else pictures,
                           inputs.count(layout, kind, 'Validation'))
        transfer = values.get('TRANSFER', 'none')
        # A map of mask-CN takes one forward pass, of a training picture too.
        maps = work.forwards - (STEP - 1) * work.steps * work.batch if transfer in ('e-layer', 'd-net') else 0
        own = FORWARD['D-Net' if transfer == 'd-net' else job.network]
        return scale * (folds or 1) * (own * work.forwards + FORWARD['MaskCN'] * maps)
    if job.script == 'generate_Coarse_mask.py':
        drawn = sum(len(inputs.lines(layout, *each)) for each in inputs.EVERYTHING)
        images, crops = inputs.count(layout, 'cls', 'Training'), len(inputs.lines(layout, 'cls', 'Training'))
        if 0 < values['CROPS_OF_IMAGES'] < images:   # about: images differ in their number of crops
            drawn -= crops * (1 - values['CROPS_OF_IMAGES'] / images)
        return scale * FORWARD['CoarseSN'] * drawn * (len(VIEWS) if values['TTA'] else 1)
    if job.script == 'eval_MaskCN.py':
        return scale * FORWARD['MaskCN'] * len(inputs.lines(layout, 'cls', values['SPLIT']))
    # With the E-layer; the other ways of TRANSFER cost less.
    one = FORWARD['CoarseSN'] + (FORWARD['MaskCN'] if values['NETWORK'] == 'EnhancedSN' else 0)
    scales = values['SCALES']
    if scales == (0,):
        script = REPOSITORY / f'train_{values["NETWORK"]}.py'
        scales = scales_of(settings.resolved(script, {'RECIPE': values['RECIPE']})['INPUT_SIZE'])
    views, scales = (len(VIEWS), scales) if values['TTA'] else (1, scales[:1])
    return sum((side / SIDE) ** 2 for side in scales) * one * views / 1e6 * inputs.count(
        layout, 'seg', values['SPLIT'])


def _of_weak_labels(job, values, layout):
    """PFLOP of a training or an evaluation of companions/weak_labels, at most: it stops early. An evaluation
    counts nothing."""
    if job.script == WEAK_EVALUATION:   # seconds
        return 0.0
    height, width = values['INPUT_SIZE']
    one = WEAK.get(values['ENCODER'], WEAK['resnet101']) * height * width / SIDE**2 / 1e6
    train, validated = (inputs.lesion_count(layout, values['DATA'], split)
                        for split in ('Training', 'Validation'))
    train = min(values['TRAIN_IMAGES'] or train, train)
    steps = 2 if values['METHOD'] == 'acoseg' else 1   # of each lesion in an epoch
    return one * values['EPOCH'] * (STEP * steps * train + validated / values['VALIDATE_EVERY'])
