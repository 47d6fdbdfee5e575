"""The training loop with a tiny network: schedule, resuming, stopping, refusing; and checkpoints."""
import functools
import json
import math
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine import checkpoints, device_samples, hardware, images, run_folder, trainer
from engine.augment import Ranges
from engine.cli import Interrupted
from engine.errors import InputError
from engine.run_folder import Run
from engine.samples import Pictures
from net.inputs import to_input
from net.loss import hybrid_loss

ALONE = hardware.Process(0, 1, torch.device('cpu'))
SETTINGS = {'AMP': 'fp32', 'LEARNING_RATE': 0.01, 'RESUME': True, 'PATIENCE': 0, 'BATCH_SIZE': 4,
            'NUM_WORKERS': 0, 'PICTURES_ON': 'auto', 'COMPILE': 'off', 'FREEZE_BN': False, 'SYNC_BN': True,
            'SEED': 5, 'INITIAL_WEIGHTS': ''}
TOTAL, EVERY = 8, 4   # steps, and steps between validations
SIGNALS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Figures have their own test; a curve costs more than all the steps here."""
    monkeypatch.setattr(run_folder.figures, 'curves', lambda *given: given[2].write_bytes(b'curve'))


def tiny_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5),
                         nn.Conv2d(4, 2, 1))


def blank_panel(path):
    """In place of a panel; TensorBoard reads it."""
    images.write_png(path, np.zeros((2, 2, 3), np.uint8))


def tiny_task(before_loss=lambda step, loss: loss, scores=None):
    """Task of six 12 px pictures, which `train` completes; task.network and task.pictures lie beside.

    before_loss(step, loss) -> loss is called with the number of the call; scores : of the validations in
    order, default a number from the weights
    """
    rng, network, calls = np.random.default_rng(1), tiny_network(), []
    scores = iter(scores) if scores else None
    data = Pictures(rng.integers(0, 256, (6, 12, 12, 3), dtype=np.uint8),
                    {'mask': rng.integers(0, 2, (6, 12, 12)).astype(np.uint8)}, None, 8,
                    Ranges(crop=(0.5, 1.0), crop_probability=0.5), seed=5)

    def losses(models, batch):
        calls.append(len(calls))
        assert models['CoarseSN'].training
        loss, dice, rank = hybrid_loss(models['CoarseSN'](to_input(batch['image'], 'unit')), batch['mask'])
        yield 'Adam', before_loss(calls[-1], loss), {'dice': dice, 'rank': rank}

    def validate():
        assert not network.training
        return {'JA': next(scores) if scores else float(network[0].weight.abs().mean().detach())}

    task = trainer.Task({'CoarseSN': network}, {}, None, losses, validate,
                        blank_panel, None, 'JA')
    task.network, task.pictures = network, data
    return task


def train(folder, task=None, total=TOTAL, every=EVERY, inputs=None, read_config=checkpoints.read_config,
          **changes):
    """Call `fit` as the scripts do; returns the task."""
    task, cfg = task or tiny_task(), SimpleNamespace(**SETTINGS | changes)
    task.optimizers = {'Adam': trainer.adam(task.network, cfg.LEARNING_RATE, ALONE.device)}
    task.stream = functools.partial(device_samples.batches, task.pictures, cfg, ALONE)
    task.rate, task.score_start = functools.partial(trainer.poly, total=total), bool(cfg.INITIAL_WEIGHTS)
    with Run(folder, 'CoarseSN', cfg, inputs or {'training': 'a'}, 'random weights', ALONE,
             read_config=read_config) as run:
        trainer.fit(task, cfg, run, ALONE, total, every)
    return task


def same(a, b):
    """Equality of nested dicts and lists with tensors, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def load(folder, name):
    return torch.load(folder / name, weights_only=True)


def rows_of(folder):
    return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def assert_same_folders(one, other):
    assert all(same(load(one, name), load(other, name)) for name in ('last.pth', 'CoarseSN.pth'))
    assert rows_of(one) == rows_of(other)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# --- Schedule and progress

