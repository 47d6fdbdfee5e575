"""How every script starts and ends: exit codes, and messages instead of tracebacks."""
import errno
import importlib.util
import os
import shlex
import signal
import sys
from pathlib import Path

from engine.errors import InputError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,   # the disk
              errno.EFBIG, errno.EIO,
              errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,   # the path
              errno.ENAMETOOLONG, errno.ELOOP)
TOO_MANY = 'Too many open files'
NO_MEMORY = "can't allocate memory"   # of PyTorch, for a CPU
NO_MEMORY_OF_APPLE = 'MPS backend out of memory'   # a RuntimeError
NOT_DETERMINISTIC = 'does not have a deterministic implementation'
AGAIN = 'the same command again'
HANG_UP = getattr(signal, 'SIGHUP', signal.SIGTERM)   # the terminal is gone; Windows has no such signal

# What requirements.txt installs, by the names that are imported.
PACKAGES = ('torch', 'numpy', 'cv2', 'PIL', 'sklearn', 'tqdm', 'matplotlib', 'tensorboard', 'filelock',
            'jinja2', 'safetensors', 'tabulate')
ENVIRONMENT = Path(__file__).resolve().parent.parent / '.venv'   # of the Makefile

# Threads that wait for each other after every layer look so often, then sleep; by default they look for
# milliseconds, and beside another busy program, on a core that the one they wait for needs. OpenMP's library
# reads it when PyTorch is imported, which scripts do after this.
if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')

_going_on = AGAIN   # how this program goes on where it stops


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or a hang-up arrived, and everything worth keeping has been saved.

    number : int   of the signal; the exit code is 128 + number, as shells expect
    """

    def __init__(self, number):
        super().__init__(f'interrupted by signal {int(number)}')
        self.number = number


def end_on_ctrl_c():
    """Let Ctrl-C end the program with one line until `launch`; for scripts, before their imports.

    Where packages are missing, which those imports would stumble over, the program ends here and says so.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        print(f'error: this Python ({sys.executable}) lacks {", ".join(missing)}\n'
              'Remedy: `make env` in the repository makes the environment, or brings it up to date; then run '
              f'`source {shlex.quote(str(ENVIRONMENT))}/bin/activate`. In an environment of your own: '
              '`pip install -r requirements.txt`', file=sys.stderr)
        sys.exit(2)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:   # else the shell wants it ignored
        signal.signal(signal.SIGINT, _end_at_once)


def require(*packages, where='requirements-extra.txt'):
    """Raise InputError for missing packages, by the names that are imported. where : file that lists them"""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise InputError(f'this needs {", ".join(missing)}', remedy=f'pip install -r {where}')


def _end_at_once(number, _frame):
    os.write(2, b'\ninterrupted before anything had begun\n')
    os._exit(128 + number)   # an exception might be swallowed in the middle of an import


def begun_anew():
    """Note that RESUME=False has cleared a run: a program that stops from now on goes on without it."""
    global _going_on
    given = any(word.startswith('--RESUME') for word in sys.argv)
    _going_on = f'{AGAIN}, {"without --RESUME=False" if given else "with --RESUME=True"},'


def processes():
    """(rank, world) that torchrun gave this process; (0, 1) without torchrun, whatever else set RANK."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1 and 'RANK' not in os.environ:
        raise InputError(f'WORLD_SIZE={world} says that there are several processes, but RANK is not set',
                         remedy='start them with torchrun, or unset WORLD_SIZE')
    return (int(os.environ['RANK']), world) if world > 1 else (0, 1)


def launch(main):
    """Run `main()`; exit with 0, 2 (bad input or a full disk, said on stderr) or 128 + signal."""
    global _going_on
    _going_on = AGAIN
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _interrupt)    # as Ctrl-C: temporary files are removed
    if not ignores_hang_up():
        signal.signal(HANG_UP, _interrupt)
    try:
        if processes()[0] > 0 or sys.stdout is None:   # one process speaks for all; `>&-` closed it
            sys.stdout = open(os.devnull, 'w')
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):   # not where a caller put something else in its place
                stream.reconfigure(errors='backslashreplace')   # paths may hold bytes that are no text
        main()
        sys.stdout.flush()   # what nobody reads is found out here, if not earlier
    except (Exception, KeyboardInterrupt) as error:
        code, said = _end_of(error)
        if not code:
            raise
        _say(said)
        sys.exit(code)
    finally:
        _end_loaders()
        _drop_unwritable()


def ignores_hang_up():
    """True where the program was started to outlive its terminal (nohup)."""
    return signal.getsignal(HANG_UP) is signal.SIG_IGN


def is_hang_up(error):
    """True for an OSError that says that nobody takes the program's output any more."""
    return isinstance(error, BrokenPipeError) or (   # a pipe, or a terminal
        isinstance(error, OSError) and error.errno == errno.EIO and error.filename is None)


