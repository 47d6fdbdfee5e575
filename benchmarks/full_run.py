"""What the paper's full training costs on this machine: speed of each stage, its data included.

Reads   nothing; it draws its own pictures and uses random weights
Writes  <OUT>/full_run.md, <OUT>/full_run.json

    python benchmarks/full_run.py
    python benchmarks/full_run.py --COMPILE=reduce-overhead --PROFILE=True

For each stage it trains STEPS steps as the scripts do, with pictures from where the scripts would take
them, and as many with one batch again and again, in turns (the difference is what the data cost; on a GPU
take 200 steps, or loaders that are too slow live on what they have fetched before). It validates once to
warm up and once by the clock, saves once, and multiplies: the paper's 500 epochs of 2000 pictures and
50,001 steps of 32 crops, a validation each epoch or 100 steps, one save in ten of them. A plain training of
coarse-SN (benchmarks/plain.py) stands beside. On two cores about eight minutes.
"""
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import child, machine, works_net
from benchmarks.works_data import draw
from dataset import splits
from engine import cli, files, hardware, run_folder, settings, trainer
from experiments import costs
from experiments.declarations import NETWORKS, REPOSITORY
from mbdcnn import networks, stages
from mbdcnn.inference import Classifier
from net.models import Xception_dilation, deeplabv3plus, deeplabv3plus_en
from train_CoarseSN import coarse_task
from train_EnhancedSN import enhanced_task
from train_MaskCN import mask_task

# --- What
RECIPE = 'default'             # table of recipes/<RECIPE>.toml that replaces constants below
STEPS = 20                     # of each measurement, after WARM steps that do not count; 200 on a GPU
ROUNDS = 2                     # measurements of a stage
WARM = 3                       # more with COMPILE
IMAGES = 64                    # drawn pictures
PLAIN = True                   # also the plain training of coarse-SN
PROFILE = False                # print the ten operations that take longest in a step of each stage
OUT = 'results/benchmarks'     # folder of what is written

# --- Machine
DEVICE = 'auto'                # auto (cuda, else mps, else cpu), cuda, mps or cpu
PICTURES_ON = 'auto'           # as in the training scripts
COMPILE = 'off'                # as in the training scripts


def main():
    cfg = settings.resolve(globals(), positive=('STEPS', 'ROUNDS', 'WARM', 'IMAGES'), choices={
        name: stages.TRAINING_CHOICES[name] for name in ('DEVICE', 'PICTURES_ON', 'COMPILE')})
    device = hardware.choose_device(cfg.DEVICE)
    torch.backends.cudnn.benchmark = True   # as the scripts have it
    rates, about = machine.rates(device), machine.describe(device)
    print(f'{about}; {machine.told(rates)}')
    rows = []
    with tempfile.TemporaryDirectory(prefix='full-run-') as folder:
        for name in STAGES:
            rows.append(measure(name, cfg, device, Path(folder) / name) | {'stage': name})
            print(line_of(rows[-1], rates), flush=True)
        plain = plain_rate(device, Path(folder) / 'plain') if cfg.PLAIN else None
    text = report(about, rates, rows, plain)
    files.write_text(Path(cfg.OUT) / 'full_run.md', text)
    facts = {'machine': about, 'rates': rates, 'stages': rows, 'plain': plain, 'settings': vars(cfg)}
    files.write_text(Path(cfg.OUT) / 'full_run.json', json.dumps(facts, indent=1) + '\n')
    print(f'\n{text}\nwritten: {cfg.OUT}/full_run.md, {cfg.OUT}/full_run.json')


# Below main(), where settings.resolve does not look: these are fixed, not settings.
PICTURES, VALIDATION = 2000, 150   # the paper's
SCRIPTS = {'coarse-SN': 'train_CoarseSN.py', 'mask-CN': 'train_MaskCN.py',
           'enhanced-SN': 'train_EnhancedSN.py'}


def full_training(name):
    """The costs.Training of the paper's full run of a stage."""
    values = settings.resolved(REPOSITORY / SCRIPTS[name], {'RECIPE': 'paper'})
    return costs.of_training(values, PICTURES, VALIDATION)


def drawn(count):
    """Pictures and masks of 448 px: (N, 448, 448, 3) and (N, 448, 448) uint8."""
    pairs = [draw((448, 448), number, number % 3) for number in range(count)]
    return [np.stack(part) for part in zip(*pairs, strict=True)]


def coarse(cfg, process):
    return coarse_task(cfg, process, deeplabv3plus(), *segmentation_data(cfg.IMAGES), cfg.STEPS)


def enhanced(cfg, process):
    data = segmentation_data(cfg.IMAGES, coarse=True)
    precision = hardware.choose_precision(cfg.AMP, process.device)
    network = networks.placed(Xception_dilation(), process.device, precision)
    classifier = Classifier(network, 'symmetric', precision)
    return enhanced_task(cfg, process, deeplabv3plus_en(), classifier, *data, cfg.STEPS)


def mask_cn(cfg, process):
    photos, masks = (half(array) for array in drawn(cfg.IMAGES))
    number = np.arange(cfg.IMAGES)
    data = splits.Classification(photos, masks, number % 3, number, list(map(str, number)), 'drawn')
    return mask_task(cfg, process, Xception_dilation(), data, data)