@given(st.integers(0, 2 * 10**6), st.integers(1, 10**6))
def test_the_schedule_is_real_and_never_negative(step, total):
    rate, following = trainer.poly(step, total), trainer.poly(step + 1, total)
    assert isinstance(rate, float) and 0 <= following <= rate <= 1
    assert step < total or rate == 0


def test_the_schedule_is_poly_with_power_0_9():
    assert trainer.poly(0, 100) == 1 and trainer.poly(101, 100) == 0
    assert trainer.poly(50, 100) == pytest.approx(0.5 ** 0.9)


def test_means_are_taken_over_the_steps_and_processes_since_the_last_call(monkeypatch):
    progress = trainer.Progress()
    for value in (1.0, 2.0, 6.0):
        progress.add({'loss': torch.tensor(value), 'dice': torch.tensor(value / 2)})
    assert progress.take_means(ALONE) == {'loss': 3.0, 'dice': 1.5}
    progress.add({'loss': torch.tensor(5.0)})
    monkeypatch.setattr(hardware, 'merge', lambda rows, process: [*rows, {'loss': 9.0}])
    assert progress.take_means(ALONE) == {'loss': 7.0}


def test_progress_refuses_what_was_not_finite_since_the_last_validation():
    progress = trainer.Progress()
    for value in (1.0, float('inf'), 1.0):
        progress.add({'loss': torch.tensor(value)})
    with pytest.raises(InputError, match='not finite before step'):
        progress.refuse_non_finite()


def test_speed_after_resuming_counts_the_new_steps_only():
    old, new = trainer.Progress(), trainer.Progress()
    old.step = 10**6
    new.restore(old.state())
    assert new.speed() == 0


@pytest.mark.parametrize('patience, scores, steps, best', [
    (2, [0.5, 0.6, 0.6, 0.1], 8, 4), (1, [0.5, 0.4], 4, 2), (0, [0.5, 0.4, 0.3, 0.2, 0.1], 10, 2),
    (2, [0.1, 0.2, 0.3, 0.4, 0.5], 10, 10)])
def test_patience_ends_a_run_without_improvement(tmp_path, capsys, patience, scores, steps, best):
    train(tmp_path, tiny_task(scores=scores), total=10, every=2, PATIENCE=patience)
    rows = rows_of(tmp_path)
    assert rows[-1]['step'] == steps and [row['JA'] for row in rows] == scores
    assert f'best JA {max(scores):.4f} at step {best}' in capsys.readouterr().out


# --- A whole run

def test_a_run_folder_explains_itself(tmp_path):
    train(tmp_path, total=6, every=4)
    rows = rows_of(tmp_path)
    assert [row['step'] for row in rows] == [4, 6]   # the last step is always validated
    for row in rows:
        assert row.keys() == {'step', 'lr', 'loss', 'dice', 'rank', 'JA'}
        assert row['loss'] == pytest.approx(row['dice'] + 0.05 * row['rank'], rel=1e-4)
        assert row['lr'] == 0.01 * trainer.poly(row['step'] - 1, 6)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['network'] == 'CoarseSN' and config['settings'] == SETTINGS
    assert config['processes'] == 1
    assert config['inputs'] == {'training': 'a'} and config['versions']['torch'] == torch.__version__
    assert config['versions'].keys() >= {'host', 'commit', 'dirty'}
    assert (tmp_path / 'curves.png').exists() and (tmp_path / 'panel.png').exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    board = EventAccumulator(str(tmp_path / 'tensorboard')).Reload()
    assert set(board.Tags()['scalars']) == {'val/JA', *(f'train/{name}' for name in (
        'lr', 'loss', 'dice', 'rank', 'steps_per_second'))}
    assert [event.step for event in board.Scalars('val/JA')] == [4, 6]
    assert board.Images('val/panel')[-1].step == 6


