"""Weak labels: train a segmentation network on ellipses from two diameters (A1, A1+L, ACoseg).

Reads   WeakLabels/<DATA>/ (prepare_HAM10000, prepare_LiTS, prepare_DeepLesion, prepare_ISIC, prepare_folder)
Writes  models/WeakSN_<METHOD>/  WeakSN_<METHOD>.pth (best weights), last.pth (to go on from), config.json,
        trained_on.json, metrics.jsonl, curves.png, panel.png, tensorboard/; of METHOD=a1l also clusters.csv
        and clusters.png

    python -m companions.weak_labels.train_WeakSN --METHOD=a1l
    python -m companions.weak_labels.train_WeakSN --METHOD=a1 --ENCODER=resnet18 --INPUT_SIZE=128,128
    torchrun --nproc-per-node=2 companions/weak_labels/train_WeakSN.py --METHOD=a1

The weights with the least validation loss against the ellipses are kept: true masks select nothing, but for
METHOD=mask, which is trained on them, the ceiling. Run it again after an interruption and it goes on where it
stopped. Cost: companions/README.md.
"""
import functools
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
import torch

from companions import seen
from companions.weak_labels import clusters, lesions, networks
from companions.weak_labels.predictor import Predictor
from dataset.layout import Layout
from engine import augment, cli, device_samples, figures, files, hardware, metrics, settings, trainer
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures, to_device
from mbdcnn import evaluation, stages
from mbdcnn.inference import counts_on_device
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                     # folder that holds WeakLabels/ and models/
RECIPE = 'default'             # default (this file), or of recipes/: paper, cpu, demo
RESUME = True                  # go on from models/WeakSN_<METHOD>/last.pth; False starts anew
SEED = 0                       # of the weights, the order of the pictures, dropout
METHOD = 'a1l'                 # a1: ellipses; a1l: and their clusters; acoseg: pairs; mask: true masks
DATA = 'HAM10000'              # folder below WeakLabels/
TRAIN_IMAGES = 0               # train on this many lesions only, nested subsets; 0 = all

# --- Network
ENCODER = 'resnet101'          # of DeepLabv3+: any of segmentation-models-pytorch that can be dilated (paper)
ENCODER_WEIGHTS = ''           # file, torchvision's names; '' = torch hub's cache if there, else none; none
SWAP_ATTENTION = True          # acoseg: a picture's attention acts on the other; False: on its own (released)

# --- Clusters, of METHOD=a1l
CLUSTERS = 0                   # k-means; 0 = HAM10000 45, LiTS 40, DeepLesion 190 (released), others 45
CLUSTERS_FROM = 'Training'     # Training: fitted to the training lesions; all: also to the others (released)
ANGLE = 'wrapped'              # of an ellipse: wrapped, 0 and 180 degrees are the same, or degrees (released)

# --- Loss
MASK_WEIGHT = 0.0              # of the mask's cross-entropy; 0 = 100, a1l 50, acoseg 1 (released)
CLASS_WEIGHT = 1.0             # of the cluster's cross-entropy, METHOD=a1l (released)

# --- Optimisation
EPOCH = 50                     # passes over the training lesions, at most (released)
PATIENCE = 5                   # stop after this many validations without a better score; 0 = never (released)
SELECT = 'mask loss'           # least validation mask loss (released), or largest Dice (released: LiTS)
VALIDATE_EVERY = 1             # epochs between two validations (released)
BATCH_SIZE = 0                 # lesions a step, over all processes together; 0 = 10, acoseg 8 (released)
LEARNING_RATE = 0.0            # Adam, constant; 0 = 1e-3, acoseg 1e-5 (released)
CLIP = 0.05                    # acoseg: largest global norm of the gradients (released)
ZERO_GRADIENTS = True          # acoseg: before each step; False: they add up (released)

# --- Input
INPUT_SIZE = 384, 480          # px, height and width that patches are reflected to, multiples of 16 (paper)
BGR = False                    # channels in OpenCV's order under the statistics of RGB (released)

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: kept in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower
SYNC_BN = True                 # several GPUs: batch norm over the global batch


