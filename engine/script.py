"""How every script starts and ends: exit codes, and messages instead of tracebacks."""
import sys

from dataset.errors import InputError


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived, and everything worth keeping has been saved.

    signal : int   number of the signal; the exit code is 128 + signal, as shells expect
    """

    def __init__(self, signal):
        super().__init__(f'interrupted by signal {signal}')
        self.signal = signal


def launch(main):
    """Run `main()`; exit with 0, 2 (bad input, message on stderr) or 128 + signal."""
    try:
        main()
    except InputError as error:
        print(f'\nerror: {error}', file=sys.stderr)
        sys.exit(2)
    except Interrupted as interruption:
        print(f'\n{interruption}; run the same command again to go on', file=sys.stderr)
        sys.exit(128 + interruption.signal)
    except KeyboardInterrupt:
        print('\ninterrupted; run the same command again to go on', file=sys.stderr)
        sys.exit(130)