@pytest.mark.skipif(not shutil.which('git'), reason='needs git')
def test_a_run_says_which_code_it_is_of(tmp_path, monkeypatch):
    def git(*words):
        who = 'user.name=x', 'user.email=x@example.org', 'commit.gpgsign=false'
        options = [word for setting in who for word in ('-c', setting)]
        return subprocess.run(['git', '-C', tmp_path, *options, *words], check=True, capture_output=True,
                              text=True).stdout.strip()

    unknown = {'commit': None, 'dirty': None}
    assert run_folder.code_state(tmp_path) == unknown   # no git there
    git('init')
    assert run_folder.code_state(tmp_path) == unknown   # and no commit yet
    (tmp_path / 'code.py').write_text('1')
    git('add', 'code.py')
    git('commit', '-m', 'one')
    (tmp_path / 'data.txt').write_text('not of the code')
    assert run_folder.code_state(tmp_path) == {'commit': git('rev-parse', 'HEAD'), 'dirty': False}
    (tmp_path / 'code.py').write_text('2')
    assert run_folder.code_state(tmp_path) == {'commit': git('rev-parse', 'HEAD'), 'dirty': True}
    monkeypatch.setenv('PATH', '')
    assert run_folder.code_state(tmp_path) == unknown   # a machine without git


def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    early = train(tmp_path / 'early', tiny_task(scores=[0.2, 0.9, 0.5, 0.4]), every=2)
    train(tmp_path / 'late', tiny_task(scores=[0.2, 0.9, 0.95, 0.99]), every=2)
    best = load(tmp_path / 'early', 'CoarseSN.pth')
    assert list(best) == list(tiny_network().state_dict()) and best['1.num_batches_tracked'] == 4
    assert same(best, early.network.state_dict())   # what the last panel shows
    last = load(tmp_path / 'early', 'last.pth')['networks']['CoarseSN']
    assert same(last, load(tmp_path / 'late', 'CoarseSN.pth'))


def test_undefined_scores_keep_the_newest_weights_until_one_is_defined(tmp_path):
    nan = float('nan')
    for scores, steps in (([nan, nan, nan], 6), ([nan, 0.3, nan], 4)):
        train(tmp_path / str(steps), tiny_task(scores=scores), total=6, every=2)
        assert load(tmp_path / str(steps), 'CoarseSN.pth')['1.num_batches_tracked'] == steps
        found = [row['JA'] or nan for row in rows_of(tmp_path / str(steps))]
        assert found == pytest.approx(scores, nan_ok=True)


def test_frozen_batch_norms_keep_their_statistics(tmp_path):
    frozen = train(tmp_path / 'frozen', FREEZE_BN=True).network
    free = train(tmp_path / 'free').network
    assert (frozen[1].running_mean == 0).all() and (free[1].running_mean != 0).any()
    assert not torch.equal(frozen[1].weight, torch.ones(4))   # its parameters are trained


@pytest.mark.parametrize('scores, best', [([0.9, 0.5, 0.8], 0), ([0.5, 0.9, 0.8], 4)])
def test_fine_tuning_keeps_its_start_where_nothing_later_is_better(tmp_path, capsys, scores, best):
    task = tiny_task(scores=scores)
    begun = {name: tensor.clone() for name, tensor in task.network.state_dict().items()}
    train(tmp_path, task, INITIAL_WEIGHTS='other.pth')
    rows = rows_of(tmp_path)
    assert [row['step'] for row in rows] == [0, 4, 8] and [row['JA'] for row in rows] == scores
    assert rows[0] == {'step': 0, 'lr': 0.0, 'JA': scores[0]} and 'loss' in rows[1]
    assert f'best JA 0.9000 at step {best}' in capsys.readouterr().out
    assert same(load(tmp_path, 'CoarseSN.pth'), begun) == (best == 0)


