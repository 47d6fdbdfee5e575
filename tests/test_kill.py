"""Kill anywhere, lose nothing: a step that is killed and run again ends as one that nothing disturbed.

Importing torch takes longer than a small step. So a nursery (this file as a program) imports everything
once, computes nothing, which would start threads, and forks a child for every attempt at a script. Its
networks have an eighth of the channels: 2 to 12 MB a checkpoint. Real ones: tests/test_resume.py.

The files are those of one root, before and after, so that also paths in them are equal. Exceptions:
temporary files of killed runs, see LOCKED; the date in report.html; TensorBoard's files, of whose content
only `steps_per_second` is a matter of time; dataset/cache/contents/, which saves time alone. Of last.pth the
content counts: its bytes also tell which of its equal names were one object.
"""
import contextlib
import fnmatch
import importlib
import io
import itertools
import json
import os
import random
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image
from torch import nn

from dataset.layout import Layout
from engine import bootstrap, figures
from mbdcnn import panels
from tests import conftest

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere, libraries do not survive a fork')
KILLS = int(os.environ.get('KILLS', 0))   # of each script, at random moments: `make soak` sets it
NARROW = 8   # channels of the real networks are divided by this
LONG = 600   # seconds; no step takes that long
TEMPORARY = re.compile(r'\..+-[0-9a-f]{12}(\.\w+)?')
DATE = re.compile(rb'<time .*?</time>')

DEMO = ('--TRAINING_IMAGES=4', '--VALIDATION_IMAGES=3', '--TESTING_IMAGES=3', '--EXTRA_IMAGES=0',
        '--MAX_SIDE=160')
EXACT = ('--AMP=fp32', '--DEVICE=cpu')
SMALL = (*EXACT, '--INPUT_SIZE=32')
SEGMENTATION = (*SMALL, '--CACHE_SIZE=64', '--EPOCH=3', '--BATCH_SIZE=2')   # 2 steps an epoch
CACHE = 'dataset/cache'
# Script -> its options, and what it writes.
STEPS = {
    'dataset/extractPatch_cls_train.py': ((), ['dataset/cls_data/Training_Add_resize_crop_cls']),
    'dataset/extractPatch_seg_train.py': (('--MAX_SIDE=128',), ['dataset/seg_data']),
    'dataset/list_cls.py': ((), ['dataset/ISIC/*_cls.txt']),
    'dataset/list_seg.py': ((), ['dataset/ISIC/*_seg.txt']),
    'train_CoarseSN.py': ((*SEGMENTATION, '--PRETRAINED=voc', '--VOC_WEIGHTS={start}/voc.pth'),
                          ['models/CoarseSN', CACHE]),
    'generate_Coarse_mask.py': (SMALL, ['Coarse_masks']),
    'train_MaskCN.py': ((*SMALL, '--STEPS=6', '--VALIDATE_EVERY=2', '--BATCH_SIZE=4', '--PRETRAINED=xception',
                         '--XCEPTION_WEIGHTS={start}/xception.pth'), ['models/MaskCN', CACHE]),
    'train_EnhancedSN.py': (SEGMENTATION, ['models/EnhancedSN', CACHE]),
    'eval_MaskCN.py': (SMALL, ['results', CACHE]),
    'eval_EnhancedSN.py': ((*EXACT, '--SCALES=32,48', '--PANEL_IMAGES=2'), ['results', CACHE]),
}

# Script -> when it is killed in turn: while it writes the nth file of this name, having said this.
TRAINING = (('*.npy', 2, ''), ('config.json', 1, ''), ('metrics.jsonl', 1, 'steps 0 to 6'),
            ('last.pth', 1, 'steps 0 to 6'), ('*N.pth', 1, 'steps 0 to 6'), ('*N.pth', 1, ''),
            ('last.pth', 1, 'steps 2 to 6'), ('last.pth', 2, 'steps 2 to 6'),
            ('curves.png', 1, 'steps 4 to 6'), ('panel.png', 1, 'already trained'),
            ('config.json', 2, 'already trained'))
