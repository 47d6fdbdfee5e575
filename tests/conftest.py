"""Scripts run as processes, and one small experiment that has gone through all steps."""
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
from PIL import Image

from dataset.layout import Layout
from engine import cache
from net.models import Xception_dilation, deeplabv3plus
from net.weights import EXIT_FLOW
from tests import stand_ins

root, calls = stand_ins.root, stand_ins.calls   # fixtures
# A suite that runs in the background, or by nohup, ignores these signals; the programs that it tests would
# inherit that; they do not inherit handlers.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
REPOSITORY = Path(__file__).resolve().parent.parent
# Two threads: how a sum is split among threads decides its last bits. Passive: threads that wait
# in a loop slow each other down tenfold when other programs use the cores too.
ENVIRONMENT = {'OMP_NUM_THREADS': '2', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHONUNBUFFERED': '1'}

IN_SOAK = pytest.mark.skipif(not os.environ.get('KILLS'), reason='make soak takes the time')
DEMO = ('--TRAINING_IMAGES=8', '--VALIDATION_IMAGES=6', '--TESTING_IMAGES=3', '--EXTRA_IMAGES=0',
        '--MAX_SIDE=160')
SMALL = ('--INPUT_SIZE=32', '--AMP=fp32')
# Of `start_weights`; the same for all processes of a test run.
START = Path(tempfile.gettempdir()) / f'mbdcnn-{os.environ.get("PYTEST_XDIST_TESTRUNUID", os.getpid())}'
STAGES = {
    'train_CoarseSN.py': (*SMALL, '--CACHE_SIZE=64', '--EPOCH=2', '--BATCH_SIZE=4', '--PRETRAINED=voc',
                          f'--VOC_WEIGHTS={START}/voc.pth'),
    'generate_Coarse_mask.py': SMALL,
    'train_MaskCN.py': (*SMALL, '--STEPS=9', '--VALIDATE_EVERY=3', '--BATCH_SIZE=4',
                        '--PRETRAINED=xception', f'--XCEPTION_WEIGHTS={START}/xception.pth'),
    'train_EnhancedSN.py': (*SMALL, '--CACHE_SIZE=64', '--EPOCH=1', '--BATCH_SIZE=4'),
    'eval_MaskCN.py': SMALL,
    'eval_EnhancedSN.py': ('--SCALES=32,48', '--AMP=fp32'),
}


def start_script(script, root, *overrides, env=None, launcher=()):
    """Start `python [launcher] <script> --ROOT=<root> ...` in a process group of its own; a Popen."""
    where = () if root is None else (f'--ROOT={root}',)
    return subprocess.Popen([sys.executable, *launcher, script, *where, *overrides], cwd=REPOSITORY,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                            env=os.environ | ENVIRONMENT | (env or {}), start_new_session=True)


def wait_for(process, marker, seconds=300):
    """Read a started script's output until it holds `marker` (str); returns what was read."""
    seen, end = b'', time.monotonic() + seconds
    while marker.encode() not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
        block = os.read(process.stdout.fileno(), 1 << 16) if ready else b''
        assert block, f'{marker!r} does not appear in:\n{seen.decode()}'
        seen += block
    return seen.decode()


def finish(process, expect=0, seconds=300):
    """Wait for a started script, check its exit code; returns the rest of stdout and stderr."""
    try:
        text = process.communicate(timeout=seconds)[0].decode()
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == expect, f'exit code {process.returncode}, not {expect}:\n{text}'
    assert 'Traceback' not in text, text
    return text


def run_script(script, root, *overrides, expect=0, env=None, launcher=()):
    """Run a script of the repository below `root` (None: without --ROOT); returns stdout and stderr."""
    return finish(start_script(script, root, *overrides, env=env, launcher=launcher), expect)


def run_in_turn(*commands, expect=0):
    """Run several (script, root, *overrides) in one process, which imports torch only once.

    root : None leaves --ROOT out. Checks each exit code; returns the outputs in order.
    """
    words = [[script, *([] if root is None else [f'--ROOT={root}']), *overrides]
             for script, root, *overrides in commands]
    done = subprocess.run([sys.executable, '-c', IN_TURN, json.dumps(words)], cwd=REPOSITORY, text=True,
                          capture_output=True, env=os.environ | ENVIRONMENT, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    for command, (code, text) in zip(commands, results, strict=True):
        assert code == expect, f'{command}: exit code {code}, not {expect}:\n{text}'
    return [text for _, text in results]


IN_TURN = """
import contextlib, io, json, runpy, sys
results = []
for sys.argv in json.loads(sys.argv[1]):
    text, code = io.StringIO(), 0
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as end:
            code = end.code
    results.append((code, text.getvalue()))
print(json.dumps(results))
"""


def figure(path):
    """Pixels (H, W, 3) uint8 of a figure, which Matplotlib gives an alpha channel as no photograph has."""
    with Image.open(path) as image:
        return np.array(image.convert('RGB'))


def start_weights(layout):
    """Write START/voc.pth and xception.pth: random networks that see their input.

    After a few steps from scratch the batch norms' running statistics are still far off, and the
    output would be the same for every picture. Here they are those of the training pictures.
    """
    torch.manual_seed(0)
    START.mkdir(exist_ok=True)
    coarse, mask = deeplabv3plus(), Xception_dilation(3)
    paths = sorted((layout.originals('Training') / 'Images').glob('*.jpg'))
    pictures = np.stack([cache.read_rgb_square(path, 32) for path in paths])
    batch = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    for network in (coarse, mask):
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        with torch.no_grad():
            network.train()(batch)
    torch.save({f'module.{name}': tensor for name, tensor in coarse.state_dict().items()}, START / 'voc.pth')
    theirs = {}
    for name, tensor in mask.state_dict().items():
        source = next((source for source, own in EXIT_FLOW.items() if name.startswith(f'{own}.')), None)
        theirs[name if source is None else name.replace(EXIT_FLOW[source], source, 1)] = tensor
    theirs = {name.replace('cls.', 'fc.'): tensor for name, tensor in theirs.items()}
    torch.save(theirs, START / 'xception.pth')


def made_once(tmp_path_factory, name, build):
    """(folder, what build(folder) gave): made by the first test process that asks, read by the others.

    build returns what json holds. The folder goes at the end of the run, see pytest_sessionfinish.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'shared' / name
    folder.parent.mkdir(exist_ok=True)
    record = folder / 'made.json'
    with filelock.FileLock(f'{folder}.lock'):
        if not record.exists():
            shutil.rmtree(folder, ignore_errors=True)   # of a process that failed here
            folder.mkdir()
            record.write_text(json.dumps(build(folder)))
    return folder, json.loads(record.read_text())


def pytest_sessionfinish(session):
    """Checkpoints are large: remove what the processes shared, after the last of them."""
    if not hasattr(session.config, 'workerinput'):
        shutil.rmtree(session.config._tmp_path_factory.getbasetemp() / 'shared', ignore_errors=True)
        shutil.rmtree(START, ignore_errors=True)


@dataclass(frozen=True)
class Chain:
    """root, layout : of the experiment; outputs : {script: what it printed}"""
    root: Path
    layout: Layout
    outputs: dict


@pytest.fixture(scope='session')
def chain(tmp_path_factory):
    """An experiment that is finished: demo pictures, three small trainings, results of Validation.

    All test processes read it; a test that changes something makes a `sibling`.
    """
    def build(folder):
        root = folder / 'root'
        run_in_turn(('dataset/make_demo_data.py', root, *DEMO),
                    ('dataset/extractPatch_cls_train.py', root), ('dataset/extractPatch_seg_train.py', root),
                    ('dataset/extractPatch_cls_val_test.py', root),
                    ('dataset/extractPatch_cls_val_test.py', root, '--SPLIT=Testing'),
                    ('dataset/list_cls.py', root), ('dataset/list_seg.py', root))
        start_weights(Layout(root))
        commands = {script: (script, root, *overrides) for script, overrides in STAGES.items()}
        commands['eval_CoarseSN'] = (*commands['eval_EnhancedSN.py'], '--NETWORK=CoarseSN')
        outputs = dict(zip(commands, run_in_turn(*commands.values()), strict=True))
        Layout(root).run('EnhancedSN').joinpath('last.pth').unlink()   # 660 MB
        return outputs

    folder, outputs = made_once(tmp_path_factory, 'chain', build)
    return Chain(folder / 'root', Layout(folder / 'root'), outputs)


@pytest.fixture
def sibling(chain, tmp_path):
    """sibling('CoarseSN', ...) -> Layout of a root with the chain's data, masks and these networks.

    They are links; the networks' last.pth is left out. masks='copy' copies the coarse masks.
    """
    def make(*networks, masks='link'):
        layout = Layout(tmp_path / f'root{len(list(tmp_path.iterdir()))}')
        layout.models.mkdir(parents=True)
        (layout.root / 'dataset').symlink_to(chain.root / 'dataset')
        if masks == 'copy':
            shutil.copytree(chain.layout.coarse_masks, layout.coarse_masks)
        else:
            layout.coarse_masks.symlink_to(chain.layout.coarse_masks)
        for network in networks:
            layout.run(network).mkdir()
            for name in (f'{network}.pth', 'config.json'):
                (layout.run(network) / name).symlink_to(chain.layout.run(network) / name)
        return layout

    yield make
    for folder in tmp_path.iterdir():   # checkpoints are large
        shutil.rmtree(folder)