def segmentation_data(count, coarse=False):
    """Training data of 448 px and validation data of 224 px, as the scripts load them."""
    photos, masks = drawn(count)
    names = list(map(str, range(count)))
    return [splits.Segmentation(*pair, pair[1] if coarse else None, names, 'drawn')
            for pair in ((photos, masks), (half(photos), half(masks)))]


def half(array):
    """Every second pixel of (N, S, S, ...)."""
    return array[:, ::2, ::2].copy()


STAGES = {'coarse-SN': coarse, 'mask-CN': mask_cn, 'enhanced-SN': enhanced}


def measure(name, given, device, folder):
    """Seconds of a step with its data and without, of validating an image and of a save; and memory."""
    cfg = SimpleNamespace(**works_net.SETTINGS | {
        'INPUT_CHANNEL': 4, 'BATCH_SIZE': full_training(name).batch, 'PICTURES_ON': given.PICTURES_ON,
        'COMPILE': given.COMPILE, 'IMAGES': given.IMAGES,
        'INPUT_SCALING': 'symmetric' if name == 'mask-CN' else 'unit'})
    process = hardware.Process(0, 1, device)
    hardware.seed_step(0, 0, 0)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    task = STAGES[name](cfg, process)
    network, = task.networks
    with run_folder.Run(folder, network, cfg, {}, 'random weights', process) as run:
        session = trainer.Session(task, cfg, run, process, cfg.STEPS)
        session.train_mode()
        steps = given.WARM + given.ROUNDS * given.STEPS + 1
        batches = iter(task.stream(0, steps))
        batch = {part: tensor.to(device) for part, tensor in next(batches).items()}
        seconds_of(session, itertools.islice(batches, given.WARM))
        rounds = [(seconds_of(session, itertools.islice(batches, given.STEPS)) / given.STEPS,
                   seconds_of(session, itertools.repeat(batch, given.STEPS)) / given.STEPS)
                  for _ in range(given.ROUNDS)]
        profiled = profile_of(session, batch) if given.PROFILE else None
        task.networks[network].eval()
        task.validate()
        validation = timed(task.validate, device) / cfg.IMAGES
        save = timed(session.save, device)
    step, alone = (min(times) for times in zip(*rounds, strict=True))
    total = full_training(name).seconds(step, validation, save)
    forward = 1e9 * costs.FORWARD[NETWORKS[SCRIPTS[name]]]
    return {'batch': cfg.BATCH_SIZE, 'precision': session.precision, 'step': step,
            'data wait': 1 - alone / step, 'rounds': rounds, 'validation': validation, 'save': save,
            'full run': total, 'profile': profiled, 'operations': costs.STEP * forward * cfg.BATCH_SIZE,
            'memory': torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else 0}


def timed(call, device):
    """Seconds of a call, until the device has finished."""
    machine.wait(device)
    start = time.perf_counter()
    call()
    machine.wait(device)
    return time.perf_counter() - start


def seconds_of(session, batches):
    """Seconds of one step for each batch, until the device has finished."""
    def steps():
        for batch in batches:
            session.step(batch)
    return timed(steps, session.process.device)


def profile_of(session, batch):
    """The ten operations of a step that take longest, as a table; prints it, too."""
    on_gpu = session.process.device.type == 'cuda'
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as profiled:
        seconds_of(session, [batch] * 3)
    order = 'self_cuda_time_total' if on_gpu else 'self_cpu_time_total'
    text = profiled.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=60)
    print(text)
    return text


def plain_rate(device, folder):
    """Seconds an image of the plain training of coarse-SN, its pictures read and warped one by one."""
    folder.mkdir()
    work = works_net.Epoch(folder, device)
    work.prepare()
    return min(child.repeated(work.plain(), device, 0, device.type == 'cuda')) / works_net.BATCH


def line_of(row, rates):
    """A stage as a line of the table."""
    share = row['operations'] / row['step'] / rates[row['precision']]
    memory = f'{row["memory"] / 2**30:.1f} GB' if row['memory'] else ''
    speed, wait = row['batch'] / row['step'], 100 * row['data wait']
    return (f'| {row["stage"]}, batch {row["batch"]} | {speed:.3g} | {100 * share:.0f} % | {wait:.1f} % | '
            f'{1 / row["validation"]:.3g} | {memory} | {row["full run"] / 3600:.3g} h |')


def report(about, rates, rows, plain):
    """The results as Markdown."""
    lines = [f'{about}; {machine.told(rates)}.', '',
             '| stage | images/s in training | of the matrix rate | data wait | images/s in validation '
             "| GPU memory | the paper's full run |", '|---' * 7 + '|',
             *(line_of(row, rates) for row in rows), '',
             f'All three stages: {sum(row["full run"] for row in rows) / 3600:.3g} h.']
    if plain:
        ours = rows[0]['step'] / rows[0]['batch']
        lines.append(f'Plain training of coarse-SN: {1 / plain:.3g} images/s, ours {plain / ours:.3g} times '
                     'as many.')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    cli.launch(main)
