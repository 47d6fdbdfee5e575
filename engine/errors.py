"""The one exception that is meant for the reader of the terminal."""


class InputError(Exception):
    """Something that the user supplied cannot be used: a file, a label, an override.

    summary : str             what is wrong, in one sentence
    faults : iterable of str  one line for each bad item; all of them, not the first
    remedy : str              what to do about it

    `engine.cli.launch` prints it without a traceback and exits with code 2.
    """

    def __init__(self, summary, faults=(), remedy=''):
        self.summary, self.faults, self.remedy = summary, list(faults), remedy
        lines = [summary, *(f'  - {fault}' for fault in self.faults)]
        if remedy:
            lines.append(f'Remedy: {remedy}')
        super().__init__('\n'.join(lines))