FATAL = {
    'dataset/extractPatch_cls_train.py': (('extraction.json', 1, ''), ('*.png', 5, ''), ('*.png', 5, '')),
    'dataset/extractPatch_seg_train.py': (('extraction.json', 1, ''), ('*_segmentation.png', 3, '')),
    'dataset/list_cls.py': (('*.txt', 2, ''), ('*.txt', 1, '')),
    'dataset/list_seg.py': (('*.txt', 2, ''), ('*.txt', 1, '')),
    'train_CoarseSN.py': TRAINING,
    'generate_Coarse_mask.py': (('made_by.json', 1, ''), ('*.png', 5, ' 0 of '), ('*.png', 40, ' 4 of '),
                                ('made_by.json', 4, ' 43 of '), ('made_by.json', 12, '')),
    'train_MaskCN.py': TRAINING,
    'train_EnhancedSN.py': TRAINING,
    'eval_MaskCN.py': (('*.npy', 2, ''), ('*_Validation.csv', 1, ''), ('*_Validation.json', 1, ''),
                       ('report.html', 1, '')),
    'eval_EnhancedSN.py': (('*_segmentation.png', 2, ''), ('*_Validation.json', 1, ''),
                           ('*_panel.png', 1, ''), ('report.html', 1, '')),
}
LAST_WORDS = {'dataset/extractPatch_cls_train.py': 'crops: 8 of ',
              'dataset/extractPatch_seg_train.py': 'masks: 5 of 8 '} | dict.fromkeys(
    ('train_CoarseSN.py', 'train_MaskCN.py', 'train_EnhancedSN.py'), 'already trained')
# Some folders where a lock tells the next run that temporary files are of a killed one: it removes them at
# once. Where nothing is locked they stay until they are ten minutes old, because a present run's look alike.
LOCKED = (CACHE, 'models', 'results/EnhancedSN_Validation_masks')


# --- The nursery

PRELOADED = ('torch._dynamo', 'torch.utils.tensorboard', 'dataset.extraction', 'dataset.synthetic',
             'mbdcnn.coarse_masks', 'report.page', 'engine.run_folder', 'engine.trainer', 'mbdcnn.transfer')


def nursery():
    """Answer each line on stdin, the arguments of `attempt`, by a line with its result."""
    make_narrow()
    for module in PRELOADED:
        importlib.import_module(module)
    panels.VALIDATION_IMAGES, bootstrap.RESAMPLES = 2, 20   # these and layouts would take most of the time
    ConstrainedLayoutEngine.execute = lambda engine, figure: None
    Image.init()
    figures.subplots(1, 1, (1, 1))[0].savefig(io.BytesIO())   # loads fonts
    for line in sys.stdin:
        print(json.dumps(attempt(**json.loads(line))), flush=True)