def test_scoring_the_start_changes_no_step(tmp_path):
    train(tmp_path / 'new')
    train(tmp_path / 'tuned', INITIAL_WEIGHTS='other.pth')
    assert rows_of(tmp_path / 'tuned')[1:] == rows_of(tmp_path / 'new')
    assert same(load(tmp_path / 'tuned', 'last.pth')['networks'],
                load(tmp_path / 'new', 'last.pth')['networks'])


# --- Stopping and resuming

def interrupt_at(step, number=signal.SIGTERM):
    def before_loss(call, loss):
        if call == step:
            os.kill(os.getpid(), number)
        return loss
    return before_loss


@pytest.mark.parametrize('number', SIGNALS)
@pytest.mark.parametrize('every, steps', [(EVERY, 2), (EVERY, 4), (EVERY, 7), (1, 3)])
def test_an_interrupted_and_resumed_run_is_the_uninterrupted_one(tmp_path, every, steps, number):
    train(tmp_path / 'whole', every=every)
    handlers = [signal.getsignal(kind) for kind in SIGNALS]
    with pytest.raises(Interrupted) as interruption:
        train(tmp_path / 'parts', tiny_task(interrupt_at(steps - 1, number)), every=every)
    assert interruption.value.number == number
    assert [signal.getsignal(kind) for kind in SIGNALS] == handlers
    assert load(tmp_path / 'parts', 'last.pth')['progress']['step'] == steps
    torch.manual_seed(99)   # a new process starts from other random states
    np.random.seed(99)
    random.seed(99)
    train(tmp_path / 'parts', every=every)
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')


@pytest.mark.parametrize('start, saves', [*(('', n) for n in range(4)), *(('a.pth', n) for n in range(6))])
def test_a_run_killed_after_any_save_ends_as_the_uninterrupted_one(tmp_path, monkeypatch, start, saves):
    """Work after the last save is redone; rows of the log that last.pth does not know are dropped."""
    train(tmp_path / 'whole', INITIAL_WEIGHTS=start)
    save, left = checkpoints.save, iter(range(saves))

    def save_or_die(content, path):
        if next(left, None) is None:
            raise KeyboardInterrupt
        save(content, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, 'save', save_or_die)
        train(tmp_path / 'parts', INITIAL_WEIGHTS=start)
    with open(tmp_path / 'parts' / 'metrics.jsonl', 'a') as log:
        log.write(json.dumps({'step': 9, 'JA': 0.0}) + '\n')
    train(tmp_path / 'parts', INITIAL_WEIGHTS=start)
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')


def test_a_finished_run_is_left_alone_and_may_be_extended(tmp_path, capsys):
    train(tmp_path)
    before = contents(tmp_path)
    train(tmp_path, tiny_task(lambda *_: pytest.fail('trained on')))
    after = contents(tmp_path)
    assert 'already trained' in capsys.readouterr().out
    assert all(after[name] == before[name] for name in ('last.pth', 'CoarseSN.pth', 'metrics.jsonl'))
    train(tmp_path, total=TOTAL + 2)
    assert rows_of(tmp_path)[-1]['step'] == TOTAL + 2


@pytest.mark.parametrize('damage', [lambda path: path.unlink(), lambda path: path.write_bytes(b'')])
def test_lost_weights_are_written_again_where_the_best_is_the_last(tmp_path, damage, capsys):
    for scores, best in (([0.5, 0.9], 'last'), ([0.9, 0.5], 'first')):
        folder = tmp_path / best
        train(folder, tiny_task(scores=scores))
        kept = (folder / 'CoarseSN.pth').read_bytes()
        damage(folder / 'CoarseSN.pth')
        if best == 'last':
            train(folder)
            assert (folder / 'CoarseSN.pth').read_bytes() == kept
            assert 'already trained' in capsys.readouterr().out
        else:
            for total in (TOTAL, TOTAL + 2):   # finished, and with steps to go
                with pytest.raises(InputError, match='(?s)CoarseSN.pth: .*of step 4, last.pth is of step 8'
                                   f'.*train anew: remove {folder}, then run the same'):
                    train(folder, total=total)
            shutil.rmtree(folder)   # as it says
            train(folder, tiny_task(scores=scores))
            assert (folder / 'CoarseSN.pth').read_bytes() == kept


