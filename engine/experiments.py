"""Experiments, tables and figures as declared in experiments.toml, turned into steps.

A step is one run of one script; steps with the same script, settings and inputs are equal, whatever
they are called, so that a graph of experiments shares what is the same.
"""
import dataclasses
import itertools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from dataset.errors import InputError
from dataset.layout import SPLITS
from engine import settings
from engine.scores import COLUMNS

REPOSITORY = Path(__file__).resolve().parent.parent
EVERY_COLUMN = tuple(column for columns in COLUMNS.values() for column in columns)
PICTURES = {'image': None, 'truth': None, 'contours': None,   # column of a panel: script that it is of
            'coarse mask': 'generate_Coarse_mask.py', 'CAM without mask': 'train_MaskCN.py',
            'CAM with mask': 'train_MaskCN.py', 'enhanced mask': 'train_EnhancedSN.py'}
CHOICES = 'spread', 'maps differ'
NETWORKS = {'train_CoarseSN.py': 'CoarseSN', 'train_MaskCN.py': 'MaskCN', 'train_EnhancedSN.py': 'EnhancedSN'}
SCRIPTS = (*NETWORKS, 'generate_Coarse_mask.py')
KEYS = {'experiment': {'script', 'needs', 'start', 'data', 'for'},
        'table': {'title', 'split', 'columns', 'rows', 'compare'},
        'row': {'label', 'of', 'paper', 'split', 'with', 'folds', 'source'},
        'figure': {'title', 'split', 'score', 'panels', 'pictures', 'choose', 'of'},
        'panel': {'axis', 'x', 'lines'},
        'line': {'label', 'of', 'paper'}}


@dataclass(frozen=True)
class Step:
    """One run of one script.

    name : of the run folder; not part of what a step is, see __eq__
    script : file name; overrides : sorted tuple of (NAME, literal), without ROOT and RECIPE
    needs : tuple of Steps whose output it reads; start : Step that it is fine-tuned from, or None
    data : folder below ROOT whose dataset/ it reads, '' for ROOT itself
    """
    name: str = dataclasses.field(compare=False)
    script: str
    overrides: tuple
    needs: tuple
    start: object
    data: str

    @property
    def network(self):
        """'CoarseSN', 'MaskCN', 'EnhancedSN', or None for a script that trains nothing."""
        return NETWORKS.get(self.script)

    @property
    def before(self):
        """The steps that must be finished first."""
        return self.needs if self.start is None else (*self.needs, self.start)

    def upstream(self):
        """Every step that this one reads from, nearest first, each once."""
        found, queue = [], list(self.needs)
        while queue:
            step = queue.pop(0)
            if step not in found:
                found.append(step)
                queue += step.needs
        return found


