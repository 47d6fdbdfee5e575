"""Stage 2: train coarse-SN, the network that segments lesions roughly (paper section III-A).

Reads   dataset/ISIC/{Training,Validation}_seg.txt and the pictures they list (stage 1); EXTRA_PAIRS
        a pretrained file of models/README.md, when there is one
Writes  models/CoarseSN/  CoarseSN.pth (best weights), last.pth (to go on from), config.json,
        metrics.jsonl, curves.png, panel.png, tensorboard/; with CROSS_FIT=5 the same below
        models/CoarseSN_fold1/ to CoarseSN_fold5/, each trained without a fifth of the pictures

    python train_CoarseSN.py
    python train_CoarseSN.py --CROSS_FIT=5
    torchrun --nproc-per-node=2 train_CoarseSN.py

Run it again after an interruption and it goes on where it stopped. Cost: about 95 PFLOP for the
paper's 500 epochs; 0.2 s for each picture of each epoch on two CPU cores with bf16 instructions.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import folds, splits
from dataset.layout import Layout
from engine import cli, device_samples, hardware, settings, trainer
from engine.errors import InputError
from mbdcnn import evaluation, networks, panels, stages
from mbdcnn.inference import Segmenter
from net.inputs import to_input
from net.loss import hybrid_loss

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'             # default (this file), or a file of recipes/, as paper, released, cpu
RESUME = True                  # go on from models/CoarseSN/last.pth; False starts anew
SEED = 0                       # of the weights, the order of the pictures, their augmentation, the folds
CROSS_FIT = 0                  # 2 or more: train this many instead, each without one fold of the pictures

# --- Network
NUM_CLASSES = 2                # output channels: 2 with softmax (released) or 1 with sigmoid (paper)
PRETRAINED = 'auto'            # voc (paper), xception65, xception (transplanted), none; auto: first present
VOC_WEIGHTS = 'models/deeplabv3plus_xception_VOC2012_epoch46_all.pth'   # file, see models/README.md
XCEPTION65_WEIGHTS = 'models/xception65.tf_in1k.pth'                    # file, see models/README.md
XCEPTION_WEIGHTS = 'models/xception-43020ad28.pth'                      # file, see models/README.md
INITIAL_WEIGHTS = ''           # fine-tune from, as other/models/CoarseSN/CoarseSN.pth; '' = PRETRAINED
SMALL_START = True             # last layer starts with std 0.01 (ours); False: 1.0, by fan-out (released)
DROPOUT = True                 # three dropout layers, 0.5, 0.5 and 0.1 (released)
BN_EPS = 0.0                   # of batch norms; 0 = 1e-3 from ImageNet (Keras), else 1e-5 (released)
FREEZE_BN = False              # batch norms keep their running statistics while training

# --- Optimisation
EPOCH = 500                    # passes over the training pictures (paper)
BATCH_SIZE = 16                # pictures a step, over all processes together (paper)
LEARNING_RATE = 1e-4           # Adam, decayed by (1 - step / steps) ** 0.9 (paper; schedule released)
PATIENCE = 0                   # stop after this many validations without a better JA; 0 = never
VALIDATE_EVERY = 1             # epochs between two validations (released)
TRAIN_IMAGES = 0               # train on this many pictures only, nested subsets; 0 = all
EXTRA_PAIRS = ''               # more pairs, such as drawn ones: folder, also below ROOT; EPOCH counts without
EXTRA_RATIO = 1.0              # of them for each picture of the list; 0 = all that the folder holds

# --- Loss
DICE_CLASSES = 'both'          # both (released) or lesion (paper)
RANK_WEIGHT = 0.05             # lambda of the hybrid loss; 0 = Dice alone (paper)
HARD_PIXELS = 30               # K, hard pixels of lesion and of background in an image (paper)
MARGIN = 0.3                   # by which lesion pixels shall outrank background pixels (paper)
RANK_PADDED = False            # lists shorter than K are filled with zero errors (released)

# --- Input and augmentation
INPUT_SIZE = 224               # px, side of the square network input, a multiple of 16 (paper)
CACHE_SIZE = 448               # px, side of the decoded pictures; twice the input: 1 sample in 80 is enlarged
INPUT_SCALING = 'unit'         # unit x/255 (released), symmetric, whitening (paper)
ROTATION = 10.0                # degrees, either way (paper)
SHEAR = 0.1                    # radians, either way (paper)
SHIFT = 0.0, 0.1               # fraction of width and of height, either way (released: vertical only)
ZOOM = 0.9, 1.1                # factor (paper)
FLIPS = True                   # horizontal and vertical, each in half of the samples (paper)
CENTRE_CROP = 0.5, 1.0         # side of a centre crop as a fraction of the picture's (paper)
CENTRE_CROP_PROBABILITY = 0.5  # share of the samples that are cropped (released)
AFFINE_FILTER = 'bilinear'     # bilinear or nearest (released) for the picture; masks are nearest

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: augmented in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower
SYNC_BN = True                 # several GPUs: batch norm over the global batch


def coarse_task(cfg, process, network, train, validation, steps):
    """What the training loop needs to know of coarse-SN; both data are dataset.splits.Segmentation."""
    pictures = stages.pictures(cfg, train.images, {'mask': train.masks})
    segmenter = Segmenter(network, cfg.INPUT_SCALING, hardware.choose_precision(cfg.AMP, process.device))

    def losses(models, batch):
        """batch : 'image' (B, 3, S, S) and 'mask' (B, S, S) uint8"""
        logits = models['CoarseSN'](to_input(batch['image'], cfg.INPUT_SCALING))   # (B, NUM_CLASSES, S, S)
        loss, dice, rank = hybrid_loss(logits, batch['mask'], cfg.RANK_WEIGHT, cfg.HARD_PIXELS, cfg.MARGIN,
                                       cfg.DICE_CLASSES, cfg.RANK_PADDED)
        yield 'CoarseSN', loss, {'dice': dice, 'rank': rank}

    return trainer.Task(
        networks={'CoarseSN': network},
        optimizers={'CoarseSN': trainer.adam(network, cfg.LEARNING_RATE, process.device)},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses,
        rate=lambda step: trainer.poly(step, steps),
        validate=lambda: evaluation.quick_segmentation(segmenter.folded(), validation, cfg.BATCH_SIZE,
                                                       process),
        panel=lambda path: panels.segmentation(segmenter, validation, process.device, path),
        monitor='JA', chance=0.0, score_start=bool(cfg.INITIAL_WEIGHTS))


def train_one(cfg, process, layout, train, validation):
    """Train the coarse-SN of `layout` on `train`."""
    hardware.seed_step(cfg.SEED, 0, 0)
    network, start = networks.coarse_for_training(cfg, train.images)
    steps, every = stages.steps(cfg, len(train.images))
    if cfg.EXTRA_PAIRS:   # neither the start nor the number of steps depends on them
        with hardware.main_first(process):
            train = splits.with_extra(train, layout, cfg.EXTRA_PAIRS, cfg.CACHE_SIZE, cfg.EXTRA_RATIO,
                                      cfg.SEED)
    task = coarse_task(cfg, process, network, train, validation, steps)
    with stages.open_run(layout, 'CoarseSN', cfg, process, train, validation, start) as run:
        trainer.fit(task, cfg, run, process, steps, every)


def train_folds(cfg, process, layout, train, validation):
    """Train a coarse-SN without each fold of `train`, one after the other."""
    parts = [(layout.fold(number), folds.without(train, cfg.CROSS_FIT, number, cfg.SEED))
             for number in range(1, cfg.CROSS_FIT + 1)]
    # All folders are looked at, or cleared, before hours of training: what is there after that is
    # of this call, and the same command without RESUME=False goes on from it.
    for place, part in parts:
        with stages.open_run(place, 'CoarseSN', cfg, process, part, validation,
                             'training has not begun') as run:
            run.begin(cfg.RESUME)
    for place, part in parts:
        print(f'{place.run("CoarseSN")}: {len(part.names)} of {len(train.names)} training pictures')
        train_one(cfg, process, place, part, validation)


def main():
    choices = stages.SEGMENTATION_CHOICES | {'PRETRAINED': networks.PRETRAINED_SN}
    cfg = settings.resolve(globals(), choices=choices, positive=stages.SEGMENTATION_POSITIVE,
                           least={'EXTRA_RATIO': 0})
    process = hardware.start(cfg)
    stages.check_numbers(cfg, process)
    folds.check(cfg.CROSS_FIT)
    for name in ('INITIAL_WEIGHTS', 'EXTRA_PAIRS') if cfg.CROSS_FIT else ():
        if source := getattr(cfg, name):
            raise InputError(f'CROSS_FIT and {name} exclude each other',
                             [f'{source}: may have seen the pictures that a fold leaves out'])
    layout = Layout(cfg.ROOT)
    with hardware.main_first(process):
        train = splits.segmentation(layout, 'Training', cfg.CACHE_SIZE,
                                    limit=cfg.TRAIN_IMAGES, seed=cfg.SEED)
        validation = splits.segmentation(layout, 'Validation', cfg.INPUT_SIZE)

    if cfg.CROSS_FIT:
        folds.check(cfg.CROSS_FIT, len(train.names))
        train_folds(cfg, process, layout, train, validation)
    else:
        train_one(cfg, process, layout, train, validation)
    hardware.finish()


if __name__ == '__main__':
    cli.launch(main)
