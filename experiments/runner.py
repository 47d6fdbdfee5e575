"""Running the steps of experiments one after the other, each as a process of its own."""
import signal
import subprocess
import time

import filelock

from engine.cli import Interrupted
from engine.errors import InputError

ENDED_BY_SIGNAL = 128 + signal.SIGINT, 128 + signal.SIGTERM


def run(library, steps, failed):
    """Run the steps that are not finished, in order; their output goes to the terminal.

    A step that fails costs those that need it, not the others. failed : {step: why it was not run or
    did not finish}, of earlier calls or blocked from the start; what fails now is added.
    Raises Interrupted after the running script has saved its state, and InputError when another
    process runs experiments below the same root.
    """
    if all(step in failed or library.finished(step) for step in steps):
        return
    library.runs.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(library.runs / '.lock', timeout=0):
            for number, step in enumerate(steps, start=1):
                _run_if_needed(library, step, failed, f'[{number}/{len(steps)}]')
    except filelock.Timeout:
        raise InputError('Two programs run experiments', [f'{library.runs}: another process works here'],
                         'wait for it or use another --ROOT; --RUN=False shows what is finished') from None


def _run_if_needed(library, step, failed, place):
    blame = next((need for need in step.before if need in failed), None)
    if blame is not None:
        failed.setdefault(step, f'needs {blame.name}: {failed[blame]}')
    if step in failed:
        return
    library.look_again(step)
    if not library.finished(step):
        code = _run_one(library, step, place)
        if code:
            failed[step] = f'{library.command(step)} ended with exit code {code}'


def _run_one(library, step, place):
    """Run one step in its folder; its exit code."""
    library.prepare(step)
    print(f'\n{place} {library.command(step)}', flush=True)
    since, code = time.monotonic(), None
    try:
        code = call(library.arguments(step))
    finally:
        library.note(step, time.monotonic() - since, finished=code == 0)
    return code


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

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, 'SIGHUP') else [])]
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
