"""The faults of docs/reliability.md that take a process of their own to provoke, or a small machine.

A nursery (this file as a program) imports everything once and forks a child for each of them; it computes
nothing itself, which would start threads. Where the system permits it has a disk of 1 MB and 256 kB of
shared memory. The networks are the tiny ones of test_training.py.
"""
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch

import generate_Coarse_mask
from dataset.layout import Layout
from engine import cache, checkpoints, cli, files, images, run_folder, scoring, settings
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures
from mbdcnn import coarse_masks, evaluation
from mbdcnn.inference import Segmenter
from tests import conftest
from tests.test_inference import PixelNetwork, write_pictures
from tests.test_training import (
    ALONE,
    EVERY,
    SETTINGS,
    SIGNALS,
    assert_same_folders,
    contents,
    load,
    tiny_task,
    train,
)

KILLS = 20          # of a child that saves
LONG = 60           # seconds; no child takes that long
NUMBERS = 20_000    # of the checkpoint that is saved over and over, 80 kB
DISK, SHARED = '1m', '256k'   # of the small machine
SMALL_MACHINE = (f'mount -t tmpfs -o size={DISK} tmpfs "$3" && '
                 f'mount -t tmpfs -o size={SHARED} tmpfs /dev/shm && exec "$1" "$2"')


# --- What the children do

def no_figures():
    """Figures cost more than all the steps here."""
    run_folder.figures.curves = lambda rows, monitor, path, _: path.write_bytes(b'curve')


def save_for_ever(path):
    """Save one generation after the other, each a whole file of its own number."""
    generation = checkpoints.load(path, '')['generation']
    while True:
        generation += 1
        checkpoints.save({'generation': generation,
                          'numbers': torch.from_numpy(np.full(NUMBERS, generation))}, path)
        print('saved', flush=True)


def train_through(folder):
    train(Path(folder))


def train_and_wait(folder):
    """In the middle of the second epoch say so and wait until a signal has been noted."""
    train(Path(folder), tiny_task(waiting))


def waiting(call, loss):
    if call == EVERY + 1:
        handlers = [signal.getsignal(number) for number in SIGNALS]
        print('in mid-epoch', flush=True)
        while handlers == [signal.getsignal(number) for number in SIGNALS]:
            time.sleep(0.005)
    return loss


def train_anew_and_wait(folder):
    """As after `python <script> --RESUME=False`."""
    sys.argv = ['train.py', '--RESUME=False']
    train(Path(folder), tiny_task(waiting), RESUME=False)


def train_into_a_closed_pipe(folder):
    """From the fifth step on nobody reads the output."""
    def before_loss(call, loss):
        if call == EVERY:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
        return loss
    train(Path(folder), tiny_task(before_loss), every=EVERY + 2)


class Damaged(Pictures):
    """Training pictures of which one cannot be read."""

    def __getitem__(self, position):
        if position == 9:
            raise InputError('A picture cannot be used', ['somewhere/b.jpg: is damaged'], 'replace it')
        return super().__getitem__(position)


def train_on_a_damaged_picture(folder):
    task = tiny_task()
    task.pictures.__class__ = Damaged
    try:
        cli.launch(lambda: train(Path(folder), task, NUM_WORKERS=2))
    finally:
        print('left over:', multiprocessing.active_children())


def train_with_few_files(folder):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    train(Path(folder), NUM_WORKERS=1)


def train_on_a_full_disk(folder):
    """After the first validation leave a page of the disk free."""
    def before_loss(call, loss):
        if call == EVERY:
            free = shutil.disk_usage(folder).free
            (Path(folder).parent / 'ballast').write_bytes(bytes(free - 4096))
        return loss
    train(Path(folder), tiny_task(before_loss))


def save_what_does_not_fit(path):
    checkpoints.save({'numbers': torch.from_numpy(np.zeros(10**6))}, Path(path))


def cache_what_does_not_fit(folder):
    folder = Path(folder)
    images.write_png(folder / 'a.png', np.zeros((64, 64, 3), np.uint8))
    cache.load(folder / 'cache', 'Training', [folder / 'a.png'] * 8, 512, 'rgb')


def train_with_little_shared_memory(folder):
    task = tiny_task()
    task.pictures.size = 256
    train(Path(folder), task, NUM_WORKERS=1)