@pytest.mark.parametrize('spoil', [
    lambda state: state['progress'].pop('step'), lambda state: state.pop('optimizers'),
    lambda state: state['networks']['CoarseSN'].pop('0.weight'),
    lambda state: state['networks']['CoarseSN'].update({'0.weight': torch.zeros(3)}),
    lambda state: state['optimizers']['Adam']['state'][0].pop('exp_avg'),
    lambda state: state['optimizers']['Adam']['state'][0].update(exp_avg=torch.zeros(3)),
    lambda state: state['optimizers']['Adam']['state'][0].update(step=torch.zeros(0))])
def test_a_state_of_another_network_is_one_error_that_names_the_file(tmp_path, spoil):
    train(tmp_path)
    state = load(tmp_path, 'last.pth')
    spoil(state)
    torch.save(state, tmp_path / 'last.pth')
    with pytest.raises(InputError, match='(?s)cannot be used.*last.pth: .*start anew'):
        train(tmp_path, total=TOTAL + 2)


@pytest.mark.parametrize('damage', [lambda path: path.unlink(), lambda path: path.write_bytes(b'{"set')])
def test_without_config_json_a_run_goes_on_as_it_was_begun_or_not_at_all(tmp_path, damage, capsys):
    for folder in ('whole', 'parts'):
        train(tmp_path / folder)
    config = tmp_path / 'parts' / 'config.json'
    damage(config)
    with pytest.raises(InputError, match='(?s)LEARNING_RATE: 0.01 in .*SEED: 5 in .*training: \'a\' in'):
        train(tmp_path / 'parts', total=TOTAL + 2, SEED=6, LEARNING_RATE=0.5, inputs={'training': 'b'})
    for folder in ('whole', 'parts'):
        train(tmp_path / folder, total=TOTAL + 2)
    assert_same_folders(tmp_path / 'whole', tmp_path / 'parts')
    assert f'{config}: ' in capsys.readouterr().out
    assert json.loads(config.read_text())['settings'] == SETTINGS
    state = load(tmp_path / 'parts', 'last.pth')
    torch.save({name: state[name] for name in state if name != 'run'}, tmp_path / 'parts' / 'last.pth')
    damage(config)   # beside a last.pth of an earlier version
    with pytest.raises(InputError, match='(?s)does not say.*config.json: .*copy'):
        train(tmp_path / 'parts', total=TOTAL + 3)


@pytest.mark.parametrize('spoil, left', [(lambda text: None, []), (lambda text: text[:-20], [2, 4, 6]), (
    lambda text: text.replace('"JA": ', '"JA": "', 1), [4, 6, 8])])
def test_a_lost_log_costs_the_curve_alone(tmp_path, capsys, spoil, left):
    for folder in ('whole', 'parts'):
        train(tmp_path / folder, every=2)
    log = tmp_path / 'parts' / 'metrics.jsonl'
    spoiled = spoil(log.read_text())
    log.unlink()
    if spoiled is not None:
        log.write_text(spoiled)
    for folder in ('whole', 'parts'):
        train(tmp_path / folder, every=2, total=TOTAL + 2)
    assert all(same(load(tmp_path / 'whole', name), load(tmp_path / 'parts', name))
               for name in ('last.pth', 'CoarseSN.pth'))
    assert [row['step'] for row in rows_of(tmp_path / 'parts')] == [*left, TOTAL + 2]
    assert f'{log}: {4 - len(left)} of 4 lines are missing or damaged' in capsys.readouterr().out


