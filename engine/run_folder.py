"""A run folder that explains itself: lock, config.json, metrics.jsonl, TensorBoard, checkpoints."""
import contextlib
import json
import math
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine import checkpoints, cli, figures, files, hardware
from engine.errors import InputError

# A run may go on under another value of these; every other constant defines the run.
MAY_CHANGE = {'ROOT', 'RECIPE', 'NUM_WORKERS', 'RESUME', 'EPOCH', 'STEPS', 'PATIENCE', 'DEVICE',
              'PICTURES_ON', 'COMPILE',
              'INITIAL_WEIGHTS', 'BN_EPS'}   # the weights themselves, and their epsilon, are among the inputs
LENGTHS = 'EPOCH', 'STEPS'
SECONDS_BETWEEN_FIGURES = 60
SECONDS_BETWEEN_PANELS = 1800   # in TensorBoard, which keeps them all: about 0.5 MB each
GO_ANEW = 'start anew with --RESUME=False'
REPOSITORY = Path(__file__).resolve().parent.parent
GIT_MAY_TAKE = 5   # seconds, to say what code this is


class Run:
    """The folder `models/<network>/` of one training run.

    folder : Path; network : name of what is trained; cfg : Settings
    inputs : dict of fingerprints of everything the run reads (data, weights of earlier stages)
    start : what its first weights are, in words
    process : hardware.Process; only its main process writes
    kept : names of the networks whose weights are written, by default the one of the run's name
    read_config : reads the config.json beside a path of weights, where earlier versions wrote it otherwise
    Raises InputError when another process trains in the folder, or when the folder holds a run
    with other settings.
    """

    def __init__(self, folder, network, cfg, inputs, start, process, kept=(),
                 read_config=checkpoints.read_config):
        self.folder, self.process, self.last = folder, process, folder / 'last.pth'
        self.kept = {name: folder / f'{name}.pth' for name in kept or (network,)}
        self._read_config = read_config
        self.config = {'network': network, 'settings': vars(cfg), 'inputs': inputs, 'start': start,
                       'versions': versions(process.device), 'processes': process.world}
        self.rows, self._board = [], None
        self._drawn = self._shown = -math.inf   # when the figures were last drawn, and shown in TensorBoard
        self._present = {part: self.config[part] for part in ('settings', 'versions')}
        self.was_finished = False   # the run that `begin` found
        folder.mkdir(parents=True, exist_ok=True)
        self._open = contextlib.ExitStack()
        if process.main:
            self._open.enter_context(files.lock(folder / '.lock', InputError(
                'Two runs in one folder', [f'{folder}: another process trains here'],
                'wait for it, or train below another --ROOT')))

    def begin(self, resume):
        """Return the content of last.pth to go on from (`take_up_rows` comes next), or None for a new run.

        A new run clears the folder of an old one; trained weights only when resume is False, and never those
        that it starts from.
        """
        state = None
        if resume and self.last.exists():
            state = checkpoints.load(self.last, GO_ANEW)
            before = self._recorded(state)
            self._refuse_other_settings(before)
            self.config['start'], self.was_finished = before.get('start'), 'finished' in before
            # Of the steps that there are; `go_on` records what makes more of them.
            self.config['settings'] = {name: before.get('settings', {}).get(name, value)
                                       for name, value in self.config['settings'].items()}
            self.config |= {part: before[part] for part in ('versions', 'earlier') if part in before}
            self.config['processes'] = before.get('processes', 1)
            if not self.was_finished:   # it may end here, short of the length that it was begun with
                self._take_present_settings()
        elif resume and (there := [path for path in self.kept.values() if path.exists()]):
            raise InputError('Trained weights would be overwritten',
                             [f'{path}: is there, but no last.pth to go on from' for path in there],
                             'use another --ROOT, or overwrite them with --RESUME=False')
        else:
            self._refuse_own_start()
        hardware.barrier(self.process)   # nobody looks any more at what is cleared now
        if not resume:
            cli.begun_anew()
        if self.process.main:
            if state is None:
                records = [self.folder / name for name in ('last.pth', 'metrics.jsonl', 'config.json')]
                for path in (*self.kept.values(), *records):
                    path.unlink(missing_ok=True)
                for events in self.folder.glob('tensorboard/events.*'):
                    events.unlink()
            files.remove_abandoned(self.folder, age=0)   # the lock is ours
            self._write_config()
        return state

    def go_on(self):
        """Record what the run is trained with from now on: settings, versions, and what was otherwise before.

        'processes' : a number, or a list where it changed: dropout draws, and mostly batch norm, differ with
            it (README, several processes)
        'earlier' : former lengths, [{'EPOCH': ...}, ...], by which the rates of earlier steps were set
        """
        before, now = self.config['processes'], self.process.world
        past = before if isinstance(before, list) else [before]
        if past[-1:] != [now]:
            self.config['processes'] = [*past, now]
        self._take_present_settings()
        if self.process.main:
            self._write_config()

    def _take_present_settings(self):
        lengths = [{name: settings[name] for name in LENGTHS if name in settings}
                   for settings in (self.config['settings'], self._present['settings'])]
        if lengths[0] != lengths[1]:
            self.config['earlier'] = [*self.config.get('earlier', ()), lengths[0]]
        self.config |= self._present

    def finish(self, step, best, best_step):
        """Mark the training as finished in config.json; `begin` takes the mark away.

        best : the score of the kept weights, of `best_step`; null in the file when it is not defined
        """
        self.config['finished'] = {'step': step, 'best': best if math.isfinite(best) else None,
                                   'best_step': best_step}
        if self.process.main:
            self._write_config()

    def _write_config(self):
        files.write_text(self.folder / 'config.json', json.dumps(self.config, indent=1) + '\n')

    def defined_by(self):
        """What a run must not change, as text for last.pth: where config.json is lost, this says it."""
        kept = {name: value for name, value in self.config['settings'].items() if name not in MAY_CHANGE}
        return json.dumps({'settings': kept, 'inputs': self.config['inputs']})

    def _recorded(self, state):
        """What config.json says of the run, else the content of its last.pth (`state`)."""
        try:
            if before := self._read_config(self.last):
                return before
            lost = f'{self.folder / "config.json"}: is missing'
        except InputError as error:
            lost = error.faults[0]
        try:
            recorded = files.json_object(state['run'], 'settings', 'inputs')
        except (LookupError, TypeError, ValueError):   # of an earlier version, or no state at all
            raise InputError('A run does not say with which settings and data it was begun', [lost],
                             f'bring a copy of config.json back, or {GO_ANEW}') from None
        print(f'{lost}; it is written anew from {self.last}, which does not know what the run started from')
        return recorded

    def _refuse_other_settings(self, before):
        faults = []
        for part in ('settings', 'inputs'):
            old, new = before.get(part, {}), json.loads(json.dumps(self.config[part]))
            faults += [f'{name}: {old.get(name)!r} in {self.folder}, {new.get(name)!r} now'
                       for name in sorted(old.keys() & new.keys())
                       if name not in MAY_CHANGE and old.get(name) != new.get(name)]
        if faults:
            raise InputError(f'{self.folder} holds a run with other settings or data', faults,
                             'use the old settings to go on, another --ROOT to keep both, or '
                             '--RESUME=False to overwrite it')

    def _refuse_own_start(self):
        """Raise InputError where the weights to fine-tune lie here, where a new run clears them or the
        config.json that says what they are, and could not be resumed."""
        given = self.config['settings'].get('INITIAL_WEIGHTS')
        path = checkpoints.found(given) if given else None
        if path and self.folder.resolve() in (path.parent.resolve(), path.resolve().parent):
            raise InputError('A new run would clear the folder of the weights that it starts from',
                             [f'{path}: lies in {self.folder}, where the run writes'],
                             'copy it elsewhere first, with the config.json beside it, and name the copy in '
                             'INITIAL_WEIGHTS')

    def holds_weights(self):
        """True when all kept weights are there and can be read."""
        try:
            for path in self.kept.values():
                checkpoints.load_state(path, '')
        except InputError:
            return False
        return True

    def take_up_rows(self, step, validations):
        """Take up metrics.jsonl up to `step`; later rows belong to work that was lost and is redone.

        validations : how many there have been. Lines that are missing or damaged cost the curves alone.
        """
        path, self.rows = self.folder / 'metrics.jsonl', []
        for line in path.read_bytes().splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError):
                row = _row(line.decode())
                self.rows += [row] if row['step'] <= step else []
        if len(self.rows) < validations:
            print(f'{path}: {validations - len(self.rows)} of {validations} lines are missing or damaged; '
                  f'the training goes on, its curves lack them')
        if self.process.main:
            self._write_rows()

    def _write_rows(self):
        files.write_text(self.folder / 'metrics.jsonl',
                         ''.join(json.dumps({name: value if math.isfinite(value) else None
                                             for name, value in row.items()}) + '\n'
                                 for row in self.rows))

    def log(self, row, speed, scores=()):
        """Add one row (dict of numbers, with 'step') to metrics.jsonl, TensorBoard and the curves.

        speed : steps a second; for TensorBoard alone, so that metrics.jsonl is reproducible
        scores : the names that TensorBoard shows under val/; the others are under train/
        """
        if not self.process.main:
            return
        self.rows.append(row)
        self._write_rows()
        self._start_board(row['step'])
        for name, value in {**row, 'steps_per_second': speed}.items():
            if name != 'step' and math.isfinite(value):
                self._board.add_scalar(f'{"val" if name in scores else "train"}/{name}', value, row['step'])
        self._board.flush()

    def _start_board(self, purge_step=None):
        """purge_step : what an earlier process wrote of this step and later ones is not shown"""
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import
            self._board = SummaryWriter(str(self.folder / 'tensorboard'), purge_step=purge_step)
            self._open.callback(self._board.close)

    def _show_panel(self):
        """The panel as an image of TensorBoard's; not of every minute, since each is kept."""
        self._start_board()
        with Image.open(self.folder / 'panel.png') as image:
            picture = np.asarray(image.convert('RGB'))
        self._board.add_image('val/panel', picture, self.rows[-1]['step'], dataformats='HWC')
        self._shown = time.monotonic()

    def draw(self, task, final=False):
        """Redraw curves.png, and panel.png by task.panel(path); at most once a minute."""
        now = time.monotonic()
        if not self.process.main or (not final and now - self._drawn < SECONDS_BETWEEN_FIGURES):
            return
        figures.curves(self.rows, task.monitor, self.folder / 'curves.png', task.smaller_is_better)
        task.panel(self.folder / 'panel.png')
        self._drawn = time.monotonic()
        if final or self._drawn - self._shown >= SECONDS_BETWEEN_PANELS:
            self._show_panel()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self._open.close()