def _end_of(error):
    """(exit code, message) of a program that an error ends; code 0 where only a programmer understands it."""
    if is_hang_up(error):
        return 128 + signal.SIGPIPE, f'nobody reads the output any more; run {_going_on} to go on'
    if isinstance(error, KeyboardInterrupt):
        said = f'{str(error) or "interrupted"}; run {_going_on} to go on'
        return 128 + getattr(error, 'number', signal.SIGINT), said
    # A loader process that dies in the middle of a save is heard of there; PyTorch then stumbles over the
    # unfinished file, and only that second error arrives here.
    before = error.__context__
    explanation = _explained(error) or (isinstance(before, RuntimeError) and _explained(before))
    return (2, f'error: {explanation.replace(AGAIN, _going_on).rstrip(",")}') if explanation else (0, '')


def _explained(error):
    """What an error means for the user, and the remedy; '' for one that only a programmer understands."""
    lines = str(error).strip().splitlines() or ['']
    if isinstance(error, InputError):
        # Of one in a loader process PyTorch makes a new one, whose text begins with a traceback.
        return str(error).rpartition('errors.InputError: ')[2]
    if TOO_MANY in lines[-1]:
        return f'{lines[-1]}\nRemedy: allow more of them, by `ulimit -n 4096` before the command'
    if isinstance(error, OSError):
        if error.errno not in (*UNWRITABLE, None):
            return ''
        said = f'{error.filename or "a file"} cannot be written or read: {error.strerror}'
        return (f'{said if error.errno else lines[-1]}\n'   # without a number: from a loader process
                f'Remedy: make room, grant access or name another path, then run {AGAIN}')
    if isinstance(error, MemoryError) or NO_MEMORY in lines[-1]:
        return f'the machine is out of memory: {lines[-1]}\nRemedy: lower BATCH_SIZE or INPUT_SIZE'
    if type(error).__name__ == 'OutOfMemoryError' or NO_MEMORY_OF_APPLE in lines[0]:
        return f'the device is out of memory: {error}\nRemedy: lower BATCH_SIZE'
    if isinstance(error, RuntimeError) and NOT_DETERMINISTIC in lines[0]:
        return f'a computation is not bit-reproducible here: {lines[0]}\nRemedy: --DETERMINISTIC=False'
    if isinstance(error, RuntimeError) and 'DataLoader worker' in str(error):
        # In the last line; above it stands the process's traceback.
        return (f'a loader process died: {lines[-1]}\nRemedy: give the machine more memory (or /dev/shm), or '
                'load without such processes: --NUM_WORKERS=0')
    if type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
        return (f'the network cannot be compiled: {lines[0]}\nRemedy: install the compiler that it names, or '
                'train without: --COMPILE=off')
    return ''


def _end_loaders():
    """Kill loader processes: they ignore the SIGTERM by which Python would end them, and wait for them."""
    from multiprocessing import active_children  # scripts import this file first, and it should be quick
    if loaders := active_children():
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)   # PyTorch's handler would raise an error
        for loader in loaders:
            loader.kill()
            loader.join()
        signal.signal(signal.SIGCHLD, before)


def _say(text):
    try:
        print(f'\n{text}', file=sys.stderr)
    except OSError:   # nobody reads it
        pass


def _drop_unwritable():
    """Let what cannot be written go: Python would try again at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (AttributeError, ValueError):   # never there, or closed
            pass


def _interrupt(number, _frame):
    raise Interrupted(number)