def test_a_run_of_the_version_that_knew_one_network_goes_on(tmp_path):
    for folder in ('new', 'old'):
        train(tmp_path / folder)
    state = load(tmp_path / 'old', 'last.pth')
    old = {'model': state['networks']['CoarseSN'], 'optimizer': state['optimizers']['Adam']}
    torch.save({'progress': state['progress'], 'scaler': {}, **old}, tmp_path / 'old' / 'last.pth')
    for folder in ('new', 'old'):
        train(tmp_path / folder, total=TOTAL + 2)
    assert_same_folders(tmp_path / 'new', tmp_path / 'old')


def test_a_run_records_by_how_many_processes_it_was_trained(tmp_path, monkeypatch):
    def recorded():
        return json.loads((tmp_path / 'config.json').read_text())['processes']

    train(tmp_path)
    two = hardware.Process(0, 2, torch.device('cpu'))
    with Run(tmp_path, 'CoarseSN', SimpleNamespace(**SETTINGS), {'training': 'a'}, '', ALONE) as run:
        run.begin(True)
        monkeypatch.setattr(run, 'process', two)   # another count, in the same folder
        assert recorded() == 1                     # as long as it trains nothing
        run.go_on()
        run.go_on()
        assert recorded() == [1, 2]
    train(tmp_path)                                # already trained
    assert recorded() == [1, 2]
    train(tmp_path, total=TOTAL + 1)
    assert recorded() == [1, 2, 1]


def test_a_run_records_the_length_that_its_steps_were_planned_for(tmp_path):
    def recorded():
        config = json.loads((tmp_path / 'config.json').read_text())
        return config['settings']['STEPS'], config.get('earlier')

    train(tmp_path, STEPS=TOTAL)
    train(tmp_path, total=2, STEPS=2)              # already trained: still what it was
    assert recorded() == (TOTAL, None)
    train(tmp_path, total=TOTAL + 1, STEPS=TOTAL + 1)
    assert recorded() == (TOTAL + 1, [{'STEPS': TOTAL}])
    train(tmp_path, total=TOTAL + 1, STEPS=TOTAL + 1)
    assert recorded() == (TOTAL + 1, [{'STEPS': TOTAL}])
    config = json.loads((tmp_path / 'config.json').read_text())
    del config['finished']                         # stopped there, on the way to more
    (tmp_path / 'config.json').write_text(json.dumps(config))
    train(tmp_path, total=2, STEPS=2)              # is enough now: neither of the one length nor of the other
    assert recorded() == (2, [{'STEPS': TOTAL}, {'STEPS': TOTAL + 1}])


def test_without_resume_a_run_starts_anew(tmp_path):
    train(tmp_path, LEARNING_RATE=0.5)
    train(tmp_path, RESUME=False)
    train(tmp_path / 'fresh', RESUME=False)
    assert rows_of(tmp_path) == rows_of(tmp_path / 'fresh')


@pytest.mark.parametrize('place', ['CoarseSN.pth', '../start.pth'])
def test_weights_that_a_run_starts_from_are_not_cleared_by_it(tmp_path, place):
    folder = tmp_path / 'run'
    train(folder)
    start = folder / place
    if start.name == 'start.pth':
        start.symlink_to(folder / 'CoarseSN.pth')
    before = contents(folder)
    with pytest.raises(InputError, match='lies in .*(?s:.)*copy it elsewhere first'):
        train(folder, RESUME=False, INITIAL_WEIGHTS=str(start))
    assert contents(folder) == before
    (tmp_path / 'copy.pth').write_bytes(before['CoarseSN.pth'])
    for resume in (False, True):
        train(folder, RESUME=resume, INITIAL_WEIGHTS=str(tmp_path / 'copy.pth'))
    assert rows_of(folder)[0]['step'] == 0


def test_a_second_signal_takes_the_usual_way():
    with trainer.Stopping() as stopping:
        os.kill(os.getpid(), signal.SIGINT)
        assert stopping.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_run_that_nobody_will_see_the_end_of_begins(tmp_path):
    """Its steps are not listed beforehand."""
    with pytest.raises(Interrupted):
        train(tmp_path, tiny_task(interrupt_at(1)), total=10**18)
    assert load(tmp_path, 'last.pth')['progress']['step'] == 2


