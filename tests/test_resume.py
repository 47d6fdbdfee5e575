"""A training that is stopped and started again ends where one ends that was never stopped."""
import itertools
import json
import os
import signal
from pathlib import Path

import filelock
import pytest
import torch

from engine import checkpoints, cli, run_folder
from tests.conftest import IN_SOAK, STAGES, finish, run_script, start_script, wait_for
from tests.test_training import train

MASK = STAGES['train_MaskCN.py']


def assert_same(one, other, place='last.pth'):
    """Two nests of dicts, lists, numbers and tensors are equal, bit for bit."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f'{place} {key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f'{place} {number}')
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    else:
        assert one == other, place


def assert_same_run(layout, expected, network):
    """Two run folders hold the same weights, the same state to go on from and the same scores."""
    for name in (f'{network}.pth', 'last.pth'):
        contents = [torch.load(one.run(network) / name, weights_only=True) for one in (layout, expected)]
        for content in contents:
            content.pop('run', None)   # the settings, some of which a test may change
        assert_same(*contents, name)
    scores = [(one.run(network) / 'metrics.jsonl').read_bytes() for one in (layout, expected)]
    assert scores[0] == scores[1]


@pytest.mark.parametrize('fatal', range(4))
@pytest.mark.parametrize('begun', [False, True])
def test_a_kill_before_or_after_any_save_changes_nothing(tmp_path, monkeypatch, fatal, begun):
    """fatal : number of the save that is the last; begun : it is completed, and then the end comes."""
    monkeypatch.setattr(run_folder.figures, 'curves', lambda rows, monitor, path, _: None)
    train(tmp_path / 'whole')
    save, count = checkpoints.save, itertools.count()

    def die(content, path):
        last = next(count) == fatal
        if begun or not last:
            save(content, path)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, 'save', die)
        train(tmp_path / 'parts')
    train(tmp_path / 'parts')
    for name in ('last.pth', 'CoarseSN.pth'):
        assert_same(*(torch.load(tmp_path / folder / name, weights_only=True)
                      for folder in ('whole', 'parts')), name)


def step_of(layout, network):
    """The step at which last.pth was saved, None where there is no such file."""
    path = layout.run(network) / 'last.pth'
    return torch.load(path, weights_only=True)['progress']['step'] if path.exists() else None


def test_mask_cn_resumes_exactly_after_sigterm_to_the_whole_group(chain, sibling):
    layout = sibling('CoarseSN')
    process = start_script('train_MaskCN.py', layout.root, *MASK, '--NUM_WORKERS=2')
    wait_for(process, 'step 3:')
    os.killpg(process.pid, signal.SIGTERM)   # as cluster schedulers do: the loader processes too
    assert 'run the same command again' in finish(process, 143)
    assert 3 <= step_of(layout, 'MaskCN') < 6
    text = run_script('train_MaskCN.py', layout.root, *MASK)
    assert 'step 6:' in text and 'step 3:' not in text
    assert_same_run(layout, chain.layout, 'MaskCN')


@IN_SOAK
def test_mask_cn_resumes_exactly_after_a_kill_while_saving(chain, sibling):
    layout = sibling('CoarseSN')
    process = start_script('train_MaskCN.py', layout.root, *MASK)
    wait_for(process, 'step 3:')   # said before it is saved
    process.kill()
    finish(process, -signal.SIGKILL)
    saved = step_of(layout, 'MaskCN') or 0
    assert f'steps {saved} to 9' in run_script('train_MaskCN.py', layout.root, *MASK)
    assert_same_run(layout, chain.layout, 'MaskCN')


def test_ctrl_c_is_heard_where_every_step_is_validated(sibling):
    layout = sibling('CoarseSN')
    process = start_script('train_MaskCN.py', layout.root, *MASK[:2], '--BATCH_SIZE=4', '--PRETRAINED=none',
                           '--STEPS=200', '--VALIDATE_EVERY=1', '--VALIDATION_CROPS=1')
    wait_for(process, 'step 1:')
    process.send_signal(signal.SIGINT)
    assert 'run the same command again' in finish(process, 130)
    rows = (layout.run('MaskCN') / 'metrics.jsonl').read_text().splitlines()
    assert step_of(layout, 'MaskCN') == json.loads(rows[-1])['step'] < 20


def test_coarse_sn_with_dropout_resumes_exactly_and_with_any_number_of_workers(chain, sibling):
    layout, options = sibling(), STAGES['train_CoarseSN.py']
    process = start_script('train_CoarseSN.py', layout.root, *options)
    wait_for(process, 'step 2:')
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    assert 2 <= step_of(layout, 'CoarseSN') < 4
    config = json.loads((layout.run('CoarseSN') / 'config.json').read_text())
    assert config['settings']['DROPOUT'] is True
    run_script('train_CoarseSN.py', layout.root, *options, '--NUM_WORKERS=2')
    assert_same_run(layout, chain.layout, 'CoarseSN')


def test_a_second_run_in_a_folder_is_refused(sibling):
    layout = sibling('CoarseSN')
    layout.run('MaskCN').mkdir()
    with filelock.FileLock(layout.run('MaskCN') / '.lock'):
        text = run_script('train_MaskCN.py', layout.root, *MASK, expect=2)
    assert f'{layout.run("MaskCN")}: another process trains here' in text and '--ROOT' in text
    assert [path.name for path in layout.run('MaskCN').iterdir()] == ['.lock']


@pytest.mark.skipif(not Path('/proc/self/task').is_dir(), reason='finds the loader process in /proc')
def test_a_loader_process_that_dies_is_reported_with_the_remedy(sibling):
    layout = sibling('CoarseSN')
    process = start_script('train_MaskCN.py', layout.root, *MASK[:2], '--BATCH_SIZE=4', '--PRETRAINED=none',
                           '--STEPS=200', '--VALIDATION_CROPS=1', '--VALIDATE_EVERY=2', '--NUM_WORKERS=1')
    wait_for(process, 'step 2:')
    tasks = Path(f'/proc/{process.pid}/task').glob('*/children')
    children = {int(child) for task in tasks for child in task.read_text().split()}
    assert children
    for child in children:
        os.kill(child, signal.SIGKILL)
    text = finish(process, 2)
    assert 'loader process died' in text and '--NUM_WORKERS=0' in text.partition('Remedy: ')[2]


def test_a_loader_process_that_dies_while_something_is_saved_is_reported_too(capsys):
    def main():
        try:
            raise RuntimeError('DataLoader worker (pid 7) is killed by signal: Killed. ')
        finally:   # as PyTorch's zip writer does
            raise RuntimeError('unexpected pos 19677056 vs 19676976')

    with pytest.raises(SystemExit) as end:
        cli.launch(main)
    assert end.value.code == 2 and '--NUM_WORKERS=0' in capsys.readouterr().err
