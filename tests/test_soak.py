"""The judgement of tests/soak.py on made-up samples, and what it reads of a process."""
import csv
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests import soak
from tests.conftest import figure

CFG = SimpleNamespace(MEMORY=soak.MEMORY, HANDLES=soak.HANDLES, STEP_TIME=soak.STEP_TIME)
COUNT = 200   # samples, 5 s apart


def samples(**changes):
    """Samples of a training of one worker in which nothing changes but for some noise.

    changes : {column, with _ for space: function of the share of the time that has gone, added to it}
    """
    rows = []
    for number in range(COUNT):
        noise = (number * 7919 % 11 - 5) / 5   # -1 to 1
        row = {'seconds': 5.0 * (number + 1), 'step': 30 * (number + 1), 'step_ms': 160 + 5 * noise,
               'cpu': 9.0 * number, 'main rss': 900 + 10 * noise, 'main own': 700 + 8 * noise,
               'main handles': 40 + round(noise), 'worker 1 rss': 300 + noise, 'worker 1 own': 100 + noise,
               'worker 1 handles': 20}
        rows.append(row | {name.replace('_', ' ') if name != 'step_ms' else name:
                           row[name.replace('_', ' ') if name != 'step_ms' else name] + more(number / COUNT)
                           for name, more in changes.items()})
    return rows


def broken(rows):
    """The checks that failed, by their first words."""
    return [text.partition(':')[0] for text, good in soak.verdict(rows, CFG) if not good]


def test_a_training_that_stays_as_it_is_passes():
    checks = soak.verdict(samples(), CFG)
    assert all(good for _, good in checks)
    assert [text.partition(':')[0] for text, _ in checks] == [
        'processes', 'main rss', 'main own', 'main handles', 'worker 1 rss', 'worker 1 own',
        'worker 1 handles', 'step']
    assert 'share of validations 300 -> 300 ms' in checks[-1][0]


@pytest.mark.parametrize('column, growth', [
    ('main_rss', lambda share: 150 * share), ('main_own', lambda share: 100 * share),
    ('worker_1_own', lambda share: 15 * share),            # copies of pages that were shared
    ('main_rss', lambda share: 80 * (share in (0.8, 0.9))),   # higher peaks
    ('worker_1_handles', lambda share: int(10 * share)), ('main_handles', lambda share: int(9 * share)),
    ('step_ms', lambda share: 60 * share)])
def test_what_grows_is_named(column, growth):
    name = 'step' if column == 'step_ms' else column.replace('_', ' ')
    assert broken(samples(**{column: growth})) == [name]


@pytest.mark.parametrize('column, growth', [
    ('main_rss', lambda share: -300 * (share < 0.2)),      # the warm-up
    ('main_rss', lambda share: -200 * share), ('step_ms', lambda share: -40 * share),
    ('main_handles', lambda share: 30 * (round(COUNT * share) % 10 == 0)),   # a few while it saves
    ('step_ms', lambda share: 500 * (share in (0.8, 0.9)))])   # another program, twice
def test_what_starts_ends_or_passes_is_no_growth(column, growth):
    assert broken(samples(**{column: growth})) == []


def test_a_worker_that_comes_or_goes_is_named():
    rows = samples()
    for row in rows[-3:]:
        for measure in soak.MEASURES:
            del row[f'worker 1 {measure}']
    assert broken(rows) == ['processes']


@pytest.mark.parametrize('rows', [samples()[:1], samples(step=lambda share: -30 * (COUNT * share % 50))])
def test_too_little_is_not_judged(rows):
    text, good = soak.verdict(rows, CFG)[-1]
    assert 'too few to judge' in text and not good


@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory_and_handles_of_a_process_and_its_children_are_read():
    with subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE) as child:
        row = soak.sample(os.getpid())
        alone = soak.sample(child.pid)
        child.communicate(b'\n')
    workers = [name for name in row if name.startswith('worker') and name.endswith('rss')]
    assert workers and row['main rss'] > row['main own'] > 10 and row['main handles'] > 3 and row['cpu'] > 0
    assert list(alone) == ['cpu', 'main rss', 'main own', 'main handles'] and alone['main handles'] >= 3


def test_samples_are_written_and_drawn(tmp_path):
    rows = samples()
    soak.write_csv(rows, tmp_path / 'soak.csv')
    soak.draw(rows, tmp_path / 'soak.png')
    with open(tmp_path / 'soak.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert len(read) == COUNT and float(read[-1]['main rss']) == pytest.approx(rows[-1]['main rss'])
    assert figure(tmp_path / 'soak.png').std() > 10
