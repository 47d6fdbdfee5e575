"""Label transfer: train the two translators between diseased and healthy pictures, and their discriminators.

Reads   diseased and healthy pictures, and held-out diseased ones with masks:
        dataset/ISIC/{Training,Validation}_seg.txt (stage 1) and LabelTransfer/healthy/ (prepare_ISIC),
        or DATA, a folder with trainA/, trainB/, val/{images,labels}/ (prepare_BraTS, make_toy_data, or as
        published), or for the training pictures any two folders, A and B
Writes  models/LabelTransfer/  A2B.pth and B2A.pth (the generators, best on validation masks), candidates/
        (the best k of A2B), last.pth (to go on from), config.json, trained_on.json, metrics.jsonl,
        curves.png, panel.png, validation.png (JA and AUC of the map over steps), tensorboard/

    python -m companions.label_transfer.train_LabelTransfer
    python -m companions.label_transfer.train_LabelTransfer --DATA=LabelTransfer/brain --KIND=brain --WIDTH=16

No mask enters a loss. Validation masks choose the checkpoint, since the map's offset grows with training;
without any, the last weights are kept. Run it again after an interruption and it goes on where it stopped.
Cost: companions/README.md.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from torch import nn

from companions import seen
from companions.label_transfer import data, losses, maps, networks, panels, validation
from companions.label_transfer.candidates import Candidates
from companions.label_transfer.translator import Translator
from dataset.layout import Layout
from engine import cli, device_samples, hardware, run_folder, settings, trainer
from engine.run_folder import Run
from engine.samples import unpaired
from mbdcnn import stages
from mbdcnn.panels import spread

# --- Experiment
ROOT = '.'                     # folder that holds dataset/, LabelTransfer/ and models/
RECIPE = 'default'             # default (this file), or of recipes/: paper, cpu, cpu_few, demo
RESUME = True                  # go on from models/LabelTransfer/last.pth; False starts anew
SEED = 0                       # of the weights, the order of the pictures, their augmentation, the choice

# --- Pictures
DATA = ''                      # folder below ROOT, or any, in the published layout; '' = ROOT's lists
A = ''                         # folder of diseased training pictures, in place of those
B = ''                         # folder of healthy training pictures, in place of those
KIND = 'skin'                  # skin, or brain: black pixels are outside and never lesion
TRAIN_IMAGES = 0               # train on this many of each kind only; 0 = all (paper: 200 of ISIC)
VALIDATION_IMAGES = 0          # choose by this many validation pictures only; 0 = all

# --- Networks
WIDTH = 54                     # channels of the generators' first layer (released)
D_WIDTH = 54                   # channels of the discriminators' first layer (released)
BLOCKS = 4                     # residual blocks of the encoder (released)
D_LAYERS = 7, 5                # convolutions of the global and the local discriminators (released)
ATTENTION = 'centred'          # centred: its logits without their mean over the picture; plain (released)

# --- Optimisation
STEPS = 7000                   # steps (released)
BATCH_SIZE = 1                 # pictures of each kind a step (released)
LEARNING_RATE = 1e-4           # Adam, all networks, betas 0.5 and 0.999, constant (released)
WEIGHT_DECAY = 2e-5            # Adam's, all networks (released)
VALIDATE_EVERY = 50            # steps between two looks at the validation masks (released)
SELECT_BY = 'best-threshold'   # way to cut the map whose validation JA chooses, or the best threshold
KEEP = 5                       # best generators to keep; 0 = all of them (released: all)

# --- Loss
ADV_WEIGHT = 1.0               # of the adversaries (released: 1)
CYCLE_WEIGHT = 10.0            # of coming back (released: 10; ISIC 5)
IDENTITY_WEIGHT = 10.0         # of leaving pictures of the other kind alone (released: 10; ISIC 50)
RECON_WEIGHT = 10.0            # of the input drawn again (released: 10)
CAM_WEIGHT = 1000.0            # of the class (released: 1000; ISIC 1400)
JUDGE_COMPOSITES = True        # composites are fakes that discriminators learn from, too (released: no)

# --- Input and augmentation
INPUT_SIZE = 256               # px, side of the networks' input (released)
LOAD_SIZE = 306                # px, side of the pictures that windows of INPUT_SIZE are cut from (released)
FLIPS = True                   # horizontal and vertical, each in half of the samples (released)
CONTRAST = 0.1                 # either way, a factor on the distance from the mean grey (released)

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                   # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32
PICTURES_ON = 'auto'           # device: cut out in its memory; host: by loaders; auto: device on GPUs
COMPILE = 'off'                # torch.compile: off, default, reduce-overhead (CUDA graphs), max-autotune
NUM_WORKERS = -1               # loader processes; -1 = up to 8 beside a GPU, none on a CPU
DETERMINISTIC = False          # bit-reproducible algorithms also on GPUs, slower


def build(cfg):
    """New networks by name: generators A2B, B2A; global and local discriminators GA, GB, LA, LB."""
    hardware.seed_step(cfg.SEED, 0, 0)
    made = {name: networks.Generator(cfg.WIDTH, cfg.BLOCKS, cfg.ATTENTION == 'centred')
            for name in GENERATORS}
    for layers, kind in zip(cfg.D_LAYERS, 'GL', strict=True):
        made |= {f'{kind}{side}': networks.Discriminator(cfg.D_WIDTH, layers) for side in 'AB'}
    return made


def transfer_task(cfg, process, made, a, b, held_out, healthy, candidates):
    """What the training loop needs to know of the six networks.

    a, b : data.Set of LOAD_SIZE; held_out, healthy : of INPUT_SIZE, the former with masks or None
    candidates : Candidates, which this fills
    """
    sets = data.training_sets(cfg, a, b)
    weights = {'adv': cfg.ADV_WEIGHT, 'cycle': cfg.CYCLE_WEIGHT, 'identity': cfg.IDENTITY_WEIGHT,
               'recon': cfg.RECON_WEIGHT, 'cam': cfg.CAM_WEIGHT}
    groups = {name: nn.ModuleList(made[part] for part in parts) for name, parts in (
        ('D', DISCRIMINATORS), ('G', GENERATORS))}
    translator = Translator(made['A2B'], cfg.INPUT_SIZE, process.device, cfg.AMP)
    betas = 0.5, 0.999

    def losses_of(models, batch):
        """batch : 'a_image' and 'b_image' (B, 3, S, S) uint8"""
        of_a, of_b = ([models[kind + side] for kind in 'GL'] for side in 'AB')
        step = losses.Exchange(models['A2B'], models['B2A'], *(
            losses.jittered(batch[f'{name}_image'], cfg.CONTRAST) for name in sets))
        parts = step.discriminators(of_a, of_b, cfg.JUDGE_COMPOSITES)
        yield 'D', cfg.ADV_WEIGHT * (parts['D A'] + parts['D B']), parts
        groups['D'].requires_grad_(False)   # their gradients would be thrown away
        parts = step.generators(of_a, of_b)
        total = sum(weights[name] * loss for name, loss in parts.items())
        yield 'G', total, {f'G {name}': loss for name, loss in parts.items()}
        groups['D'].requires_grad_(True)
        networks.clamp_rho(groups['G'])

    def validate():
        """How well the map ranks and cuts on held-out pictures, and how often the class is right."""
        return validation.scores_of(translator, held_out, healthy, cfg.KIND, cfg.SELECT_BY)

    def panel(path):
        shown = held_out or a
        numbers = spread(len(shown.names), PANEL_ROWS)
        translator.network.eval()
        panels.draw(translator, [shown.images[number] for number in numbers],
                    [shown.names[number] for number in numbers], path)
        rows = run_folder.read_rows(path.with_name('metrics.jsonl'))
        if held_out is not None:
            panels.curves(rows, path.with_name('validation.png'))

    def noted(step, found):
        seen.note(candidates.folder.parent, data.cases(a, b))
        candidates.note(step, found.get('JA', step), made['A2B'].state_dict())

    return trainer.Task(
        networks=made,
        optimizers={name: trainer.adam(group, cfg.LEARNING_RATE, process.device, betas, cfg.WEIGHT_DECAY)
                    for name, group in groups.items()},
        stream=lambda first, last: unpaired(**{
            name: device_samples.batches(part, cfg, process, first, last) for name, part in sets.items()}),
        losses=losses_of, rate=lambda step: 1.0, validate=validate, panel=panel,
        monitor='JA' if held_out is not None else None, noted=noted)


# Below the first function, where settings do not look.
GENERATORS, DISCRIMINATORS = ('A2B', 'B2A'), ('GA', 'LA', 'GB', 'LB')
PANEL_ROWS = 6


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    faults = data.side_faults(cfg)
    if len(cfg.D_LAYERS) != 2 or min(cfg.D_LAYERS) < 3:
        return [*faults, f'D_LAYERS={cfg.D_LAYERS}: must be two numbers from 3 on']
    least = networks.least_side(max(cfg.D_LAYERS))
    if cfg.INPUT_SIZE < least:
        faults.append(f'INPUT_SIZE={cfg.INPUT_SIZE}: must be at least {least} with '
                      f'D_LAYERS={settings.literal(cfg.D_LAYERS)}')
    return faults


def main():
    cfg = settings.resolve(globals(), choices=stages.TRAINING_CHOICES | {
        'KIND': data.KINDS, 'SELECT_BY': validation.SELECTIONS, 'ATTENTION': networks.ATTENTIONS},
        positive=('WIDTH', 'D_WIDTH', 'STEPS', 'BATCH_SIZE', 'LEARNING_RATE', 'VALIDATE_EVERY', 'INPUT_SIZE'),
        least={'SEED': 0, 'BLOCKS': 0, 'TRAIN_IMAGES': 0, 'VALIDATION_IMAGES': 0, 'KEEP': 0, 'CONTRAST': 0,
               'WEIGHT_DECAY': 0, 'ADV_WEIGHT': 0, 'CYCLE_WEIGHT': 0, 'IDENTITY_WEIGHT': 0, 'RECON_WEIGHT': 0,
               'CAM_WEIGHT': 0, 'NUM_WORKERS': hardware.WORKERS_AUTO}, check=check)
    maps.require([cfg.SELECT_BY])
    cfg = settings.Settings(**vars(cfg), PATIENCE=0)   # no score ends the training
    process = hardware.start(cfg, alone=True)
    layout = Layout(cfg.ROOT)
    source = data.Source(layout, cfg.DATA, cfg.A, cfg.B, cfg.TRAIN_IMAGES, cfg.SEED)
    source.refuse_other_kind(cfg.KIND)
    found = data.gather(source, cfg.LOAD_SIZE, cfg.INPUT_SIZE, maps.SIDE, cfg.VALIDATION_IMAGES)
    made = build(cfg)
    folder = layout.run('LabelTransfer')
    candidates = Candidates(folder, cfg.KEEP)
    task = transfer_task(cfg, process, made, found.a, found.b, found.held_out, found.healthy, candidates)
    with Run(folder, 'LabelTransfer', cfg, found.fingerprints, 'random weights', process, GENERATORS) as run:
        if not cfg.RESUME or not (run.last.exists() or any(path.exists() for path in run.kept.values())):
            candidates.clear()
        trainer.fit(task, cfg, run, process, cfg.STEPS, cfg.VALIDATE_EVERY)


if __name__ == '__main__':
    cli.launch(main)