def make_narrow():
    """Divide the channels of all layers that are built from now on, except those of pictures and classes."""
    def narrow(channels):
        return channels if channels <= 4 else -(-channels // NARROW)

    convolution = nn.Conv2d.__init__

    def narrow_convolution(self, inputs, outputs, *shape, groups=1, **options):
        convolution(self, narrow(inputs), narrow(outputs), *shape, groups=narrow(groups), **options)

    class BatchNorm2d(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(narrow(channels))

    class Linear(nn.Linear):
        def __init__(self, inputs, outputs):
            super().__init__(narrow(inputs), narrow(outputs))

    nn.Conv2d.__init__ = narrow_convolution   # its subclasses, too
    nn.BatchNorm2d, nn.Linear = BatchNorm2d, Linear


def attempt(words, output, after, fatal, later):
    """Run a script in a child; kill its process group `after` seconds. Returns (exit code, seconds).

    words : sys.argv; output : file for stdout and stderr
    fatal, later : see `be_the_script`
    """
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        be_the_script(words, output, fatal, later)
    with contextlib.suppress(OSError):   # in child and parent: whoever comes first
        os.setpgid(child, child)
    ended, status = 0, 0
    while not ended:
        time.sleep(0.002)
        if time.monotonic() - begun > after:
            os.killpg(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begun


def be_the_script(words, output, fatal, later):
    """In the forked child: run a script as `python <words>` would, and exit.

    fatal : (name, number), see `die_before_replacing`, or None
    later : take all temporary files for those of runs that were killed long ago
    """
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(written, 1)
        os.dup2(written, 2)
        random.seed()      # a new process has its own
        np.random.seed()
        if fatal:
            die_before_replacing(*fatal)
        if later:
            importlib.import_module('engine.files').ABANDONED_AFTER = -1
        sys.argv = words
        if words[0] == 'start_weights':
            conftest.START = Path(words[2])
            conftest.start_weights(Layout(words[1]))
        else:
            runpy.run_path(words[0], run_name='__main__')
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:   # noqa: B036 - the child must not go on as a second nursery
        traceback.print_exc()
    finally:
        os._exit(code)


def die_before_replacing(name, number):
    """End this process while it writes a file whose name matches `name`, the `number`th such file.

    Half of the temporary file is there, and the file itself is not yet replaced.
    """
    replace, count = os.replace, itertools.count(1)

    def replace_or_die(source, target):
        if fnmatch.fnmatch(Path(target).name, name) and next(count) == number:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die


# --- The experiment

Attempt = namedtuple('Attempt', 'code seconds text')


class Experiment:
    """A root that has gone through all steps undisturbed, and the nursery that runs them again.

    expected : {script: what `contents` found after it}; seconds : {script: how long it took}
    """

    def __init__(self, folder, process):
        self.folder, self.root, self.process = folder, folder / 'root', process
        self.expected, self.seconds = {}, {}

    def call(self, *words, after=LONG, fatal=None, later=False):
        """Let the nursery run a script; returns Attempt."""
        output = self.folder / 'output.txt'
        request = {'words': list(map(str, words)), 'output': str(output), 'after': after, 'fatal': fatal,
                   'later': later}
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        code, seconds = json.loads(self.process.stdout.readline())
        return Attempt(code, seconds, output.read_text(encoding='utf-8', errors='replace'))

    def run(self, script, *more, **how):
        """Run a step of STEPS with `more` options; it succeeds or is killed. Returns Attempt."""
        options = [option.format(start=self.folder / 'start') for option in STEPS[script][0]]
        done = self.call(script, f'--ROOT={self.root}', *options, *more, **how)
        assert done.code in (0, -signal.SIGKILL), f'{script} {how}: exit code {done.code}\n{done.text}'
        return done

    def build(self):
        """Go through all steps undisturbed and keep what each wrote."""
        crops = 'dataset/extractPatch_cls_val_test.py', f'--ROOT={self.root}'
        for words in (('dataset/make_demo_data.py', f'--ROOT={self.root}', *DEMO), crops,
                      (*crops, '--SPLIT=Testing'), ('start_weights', self.root, self.folder / 'start')):
            done = self.call(*words)
            assert done.code == 0, done.text
        for script in STEPS:
            done = self.run(script)
            self.seconds[script], self.expected[script] = done.seconds, self.contents(script)
            assert done.code == 0 and self.expected[script] and not self.temporary()
            for name in (CACHE, 'results'):   # no step needs another's
                shutil.rmtree(self.root / name, ignore_errors=True)

    def outputs(self, script):
        """Paths of what a step wrote."""
        return [path for name in STEPS[script][1] for path in sorted(self.root.glob(name))]

    def temporary(self):
        """The temporary files below the root."""
        return [path for path in sorted(self.root.rglob('.*')) if TEMPORARY.fullmatch(path.name)]

    def clear(self, script):
        """Remove what a step wrote."""
        for path in self.outputs(script) + self.temporary():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)   # it was in such a folder

    @contextlib.contextmanager
    def without(self, script):
        """As long as this lasts, the step has not been run. Its files come back as they were."""
        aside = self.folder / 'aside'
        moved = [(path, aside / path.relative_to(self.root)) for path in self.outputs(script)]
        for path, place in moved:
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)
        try:
            yield
        finally:
            self.clear(script)
            for path, place in moved:
                place.rename(path)

    def contents(self, script):
        """{path: content} of what a step wrote: bytes, save for the exceptions that this file begins with."""
        found, folders = {}, set()
        for output in self.outputs(script):
            for path in [output] if output.is_file() else sorted(output.rglob('*')):
                if path.parent.name == 'tensorboard':
                    folders.add(path.parent)
                elif path.name == 'last.pth':
                    found[str(path.relative_to(self.root))] = leaves(torch.load(path, weights_only=True))
                elif path.is_file() and not TEMPORARY.fullmatch(path.name) and path.parent.name != 'contents':
                    found[str(path.relative_to(self.root))] = DATE.sub(b'', path.read_bytes())
        return found | {str(folder.relative_to(self.root)): scalars(folder) for folder in folders}

    def compare(self, script, history=''):
        """Check that a step wrote what it writes undisturbed."""
        found, expected = self.contents(script), self.expected[script]
        differing = [name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)]
        assert not differing, f'{sorted(differing)} differ after {history}'


