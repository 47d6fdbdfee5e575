"""Two processes on one CPU, started by torchrun, train what one process trains."""
import json
from types import SimpleNamespace

import pytest
import torch

from engine import cli, hardware
from engine.errors import InputError
from tests.conftest import IN_SOAK, SMALL, STAGES, run_script

TORCHRUN = '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2'
RATE = 1e-5   # small: untrained networks soon blow up the last bits in which the two differ
# Frozen batch norms: otherwise each process normalises by its own half of the batch. One thread
# each: how a sum is split among threads decides its last bits.
COMMON = *SMALL, '--BATCH_SIZE=4', '--FREEZE_BN=True', f'--LEARNING_RATE={RATE}'
RUNS = {'MaskCN': (*COMMON, '--STEPS=4', '--VALIDATE_EVERY=2',
                   '--PRETRAINED=xception', STAGES['train_MaskCN.py'][-1]),
        'CoarseSN': (*COMMON, '--EPOCH=1', '--CACHE_SIZE=64', '--DROPOUT=False',
                     '--PRETRAINED=voc', STAGES['train_CoarseSN.py'][-1])}
ONE_THREAD = {'OMP_NUM_THREADS': '1'}


def rows_of(layout, network):
    lines = (layout.run(network) / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize('network', ['CoarseSN', pytest.param('MaskCN', marks=IN_SOAK)])
def test_two_processes_train_what_one_trains(sibling, network):
    one, two = (sibling(*(['CoarseSN'] if network == 'MaskCN' else [])) for _ in range(2))
    run_script(f'train_{network}.py', one.root, *RUNS[network], env=ONE_THREAD)
    text = run_script(f'train_{network}.py', two.root, *RUNS[network], env=ONE_THREAD,
                      launcher=TORCHRUN)
    assert text.count('training on 2 x cpu') == 1   # one process speaks for both
    expected, found = rows_of(one, network), rows_of(two, network)
    assert [row['step'] for row in found] == [row['step'] for row in expected]
    for row, other in zip(found, expected, strict=True):
        for name in {'loss', 'dice', 'rank'} & row.keys():
            assert row[name] == pytest.approx(other[name], rel=1e-4), name
    alone, together = (torch.load(layout.run(network) / 'last.pth', weights_only=True)['networks'][network]
                       for layout in (one, two))
    assert alone.keys() == together.keys()
    apart = torch.cat([(together[name] - alone[name]).abs().flatten().double() for name in alone])
    assert apart.mean() < 0.01 * RATE   # each step moves a weight by about RATE


@pytest.mark.parametrize(('environment', 'expected'), [
    ({}, (0, 1)), ({'RANK': '3'}, (0, 1)), ({'RANK': '3', 'WORLD_SIZE': '1'}, (0, 1)),
    ({'RANK': '3', 'WORLD_SIZE': '4'}, (3, 4))])
def test_a_rank_counts_among_several_processes_alone(monkeypatch, environment, expected):
    """Otherwise a RANK that some cluster sets would train and write nothing."""
    for name in ('RANK', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cli.processes() == expected


def test_several_processes_without_a_rank_are_refused(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(InputError, match='start them with torchrun, or unset WORLD_SIZE'):
        cli.processes()


def test_several_processes_on_apples_gpu_are_refused(monkeypatch):
    for name, value in {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2'}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(hardware.dist, 'init_process_group', lambda *_, **__: None)
    with pytest.raises(InputError, match='--DEVICE=cpu'):
        hardware.start(SimpleNamespace(DEVICE='auto', DETERMINISTIC=False))
