"""Label transfer: train a segmentation network on the masks that the attention gave.

Reads   LabelTransfer/masks/Training/<METHOD>/ (generate_masks --SPLIT=Training), the pictures they are of,
        models/LabelTransfer/ (which pictures these are); validation pictures with masks, which choose
Writes  models/LabelTransferStudent/  student.pth, last.pth, config.json, metrics.jsonl, curves.png, ...
        with EMA models/LabelTransferStudentEMA/round<n>/, the same and EMA.pth

    python -m companions.label_transfer.generate_masks --SPLIT=Training
    python -m companions.label_transfer.train_student
    python -m companions.label_transfer.train_student --EMA=True

With EMA the steps are parted into ROUNDS. A moving average of the student is the teacher of the next round:
it draws the training masks again, and the student goes on with those. The paper promises such a stage; the
released program has none. Run it again after an interruption and it goes on where it stopped.
Cost: companions/README.md.
"""
import hashlib
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np

from companions.label_transfer import data, maps, student, trained
from companions.label_transfer.making import recorded
from dataset import isic, splits
from dataset.layout import Layout
from engine import cli, device_samples, files, hardware, images, settings, trainer
from engine.errors import InputError
from engine.run_folder import Run
from mbdcnn import evaluation, networks, panels, stages
from mbdcnn.inference import Segmenter
from net.inputs import to_input
from net.loss import hybrid_loss

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, LabelTransfer/ and models/
RECIPE = 'default'             # default (this file), or of recipes/: paper, cpu, cpu_few, demo
RESUME = True                  # go on from last.pth; False starts anew
SEED = 0                       # of the weights, the order of the pictures, their augmentation

# --- Teacher
METHOD = 'normalised-crf'      # whose masks are learnt: of generate_masks.py's METHODS
EMA = False                    # a moving average of the student redraws the masks after each round
ROUNDS = 3                     # with EMA: parts of the training, each on the masks of the one before
DECAY = 0.99                   # of the moving average, a step

# --- Network
STUDENT = 'unet'               # unet, a small one from random weights, or coarse-sn
WIDTH = 16                     # channels of the U-Net's first level
PRETRAINED = 'auto'            # coarse-SN: auto, voc, xception65, xception or none, see train_CoarseSN.py
VOC_WEIGHTS = 'models/deeplabv3plus_xception_VOC2012_epoch46_all.pth'   # file, see models/README.md
XCEPTION65_WEIGHTS = 'models/xception65.tf_in1k.pth'                    # file, see models/README.md
XCEPTION_WEIGHTS = 'models/xception-43020ad28.pth'                      # file, see models/README.md

# --- Optimisation
STEPS = 2000                   # steps, of all rounds together
BATCH_SIZE = 8                 # pictures a step
LEARNING_RATE = 1e-3           # Adam, falling as (1 - step / steps) ** 0.9 within a round
VALIDATE_EVERY = 100           # steps between two validations
RANK_WEIGHT = 0.05             # of the rank loss beside Dice, as coarse-SN's

# --- Input and augmentation
INPUT_SIZE = 224               # px, side of the network input, a multiple of 16
CACHE_SIZE = 288               # px, side of the decoded pictures and of the masks that are learnt
ROTATION = 10.0                # degrees, either way
SHEAR = 0.1                    # radians, either way
SHIFT = 0.0, 0.1               # fraction of width and of height, either way
ZOOM = 0.9, 1.1                # factor
FLIPS = True                   # horizontal and vertical, each in half of the samples
AFFINE_FILTER = 'bilinear'     # bilinear or nearest for the picture; masks are nearest

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: augmented in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower


def student_task(cfg, process, network, average, train, validation, steps):
    """What the training loop needs to know of a round. train, validation : dataset.splits.Segmentation

    average : the student's moving average, None without; it is what is validated then
    """
    pictures = stages.pictures(cfg, train.images, {'mask': train.masks})
    precision = hardware.choose_precision(cfg.AMP, process.device)
    judged = Segmenter(network if average is None else average, student.SCALING, precision)

    def losses_of(models, batch):
        """batch : 'image' (B, 3, S, S) and 'mask' (B, S, S) uint8"""
        logits = models['student'](to_input(batch['image'], student.SCALING))
        loss, dice, rank = hybrid_loss(logits, batch['mask'], cfg.RANK_WEIGHT)
        yield 'student', loss, {'dice': dice, 'rank': rank}
        if average is not None:
            student.follow(average, network, cfg.DECAY)

    return trainer.Task(
        networks={'student': network} | ({} if average is None else {'EMA': average}),
        optimizers={'student': trainer.adam(network, cfg.LEARNING_RATE, process.device)},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses_of, rate=lambda step: trainer.poly(step, steps),
        validate=lambda: evaluation.quick_segmentation(judged, validation, cfg.BATCH_SIZE, process),
        panel=lambda path: panels.segmentation(judged, validation, process.device, path),
        monitor='JA', chance=0.0)