def nursery():
    """Answer each line on stdin: [name, argument, output file] by the child's id, [id] by its exit code."""
    no_figures()
    import torch._dynamo  # noqa: F401 - both are imported by the first training otherwise
    import torch.utils.tensorboard  # noqa: F401
    print('ready', flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if len(request) == 1:
            print(os.waitstatus_to_exitcode(os.waitpid(request[0], 0)[1]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            be_a_script(*request)
        print(child, flush=True)


def be_a_script(name, argument, output):
    """In the forked child: call a function of this file as scripts call their main, and exit."""
    code = 1
    try:
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        cli.launch(lambda: globals()[name](argument))
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:   # noqa: B036 - the child must not go on as a second nursery
        print('Traceback:', repr(error))
    finally:
        sys.stdout.flush()
        os._exit(code)


# --- The nursery seen from outside

class Nursery:
    """folder : for output files; disk : Path of the small disk, None where it cannot be mounted"""

    def __init__(self, folder, process, disk):
        self.folder, self.process, self.disk = folder, process, disk

    def ask(self, *request):
        self.process.stdin.write(json.dumps(list(map(str, request)) if len(request) > 1 else request) + '\n')
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, call, argument, until=''):
        """Start a function of this file in a child; returns its id when its output holds `until`."""
        (self.folder / 'output.txt').unlink(missing_ok=True)
        child = self.ask(call.__name__, argument, self.folder / 'output.txt')
        end = time.monotonic() + LONG
        while until not in self.said():
            assert time.monotonic() < end, self.said()
            time.sleep(0.002)
        return child

    def said(self):
        """What the last child has printed."""
        path = self.folder / 'output.txt'
        return path.read_text(encoding='utf-8') if path.exists() else ''

    def run(self, call, argument):
        """Run a function of this file in a child; returns (exit code, what it printed)."""
        code = self.ask(self.start(call, argument))
        assert 'Traceback' not in self.said(), self.said()
        return code, self.said()


@pytest.fixture(scope='module')
def nursed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('nursery')
    disk = folder / 'disk'
    disk.mkdir()
    confined = ['unshare', '--map-root-user', '--mount', 'sh', '-c', SMALL_MACHINE, 'sh']
    if not shutil.which('unshare') or subprocess.run(
            [*confined, 'true', '', disk], capture_output=True).returncode:
        confined, disk = [], None
    environment = os.environ | conftest.ENVIRONMENT | {'PYTHONPATH': str(conftest.REPOSITORY)}
    with subprocess.Popen([*confined, sys.executable, __file__, *([disk] if disk else [])], text=True,
                          cwd=conftest.REPOSITORY, env=environment, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout.readline() == 'ready\n'
            if disk:   # as the child sees it: Linux shows each process's file system below /proc
                disk = Path('/proc', str(process.pid), 'root', *disk.parts[1:])
            yield Nursery(folder, process, disk if disk and os.access(disk, os.W_OK) else None)
        finally:
            os.killpg(process.pid, signal.SIGKILL)   # and children that a failed test has left


@pytest.fixture
def small(nursed):
    """The nursery with its small disk, empty."""
    if nursed.disk is None:
        pytest.skip('this system does not let its users mount a small disk')
    for path in nursed.disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return nursed


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(run_folder.figures, 'curves', lambda *given: given[2].write_bytes(b'curve'))


def inside(nursed, path):
    """A path of the small disk as the nursery calls it."""
    return nursed.folder / 'disk' / path.relative_to(nursed.disk)


# --- Saving

def test_a_child_that_is_killed_in_a_loop_while_it_saves_leaves_whole_files(nursed, tmp_path):
    path, moments, newest = tmp_path / 'last.pth', random.Random(0), 0
    checkpoints.save({'generation': 0}, path)
    for _ in range(KILLS):
        child = nursed.start(save_for_ever, path, until='saved')
        time.sleep(moments.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        assert nursed.ask(child) == -signal.SIGKILL
        state = checkpoints.load(path, '')
        assert state['generation'] > newest
        newest = state['generation']
        assert bool((state['numbers'] == newest).all())
    others = [file.name for file in tmp_path.iterdir() if file != path]
    assert others and all(name.startswith('.last-') for name in others)   # some died in the middle


def test_a_training_whose_disk_is_full_goes_on_when_there_is_room(small, tmp_path):
    folder = small.disk / 'CoarseSN'
    assert small.run(train_through, tmp_path / 'whole')[0] == 0
    code, said = small.run(train_on_a_full_disk, inside(small, folder))
    assert code == 2 and 'Remedy: ' in said and 'same command again' in said, said
    assert load(folder, 'last.pth')['progress']['step'] == EVERY
    assert not [name for name in contents(folder) if name.startswith('.') and name != '.lock']
    (small.disk / 'ballast').unlink()
    assert small.run(train_through, inside(small, folder))[0] == 0
    assert_same_folders(folder, tmp_path / 'whole')


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(small):
    path = small.disk / 'last.pth'
    checkpoints.save({'step': 3}, path)
    code, said = small.run(save_what_does_not_fit, inside(small, path))
    assert code == 2 and 'The disk is full' in said and f'{inside(small, path)}: could not be' in said
    assert checkpoints.load(path, '') == {'step': 3} and list(small.disk.iterdir()) == [path]


def test_a_cache_that_does_not_fit_is_said_before_it_is_filled(small):
    code, said = small.run(cache_what_does_not_fit, inside(small, small.disk / '.'))
    assert code == 2 and 'No space left on device' in said and 'make room' in said, said
    assert not [path for path in (small.disk / 'cache').iterdir() if path.name not in ('.lock', 'contents')]


def test_what_a_killed_run_left_is_removed_at_once_under_a_lock(tmp_path):
    left = [tmp_path / place / '.x-0123456789ab.pth' for place in ('run', 'cache')]
    users = [path.with_name('.my-notes.txt') for path in left]
    for path in (*left, *users):
        files.write_text(path, 'half')
    images.write_png(tmp_path / 'a.png', np.zeros((16, 16, 3), np.uint8))
    for _ in range(2):   # also where the cache is complete
        cache.load(tmp_path / 'cache', 'Training', [tmp_path / 'a.png'], 8, 'rgb')
        assert not left[1].exists()
        files.write_text(left[1], 'half')
    with Run(left[0].parent, 'CoarseSN', SimpleNamespace(**SETTINGS), {}, 'random weights', ALONE) as run:
        run.begin(True)
        assert not left[0].exists()
    assert all(path.exists() for path in users)


def test_a_folder_of_predicted_masks_holds_those_alone(tmp_path):
    paths, _, truths = write_pictures(tmp_path)
    out = tmp_path / 'out'
    for name in ('ISIC_9_segmentation', '.ISIC_0000000_segmentation-0123456789ab'):
        images.write_png(out / f'{name}.png', np.zeros((8, 8), np.uint8))
    evaluate(list(zip(paths, truths, strict=True)), out)
    assert sorted(path.name for path in out.iterdir()) == [f'{path.stem}_segmentation.png' for path in paths]


def test_masks_of_an_interrupted_evaluation_count_as_unfinished_until_the_next(tmp_path, monkeypatch):
    """From before the first mask changes: at any moment a kill leaves the mark."""
    paths, _, truths = write_pictures(tmp_path)
    pairs, out, write_mask = list(zip(paths, truths, strict=True)), tmp_path / 'out', images.write_mask
    wanted = {path.stem: truth for path, truth in pairs}
    evaluate(pairs, out)
    before = scoring.score_folders({'ours': out}, wanted)

    def write_marked(path, mask):
        assert (out / scoring.INCOMPLETE).exists()
        if path.stem.startswith(paths[2].stem):
            raise KeyboardInterrupt
        write_mask(path, mask)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, 'write_mask', write_marked)
        evaluate(pairs, out)
    with pytest.raises(InputError) as caught:
        scoring.score_folders({'ours': out}, wanted)
    assert caught.value.faults == [f'{out}: was not finished, see INCOMPLETE in it; evaluate again']
    evaluate(pairs, out)
    assert np.array_equal(scoring.score_folders({'ours': out}, wanted)['ours'], before['ours'])


def evaluate(pairs, folder):
    """Score a tiny network on (picture, mask) paths: (N, 5); its masks go to the folder."""
    cfg = SimpleNamespace(BATCH_SIZE=3, TTA=False)
    paths, truths = zip(*pairs, strict=True)
    segmenter = Segmenter(PixelNetwork(), 'unit', 'fp32')
    found = evaluation.predict_to_disk(segmenter, paths, None, (32,), cfg, folder)
    return scoring.score_arrays(found, truths)['plain']


def test_a_picture_that_changes_while_its_batch_is_drawn_is_drawn_again(tmp_path, monkeypatch):
    paths, _, _ = write_pictures(tmp_path)
    layout, read = Layout(tmp_path / 'root'), cache.read_rgb_square
    folder = layout.coarse_for_segmentation('Testing')
    cfg = settings.Settings(INPUT_SIZE=32, TTA=False, BATCH_SIZE=3, NUM_WORKERS=0)

    def draw():
        record = coarse_masks.begin(layout, folder, {'coarse_sn': 'x'}, cfg)
        segmenter = Segmenter(PixelNetwork(), 'unit', 'fp32')
        generate_Coarse_mask.draw_masks(segmenter, paths, record, 0, cfg, ALONE)
        return [(folder / f'{path.stem}.png').read_bytes() for path in paths]

    def read_and_change(path, size):
        pixels = read(path, size)
        if path == paths[1]:
            images.write_png(path, 255 - images.read_rgb(path))
        return pixels

    with monkeypatch.context() as patch, pytest.raises(InputError) as caught:
        patch.setattr(cache, 'read_rgb_square', read_and_change)
        draw()
    assert caught.value.faults == [f'{paths[1]}: changed while it was read']
    before = [(folder / f'{path.stem}.png').read_bytes() for path in paths]
    changed = [path for path, old, new in zip(paths, before, draw(), strict=True) if old != new]
    assert changed == [paths[1]]


# --- Stopping and going on

@pytest.mark.parametrize(('number', 'begun', 'again'), [
    (signal.SIGTERM, train_and_wait, 'again to'), (signal.SIGINT, train_and_wait, 'again to'),
    (signal.SIGHUP, train_and_wait, 'again to'),
    (signal.SIGINT, train_anew_and_wait, 'again, without --RESUME=False, to')])
def test_a_signal_in_mid_epoch_and_the_same_command_again(nursed, tmp_path, number, begun, again):
    child = nursed.start(begun, tmp_path / 'parts', until='in mid-epoch')
    os.kill(child, number)
    assert nursed.ask(child) == 128 + number
    assert f'interrupted by signal {int(number)}; run the same command {again} go on' in nursed.said()
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == EVERY + 2   # it finished the step
    for folder in ('parts', 'whole'):
        assert nursed.run(train_through, tmp_path / folder)[0] == 0
    assert_same_folders(tmp_path / 'parts', tmp_path / 'whole')


def test_a_training_whose_output_nobody_reads_is_saved_and_goes_on(nursed, tmp_path):
    """At its first validation it has something to say."""
    code, said = nursed.run(train_into_a_closed_pipe, tmp_path / 'parts')
    assert code == 128 + signal.SIGPIPE and said.count('run the same command again') == 1, said
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == EVERY + 2
    assert nursed.run(train_through, tmp_path / 'parts')[0] == 0


def test_a_second_training_in_a_folder_is_refused_until_the_first_is_gone(nursed, tmp_path):
    first = nursed.start(train_and_wait, tmp_path / 'run', until='in mid-epoch')
    before = contents(tmp_path / 'run')
    code, said = nursed.run(train_through, tmp_path / 'run')
    assert code == 2 and f'{tmp_path / "run"}: another process trains here' in said and '--ROOT' in said
    assert contents(tmp_path / 'run') == before
    os.kill(first, signal.SIGKILL)   # its lock ends with it
    assert nursed.ask(first) == -signal.SIGKILL
    assert nursed.run(train_through, tmp_path / 'run')[0] == 0


def test_a_second_evaluation_into_a_folder_is_refused(tmp_path):
    paths, _, truths = write_pictures(tmp_path)
    pairs = list(zip(paths, truths, strict=True))
    with filelock.FileLock(tmp_path / '.out.lock'), pytest.raises(InputError) as error:
        evaluate(pairs, tmp_path / 'out')
    assert f'{tmp_path / "out"}: another process' in str(error.value) and '--ROOT' in error.value.remedy
    assert not list((tmp_path / 'out').iterdir())
    assert len(evaluate(pairs, tmp_path / 'out')) == len(pairs)


@pytest.mark.parametrize(('call', 'said'), [
    (train_on_a_damaged_picture, ('error: A picture cannot be used\n  - somewhere/b.jpg: is damaged\nRemedy: '
                                  'replace it\n', 'left over: []')),
    (train_with_few_files, ('Loader processes need 256 open files; 64 are allowed', '--NUM_WORKERS=0'))])
def test_loader_processes_that_cannot_go_on_end_with_a_message(nursed, tmp_path, call, said):
    code, text = nursed.run(call, tmp_path)
    assert code == 2 and all(part in text for part in said), text


def test_too_little_shared_memory_is_said_with_the_remedy(small, tmp_path):
    code, said = small.run(train_with_little_shared_memory, tmp_path / 'run')
    assert code == 2 and 'loader process' in said and '/dev/shm' in said, said
    assert '--NUM_WORKERS=0' in said.partition('Remedy: ')[2]


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        nursery()
