"""Label transfer: train a plain classifier of diseased and healthy pictures, whose CAM is the floor.

Reads   what train_LabelTransfer reads, by the same constants
Writes  models/LabelTransferCAM/  CAM.pth (best on validation masks), last.pth, config.json, trained_on.json,
        metrics.jsonl, curves.png, panel.png, tensorboard/

    python -m companions.label_transfer.train_CAM

The classifier is the generator's encoder with an average and one logit; eval_LabelTransfer reports its class
activation maps, and these with the CRF, beside the attention's. Run it again after an interruption and it
goes on where it stopped. Cost: companions/README.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import torch
import torch.nn.functional as F

from companions import seen
from companions.label_transfer import cams, data, losses, maps, networks, validation
from dataset.layout import Layout
from engine import cli, device_samples, figures, hardware, settings, trainer
from engine.run_folder import Run
from engine.samples import unpaired
from mbdcnn import stages
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, LabelTransfer/ and models/
RECIPE = 'default'             # default (this file), or of recipes/: paper, cpu, cpu_few, demo
RESUME = True                  # go on from models/LabelTransferCAM/last.pth; False starts anew
SEED = 0                       # of the weights, the order of the pictures, their augmentation, the choice

# --- Pictures
DATA = ''                      # folder below ROOT, or any, in the published layout; '' = ROOT's lists
A = ''                         # folder of diseased training pictures, in place of those
B = ''                         # folder of healthy training pictures, in place of those
KIND = 'skin'                  # skin, or brain: black pixels are outside and never lesion
TRAIN_IMAGES = 0               # train on this many of each kind only; 0 = all
VALIDATION_IMAGES = 0          # choose by this many validation pictures only; 0 = all

# --- Network and optimisation
WIDTH = 54                     # channels of the first layer, as the generator's
BLOCKS = 4                     # residual blocks, as the generator's
STEPS = 2000                   # steps
BATCH_SIZE = 4                 # pictures of each kind a step
LEARNING_RATE = 1e-4           # Adam, constant
VALIDATE_EVERY = 50            # steps between two looks at the validation masks
SELECT_BY = 'best-threshold'   # way to cut the map whose validation JA chooses, or the best threshold

# --- Input and augmentation
INPUT_SIZE = 256               # px, side of the network's input
LOAD_SIZE = 306                # px, side of the pictures that windows of INPUT_SIZE are cut from
FLIPS = True                   # horizontal and vertical, each in half of the samples
CONTRAST = 0.1                 # either way, a factor on the distance from the mean grey

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: cut out in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower


def cam_task(cfg, process, network, found):
    """What the training loop needs to know of the classifier. found : data.Gathered"""
    sets = data.training_sets(cfg, found.a, found.b)
    looker = cams.Cam(network, cfg.INPUT_SIZE, process.device, cfg.AMP)

    def losses_of(models, batch):
        """batch : 'a_image' and 'b_image' (B, 3, S, S) uint8"""
        pictures = [losses.jittered(batch[f'{name}_image'], cfg.CONTRAST) for name in sets]
        logits = models['CAM'](torch.cat(pictures))[1]
        wanted = torch.cat([logits.new_full((len(part),), target) for part, target in
                            zip(pictures, (1.0, 0.0), strict=True)])
        yield 'CAM', F.binary_cross_entropy_with_logits(logits, wanted), {}

    def panel(path):
        shown = found.held_out or found.a
        rows = [(shown.names[number], [shown.images[number], maps.enlarged(
            looker.look(shown.images[number])[0], cfg.INPUT_SIZE)]) for number in spread(len(shown.names), 6)]
        figures.panel(rows, ['real', 'CAM'], path)

    return trainer.Task(
        networks={'CAM': network},
        optimizers={'CAM': trainer.adam(network, cfg.LEARNING_RATE, process.device)},
        stream=lambda first, last: unpaired(**{
            name: device_samples.batches(part, cfg, process, first, last) for name, part in sets.items()}),
        losses=losses_of, rate=lambda step: 1.0,
        validate=lambda: validation.scores_of(looker, found.held_out, found.healthy, cfg.KIND, cfg.SELECT_BY),
        panel=panel, monitor='JA' if found.held_out is not None else None)


def main():
    cfg = settings.resolve(globals(), choices=stages.TRAINING_CHOICES | {
        'KIND': data.KINDS, 'SELECT_BY': validation.SELECTIONS},
        positive=('WIDTH', 'STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'VALIDATE_EVERY', 'INPUT_SIZE'),
        least={'SEED': 0, 'BLOCKS': 0, 'TRAIN_IMAGES': 0, 'VALIDATION_IMAGES': 0, 'CONTRAST': 0,
               'NUM_WORKERS': hardware.WORKERS_AUTO}, check=data.side_faults)
    maps.require([cfg.SELECT_BY])
    cfg = settings.Settings(**vars(cfg), PATIENCE=0)   # no score ends the training
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    source = data.Source(layout, cfg.DATA, cfg.A, cfg.B, cfg.TRAIN_IMAGES, cfg.SEED)
    source.refuse_other_kind(cfg.KIND)
    found = data.gather(source, cfg.LOAD_SIZE, cfg.INPUT_SIZE, maps.SIDE, cfg.VALIDATION_IMAGES)
    hardware.seed_step(cfg.SEED, 0, 0)
    task = cam_task(cfg, process, networks.Classifier(cfg.WIDTH, cfg.BLOCKS), found)
    with Run(layout.run('LabelTransferCAM'), 'LabelTransferCAM', cfg, found.fingerprints, 'random weights',
             process, kept=('CAM',)) as run:
        task.noted = lambda *_: seen.note(run.folder, data.cases(found.a, found.b))
        trainer.fit(task, cfg, run, process, cfg.STEPS, cfg.VALIDATE_EVERY)


if __name__ == '__main__':
    cli.launch(main)
