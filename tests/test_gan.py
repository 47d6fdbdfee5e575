"""A toy GAN through the one training loop: order of the steps, exact resume, kills. As a program:
`test_gan.py <folder> [<name> <number>]` trains, killed at the save number `number` of the file `name`."""
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import softplus

from engine import checkpoints, device_samples, figures, hardware, trainer
from engine.augment import Ranges
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures, unpaired
from tests import conftest, test_training
from tests.test_training import ALONE, SETTINGS, load, rows_of, same

no_figures = test_training.no_figures
SIDE, TOTAL, EVERY = 16, 12, 3   # px; steps, and steps between validations
KEPT = 'G', 'D'


class Generator(nn.Module):
    """uint8 pictures (B, 3, 16, 16) and noise -> pictures; `rho` is clamped to [0, 0.01] after each step."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
        self.rho = nn.Parameter(torch.tensor(0.0099))

    def forward(self, pictures):
        noise = torch.randn_like(pictures[:, :1])
        return self.layers(torch.cat([pictures, noise], 1)) + self.rho


def gan(seen=None, monitor=None, detached=False):
    """Task of a generator that turns one set's pictures into another's, without pairs.

    seen : list that gets ('D' or 'G', the networks that changed, rho) of each optimiser's step
    detached : D's loss leaves no gradients in G
    """
    torch.manual_seed(0)
    networks = {'G': Generator(), 'D': nn.Sequential(nn.Conv2d(3, 8, 4, 2), nn.LeakyReLU(0.2),
                                                     nn.Conv2d(8, 1, 4, 2))}
    rng, cfg, flips = np.random.default_rng(1), SimpleNamespace(**SETTINGS), Ranges(0, 0, (0, 0), (1, 1))
    sets = {name: Pictures(rng.integers(low, low + 128, (count, SIDE, SIDE, 3), dtype=np.uint8), {}, None,
                           SIDE, flips, seed=seed)
            for seed, (name, low, count) in enumerate((('dark', 0, 5), ('light', 128, 7)))}

    def weights():
        return {name: torch.cat([value.detach().flatten() for value in network.parameters()])
                for name, network in networks.items()}

    def losses(models, batch):
        dark, light = (batch[f'{name}_image'].float() / 127.5 - 1 for name in sets)
        begun = weights()
        fake = models['G'](dark)
        real, fooled = models['D'](light), models['D'](fake.detach() if detached else fake)
        yield 'D', (softplus(-real) + softplus(fooled)).mean(), {'D(real)': real.mean()}
        between = weights()
        loss = softplus(-models['D'](models['G'](dark))).mean() - networks['G'].rho
        yield 'G', loss, {}
        networks['G'].rho.data.clamp_(0, 0.01)
        for name, before, after in (('D', begun, between), ('G', between, weights())):
            changed = [part for part in after if not torch.equal(before[part], after[part])]
            (seen if seen is not None else []).append((name, changed, float(networks['G'].rho.detach())))

    def validate():
        with torch.no_grad():
            return {'distance': float(networks['G'](torch.zeros(1, 3, SIDE, SIDE)).abs().mean())}

    def stream(first, last):
        return unpaired(**{name: device_samples.batches(pictures, cfg, ALONE, first, last)
                           for name, pictures in sets.items()})

    return trainer.Task(
        networks, {'D': trainer.adam(networks['D'], 0.02, ALONE.device, betas=(0.5, 0.999)),
                   'G': trainer.adam(networks['G'], 0.01, ALONE.device, betas=(0.5, 0.999))},
        stream, losses, validate, test_training.blank_panel,
        rate=lambda step: min(1.0, 2 - 2 * step / TOTAL),   # constant, then linear
        monitor=monitor, smaller_is_better=True)


def train(folder, task=None, total=TOTAL, **changes):
    """Call `fit` as a script would; returns the task."""
    task, cfg = task or gan(), SimpleNamespace(**SETTINGS | changes)
    with Run(folder, 'toy', cfg, {}, 'random weights', ALONE, kept=KEPT) as run:
        trainer.fit(task, cfg, run, ALONE, total, EVERY)
    return task


def assert_same_runs(one, other):
    assert same(load(one, 'last.pth'), load(other, 'last.pth'))
    for name in ('G.pth', 'D.pth', 'metrics.jsonl'):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_both_networks_train_in_turn_each_at_its_own_rate(tmp_path):
    seen = []
    task = train(tmp_path, gan(seen))
    assert [(step, changed) for step, changed, _ in seen] == [('D', ['D']), ('G', ['G'])] * TOTAL
    assert seen[-1][2] == pytest.approx(0.01)   # its loss only grows it; clamped after each step
    rows = rows_of(tmp_path)
    assert [row['step'] for row in rows] == [3, 6, 9, 12]
    names = ['step', 'lr D', 'lr G', 'loss D', 'D(real)', 'loss G', 'distance']
    assert all(list(row) == names for row in rows)
    assert [row['lr G'] for row in rows] == pytest.approx([0.01, 0.01, 0.01 * 2 / 3, 0.01 / 6])
    assert [row['lr D'] for row in rows] == pytest.approx([2 * row['lr G'] for row in rows])
    for name in KEPT:   # without a score that selects them, the last weights
        assert same(load(tmp_path, f'{name}.pth'), dict(task.networks[name].state_dict()))
        assert same(load(tmp_path, 'last.pth')['networks'][name], load(tmp_path, f'{name}.pth'))


def test_what_one_loss_leaves_in_the_other_network_goes_into_no_step(tmp_path):
    for name, detached in (('left', False), ('detached', True)):
        train(tmp_path / name, gan(detached=detached))
    assert_same_runs(tmp_path / 'left', tmp_path / 'detached')


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('steps', [2, 3, 7])
def test_a_stopped_and_resumed_gan_is_the_undisturbed_one(tmp_path, monkeypatch, steps, precision):
    train(tmp_path / 'whole', AMP=precision)
    asked = itertools.count(1)
    with monkeypatch.context() as patch, pytest.raises(trainer.Interrupted):
        patch.setattr(trainer, '_asked_to_stop', lambda *_: next(asked) == steps)
        train(tmp_path / 'parts', AMP=precision)
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == steps
    torch.manual_seed(99)   # a new process starts from other random states
    train(tmp_path / 'parts', AMP=precision)
    assert_same_runs(tmp_path / 'whole', tmp_path / 'parts')


def test_a_smaller_score_may_be_the_better_one(tmp_path, monkeypatch, capsys):
    scores, task = iter([0.5, 0.2, 0.3, 0.4]), gan(monitor='distance')
    task.validate = lambda: {'distance': next(scores)}
    kept = {}
    monkeypatch.setattr(trainer.Session, '_keep', lambda session, keep=trainer.Session._keep: (
        kept.update(step=session.progress.step), keep(session)))
    train(tmp_path, task)
    assert kept == {'step': 6} and 'best distance 0.2000 at step 6' in capsys.readouterr().out
    finished = checkpoints.read_config(tmp_path / 'G.pth')['finished']
    assert finished == {'step': 12, 'best': 0.2, 'best_step': 6}


@pytest.mark.parametrize('spoil', [
    lambda state: state['networks'].pop('D'), lambda state: state.pop('networks'),
    lambda state: state['optimizers'].update(G=state['optimizers']['D']),
    lambda state: state.update(optimizers=[])])
def test_a_state_that_does_not_fit_is_named(tmp_path, spoil):
    train(tmp_path)
    state = load(tmp_path, 'last.pth')
    spoil(state)
    torch.save(state, tmp_path / 'last.pth')
    with pytest.raises(InputError, match='last.pth'):
        train(tmp_path, total=TOTAL + 2)


def test_a_loss_that_is_not_finite_names_the_pictures_of_both_sets(tmp_path):
    task = gan()
    task.losses = lambda models, batch: iter([('D', torch.tensor(float('nan')), {})])
    with pytest.raises(InputError) as error:
        train(tmp_path, task)
    assert 'dark_pictures' in str(error.value) and 'light_pictures' in str(error.value)


def test_several_processes_are_refused(tmp_path):
    process = hardware.Process(0, 2, torch.device('cpu'))
    with pytest.raises(InputError, match='one process'):
        trainer.Session(gan(), SimpleNamespace(**SETTINGS), None, process, TOTAL)


@pytest.mark.parametrize('name, number', [('last.pth', 2), ('D.pth', 1)])
def test_a_kill_at_a_save_changes_nothing(tmp_path, name, number):
    train(tmp_path / 'whole')
    command = [sys.executable, __file__, tmp_path / 'parts', name, str(number)]
    environment = os.environ | {'PYTHONPATH': str(conftest.REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path for path in (tmp_path / 'parts').iterdir() if path.name.startswith(f'.{Path(name).stem}-')]
    train(tmp_path / 'parts')
    assert_same_runs(tmp_path / 'whole', tmp_path / 'parts')


def die_before_replacing(name, number):
    """End this process while it writes the `number`th file of this name, which is not yet replaced."""
    replace, count = os.replace, itertools.count(1)

    def replace_or_die(source, target):
        if Path(target).name == name and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = replace_or_die


if __name__ == '__main__':
    figures.curves = lambda *given: given[2].write_bytes(b'curve')
    trainer.SECONDS_BETWEEN_SAVES = 0   # or the end alone would be saved
    die_before_replacing(sys.argv[2], int(sys.argv[3]))
    train(Path(sys.argv[1]))
