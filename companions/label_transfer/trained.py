"""What a finished training brings to the scripts that use it: generator, pictures, and what was chosen."""
import contextlib
import json
from dataclasses import dataclass
from pathlib import Path

from companions import seen
from companions.label_transfer import data, maps, translator, validation
from companions.label_transfer.translator import TRAIN, Translator
from engine import checkpoints, files
from engine.errors import InputError

ALPHAS = 'alphas.json'   # beside the weights
NEED_MASKS = ('students and evaluations need validation masks; companions/README.md shows where they lie. '
              'generate_masks does without, and compare.py scores its masks')


@dataclass(frozen=True)
class Trained:
    """A generator and what it was trained on. settings : of its training; fingerprint : of the weights"""
    translator: Translator
    weights: Path
    fingerprint: str
    settings: dict
    source: data.Source

    @property
    def kind(self):
        return self.settings['KIND']

    @property
    def run(self):
        """The folder of the training's run."""
        return translator.run_of(self.weights)

    def pairs(self, split):
        """[(name, picture, mask)] of a split; of Validation those that chose the checkpoint."""
        limit = self.settings['VALIDATION_IMAGES'] if split == 'Validation' else 0
        return data.subset(self.source.pairs(split), limit, self.source.seed)

    def held_out(self, split):
        """A split with pictures and masks at maps.SIDE, where maps are cut: data.Set."""
        return data.load_pairs(self.source.layout, f'{split}_scored', self.pairs(split), maps.SIDE, maps.SIDE)

    def require_validation(self, remedy):
        """Raise InputError where no validation masks are there. remedy : what works without"""
        source = self.source
        if not source.has('Validation'):
            place = (source.layout.root / source.data / data.PARTS['Validation'][0] if source.data
                     else source.layout.segmentation_list('Validation'))
            raise InputError('There are no validation masks to choose by', [f'{place}: is missing'], remedy)

    def alphas(self, methods, empty_corners):
        """{method: alpha} of the CRFs among the methods, chosen on Validation; kept beside the weights."""
        wanted = [method for method in methods if method.endswith('crf')]
        if not wanted:
            return {}
        self.require_validation('of the CRF, say alpha (--ALPHA=1 to 8), or leave it out: --METHODS='
                                + ','.join(method for method in maps.METHODS if not method.endswith('crf')))
        held_out, path = self.held_out('Validation'), self.weights.with_name(ALPHAS)
        facts = {'version': maps.VERSION, 'weights': self.fingerprint,
                 'validation': held_out.fingerprint, 'corners': empty_corners}
        known = files.read_json(path, 'alphas')
        known = known.get('alphas', {}) if known.get('facts') == facts else {}
        missing = [method for method in wanted if method not in known]
        if missing:
            print(f'alpha of {", ".join(missing)} is chosen on {len(held_out.names)} validation pictures')
            known |= validation.chosen_alphas(self.translator.look, held_out, self.kind, missing,
                                              empty_corners)
            with contextlib.suppress(OSError):   # weights may lie where nobody may write; it saves time alone
                files.write_text(path, json.dumps({'facts': facts, 'alphas': known}, indent=1) + '\n')
        return {method: int(known[method][0]) for method in wanted}


def seen_before(run, source, pairs):
    """Lines that report pictures on which a run's networks were trained: parts may be dealt anew since.

    run : folder; source : data.Source that is evaluated, pairs : of it. Names are asked where it is another
    than the training's, or the training pictures are no longer those that they were; runs of earlier versions
    do not name theirs.
    """
    config = checkpoints.read_config(run / 'config.json')
    settings, inputs = (config.get(part, {}) for part in ('settings', 'inputs'))
    own = data.Source(source.layout, *(settings[name] for name in ('DATA', 'A', 'B', 'TRAIN_IMAGES', 'SEED')))
    try:
        present = [data.load(source.layout, part, paths(), settings['LOAD_SIZE']).fingerprint
                   for part, paths in (('A', own.diseased), ('B', own.healthy))]
    except InputError:   # they are not here
        present = []
    # Parts of one folder do not overlap; another may hold the same cases.
    if source.data == own.data and present == [inputs.get(part) for part in ('diseased', 'healthy')]:
        return []
    names = seen.names(run)
    if names is None:   # the lists' splits are the challenge's
        return [f'{source.part("A")}: holds others than {run} was trained on, which may be tested now'
                ] if own.data and own.data == source.data else []
    return [f'{path}: {name} was trained on' for name, path, _ in pairs if data.case_of(name) in names]


def load(layout, process, precision, weights='', folder='', a=''):
    """The Trained of a root. weights : a file, '' for models/LabelTransfer/A2B.pth

    folder, a : in place of the training's DATA and A, where they are not empty
    """
    path = Path(weights) if weights else layout.run('LabelTransfer') / 'A2B.pth'
    fingerprint = checkpoints.fingerprint_or_refuse(path, layout.command(TRAIN))
    settings = translator.trained_settings(path)
    source = data.Source(layout, folder or settings['DATA'], a or settings['A'], settings['B'],
                         settings['TRAIN_IMAGES'], settings['SEED'])
    return Trained(translator.load(path, process.device, precision), path, fingerprint, settings, source)