@pytest.mark.parametrize('scores, learned', [([0.0, 0.0], False), ([0.0, 0.1], True)])
def test_a_training_that_learned_nothing_says_so(tmp_path, capsys, scores, learned):
    task = tiny_task(scores=scores)
    task.chance = 0.0
    train(tmp_path, task)
    assert ('NOTHING WAS LEARNED' in capsys.readouterr().out) != learned


# --- Refusals

def test_outputs_that_are_not_finite_are_refused_with_the_step(tmp_path):
    def validate():
        raise FloatingPointError('The output for 2 of 6 validation pictures is not finite')

    task = tiny_task()
    task.validate = validate
    with pytest.raises(InputError, match='(?s)2 of 6 .* after step 4.*lower LEARNING_RATE'):
        train(tmp_path, task)
    assert not {'last.pth', 'CoarseSN.pth'} & contents(tmp_path).keys()


def pooled_network():
    """As the networks: one branch sees the whole picture as one value."""
    return nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(2),
                         nn.Upsample((8, 8)))


@pytest.mark.parametrize('changes, free, said', [
    ({}, 1000, 'more than the 0.0 GB .*lower BATCH_SIZE or INPUT_SIZE'),
    ({'BATCH_SIZE': 1}, math.inf, 'too small for the batch norms.*BATCH_SIZE to two .*--FREEZE_BN=True')])
def test_what_a_step_lacks_is_said_with_the_remedy(tmp_path, monkeypatch, changes, free, said):
    assert hardware.free_memory() > 10**6   # of this machine
    monkeypatch.setattr(hardware, 'free_memory', lambda: free)
    monkeypatch.setitem(globals(), 'tiny_network', pooled_network)
    with pytest.raises(InputError, match=f'(?s){said}'):
        train(tmp_path, **changes)
    monkeypatch.undo()
    train(tmp_path / 'remedied')


@pytest.mark.parametrize('files, free', [
    ({'memory.max': '9000'}, 9000), ({'memory.max': '9000', 'memory.current': '5000'}, 4000),
    ({'memory.max': '9000', 'memory.current': '5000', 'memory.stat': 'anon 3000\ninactive_file 1500'}, 5500)])
def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch, files, free):
    monkeypatch.setattr(hardware, 'CONTAINER', tmp_path)
    (tmp_path / 'memory.max').write_text('max')
    assert hardware.free_memory() > 9000
    for name, text in files.items():
        (tmp_path / name).write_text(f'{text}\n')
    assert hardware.free_memory() == free


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('step', [0, 5])
def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path, step, value):
    if step:
        train(tmp_path / 'good')
    task = tiny_task(lambda call, loss: loss * value if call == step else loss)
    with pytest.raises(InputError) as error:
        train(tmp_path / 'bad', task)
    assert f'The loss of step {step} is {value}' in str(error.value)
    assert 'pictures (by line of the list, from 0): [' in str(error.value)
    assert all(parameter.isfinite().all() for parameter in task.network.parameters())
    assert ('last.pth' in contents(tmp_path / 'bad')) == (step > EVERY)
    if step:   # goes on from the last good state as if nothing had happened
        train(tmp_path / 'bad')
        assert same(load(tmp_path / 'bad', 'last.pth'), load(tmp_path / 'good', 'last.pth'))


