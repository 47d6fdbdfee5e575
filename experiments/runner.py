"""Running the jobs of experiments one after the other, each as a process of its own."""
import signal
import subprocess
import time

import filelock

from engine.cli import HANG_UP, Interrupted, ignores_hang_up
from engine.errors import InputError

ENDED_BY_SIGNAL = [128 + number for number in (signal.SIGINT, signal.SIGTERM, HANG_UP, signal.SIGPIPE)]


def run(store, jobs, failed):
    """Run the jobs that are not finished, in order; their output goes to the terminal.

    A job that fails costs those that need it, not the others. failed : {job: why it was not run or
    did not finish}, of earlier calls or blocked from the start; what fails now is added.
    Raises Interrupted after the running script has saved its state, and InputError when another
    process runs experiments below the same root.
    """
    if all(job in failed or store.finished(job) for job in jobs):
        return
    store.runs.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(store.runs / '.lock', timeout=0):
            for number, job in enumerate(jobs, start=1):
                _run_if_needed(store, job, failed, f'[{number}/{len(jobs)}]')
    except filelock.Timeout:
        raise InputError('Two programs run experiments', [f'{store.runs}: another process works here'],
                         'wait for it or use another --ROOT; --RUN=False shows what is finished') from None


def _run_if_needed(store, job, failed, place):
    blame = next((need for need in job.before if need in failed), None)
    if blame is not None:
        failed.setdefault(job, f'needs {blame.name}: {failed[blame]}')
    if job in failed:
        return
    store.look_again(job)
    if store.finished(job):
        return
    store.prepare(job)
    print(f'\n{place} {store.command(job)}', flush=True)
    since, code = time.monotonic(), None
    try:
        code = call(store.arguments(job))
    finally:
        store.note(job, time.monotonic() - since, finished=code == 0)
    if code:
        failed[job] = f'{store.command(job)} ended with exit code {code}'


def call(words):
    """Run a command and wait; its exit code.

    Ctrl-C, SIGTERM and a closed terminal are handed on to the command, which saves its state;
    Interrupted is raised after its end. A session of its own: else the terminal would send it a second
    Ctrl-C, which does not wait.
    """
    caught, process = [], None

    def forward(number, _frame):
        caught.append(number)
        if process is not None:
            process.send_signal(number if number == signal.SIGINT else signal.SIGTERM)

    numbers = {signal.SIGINT, signal.SIGTERM} | (set() if ignores_hang_up() else {HANG_UP})
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        process = subprocess.Popen(words, start_new_session=True)
        if caught:   # in between
            process.terminate()
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught or code in ENDED_BY_SIGNAL:
        raise Interrupted(caught[0] if caught else code - 128)
    return code
