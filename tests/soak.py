"""An hour of training under observation: memory, open handles and step times must stay as they are.

Reads   <ROOT>/dataset/, the demo set and its lists (make demo, or its first seven commands)
Writes  <ROOT>/soak/, a training of coarse-SN of its own, which starts anew each time
        <ROOT>/results/soak.csv and soak.png, everything that was measured; exit code 1 when it did not last

    python tests/soak.py
    python tests/soak.py --ROOT=demo --MINUTES=1 --VALIDATE_EVERY=1

The training is one `python train_CoarseSN.py` with loader processes, validations, checkpoints and figures,
at a small input size so that an hour has many of each; the time begins with its first validation. What is
compared is the last quarter of the time with the second; the first is the warm-up. Loader processes live as
long as one training does: that they are started anew without a leak is not tested here. One minute shows
that the script works, and little more.
Linux only: all is read from /proc. RSS is all resident memory, "own" is what belongs to no file. (PSS would
move with every other program that maps the same libraries.)

Cost: two processor cores, 2.5 GB of memory, and up to 0.7 GB written to the disk for each validation.
"""
import contextlib
import csv
import io
import itertools
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))   # for `python tests/...`

from dataset.layout import Layout  # noqa: E402
from engine import (  # noqa: E402
    cli,
    figures,
    files,  # noqa: E402
    settings,
)
from engine.errors import InputError  # noqa: E402

# --- Where and how long
ROOT = 'demo'           # folder with the demo set below it
MINUTES = 60.0          # of training; 1 to try the script

# --- Training
NUM_WORKERS = 2         # loader processes
BATCH_SIZE = 8          # pictures a step
INPUT_SIZE = 64         # px, a multiple of 16
VALIDATE_EVERY = 10     # epochs between two validations, each with checkpoints

# --- What is tolerated
MEMORY = 0.05           # fraction by which memory may grow, in its median and in its peak
HANDLES = 2             # by which the median number of open handles may grow: pictures on their way
STEP_TIME = 0.10        # fraction by which the median step time may grow; other programs slow it down, too


def main():
    cfg = settings.resolve(globals(), positive=('MINUTES', 'NUM_WORKERS', 'BATCH_SIZE', 'INPUT_SIZE',
                                                'VALIDATE_EVERY'))
    layout = Layout(cfg.ROOT)
    if not Path('/proc/self/smaps_rollup').exists():
        raise InputError('This system has no /proc/<process>/smaps_rollup', remedy='run it on Linux')
    rows = watch(layout, cfg)
    stem = layout.results / 'soak'
    write_csv(rows, stem.with_suffix('.csv'))
    draw(rows, stem.with_suffix('.png'))
    checks = verdict(rows, cfg)
    print(f'{len(rows)} samples over {rows[-1]["seconds"] / 60:.1f} minutes, {rows[-1]["step"]:.0f} steps')
    for text, good in checks:
        print(f'{"ok    " if good else "NOT OK"}  {text}')
    print(f'written: {stem}.csv, {stem}.png')
    sys.exit(0 if all(good for _, good in checks) else 1)


# Below main(), where settings.resolve does not look: these are fixed, not settings.
SAMPLES = 720           # of the whole time: one in 5 s of an hour
LEAST_PAUSE = 0.5       # seconds between two samples
SAMPLES_BETWEEN_LINES = 60   # on the terminal
END = 600               # seconds that a training may take to stop
EPOCH = 20_000          # of which the time takes a part
TICKS = os.sysconf('SC_CLK_TCK')   # of a second, in which the system counts processor time
VALIDATION = re.compile(r'step (\d+):.* ([\d.]+) steps/s')   # what a validation prints
MEASURES = ('rss', 'own', 'handles')
LEAST_VALIDATIONS = 3   # in a quarter of the time, to judge its speed


