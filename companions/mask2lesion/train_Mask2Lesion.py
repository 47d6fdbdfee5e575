"""Mask2Lesion: train the generator that draws a lesion for a mask, and its discriminator.

Reads   dataset/ISIC/{Training,Validation}_seg.txt and the pictures they list (stage 1), or with PAIRS a
        folder of [mask | image] files, train/ and perhaps test/ (make_pairs)
Writes  models/Mask2Lesion/  G.pth and D.pth (the last weights: no score selects), last.pth (to go on from),
        config.json, metrics.jsonl, curves.png, panel.png, tensorboard/

    python -m companions.mask2lesion.train_Mask2Lesion
    python -m companions.mask2lesion.train_Mask2Lesion --TRAIN_IMAGES=300 --WIDTH=32 --STEPS=20000

The validation pictures are drawn for the curves and the panel alone. Run it again after an interruption
and it goes on where it stopped. Cost: companions/README.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import torch

from companions.mask2lesion import networks, painter, pairs
from companions.mask2lesion.painter import mask_input
from dataset.layout import Layout
from engine import (
    augment,
    checkpoints,
    cli,
    device_samples,
    figures,
    files,
    hardware,
    images,
    settings,
    trainer,
)
from engine.run_folder import Run
from engine.samples import Pictures
from mbdcnn import stages
from mbdcnn.panels import spread
from net.inputs import to_input

# --- Experiment
ROOT = '.'                     # folder that holds dataset/ and models/
RECIPE = 'default'             # default (this file), or of recipes/: paper, cpu, cpu_few, demo
RESUME = True                  # go on from models/Mask2Lesion/last.pth; False starts anew
SEED = 0                       # of the weights, the noise, the order of the pictures, their windows
PAIRS = ''                     # folder of [mask | image] files with train/ and test/; '' = ROOT's lists
TRAIN_IMAGES = 0               # train on this many pictures only, those of train_CoarseSN.py; 0 = all

# --- Networks
WIDTH = 64                     # channels of the generator's first layer (released)
D_WIDTH = 64                   # channels of the discriminator's first layer (released)
LEVELS = 8                     # halvings of the generator, 5 or more (released: 8 for 256 px, 7 for 128)
NORM = 'instance'              # instance (released, paper) or batch
DROPOUT = True                 # in the inner decoder levels: the only noise (released)
INITIAL_WEIGHTS = ''           # generator to start from, as latest_net_G.pth; '' = random weights

# --- Optimisation
EPOCH = 200                    # passes over the training pictures (released)
DECAY_EPOCHS = 100             # of them with a learning rate that falls linearly (released)
STEPS = 0                      # steps of each network, to which EPOCH is stretched; 0 = EPOCH passes
BATCH_SIZE = 1                 # pictures a step (released)
LEARNING_RATE = 2e-4           # Adam, of both networks, betas 0.5 and 0.999 (released)
VALIDATE_EVERY = 5             # epochs between two looks at validation pictures
VALIDATION_IMAGES = 32         # pictures of the validation split that are drawn then, evenly spread

# --- Loss
GAN_LOSS = 'vanilla'           # vanilla, cross-entropy (released), or lsgan, squared error (paper's figure)
L1_WEIGHT = 100.0              # of the mean absolute difference to the real picture (released)

# --- Input and augmentation
INPUT_SIZE = 256               # px, side of the networks' input, a multiple of 2 ** LEVELS (paper)
LOAD_SIZE = 286                # px, side of the pictures that windows of INPUT_SIZE are cut from (released)
MIRROR = True                  # left to right, in half of the samples (released)
MASK_FILTER = 'bicubic'        # how masks are squashed: bicubic, with grey edges (released), or nearest

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: cut out in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower


def gan_task(cfg, process, generator, discriminator, train, held_out, steps):
    """What the training loop needs to know of the two networks.

    train : pairs.Pairs of LOAD_SIZE; held_out : of INPUT_SIZE, to look at; steps : of the whole training
    """
    window = augment.Window(cfg.LOAD_SIZE, cfg.INPUT_SIZE, cfg.MIRROR)
    pictures = Pictures(train.images, {'mask': train.masks}, None, cfg.INPUT_SIZE, window, seed=cfg.SEED)
    betas = 0.5, 0.999

    def losses(models, batch):
        """batch : 'image' (B, 3, S, S) and 'mask' (B, S, S) uint8"""
        mask, real = mask_input(batch['mask']), to_input(batch['image'], 'symmetric')
        fake = models['G'](mask)   # (B, 3, S, S)
        on_fake = models['D'](pair(mask, fake.detach()))
        on_real = models['D'](pair(mask, real))
        d_fake = networks.gan_loss(on_fake, False, cfg.GAN_LOSS)
        d_real = networks.gan_loss(on_real, True, cfg.GAN_LOSS)
        yield 'D', (d_fake + d_real) / 2, {'D fake': d_fake, 'D real': d_real}
        models['D'].requires_grad_(False)   # its gradients would be thrown away
        fooled = networks.gan_loss(models['D'](pair(mask, fake)), True, cfg.GAN_LOSS)
        distance = (fake - real).abs().mean()
        yield 'G', fooled + cfg.L1_WEIGHT * distance, {'G GAN': fooled, 'G L1': distance}
        models['D'].requires_grad_(True)

    def drawn(numbers):
        paint = painter.Painter(generator, cfg.INPUT_SIZE, cfg.MASK_FILTER, False, process.device, cfg.AMP)
        return [paint(held_out.masks[number]) for number in numbers]

    def validate():
        """Mean distance to the real pictures, on [-1, 1], and how far a threshold finds the mask again."""
        numbers = spread(len(held_out.names), cfg.VALIDATION_IMAGES)
        found = drawn(numbers)
        distances = [abs(picture / 127.5 - held_out.images[number] / 127.5).mean()
                     for picture, number in zip(found, numbers, strict=True)]
        overlaps = [painter.overlap(images.otsu_mask(picture), held_out.masks[number] > 127)[0]
                    for picture, number in zip(found, numbers, strict=True)]
        return {'validation L1': float(sum(distances) / len(numbers)),
                'Otsu JA': float(sum(overlaps) / len(numbers))}

    def panel(path):
        numbers = spread(len(held_out.names), PANEL_ROWS)
        generator.eval()
        figures.panel([(held_out.names[number], [(held_out.masks[number] > 127).astype('uint8'), picture,
                                                 held_out.images[number]])
                       for number, picture in zip(numbers, drawn(numbers), strict=True)],
                      ['mask', 'drawn', 'real'], path)

    return trainer.Task(
        networks={'G': generator, 'D': discriminator},
        optimizers={name: trainer.adam(network, cfg.LEARNING_RATE, process.device, betas)
                    for name, network in (('D', discriminator), ('G', generator))},
        stream=lambda first, last: device_samples.batches(pictures, cfg, process, first, last),
        losses=losses, rate=lambda step: decay(step, steps, cfg.EPOCH, cfg.DECAY_EPOCHS),
        validate=validate, panel=panel)


# Below the first function, where settings do not look.
PANEL_ROWS = 8


def pair(mask, picture):
    """What the discriminator sees: (B, 6, S, S)."""
    return torch.cat([mask, picture.to(mask.dtype)], 1)


def decay(step, steps, epochs, falling):
    """Factor on the learning rate: 1, and over the last `falling` of `epochs` epochs linearly to almost 0."""
    epoch = step * epochs // steps
    return 1 - max(0, epoch + 1 - (epochs - falling)) / (falling + 1)


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    faults, halved = [], 2**min(cfg.LEVELS, 62)
    if cfg.INPUT_SIZE % halved:
        faults.append(f'INPUT_SIZE={cfg.INPUT_SIZE}: must be a multiple of {halved} with LEVELS={cfg.LEVELS}')
    if cfg.LOAD_SIZE < cfg.INPUT_SIZE:
        faults.append(f'LOAD_SIZE={cfg.LOAD_SIZE}: must be at least INPUT_SIZE={cfg.INPUT_SIZE}')
    if cfg.DECAY_EPOCHS > cfg.EPOCH:
        faults.append(f'DECAY_EPOCHS={cfg.DECAY_EPOCHS}: must be at most EPOCH={cfg.EPOCH}')
    return faults


def main():
    cfg = settings.resolve(globals(), choices=stages.TRAINING_CHOICES | {
        'NORM': networks.NORMS, 'GAN_LOSS': networks.GAN_LOSSES, 'MASK_FILTER': pairs.MASK_FILTERS},
        positive=('WIDTH', 'D_WIDTH', 'EPOCH', 'BATCH_SIZE', 'LEARNING_RATE', 'VALIDATE_EVERY', 'INPUT_SIZE',
                  'VALIDATION_IMAGES'),
        least={'SEED': 0, 'LEVELS': 5, 'STEPS': 0, 'DECAY_EPOCHS': 0, 'TRAIN_IMAGES': 0, 'L1_WEIGHT': 0,
               'NUM_WORKERS': hardware.WORKERS_AUTO}, check=check)
    cfg = settings.Settings(**vars(cfg), PATIENCE=0)   # no score ends the training
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    train = pairs.load(layout, 'Training', cfg.PAIRS, cfg.LOAD_SIZE, cfg.MASK_FILTER, cfg.TRAIN_IMAGES,
                       cfg.SEED)
    look_at = 'Validation' if not cfg.PAIRS or (Path(cfg.PAIRS) / 'test').is_dir() else 'Training'
    held_out = pairs.load(layout, look_at, cfg.PAIRS, cfg.INPUT_SIZE, cfg.MASK_FILTER)
    hardware.seed_step(cfg.SEED, 0, 0)
    generator = networks.initialise(networks.Generator(cfg.WIDTH, cfg.LEVELS, cfg.NORM, cfg.DROPOUT))
    discriminator = networks.initialise(networks.Discriminator(cfg.D_WIDTH, cfg.NORM))
    inputs, start = {'training': train.fingerprint, 'validation': held_out.fingerprint}, 'random weights'
    if cfg.INITIAL_WEIGHTS:
        path = Path(cfg.INITIAL_WEIGHTS)
        state = networks.read_generator(path, cfg.NORM)[0]
        checkpoints.apply(checkpoints.load_parameters, generator, state, path, 'take its WIDTH and LEVELS')
        inputs['initial_weights'] = files.fingerprint(path)
        start = f'{path.name}, sha256 {inputs["initial_weights"]}...'
    epoch = max(1, round(len(train.names) / cfg.BATCH_SIZE))
    steps = cfg.STEPS or cfg.EPOCH * epoch
    task = gan_task(cfg, process, generator, discriminator, train, held_out, steps)
    with Run(layout.run('Mask2Lesion'), 'Mask2Lesion', cfg, inputs, start, process, kept=('G', 'D')) as run:
        trainer.fit(task, cfg, run, process, steps, max(1, cfg.VALIDATE_EVERY * steps // cfg.EPOCH))


if __name__ == '__main__':
    cli.launch(main)