def leaves(nest, place=()):
    """{(key, key, ...): value} of nested dicts and lists; of tensors the values' bytes."""
    if isinstance(nest, (dict, list, tuple)):
        parts = nest.items() if isinstance(nest, dict) else enumerate(nest)
        return {key: leaf for name, part in parts for key, leaf in leaves(part, (*place, name)).items()}
    if isinstance(nest, torch.Tensor):
        return {place: (nest.dtype, nest.shape, nest.numpy().tobytes())}
    return {place: repr(nest)}


def scalars(folder):
    """What a TensorBoard folder shows: {(name, step, value)}, less the speed, and panels, which every process
    shows anew."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    return {(value.tag, event.step, value.simple_value) for path in sorted(folder.iterdir())
            for event in LegacyEventFileLoader(str(path)).Load() for value in event.summary.value
            if value.tag != 'train/steps_per_second' and value.WhichOneof('value') == 'simple_value'}


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp('kill')
    environment = os.environ | conftest.ENVIRONMENT | {'PYTHONPATH': str(conftest.REPOSITORY)}
    with subprocess.Popen([sys.executable, __file__], cwd=conftest.REPOSITORY, env=environment, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            made = Experiment(folder, process)
            made.build()
            yield made
        finally:
            process.stdin.close()
            shutil.rmtree(folder)


# --- The tests

@pytest.mark.skipif(not KILLS, reason='KILLS is not set; make soak sets it')
@pytest.mark.parametrize('script', STEPS)
def test_kills_at_random_moments_change_nothing(experiment, script):
    """Where a run comes to its end between two kills, it is compared and the step begins anew."""
    moments, limit, history, fresh = random.Random(script), experiment.seconds[script], [], True
    with experiment.without(script):
        while history.count(-signal.SIGKILL) < KILLS:
            done = experiment.run(script, after=moments.uniform(0, limit))
            history.append(done.code)
            if done.code == 0:
                experiment.compare(script, history)
                experiment.clear(script)
                limit = done.seconds if fresh else limit   # other programs have come or gone
            fresh = done.code == 0
            assert len(history) < 10 * KILLS, 'it is hardly ever hit'
        assert experiment.run(script).code == 0
        experiment.compare(script, history)


@pytest.mark.parametrize('script', STEPS)
def test_a_kill_while_a_file_is_written_changes_nothing(experiment, script):
    """By design and not by chance: a file is half written, trainings go on in their middle."""
    left, in_order = set(), ['--NUM_WORKERS=1'] if 'extractPatch' in script else []
    with experiment.without(script):
        for name, number, said in FATAL[script]:
            done = experiment.run(script, *in_order, fatal=(name, number))
            assert done.code == -signal.SIGKILL and said in done.text, f'{name} {number}:\n{done.text}'
            now = set(experiment.temporary())
            assert len(now - left) == 1
            for folder in LOCKED:
                assert len([path for path in now if path.is_relative_to(experiment.root / folder)]) <= 1
            left = now
        done = experiment.run(script, *in_order, later=True)
        assert done.code == 0 and LAST_WORDS.get(script, '') in done.text, done.text
        experiment.compare(script, FATAL[script])
        assert not experiment.temporary()


if __name__ == '__main__':
    nursery()