def read_rows(path):
    """The rows of a metrics.jsonl: dicts of numbers with a 'step'; null stands for NaN. Raises ValueError."""
    return [_row(line) for line in path.read_text(encoding='utf-8').splitlines() if line.strip()]


def _row(line):
    row = {name: math.nan if value is None else value for name, value in files.json_object(line).items()}
    if 'step' not in row:
        raise ValueError('holds a line without a step')
    if any(not isinstance(value, (int, float)) or abs(value) > sys.float_info.max for value in row.values()):
        raise ValueError('holds what is no number')
    return row


def versions(device):
    """What the run ran on, and of which code: {'python': ..., 'torch': ..., 'device': ..., 'commit': ...}."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.machine()
    return {'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__,
            'device': f'{device.type} {name}', 'threads': torch.get_num_threads(), 'host': platform.node(),
            **code_state(REPOSITORY)}


def code_state(folder):
    """{'commit': id, 'dirty': whether a tracked file differs from it}; None both where git cannot tell.

    A copy without .git of its own may lie within another project's checkout: that commit says nothing.
    """
    unknown = {'commit': None, 'dirty': None}
    if not (folder / '.git').exists():
        return unknown
    try:
        said = subprocess.run(['git', '--no-optional-locks', '-C', folder, 'describe', '--always', '--dirty',
                               '--exclude=*', '--abbrev=40'], capture_output=True, text=True, check=True,
                              timeout=GIT_MAY_TAKE).stdout.strip()
    except (OSError, ValueError, subprocess.SubprocessError):   # also before the first commit
        return unknown
    return {'commit': said.removesuffix('-dirty'), 'dirty': said.endswith('-dirty')}
