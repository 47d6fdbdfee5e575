"""hardware.on_each_core: items side by side on the cores of a CPU, as one after the other."""
import itertools
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from engine import hardware

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def two_cores():
    """As many threads, whatever machine this is; the suite's own number afterwards."""
    before, set_number = torch.get_num_threads(), torch.set_num_threads
    set_number(2)
    yield
    set_number(before)


def test_results_come_in_order_whatever_takes_longest():
    def slow_at_first(number):
        time.sleep(0.05 if number == 0 else 0)
        return number
    assert list(hardware.on_each_core(slow_at_first, range(20), CPU)) == list(range(20))


def test_two_items_are_under_way_at_once_each_on_one_core():
    meeting, threads = threading.Barrier(2, timeout=30), []

    def meet(_number):
        meeting.wait()   # a lonely item would break it
        threads.append(torch.get_num_threads())
    list(hardware.on_each_core(meet, range(4), CPU))
    assert threads == [1, 1, 1, 1]


def test_the_machine_is_as_before_afterwards():
    list(hardware.on_each_core(abs, range(5), CPU))
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 2 and later == [2]


def test_one_core_computes_what_two_compute():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(16, 16, 3)
    batches = list(torch.rand(6, 2, 16, 24, 24))
    with torch.no_grad():
        expected = [layer(batch) for batch in batches]

    @torch.no_grad()
    def convolve(batch):
        return layer(batch)
    found = list(hardware.on_each_core(convolve, batches, CPU))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_results_that_nobody_takes_do_not_pile_up():
    started = []

    def note(number):
        started.append(number)
        return number
    results = hardware.on_each_core(note, range(100), CPU)
    assert list(itertools.islice(results, 3)) == [0, 1, 2]
    time.sleep(0.1)
    assert len(started) <= 6
    results.close()
    assert len(started) <= 6 and torch.get_num_threads() == 2


@pytest.mark.parametrize(('cores', 'items', 'expected'), [(8, 2, 4), (64, 40, 4), (16, 100, 1)])
def test_cores_beyond_the_items_help_with_them(cores, items, expected, monkeypatch):
    """At most 16 items are under way, for the sake of memory."""
    given = []
    monkeypatch.setattr(torch, 'get_num_threads', lambda: cores)
    monkeypatch.setattr(torch, 'set_num_threads', given.append)
    assert list(hardware.on_each_core(abs, range(items), CPU)) == list(range(items))
    assert given[-1] == cores and set(given[:-1]) == {expected} and len(given) <= 17


def test_an_error_reaches_the_caller_and_ends_the_work():
    started = []

    def fail_at_three(number):
        started.append(number)
        if number == 3:
            raise ValueError('the third')
        return number
    with pytest.raises(ValueError, match='the third'):
        list(hardware.on_each_core(fail_at_three, range(100), CPU))
    assert len(started) < 10 and torch.get_num_threads() == 2


def test_one_core_and_gpus_take_one_after_the_other():
    names = []

    def note(number):
        names.append(threading.current_thread() is threading.main_thread())
        return number
    list(hardware.on_each_core(note, range(3), torch.device('cuda')))   # nothing is computed there
    torch.set_num_threads(1)
    list(hardware.on_each_core(note, range(3), CPU))
    assert names == [True] * 6


@pytest.mark.parametrize('given, kept', [({}, '1000'), ({'GOMP_SPINCOUNT': '5'}, '5'),
                                         ({'OMP_WAIT_POLICY': 'ACTIVE'}, None)], ids=str)
def test_waiting_threads_soon_sleep_unless_one_says_otherwise(given, kept):
    """So that a training beside a busy program takes twice as long, not ten times."""
    words = ('import os, sys; from engine import cli; '
             'print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)')
    plain = {name: value for name, value in os.environ.items()
             if name not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')}
    done = subprocess.run([sys.executable, '-c', words], env=plain | given, capture_output=True, text=True)
    assert done.stdout.split() == [str(kept), 'False']