class Declarations:
    """What experiments.toml declares, its loops unrolled.

    path : of the file; values : {NAME: value} that '{NAME}' in it stands for
    experiments, tables, figures : dicts by name. Raises InputError naming every fault.
    """

    def __init__(self, path, values, recipe='default'):
        self.path, self.recipe = Path(path), recipe
        try:
            declared = tomllib.loads(self.path.read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError('The experiments cannot be read', [f'{path}: {error}'],
                             'the head of experiments.toml shows what an experiment looks like') from None
        self.faults = []
        self.experiments = self._unrolled(self._tables(declared, 'experiment'), values)
        self.tables = self._filled(self._tables(declared, 'table'), values)
        self.figures = self._filled(self._tables(declared, 'figure'), values)
        self.faults += [f'{name}: is neither experiment, table nor figure'
                        for name in declared if name not in ('experiment', 'table', 'figure')]
        for name in self.experiments:
            self._check_experiment(name)
        for name, table in self.tables.items():
            self._check_table(f'table.{name}', table)
        for name, figure in self.figures.items():
            self._check_figure(f'figure.{name}', figure)
        if self.faults:
            raise InputError(f'{path} cannot be used', self.faults, 'correct these lines')
        self._first = {}   # equal steps go by the name that is declared first
        for name in self.experiments:
            self.step(name)

    # Steps

    def step(self, name, seed=0):
        """The Step of an experiment, with all that it needs. seed : 0 leaves each script's own SEED."""
        declared = self.experiments[name]
        overrides = {key: value for key, value in declared.items() if key.isupper()}
        overrides |= {'SEED': seed} if seed else {}
        called = f'{self.step(name).name}-seed{seed}' if seed else name
        step = Step(called, declared['script'],
                    self._effective(declared['script'], overrides),
                    tuple(self.step(need, seed) for need in declared.get('needs', ())),
                    self.step(declared['start'], seed) if 'start' in declared else None,
                    declared.get('data', ''))
        return self._first.setdefault(step, step)

    def _effective(self, script, overrides):
        """Those overrides that change a setting, with the type that the script gives them, sorted."""
        plain = settings.resolved(REPOSITORY / script, {'RECIPE': self.recipe})
        changed = settings.resolved(REPOSITORY / script, {'RECIPE': self.recipe, **overrides})
        return tuple(sorted((name, changed[name]) for name in overrides if changed[name] != plain[name]))

    def scoring(self, name, split, seed=0, masks=None):
        """The Step that scores an experiment's network on a split.

        masks : name of an experiment whose coarse masks and data are used, where not its own
        """
        step = self.step(name, seed)
        needs, data = (step,), step.data
        if masks is not None:
            needs, data = (step, self.step(masks, seed)), self.step(masks, seed).data
        overrides = {'SPLIT': split}
        if step.network == 'CoarseSN':
            overrides['NETWORK'] = 'CoarseSN'
        script = 'eval_MaskCN.py' if step.network == 'MaskCN' else 'eval_EnhancedSN.py'
        where = '' if masks is None else f'-{masks}'
        return Step(f'scores_{step.name}-{split}{where}', script, self._effective(script, overrides),
                    needs, None, data)

    def scorings(self, row, split, seed=0):
        """The Steps that score a table's row or a figure's point: one, or one for each fold."""
        split = row.get('split', split)
        if 'folds' in row:
            return [self.scoring(row['of'].replace('{fold}', str(fold)), split, seed, row.get('with'))
                    for fold in range(1, row['folds'] + 1)]
        return [self.scoring(row['of'], split, seed, row.get('with'))]

    def steps_of(self, exhibit, seeds=(0,)):
        """Every Step that a table or figure (a declared dict) needs, in an order in which they can run."""
        split = split_of(exhibit)
        wanted = []
        for seed in seeds:
            for row in (*exhibit.get('rows', ()), *points(exhibit)):
                if 'of' in row:
                    wanted += self.scorings(row, split, seed)
        if 'pictures' in exhibit:
            wanted += [self.step(name) for name in exhibit['of'].values()]
            enhanced = exhibit['of'].get('enhanced mask')
            wanted += [self.scoring(enhanced, split)] if enhanced else []
        return in_order(wanted)

    # Reading and checking

    def _tables(self, declared, kind):
        tables = declared.get(kind, {})
        if isinstance(tables, dict) and all(isinstance(table, dict) for table in tables.values()):
            for name, table in tables.items():
                self._check_keys(f'{kind}.{name}', table, KEYS[kind], constants=kind == 'experiment')
            return tables
        self.faults.append(f'{kind}: must be tables, [{kind}.name]')
        return {}

    def _check_keys(self, where, table, known, constants=False):
        self.faults += [f'{where}: {key} is not known here' for key in table
                        if key not in known and not (constants and key.isupper())]

    def _filled(self, value, values, where=''):
        """Put values into the '{NAME}'s of every text in nested dicts and lists."""
        if isinstance(value, dict):
            return {key: self._filled(item, values, where or key) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, values, where) for item in value]
        if not isinstance(value, str) or '{' not in value:
            return value
        whole = value[1:-1]
        if value == f'{{{whole}}}' and whole in values:
            return values[whole]
        for name, given in values.items():
            value = value.replace(f'{{{name}}}', str(given))
        return value

    def _unrolled(self, tables, values):
        """{name: dict} with one experiment for each value of its `for`."""
        experiments = {}
        for name, table in tables.items():
            loops = self._filled(table.get('for', {}), values)
            ranges = {key: range(1, places + 1) if isinstance(places, int) else places
                      for key, places in loops.items()}
            for places in itertools.product(*ranges.values()):
                known = values | dict(zip(ranges, places, strict=True))
                one = self._filled({key: item for key, item in table.items() if key != 'for'}, known)
                experiments[self._filled(name, known)] = one
        return experiments

    def _check_experiment(self, name):
        where, table = f'experiment.{name}', self.experiments[name]
        if table.get('script') not in SCRIPTS:
            self.faults.append(f'{where}: script must be one of {", ".join(SCRIPTS)}')
            return
        unknown = [need for need in (*table.get('needs', ()), *filter(None, [table.get('start')]))
                   if need not in self.experiments]
        self.faults += [f'{where}: needs {need}, which is not declared' for need in unknown]
        overrides = {key: value for key, value in table.items() if key.isupper()}
        try:
            settings.resolved(REPOSITORY / table['script'], {'RECIPE': self.recipe, **overrides})
        except InputError as error:
            self.faults += [f'{where}: {fault}' for fault in error.faults]
        if not unknown and self._in_a_circle(name):
            self.faults.append(f'{where}: needs itself')

    def _in_a_circle(self, name):
        seen, queue = set(), [name]
        while queue:
            table = self.experiments.get(queue.pop(), {})
            for need in (*table.get('needs', ()), *filter(None, [table.get('start')])):
                if need == name:
                    return True
                if need not in seen:
                    seen.add(need)
                    queue.append(need)
        return False

    def _check_table(self, where, table):
        columns, labels = table.get('columns', ()), [row.get('label') for row in table.get('rows', ())]
        if not columns or not labels:
            self.faults.append(f'{where}: needs columns and rows')
        self.faults += [f'{where}: column {name} must be one of {", ".join(EVERY_COLUMN)}'
                        for name in columns if name not in EVERY_COLUMN]
        self._check_split(where, table)
        for row in table.get('rows', ()):
            place = f'{where}, row {row.get("label")!r}'
            self._check_keys(place, row, KEYS['row'])
            if len(row.get('paper', ())) > len(columns):
                self.faults.append(f'{place}: has more printed scores than columns')
            if 'of' in row:
                self._check_scored(place, row, columns)
            elif 'paper' not in row:
                self.faults.append(f'{place}: needs `of` or `paper`')
        self.faults += [f'{where}: compares {pair}, which are not two of its labels'
                        for pair in table.get('compare', ())
                        if len(pair) != 2 or not set(pair) <= set(labels)]

    def _check_split(self, where, table):
        if split_of(table) not in SPLITS[1:]:
            self.faults.append(f'{where}: split must be one of {", ".join(SPLITS[1:])}')

    def _check_scored(self, where, row, columns):
        """A row or point must score networks that exist and have these columns."""
        names = [row['of']]
        if 'folds' in row:
            names = [row['of'].replace('{fold}', str(fold)) for fold in range(1, row['folds'] + 1)]
        names += [row['with']] if 'with' in row else []
        for name in names:
            if name not in self.experiments:
                self.faults.append(f'{where}: {name} is not declared')
            elif name != row.get('with'):
                script = self.experiments[name].get('script')
                possible = COLUMNS['classification' if script == 'train_MaskCN.py' else 'segmentation']
                self.faults += [f'{where}: {name} has no {column}' for column in columns
                                if column not in possible]
                if script not in NETWORKS:
                    self.faults.append(f'{where}: {name} trains no network that could be scored')

    def _check_figure(self, where, figure):
        self._check_split(where, figure)
        if 'pictures' in figure:
            self.faults += [f'{where}: picture {name} must be one of {", ".join(PICTURES)}'
                            for name in figure['pictures'] if name not in PICTURES]
            if figure.get('choose') not in CHOICES:
                self.faults.append(f'{where}: choose must be one of {", ".join(CHOICES)}')
            for name, script in PICTURES.items():
                of = figure.get('of', {}).get(name)
                if script and name in figure['pictures'] and (
                        self.experiments.get(of, {}).get('script') != script):
                    self.faults.append(f'{where}: of.{name} must be an experiment of {script}')
            return
        if figure.get('score') not in EVERY_COLUMN or not figure.get('panels'):
            self.faults.append(f'{where}: needs a score (one of {", ".join(EVERY_COLUMN)}) and panels, '
                               'or pictures')
        for panel in figure.get('panels', ()):
            self._check_keys(where, panel, KEYS['panel'])
            for line in panel.get('lines', ()):
                self._check_keys(where, line, KEYS['line'])
        for point in points(figure):
            self._check_scored(where, point, [figure.get('score')])


def split_of(exhibit):
    """The split that a table or figure is scored on; the paper's ablations use the validation set."""
    return exhibit.get('split', 'Validation')


def points(figure):
    """The scored points of a figure's lines: dicts with 'of' and 'x', panel by panel, line by line."""
    return [{'of': line['of'].replace('{x}', str(x)), 'x': x}
            for panel in figure.get('panels', ()) for line in panel.get('lines', ())
            for x in panel.get('x', ())]


def in_order(steps):
    """Steps and all that they need, each once, in an order in which they can run."""
    done = {}

    def visit(step):
        if step not in done:
            for need in step.before:
                visit(need)
            done[step] = None

    for step in steps:
        visit(step)
    return list(done)