def weak_task(cfg, process, network, train, validation, labels=(None, None)):
    """What the training loop needs to know of a method.

    train, validation : lesions.Lesions; labels : of both, their clusters (N,), or None
    """
    name, side = f'WeakSN_{cfg.METHOD}', train.side
    targets, wanted = (data.masks if cfg.METHOD == 'mask' else data.ellipses for data in (train, validation))
    pictures = Pictures(train.images, {'target': targets}, labels[0], side,
                        augment.Window(side, side, mirror=False), seed=cfg.SEED)   # no augmentation (paper)
    predictor = Predictor(network, cfg, hardware.choose_precision(cfg.AMP, process.device))

    def read(batch):
        return (networks.to_input(batch['image'], cfg.INPUT_SIZE, cfg.BGR),
                networks.padded(batch['target'], cfg.INPUT_SIZE))

    def losses(models, batch):
        """batch : 'image' (B, 3, P, P) and 'target' (B, P, P) uint8, with labels 'label' (B,)"""
        x, target = read(batch)
        loss, parts = networks.weighted_loss(models[name](x), target, batch.get('label'), cfg.MASK_WEIGHT,
                                             cfg.CLASS_WEIGHT)
        yield name, loss, parts

    def losses_of_pairs(models, batch):
        """The halves of a batch as pairs (first, second), then (second, first): two steps."""
        x, target = (part.chunk(2) for part in read(batch))
        for order in ((0, 1), (1, 0)):
            found = models[name](*(x[half] for half in order))
            parts = [networks.mask_loss(logits, target[half])
                     for logits, half in zip(found, order, strict=True)]
            yield name, cfg.MASK_WEIGHT * sum(parts), {'mask': sum(parts) / 2}

    def validate():
        work = functools.partial(score, cfg, validation, wanted, labels[1], predictor.folded())
        rows = np.array(evaluation.all_rows(work, len(validation.names), cfg.BATCH_SIZE, PICTURES_ON_A_CORE,
                                            process))
        return means(cfg, rows, validation.masks is not None, labels[1] is not None)

    def panel(path):
        shown = spread(len(validation.names), PANEL_ROWS).tolist()
        probabilities = 1 / (1 + np.exp(-predictor.folded().logits(validation.images, shown)))
        figures.panel([(validation.names[number][-24:], [
            validation.images[number], wanted[number], probability.astype(np.float32),
            figures.outlined(np.array(validation.images[number]), wanted[number], probability > 0.5)])
            for number, probability in zip(shown, probabilities, strict=True)],
            ['patch', 'target', 'probability', 'target, found'], path)

    optimizer = trainer.adam(network, cfg.LEARNING_RATE, process.device) if cfg.METHOD != 'acoseg' else \
        networks.ClippedAdam(network.parameters(), cfg.LEARNING_RATE, cfg.CLIP, not cfg.ZERO_GRADIENTS)
    return trainer.Task(
        networks={name: network}, optimizers={name: optimizer},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses_of_pairs if cfg.METHOD == 'acoseg' else losses, rate=lambda _: 1.0,
        validate=validate, panel=panel, monitor=cfg.SELECT, smaller_is_better=cfg.SELECT == 'mask loss')


def score(cfg, data, wanted, labels, trained, numbers):
    """A row for each of some lesions: mask loss, four counts against the target; if there are such, IoU with
    the truth, and whether the class is right.

    data : lesions.Lesions; wanted : (N, P, P) targets; labels : (N,) clusters or None; trained : Predictor
    """
    logits, classes = trained.frames(data.images, numbers)
    target = to_device(wanted[numbers], trained.device)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, networks.padded(target, cfg.INPUT_SIZE).float(), reduction='none').mean((1, 2))
    middle = networks.cropped(logits, data.side)
    rows = [losses[:, None], counts_on_device(middle, target).float()]
    if data.masks is not None:
        truth = to_device(data.masks[numbers], trained.device) > 0
        both, either = ((middle > 0) & truth).sum((1, 2)), ((middle > 0) | truth).sum((1, 2))
        rows.append((both / either.clamp(min=1))[:, None])
    if classes is not None:
        true = torch.from_numpy(labels[numbers]).to(trained.device)
        rows.append((classes.argmax(1) == true).float()[:, None])
    return torch.cat(rows, 1)


def means(cfg, rows, with_truth, with_classes):
    """{name: mean} of rows of `score`, what selects first; FloatingPointError if one is not finite."""
    if not np.isfinite(rows).all():
        raise FloatingPointError('The output for a validation lesion is not finite')
    dice = metrics.segmentation_scores(rows[:, 1:5])[:, 1].mean()
    found = {'mask loss': rows[:, 0].mean(), 'Dice': dice}
    if cfg.SELECT == 'Dice':
        found = dict(reversed(found.items()))
    if with_truth:
        found['true IoU'] = rows[:, 5].mean()   # to look at: it selects nothing
    if with_classes:
        found['validation class accuracy'] = rows[:, -1].mean()
    return {key: float(value) for key, value in found.items()}


# Below the first function, where settings do not look.
PANEL_ROWS, PICTURES_ON_A_CORE = 8, 8
USUAL = {'a1': (100.0, 1e-3, 10), 'a1l': (50.0, 1e-3, 10), 'acoseg': (1.0, 1e-5, 8),
         'mask': (100.0, 1e-3, 10)}   # mask weight, learning rate, batch size


def filled(cfg):
    """Settings with the method's own numbers, and the data's, where they are 0."""
    own = dict(zip(('MASK_WEIGHT', 'LEARNING_RATE', 'BATCH_SIZE'), USUAL[cfg.METHOD], strict=True))
    own['CLUSTERS'] = clusters.USUAL.get(cfg.DATA, 45)
    return settings.Settings(**{name: value or own.get(name, value) for name, value in vars(cfg).items()})


