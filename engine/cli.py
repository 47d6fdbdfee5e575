"""How every script starts and ends: exit codes, and messages instead of tracebacks."""
import errno
import os
import signal
import sys

from engine.errors import InputError

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM,   # the disk
              errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)   # the path
TOO_MANY = (errno.EMFILE, errno.ENFILE)   # open files


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived, and everything worth keeping has been saved.

    number : int   of the signal; the exit code is 128 + number, as shells expect
    """

    def __init__(self, number):
        super().__init__(f'interrupted by signal {int(number)}')
        self.number = number


def processes():
    """(rank, world) that torchrun gave this process; (0, 1) without torchrun, whatever else set RANK."""
    world = int(os.environ.get('WORLD_SIZE', 1))
    if world > 1 and 'RANK' not in os.environ:
        raise InputError(f'WORLD_SIZE={world} says that there are several processes, but RANK is not set',
                         remedy='start them with torchrun, or unset WORLD_SIZE')
    return (int(os.environ['RANK']), world) if world > 1 else (0, 1)


def launch(main):
    """Run `main()`; exit with 0, 2 (bad input or a full disk, said on stderr) or 128 + signal."""
    signal.signal(signal.SIGTERM, _interrupt)    # as Ctrl-C: temporary files are removed
    try:
        if processes()[0] > 0:
            sys.stdout = open(os.devnull, 'w')   # one process speaks for all
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, 'reconfigure'):   # not where a caller put something else in its place
                stream.reconfigure(errors='backslashreplace')   # paths may hold bytes that are no text
        main()
        sys.stdout.flush()   # here, where it is said that nobody reads any more
    except (InputError, OSError, RuntimeError) as error:
        # A loader process that dies in the middle of a save is heard of there; PyTorch then stumbles over the
        # unfinished file, and only that second error arrives here.
        before = error.__context__
        explanation = _explained(error) or (isinstance(before, RuntimeError) and _explained(before))
        if not explanation:
            raise
        print(f'\nerror: {explanation}', file=sys.stderr)
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())   # Python writes what is left
        sys.exit(2)
    except KeyboardInterrupt as interruption:
        number = getattr(interruption, 'number', signal.SIGINT)
        print(f'\n{str(interruption) or "interrupted"}; run the same command again to go on', file=sys.stderr)
        sys.exit(128 + number)


def _explained(error):
    """What an error means for the user, and the remedy; '' for one that only a programmer understands."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return ('nobody reads the standard output any more\n'
                'Remedy: what was finished is kept; run the same command again with its output to a file')
    if isinstance(error, OSError) and error.errno in TOO_MANY:
        return (f'{error.filename or "a file"} cannot be opened: {error.strerror}\n'
                'Remedy: allow more open files (ulimit -n 4096), then run the same command again')
    if isinstance(error, OSError):
        return '' if error.errno not in UNWRITABLE else (
            f'{error.filename or "a file"} cannot be written or read: {error.strerror}\n'
            'Remedy: make room, grant access or name another path, then run the same command again')
    lines = str(error).strip().splitlines() or ['']
    if type(error).__name__ == 'OutOfMemoryError':
        return f'the device is out of memory: {error}\nRemedy: lower BATCH_SIZE'
    if 'DataLoader worker' in str(error):   # in the last line; above it stands the process's traceback
        return (f'a loader process died: {lines[-1]}\nRemedy: give the machine more memory (or /dev/shm), or '
                'load without such processes: --NUM_WORKERS=0')
    if type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
        return (f'the network cannot be compiled: {lines[0]}\nRemedy: install the compiler that it names, or '
                'train without: --COMPILE=off')
    return ''


def _interrupt(number, _frame):
    raise Interrupted(number)