def test_a_run_with_other_settings_or_data_is_refused_and_untouched(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        train(tmp_path, inputs={'training': 'b'}, BATCH_SIZE=2, SEED=6)
    assert len(error.value.faults) == 3
    for fault in ('BATCH_SIZE: 4 in', 'SEED: 5 in', "training: 'a' in"):
        assert fault in str(error.value)
    assert contents(tmp_path) == before
    train(tmp_path, NUM_WORKERS=1, PATIENCE=3)   # may change


def test_a_second_process_in_the_folder_is_refused(tmp_path):
    holder = ('import sys, filelock\n'
              'with filelock.FileLock(sys.argv[1]):\n'
              '    print("held", flush=True)\n'
              '    sys.stdin.read()\n')
    with subprocess.Popen([sys.executable, '-c', holder, tmp_path / '.lock'], text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == 'held\n'
        with pytest.raises(InputError, match='another process trains here'):
            train(tmp_path)
        other.stdin.close()
    assert other.returncode == 0
    train(tmp_path)


# --- Checkpoints

STATE = {'model': {'a.weight': torch.arange(5000.0)}, 'step': 3, 'best': 0.5, 'names': ['x']}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    checkpoints.save(STATE, tmp_path / 'x.pth')
    assert same(checkpoints.load(tmp_path / 'x.pth', ''), STATE)


@pytest.mark.parametrize('share', [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_or_missing_checkpoint_is_named_with_the_remedy(tmp_path, share):
    path = tmp_path / 'last.pth'
    checkpoints.save(STATE, path)
    data = path.read_bytes()
    path.write_bytes(data[:int(share * len(data))])
    with pytest.raises(InputError) as error:
        checkpoints.load(path, 'start anew')
    assert all(part in str(error.value) for part in (str(path), 'truncated', 'start anew'))
    path.unlink()
    with pytest.raises(InputError, match='(?s)last.pth: is missing.*start anew'):
        checkpoints.load(path, 'start anew')


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_that_would_run_code_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / 'x.pth', tmp_path / 'was_run'
    content = {'model': Malicious(trace)}
    torch.save(content, path) if zipped else path.write_bytes(pickle.dumps(content, 2))
    for load in (checkpoints.load, checkpoints.load_state):
        with pytest.raises(InputError, match='cannot be read'):
            load(path, '')
    assert not trace.exists()


def half_saved(error):
    """A torch.save that writes some bytes and then fails, or ends its process when error is None."""
    def save(_content, file):
        file.write(b'half')
        file.flush()
        if error is None:
            os.kill(os.getpid(), signal.SIGKILL)
        raise error
    return save


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), RuntimeError(
    'PytorchStreamWriter failed writing file data/0: file write failed')])
def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path, monkeypatch, error):
    path = tmp_path / 'last.pth'
    checkpoints.save(STATE, path)
    monkeypatch.setattr(torch, 'save', half_saved(error))
    with pytest.raises(InputError, match='(?s)disk is full.*last.pth.*untouched'):
        checkpoints.save({}, path)
    assert same(checkpoints.load(path, ''), STATE) and list(tmp_path.iterdir()) == [path]


def test_a_kill_while_saving_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'last.pth'
    checkpoints.save(STATE, path)
    monkeypatch.setattr(torch, 'save', half_saved(None))
    process = multiprocessing.get_context('fork').Process(target=checkpoints.save, args=({}, path))
    process.start()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    assert same(checkpoints.load(path, ''), STATE)
    assert [file.suffix for file in tmp_path.iterdir() if not file.name.startswith('.')] == ['.pth']


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ('one.pth', 'two.pth'):
        checkpoints.save(STATE, tmp_path / name)
    assert (tmp_path / 'one.pth').read_bytes() == (tmp_path / 'two.pth').read_bytes()


@pytest.mark.parametrize('wrap', [lambda state: state, lambda state: {'model': state, 'step': 1},
                                  lambda state: {'networks': {'CoarseSN': state}, 'optimizers': {}},
                                  lambda state: {'state_dict': {f'module.{k}': v for k, v in state.items()}}])
def test_common_wrappings_of_network_parameters_are_understood(tmp_path, wrap):
    torch.save(wrap(STATE['model']), tmp_path / 'x.pth')
    assert same(checkpoints.load_state(tmp_path / 'x.pth', ''), STATE['model'])
    torch.save(wrap({}), tmp_path / 'x.pth')
    with pytest.raises(InputError, match='holds no network parameters'):
        checkpoints.load_state(tmp_path / 'x.pth', '')
