"""Does the cost of an image depend on how many there are? Extraction and loading at 100 to 10,000 images.

Reads   nothing; it draws its own small pictures (96x72 px) and cuts their 9 crops of 224 px
Writes  <OUT>/scaling.json, scaling.md and scaling.png; several GB below <WORK> while it runs

    python benchmarks/scaling.py
    python benchmarks/scaling.py --COUNTS=100,1000

Each phase of each count runs in a process of its own: extraction of all crops (stage 1), decoding the
whole-image crops into the cache (the first start of a training), and one pass of augmented samples
through the loader. Time an image and memory must stay where they are. About 5 minutes on two cores.
"""
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import torch

from benchmarks import machine
from benchmarks.works_data import RANGES, SIDE, draw, quiet, write_jpg, write_labels
from dataset import extraction
from dataset.layout import LABEL_FILES, Layout
from engine import cache, cli, figures, files, settings
from engine.errors import InputError
from engine.samples import Pictures, stream

# --- What
RECIPE = 'default'             # table of recipes/<RECIPE>.toml that replaces constants below
COUNTS = 100, 1000, 10_000     # images
OUT = 'results/benchmarks'     # folder of what is written
WORK = ''                      # folder for pictures, crops and caches; '' = a temporary one
PHASE = ''                     # extraction, cache or samples: one measurement, as this script calls itself


def main():
    cfg = settings.resolve(globals(), choices={'PHASE': ('', *PHASES)})
    if min(cfg.COUNTS, default=0) < BATCH:
        raise InputError(f'COUNTS must be at least {BATCH} images')
    if cfg.PHASE:
        print(json.dumps(PHASES[cfg.PHASE](Layout(cfg.WORK))))
        return
    rows = []
    for count in cfg.COUNTS:
        if cfg.WORK:
            Path(cfg.WORK).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='scaling-', dir=cfg.WORK or None) as folder:
            prepare(Layout(folder), count)
            for phase in PHASES:
                rows.append({'images': count, 'phase': phase, **call(phase, folder)})
                print('{images:6} images, {phase:10} {microseconds:8.0f} µs an image, {megabytes:6.0f} MB'
                      .format(**rows[-1]), flush=True)
    about = machine.describe(torch.device('cpu'))
    facts = {'machine': about, 'rows': rows}
    files.write_text(Path(cfg.OUT) / 'scaling.json', json.dumps(facts, indent=1) + '\n')
    files.write_text(Path(cfg.OUT) / 'scaling.md', table(about, rows))
    draw_chart(rows, Path(cfg.OUT) / 'scaling.png')
    print(f'\n{table(about, rows)}\nwritten: {cfg.OUT}/scaling.json, scaling.md, scaling.png')


# Below main(), where settings.resolve does not look: these are fixed, not settings.
BATCH = 16
PAUSE = 0.02   # seconds
DRAWN = 20   # different pictures; the others repeat them


def prepare(layout, count):
    """Draw the originals and their labels."""
    folder = layout.originals('Training') / 'Images'
    names = [f'ISIC_{number:07}' for number in range(count)]
    pictures = [draw((96, 72), number)[0] for number in range(DRAWN)]
    for number, name in enumerate(names):
        write_jpg(folder / f'{name}.jpg', pictures[number % DRAWN])
    write_labels(layout.data / LABEL_FILES['Training'][0], names)


def call(phase, folder):
    """One measurement in a new process."""
    done = subprocess.run([sys.executable, __file__, f'--WORK={folder}', f'--PHASE={phase}'],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{phase}: exit code {done.returncode}\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def measured(work, mapped=False):
    """Call work() -> number of images; returns its time an image and the process's peak memory.

    mapped : the work maps a file, whose pages the system takes back as it likes: only the memory that
    the process itself holds counts, which is looked at every PAUSE
    """
    memory, start, held = machine.Memory(torch.device('cpu')), time.perf_counter(), [0]
    done = threading.Event()

    def watch():
        while not done.wait(PAUSE):
            held.append(machine.own_memory())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with quiet():
            count = work()
    finally:
        done.set()
        watching.join()
    seconds = time.perf_counter() - start
    peak = max(held) if mapped else memory.before + memory.peak()[0]
    return {'microseconds': 1e6 * seconds / count, 'megabytes': peak / 2**20}


def extract(layout):
    """Cut the 9 crops of every image."""
    def work():
        extraction.extract_crops(layout, 'Training')
        return len(list((layout.originals('Training') / 'Images').iterdir()))
    return measured(work)


def fill_cache(layout):
    """Decode every image's first crop into the cache."""
    def work():
        return len(load(layout))
    return measured(work, mapped=True)


def load_samples(layout):
    """Draw one epoch of augmented samples from the cache."""
    def work():
        pictures = load(layout)
        steps = len(pictures) // BATCH
        for _ in stream(Pictures(pictures, {}, None, SIDE, RANGES), BATCH, 0, steps):
            pass
        return steps * BATCH
    return measured(work, mapped=True)


def load(layout):
    """The cached whole-image crops: (N, 224, 224, 3) uint8, memory-mapped."""
    paths = sorted(path for path in layout.crops('Training').glob('*.png') if path.stem.count('_') == 1)
    return cache.load(layout.cache, 'scaling', paths, SIDE, 'rgb').pixels


PHASES = {'extraction': extract, 'cache': fill_cache, 'samples': load_samples}
TITLES = {'extraction': 'extraction of 9 crops', 'cache': 'decoding into the cache',
          'samples': 'augmented samples'}


def table(about, rows):
    """The results as Markdown: a row a phase, a column a count."""
    counts = sorted({row['images'] for row in rows})
    lines = [f'{about}.', '', '| an image | ' + ' | '.join(f'{count:,} images' for count in counts) + ' |',
             '|---' * (len(counts) + 1) + '|']
    for phase, title in TITLES.items():
        cells = [f'{row["microseconds"]:.0f} µs, {row["megabytes"]:.0f} MB'
                 for row in sorted(rows, key=lambda row: row['images']) if row['phase'] == phase]
        lines.append(f'| {title}: time, peak memory of the process | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


def draw_chart(rows, path):
    """Time an image and memory of the process over the number of images."""
    figure, both = figures.subplots(1, 2, (9, 3.4))
    counts = sorted({row['images'] for row in rows})
    for axes, key, label in zip(both, ('microseconds', 'megabytes'),
                                ('time an image, µs', 'peak memory, MB'), strict=True):
        for phase, title in TITLES.items():
            points = sorted((row['images'], row[key]) for row in rows if row['phase'] == phase)
            axes.plot(*zip(*points, strict=True), marker='o', label=title)
        axes.set(xscale='log', xlabel='images', ylabel=label, ylim=(0, None))
        axes.set_xticks(counts, [f'{count:,}' for count in counts])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    both[0].legend()
    figures.save(figure, path)


if __name__ == '__main__':
    cli.launch(main)