def cluster(cfg, layout, train, validation):
    """The clusters of both sets' ellipses, (None, None) where the method has none."""
    if cfg.METHOD != 'a1l':
        return None, None
    others = [[row[name] for name in lesions.ELLIPSE] for row in lesions.rows(layout, cfg.DATA)
              if row['split'] == 'Testing'] if cfg.CLUSTERS_FROM == 'all' else []
    return clusters.labels(train.parameters, validation.parameters, np.reshape(others, (-1, 5)), cfg.CLUSTERS,
                           cfg.ANGLE, cfg.CLUSTERS_FROM)


def write_facts(folder, train, validation, labels):
    """Write which lesions are trained on, and where there are clusters, which lesion is in which,
    clusters.csv, and some of each, clusters.png."""
    seen.note(folder, train.names, groups=train.groups)
    if labels[0] is None:
        return
    files.write_csv(folder / 'clusters.csv', [('name', 'cluster'), *(
        (lesion, int(number)) for data, found in zip((train, validation), labels, strict=True)
        for lesion, number in zip(data.names, found, strict=True))])
    clusters.draw(train, labels[0], folder / 'clusters.png')


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    size = 'x'.join(map(str, cfg.INPUT_SIZE))
    return [] if len(cfg.INPUT_SIZE) == 2 and all(
        length > 0 and length % networks.STRIDE == 0 for length in cfg.INPUT_SIZE) else [
        f'INPUT_SIZE={size}: must be height,width, multiples of {networks.STRIDE}']


def check_data(cfg, process, layout, train, validation):
    """Raise InputError for settings that do not fit the prepared lesions or the processes."""
    faults = []
    if train.side > min(cfg.INPUT_SIZE):
        faults.append(f'INPUT_SIZE={cfg.INPUT_SIZE}: the patches are {train.side} px; prepare smaller ones '
                      'with --PATCH_SIZE')
    if cfg.METHOD == 'mask' and (train.masks is None or validation.masks is None):
        faults.append(f'METHOD=mask: {lesions.table(layout, cfg.DATA)} has lesions without a true mask')
    shared = process.world * (2 if cfg.METHOD == 'acoseg' else 1)
    if cfg.BATCH_SIZE % shared or cfg.BATCH_SIZE < 2 * shared:   # batch norms need two values
        faults.append(f'BATCH_SIZE={cfg.BATCH_SIZE}: must be a multiple of {shared}, {2 * shared} or more')
    if faults:
        raise InputError('Settings that do not fit the data or the processes', faults)


def main():
    cfg = settings.resolve(globals(), choices=stages.TRAINING_CHOICES | {
        'METHOD': networks.METHODS, 'SELECT': ('mask loss', 'Dice'), 'ANGLE': clusters.ANGLES,
        'CLUSTERS_FROM': clusters.FROM},
        positive=('EPOCH', 'VALIDATE_EVERY', 'CLIP'),
        least={'SEED': 0, 'TRAIN_IMAGES': 0, 'CLUSTERS': 0, 'MASK_WEIGHT': 0, 'CLASS_WEIGHT': 0,
               'PATIENCE': 0, 'BATCH_SIZE': 0, 'LEARNING_RATE': 0,
               'NUM_WORKERS': hardware.WORKERS_AUTO}, check=check)
    cfg = filled(cfg)
    networks.require()
    process = hardware.start(cfg)
    layout = Layout(cfg.ROOT)
    with hardware.main_first(process):
        train = lesions.load(layout, cfg.DATA, 'Training', cfg.TRAIN_IMAGES, cfg.SEED)
        validation = lesions.load(layout, cfg.DATA, 'Validation')
    check_data(cfg, process, layout, train, validation)
    labels = cluster(cfg, layout, train, validation)
    hardware.seed_step(cfg.SEED, 0, 0)
    network = networks.build(cfg.METHOD, cfg.ENCODER, cfg.CLUSTERS, cfg.SWAP_ATTENTION)
    start, weights = networks.load_encoder(network, cfg.ENCODER, cfg.ENCODER_WEIGHTS)
    print(f'{cfg.ENCODER} starts from {start}')
    inputs = {'training': train.fingerprint, 'validation': validation.fingerprint, 'encoder': weights,
              'drawn_pictures': lesions.drawn(layout, cfg.DATA)}
    if labels[0] is not None:
        inputs['clusters'] = hashlib.sha256(np.concatenate(labels).tobytes()).hexdigest()[:16]
    epoch = max(1, round(len(train.names) / cfg.BATCH_SIZE))
    task, name = weak_task(cfg, process, network, train, validation, labels), f'WeakSN_{cfg.METHOD}'
    with Run(layout.run(name), name, cfg, inputs, start, process) as run:
        # With the first score, when the folder has taken the run for its own.
        write = functools.cache(lambda: write_facts(run.folder, train, validation, labels))
        task.noted = lambda *_: write()
        trainer.fit(task, cfg, run, process, cfg.EPOCH * epoch, cfg.VALIDATE_EVERY * epoch)
    hardware.finish()


if __name__ == '__main__':
    cli.launch(main)