def teacher_masks(layout, pairs, method, side, weights):
    """The masks that generate_masks drew of training pictures: (N, side, side) uint8 {0, 1}.

    weights : fingerprint of the teacher's
    Raises InputError where they are of other weights or drawn as earlier versions did, else naming every one
    that is missing or of another picture.
    """
    folder = layout.root / 'LabelTransfer' / 'masks' / 'Training' / method
    record, above = recorded(folder, layout)
    paths = [folder / f'{name}{isic.MASK_SUFFIX}.png' for name, _, _ in pairs]
    faults = [f'{folder}: holds no masks as the present teacher draws them']
    if (record.head.get('weights'), record.head.get('version')) == (weights, maps.VERSION):
        sources = record.contents.of_all([picture for _, picture, _ in pairs], 'training pictures: reading')
        present = record.contents.of_all(paths, 'masks: reading')
        faults = [f'{path}: {"is not as it was drawn of the present picture" if own else "is missing"}'
                  for path, source, own in zip(paths, sources, present, strict=True)
                  if not record.holds(above + path.name, source, own)]
    if faults:
        raise InputError('The teacher has drawn no masks of the training pictures', faults, layout.command(
            '-m companions.label_transfer.generate_masks', '--SPLIT=Training', f'--METHODS={method}'))
    return np.stack(files.for_all(
        lambda path: images.resize_mask(images.read_mask(path), (side, side)), paths, 'reading masks'))


def train_round(cfg, process, layout, name, teacher, network, average, train, validation, start, steps):
    """Train in the run folder models/<name>; both networks hold the kept weights afterwards.

    teacher : fingerprint of its weights
    """
    task = student_task(cfg, process, network, average, train, validation, steps)
    digest = hashlib.sha256(train.masks.tobytes()).hexdigest()[:16]
    inputs = {'training': train.fingerprint, 'masks': digest, 'validation': validation.fingerprint,
              'teacher': teacher,
              'bn_eps': networks.epsilon(cfg) if cfg.STUDENT == 'coarse-sn' else 0.0}
    kept = tuple(task.networks)
    with Run(layout.run(name), 'LabelTransferStudent', cfg, inputs, start, process, kept) as run:
        if run.folder.name == 'round1' and not cfg.RESUME:
            remove_others(run.folder)
        trainer.fit(task, cfg, run, process, steps, cfg.VALIDATE_EVERY)


def remove_others(first):
    """Remove the rounds that an earlier training left beside the first, a folder, which is begun anew."""
    for folder in first.parent.glob('round*'):
        if folder == first or not folder.name.removeprefix('round').isdigit():
            continue
        with files.lock(folder / '.lock', InputError('Two runs in one folder', [
                f'{folder}: another process trains here'], 'wait for it, or train below another --ROOT')):
            shutil.rmtree(folder)


def main():
    cfg = settings.resolve(globals(), choices=stages.TRAINING_CHOICES | {
        'STUDENT': student.STUDENTS, 'METHOD': maps.METHODS, 'PRETRAINED': networks.PRETRAINED_SN},
        positive=('STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'VALIDATE_EVERY', 'INPUT_SIZE', 'CACHE_SIZE',
                  'WIDTH', 'ROUNDS'), least={'DECAY': 0})
    coarse = settings.resolved(networks.REPOSITORY / 'train_CoarseSN.py', {'RECIPE': cfg.RECIPE})
    cfg = settings.Settings(**{**{name: coarse[name] for name in OF_COARSE}, **vars(cfg),
                               'INPUT_SCALING': student.SCALING})
    process = hardware.start(cfg, alone=True)
    stages.check_numbers(cfg, process)
    layout = Layout(cfg.ROOT)
    teacher = trained.load(layout, process, cfg.AMP)
    teacher.require_validation(trained.NEED_MASKS)
    pairs = teacher.source.pairs('Training')
    found = data.load(layout, 'student', [path for _, path, _ in pairs], cfg.CACHE_SIZE)
    masks = teacher_masks(layout, pairs, cfg.METHOD, cfg.CACHE_SIZE, teacher.fingerprint)
    chosen = data.load_pairs(layout, 'student_Validation', teacher.pairs('Validation'), cfg.INPUT_SIZE,
                             cfg.INPUT_SIZE)
    validation = splits.Segmentation(chosen.images, chosen.masks, None, chosen.names, chosen.fingerprint)
    hardware.seed_step(cfg.SEED, 0, 0)
    network, start = student.build(cfg, found.images)
    average, rounds = (student.average_of(network), cfg.ROUNDS) if cfg.EMA else (None, 1)
    for number in range(1, rounds + 1):
        train = splits.Segmentation(found.images, masks, None, found.names, found.fingerprint)
        name = f'LabelTransferStudentEMA/round{number}' if cfg.EMA else 'LabelTransferStudent'
        train_round(cfg, process, layout, name, teacher.fingerprint, network, average, train, validation,
                    start, max(1, cfg.STEPS // rounds))
        if number < rounds:
            drawer = Segmenter(average, student.SCALING, hardware.choose_precision(cfg.AMP, process.device))
            masks, before = student.redraw(drawer, found.images, cfg.INPUT_SIZE), masks
            changed, empty = 100 * (masks != before).mean(), (~masks.any((1, 2))).sum()
            print(f'round {number}: the average has redrawn the masks, {changed:.1f} % of the pixels differ, '
                  f'{empty} of {len(masks)} masks are empty')
            start = f'round {number}'


# Below the first function, where settings do not look: what coarse-SN's training has besides.
OF_COARSE = 'INITIAL_WEIGHTS', 'NUM_CLASSES', 'DROPOUT', 'BN_EPS', 'SMALL_START', 'PATIENCE'


if __name__ == '__main__':
    cli.launch(main)
