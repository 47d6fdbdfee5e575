"""Stage 4: train mask-CN, the classifier that sees the coarse mask as a 4th channel (section III-B).

Reads   dataset/ISIC/{Training_Add,Validation_crop9}_cls.txt and the crops they list (stage 1)
        dataset/data/classes.toml, where the classes are not the paper's three
        Coarse_masks/*_MaskCN/ (stage 3); a pretrained file of models/README.md, when there is one
Writes  models/MaskCN/  MaskCN.pth (best weights), last.pth (to go on from), config.json,
        metrics.jsonl, curves.png, panel.png, tensorboard/

    python train_MaskCN.py
    torchrun --nproc-per-node=2 train_MaskCN.py

Run it again after an interruption and it goes on where it stopped. Cost: about 51 PFLOP for the
paper's 50,001 steps, and 15 TFLOP for every validation of 150 images with 9 crops each.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from torch.nn.functional import cross_entropy

from dataset import splits
from dataset.classes import PAPER
from dataset.layout import Layout
from engine import cli, device_samples, hardware, settings, trainer
from mbdcnn import coarse_masks, evaluation, networks, panels, stages
from mbdcnn.inference import Classifier
from net.inputs import to_maskcn_input

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, Coarse_masks/, models/ and results/
RECIPE = 'default'             # default (this file), or a file of recipes/, as paper, released, cpu
RESUME = True                  # go on from models/MaskCN/last.pth; False starts anew
SEED = 0                       # of the weights, the order of the crops and their augmentation

# --- Network
INPUT_CHANNEL = 4              # 4: RGB and coarse mask (paper); 3: RGB alone (paper, Table V)
PRETRAINED = 'auto'            # xception (paper), none; auto: xception when the file is present
XCEPTION_WEIGHTS = 'models/xception-43020ad28.pth'   # file, see models/README.md
INITIAL_WEIGHTS = ''           # fine-tune from, as other/models/MaskCN/MaskCN.pth; '' = PRETRAINED
PRETRAINED_EXIT_FLOW = True    # False: the exit flow starts random (released, by a name filter's mistake)
RELU_SKIP = False              # True: skip paths see relu(input) (released, by an in-place ReLU)
BN_EPS = 0.0                   # of batch norms; 0 = 1e-3 from ImageNet (Keras), else 1e-5 (released)
FREEZE_BN = False              # batch norms keep their running statistics while training

# --- Optimisation
STEPS = 50_001                 # optimiser steps (released)
BATCH_SIZE = 32                # crops a step, over all processes together (paper)
LEARNING_RATE = 1e-4           # Adam, decayed by (1 - step / steps) ** 0.9 (paper; schedule released)
PATIENCE = 0                   # stop after this many validations without a better mean AUC; 0 = never
VALIDATE_EVERY = 100           # steps between two validations (released)
VALIDATION_CROPS = 9           # crops an image in validation: 9 (released) or 1, the whole image
TRAIN_IMAGES = 0               # train on the crops of this many images only, nested; 0 = all

# --- Input and augmentation
INPUT_SIZE = 224               # px, side of the square network input, a multiple of 16 (paper)
INPUT_SCALING = 'symmetric'    # symmetric (x/255 - 0.5)/0.5 (ImageNet weights), unit (released), whitening
ROTATION = 10.0                # degrees, either way (paper)
SHEAR = 0.1                    # radians, either way (paper)
SHIFT = 0.0, 0.1               # fraction of width and of height, either way (released: vertical only)
ZOOM = 0.9, 1.1                # factor (paper)
FLIPS = True                   # horizontal and vertical, each in half of the samples (paper)
AFFINE_FILTER = 'bilinear'     # bilinear or nearest (released) for the picture; masks are nearest

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: augmented in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower
SYNC_BN = True                 # several GPUs: batch norm over the global batch


def mask_task(cfg, process, network, train, validation, classes=PAPER):
    """What the training loop needs to know of mask-CN; both data are dataset.splits.Classification.

    classes : ClassTable
    """
    planes = {'coarse': train.coarse} if cfg.INPUT_CHANNEL == 4 else {}
    pictures = stages.pictures(cfg, train.images, planes, train.labels)
    classifier = Classifier(network, cfg.INPUT_SCALING, hardware.choose_precision(cfg.AMP, process.device),
                            classes=classes)

    def losses(models, batch):
        """batch : 'image' (B, 3, S, S) uint8, perhaps 'coarse' (B, S, S) uint8, and 'label' (B,)"""
        logits = models['MaskCN'](to_maskcn_input(batch['image'], batch.get('coarse'), cfg.INPUT_SCALING))
        yield 'MaskCN', cross_entropy(logits.float(), batch['label']), {}   # logits (B, C)

    return trainer.Task(
        networks={'MaskCN': network},
        optimizers={'MaskCN': trainer.adam(network, cfg.LEARNING_RATE, process.device)},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses,
        rate=lambda step: trainer.poly(step, cfg.STEPS),
        validate=lambda: evaluation.quick_classification(classifier.folded(), validation, cfg.BATCH_SIZE,
                                                         process),
        panel=lambda path: panels.classification(classifier, validation, process.device, path),
        monitor='mean AUC', chance=0.5, score_start=bool(cfg.INITIAL_WEIGHTS))


def main():
    cfg = settings.resolve(globals(), choices=stages.CLASSIFICATION_CHOICES,
                           positive=stages.CLASSIFICATION_POSITIVE)
    process = hardware.start(cfg)
    stages.check_numbers(cfg, process)
    layout, masked = Layout(cfg.ROOT), cfg.INPUT_CHANNEL == 4
    inputs = {'classes': layout.classes.record()}
    if masked:
        inputs['coarse_masks'] = coarse_masks.require(layout, [layout.coarse_for_classification(split)
                                                               for split in ('Training', 'Validation')])
    with hardware.main_first(process):
        train = splits.classification(layout, 'Training', cfg.INPUT_SIZE, masked,
                                      limit=cfg.TRAIN_IMAGES, seed=cfg.SEED)
        validation = splits.classification(layout, 'Validation', cfg.INPUT_SIZE, masked,
                                           whole_only=cfg.VALIDATION_CROPS == 1)

    hardware.seed_step(cfg.SEED, 0, 0)
    network, start = networks.mask_for_training(cfg, layout.classes)
    task = mask_task(cfg, process, network, train, validation, layout.classes)
    with stages.open_run(layout, 'MaskCN', cfg, process, train, validation, start, inputs) as run:
        trainer.fit(task, cfg, run, process, cfg.STEPS, cfg.VALIDATE_EVERY)
    hardware.finish()


if __name__ == '__main__':
    cli.launch(main)
