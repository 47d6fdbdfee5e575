"""The k best generators of a training by validation score, which test pictures must not choose among."""
import contextlib
import json
import math

from engine import checkpoints, files

FOLDER = 'candidates'
INDEX = 'candidates.json'
NAME = 'A2B'


class Candidates:
    """`<run folder>/candidates/<step>/A2B.pth` and their scores. keep : how many; 0 = all

    A run that is stopped and repeats steps writes the same files again; which are kept does not depend on
    it: those that it finds are the best of a superset of what came before.
    """

    def __init__(self, run_folder, keep):
        self.folder, self.keep = run_folder / FOLDER, keep
        found = files.read_json(self.folder / INDEX, 'scores').get('scores', {})
        self.scores = {int(step): score for step, score in found.items() if self.path(step).is_file()}

    def path(self, step):
        return self.folder / f'{int(step):07}' / f'{NAME}.pth'

    def clear(self):
        """Forget all, for a run that begins anew."""
        for step in list(self.scores):
            self._drop(step)
        self._write()

    def note(self, step, score, state):
        """Keep a state dict if its score is among the best; earlier steps win ties."""
        score = -1.0 if math.isnan(score) else score
        others = {other: value for other, value in self.scores.items() if other != step}
        ranked = sorted({**others, step: score}.items(), key=lambda item: (-item[1], item[0]))
        kept = dict(ranked[:self.keep or None])
        if step in kept:
            checkpoints.save({name: tensor.cpu() for name, tensor in state.items()}, self.path(step))
        dropped = [other for other in self.scores if other not in kept]
        self.scores = kept
        self._write()   # before their files go: what it names is there
        for other in dropped:
            self._drop(other)

    def _drop(self, step):
        self.path(step).unlink(missing_ok=True)
        with contextlib.suppress(OSError):   # it is gone, or holds more, as the alphas of these weights
            self.path(step).parent.rmdir()
        self.scores.pop(step, None)

    def _write(self):
        text = json.dumps({'scores': {str(step): score for step, score in sorted(self.scores.items())}})
        files.write_text(self.folder / INDEX, text + '\n')