class Training:
    """A training in a process group of its own, and what it has said.

    step : of the last validation; step_time : milliseconds, since the one before
    begun : set after the first validation, when the time begins
    """

    def __init__(self, layout, cfg):
        words = [f'--{name}={getattr(cfg, name)}' for name in (
            'NUM_WORKERS', 'BATCH_SIZE', 'INPUT_SIZE', 'VALIDATE_EVERY')]
        self.process = subprocess.Popen(
            [sys.executable, 'train_CoarseSN.py', f'--ROOT={prepare(layout)}', '--PRETRAINED=none',
             f'--EPOCH={EPOCH}', f'--CACHE_SIZE={cfg.INPUT_SIZE}', '--RESUME=False', *words],
            cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace',
            start_new_session=True)
        self.step, self.step_time, self.begun, self.last = 0, float('nan'), threading.Event(), []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.last = [*self.last[-20:], line]
            if found := VALIDATION.search(line):
                self.step, self.step_time = int(found[1]), 1000 / max(float(found[2]), 1e-3)
                self.begun.set()   # until then much is made for the first time

    def ended(self):
        """True when the process has gone."""
        return self.process.poll() is not None

    def stop(self):
        """End it as a user would; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END)


def prepare(layout):
    """An experiment root of its own that shares the data of `layout`; returns it, absolute."""
    root = (layout.root / 'soak').resolve()
    root.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(root / 'models', ignore_errors=True)
    with contextlib.suppress(FileExistsError):
        (root / 'dataset').symlink_to('../dataset')
    return root


def watch(layout, cfg):
    """Train for cfg.MINUTES and measure; returns rows, dicts of numbers, see `sample`."""
    rows, training = [], Training(layout, cfg)
    pause = max(LEAST_PAUSE, 60 * cfg.MINUTES / SAMPLES)
    try:
        while not training.begun.wait(1):
            refuse_end(training)
        begun = time.monotonic()
        while time.monotonic() - begun < 60 * cfg.MINUTES:
            time.sleep(pause)
            refuse_end(training)
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):   # it ended meanwhile
                rows.append({'seconds': time.monotonic() - begun, 'step': training.step,
                             'step_ms': training.step_time, **sample(training.process.pid)})
            if len(rows) % SAMPLES_BETWEEN_LINES == 0:
                print(f'{rows[-1]["seconds"] / 60:6.1f} of {cfg.MINUTES:g} minutes, step {training.step}',
                      flush=True)
        code = training.stop()
        if code != 128 + signal.SIGTERM:
            raise InputError(f'The training did not stop as asked: exit code {code}', training.last)
    finally:
        if not training.ended():
            os.killpg(training.process.pid, signal.SIGKILL)
    return rows


def refuse_end(training):
    """Raise InputError, with its last words, when a training has ended by itself."""
    if training.ended():
        raise InputError(f'The training ended with exit code {training.process.returncode}',
                         [line.rstrip() for line in training.last], 'make demo draws what it reads')


def sample(pid):
    """What a training takes now: {'cpu': seconds so far, 'main rss': MB, 'main own': MB, 'main handles': n,
    'worker 1 rss': ...}; the workers are its child processes, by age."""
    children = sorted(int(child) for task in Path(f'/proc/{pid}/task').iterdir()
                      for child in (task / 'children').read_text().split())
    row = {'cpu': 0.0}
    for name, process in zip(['main', *(f'worker {n}' for n in range(1, len(children) + 1))],
                             [pid, *children], strict=True):
        folder = Path(f'/proc/{process}')
        memory = dict(re.findall(r'^(Rss|Anonymous): +(\d+) kB', (folder / 'smaps_rollup').read_text(), re.M))
        row[f'{name} rss'], row[f'{name} own'] = (int(memory[kind]) / 1000 for kind in ('Rss', 'Anonymous'))
        row[f'{name} handles'] = len(list((folder / 'fd').iterdir()))
        times = (folder / 'stat').read_text().rpartition(')')[2].split()[11:13]   # in user and system mode
        row['cpu'] += sum(map(int, times)) / TICKS
    return row


# --- Judging

def verdict(rows, cfg):
    """[(what was compared, True when it lasted)] of the samples' second and last quarter."""
    end = rows[-1]['seconds']
    second = [row for row in rows if end / 4 <= row['seconds'] < end / 2]
    last = [row for row in rows if row['seconds'] >= end * 3 / 4]
    if not (second and last):
        return [(f'{len(rows)} samples are too few to judge', False)]
    names = [name for name in rows[0] if name.endswith(MEASURES)]
    steady = all(list(row) == list(rows[0]) for row in rows)
    checks = [(f'processes: {sum(name.endswith("rss") for name in names)} throughout', steady)]
    for name in names if steady else ():
        before, after = ([row[name] for row in part] for part in (second, last))
        grown = [(statistics.median(before), statistics.median(after))]
        if name.endswith('handles'):
            good = grown[0][1] <= grown[0][0] + cfg.HANDLES
        else:
            grown.append((max(before), max(after)))
            good = all(new <= (1 + cfg.MEMORY) * old for old, new in grown)
        words = [f'{what} {old:.0f} -> {new:.0f}'
                 for what, (old, new) in zip(('median', 'peak'), grown, strict=False)]
        unit = '' if name.endswith('handles') else f' MB ({change(*grown[0])})'
        checks.append((f'{name}: {", ".join(words)}{unit}', good))
    return [*checks, speed(second, last, cfg)]


def speed(second, last, cfg):
    """The check of the step times. Processor time tells whether other programs were in the way."""
    marks = [[row for before, row in itertools.pairwise(part) if row['step'] > before['step']]
             for part in (second, last)]   # the first samples after validations
    if min(map(len, marks)) < LEAST_VALIDATIONS:
        return f'step: {len(marks[0])} and {len(marks[1])} validations are too few to judge', False
    old, new = (statistics.median(row['step_ms'] for row in part) for part in marks)
    spent = [1000 * (part[-1]['cpu'] - part[0]['cpu']) / (part[-1]['step'] - part[0]['step'])
             for part in marks]
    return (f'step: median {old:.0f} -> {new:.0f} ms ({change(old, new)}); processor time of a step and its '
            f'share of validations {spent[0]:.0f} -> {spent[1]:.0f} ms', new <= (1 + cfg.STEP_TIME) * old)


def change(old, new):
    """'+1.2 %'"""
    return f'{100 * (new / max(old, 1e-9) - 1):+.1f} %'


# --- Writing

def write_csv(rows, path):
    """One line a sample; a column for all that any sample has."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), restval='')
    writer.writeheader()
    writer.writerows({name: f'{value:.6g}' for name, value in row.items()} for row in rows)
    files.write_text(path, text.getvalue())


def draw(rows, path):
    """Resident memory, handles and step time over minutes, as png."""
    minutes = [row['seconds'] / 60 for row in rows]
    figure, grid = figures.subplots(1, 3, (12, 3.4))
    for axes, ending, title in zip(grid, ('rss', 'handles', 'step_ms'), (
            'resident memory, MB', 'open handles', 'step time, ms'), strict=True):
        for name in (name for name in rows[0] if name.endswith(ending)):
            axes.plot(minutes, [row.get(name, float('nan')) for row in rows], linewidth=1,
                      label=name.removesuffix(f' {ending}'))
        axes.set(xlabel='minutes', title=title, ylim=(0, None))
        axes.axvspan(minutes[-1] / 4, minutes[-1] / 2, alpha=0.12, color='gray')
        axes.axvspan(minutes[-1] * 3 / 4, minutes[-1], alpha=0.12, color='gray')
    grid[0].legend()
    figures.save(figure, path)


if __name__ == '__main__':
    cli.launch(main)
