"""Experiments, tables and figures as declared in experiments.toml, turned into jobs.

A job is one run of one script; jobs with the same script, settings and inputs are equal, whatever
they are called, so that a graph of experiments shares what is the same.
"""
import dataclasses
import graphlib
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from engine import settings
from engine.errors import InputError
from experiments import toml_schema
from experiments.results import COLUMNS
from experiments.toml_schema import KINDS, MOST, NETWORKS, PICTURES, SCORED, SCORERS, WEAK_EVALUATION

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """One run of one script.

    name : of the run folder; not part of what a job is, see __eq__
    script : file name; overrides : sorted tuple of (NAME, literal), without ROOT and RECIPE
    needs : tuple of Jobs whose output it reads; start : Job that it is fine-tuned from, or None
    data : folder below ROOT whose dataset/ it reads, '' for ROOT itself
    """
    name: str = dataclasses.field(compare=False)
    script: str
    overrides: tuple
    needs: tuple
    start: object
    data: str

    def __hash__(self):
        """Of this job alone: through all that it needs, the ways are exponentially many."""
        return hash((self.script, self.overrides, self.data, len(self.needs), self.start is None))

    @property
    def network(self):
        """'CoarseSN', 'MaskCN', 'EnhancedSN' or a companion's; None for a script that trains nothing."""
        return NETWORKS.get(self.script)

    @property
    def companion(self):
        """True for a script of another paper's method: it runs in one process, and never in ROOT itself."""
        return self.script.startswith('companions/')

    @property
    def before(self):
        """The jobs that must be finished first."""
        return self.needs if self.start is None else (*self.needs, self.start)

    def upstream(self):
        """Every job that this one reads from, nearest first, each once."""
        found, queue = [], list(self.needs)
        while queue:
            job = queue.pop(0)
            if job not in found:
                found.append(job)
                queue += job.needs
        return found


class Declarations:
    """What experiments.toml declares, its loops unrolled.

    path : of the file; values : {NAME: value} that '{NAME}' in it stands for
    experiments, tables, figures : dicts by name. Raises InputError naming every fault.
    """

    def __init__(self, path, values, recipe='default'):
        self.path, self.recipe, self.faults = Path(path), recipe, []
        self._jobs, self._first = {}, {}   # by name and seed; equal jobs go by what is declared first
        try:
            declared = settings.read_toml(self.path)
        except (OSError, ValueError) as error:
            raise InputError('The experiments cannot be read', [f'{path}: {error}'],
                             'the head of experiments.toml shows what an experiment looks like') from None
        try:
            self._read(declared, values)
        except RecursionError:
            raise InputError(f'{path} cannot be used', ['tables, or experiments that need each other, go too '
                             'deep'], 'nest less') from None

    def _read(self, declared, values):
        """Fill and check everything: first what kinds of values there are, then what they say."""
        self.faults += [f'{name}: is neither experiment, table nor figure'
                        for name in declared if name not in ('experiment', 'table', 'figure')]
        self.experiments = self._unrolled(self._tables(declared, 'experiment'), values)
        self.tables = self._filled(self._tables(declared, 'table'), values)
        self.figures = self._filled(self._tables(declared, 'figure'), values)
        for kind, tables in (('experiment', self.experiments), ('table', self.tables),
                             ('figure', self.figures)):
            self.faults += [fault for name, table in tables.items()
                            for fault in toml_schema.faults_of(f'{kind}.{name}', table, kind)]
            self.faults += [f'{kind}.{name}: its name must be letters, digits, spaces and _ + - . (not '
                            'first), 80 at most' for name in tables if not toml_schema.NAME.fullmatch(name)]
        self._refuse()
        for name, table in self.experiments.items():
            self._check_experiment(f'experiment.{name}', table)
        try:
            graphlib.TopologicalSorter({name: _needs(table) for name, table in
                                        self.experiments.items()}).prepare()
        except graphlib.CycleError as error:
            self.faults.append(f'experiment.{error.args[1][0]}: needs itself')
        for name, table in self.tables.items():
            self._check_table(f'table.{name}', table)
        for name, figure in self.figures.items():
            self._check_figure(f'figure.{name}', figure)
        self._refuse()
        for name in self.experiments:
            self.job(name)

    def _refuse(self):
        if self.faults:
            raise InputError(f'{self.path} cannot be used', self.faults, 'correct these lines')

    # Jobs

    def job(self, name, seed=0):
        """The Job of an experiment, with all that it needs. seed : added to each script's own SEED."""
        if (name, seed) not in self._jobs:
            job = self._make_job(name, seed)
            self._jobs[name, seed] = self._first.setdefault(job, job)
        return self._jobs[name, seed]

    def _make_job(self, name, seed):
        declared = self.experiments[name]
        overrides = {key: value for key, value in declared.items() if key.isupper()}
        if seed:
            own = settings.resolved(REPOSITORY / declared['script'], {'RECIPE': self.recipe, **overrides})
            overrides |= {'SEED': own['SEED'] + seed} if 'SEED' in own else {}
        called = f'{self.job(name).name}-seed{seed}' if seed else name
        return Job(called, declared['script'], self._effective(declared['script'], overrides),
                   tuple(self.job(need, seed) for need in declared.get('needs', ())),
                   self.job(declared['start'], seed) if 'start' in declared else None,
                   declared.get('data', ''))

    def _effective(self, script, overrides):
        """Those overrides that change a setting, with the type that the script gives them, sorted.

        A number of images stays, also where the recipe has the same: it is what a row is labelled with, while
        a recipe's is the most that is taken.
        """
        plain = settings.resolved(REPOSITORY / script, {'RECIPE': self.recipe})
        changed = settings.resolved(REPOSITORY / script, {'RECIPE': self.recipe, **overrides})
        return tuple(sorted((name, changed[name]) for name in overrides
                            if changed[name] != plain[name] or name == 'TRAIN_IMAGES' and changed[name]))

    def scoring(self, name, split, seed=0, masks=None):
        """The Job that scores an experiment's network on a split.

        masks : name of an experiment whose coarse masks and data are used, where not its own
        """
        job = self.job(name, seed)
        needs = (job,) if masks is None else (job, self.job(masks, seed))
        overrides = {'SPLIT': split} | ({'NETWORK': 'CoarseSN'} if job.network == 'CoarseSN' else {})
        script = SCORERS.get(job.script, 'eval_EnhancedSN.py')
        if script == WEAK_EVALUATION:
            given = settings.resolved(REPOSITORY / job.script, {'RECIPE': self.recipe, **dict(job.overrides)})
            overrides |= {name: given[name] for name in ('METHOD', 'DATA')}
        if job.script == WEAK_EVALUATION:   # what needs no network
            overrides = self._effective(script, overrides)
            return Job(f'scores_{job.name}-{split}', script, overrides, (), None, job.data)
        where = '' if masks is None else f'-{masks}'
        return Job(f'scores_{job.name}-{split}{where}', script, self._effective(script, overrides),
                   needs, None, needs[-1].data)

    def scorings(self, row, split, seed=0):
        """The Jobs that score a table's row or a figure's point: one, or one for each fold."""
        return [self.scoring(name, row.get('split', split), seed, row.get('with')) for name in _scored(row)]

    def jobs_of(self, item, seeds=(0,), leave_out=None):
        """Every Job that a table or figure (a declared dict) needs, in an order in which they can run.

        leave_out : function of a trained Job; its scoring is left out when that is true
        """
        split = split_of(item)
        wanted = []
        for seed in seeds:
            for row in (*item.get('rows', ()), *points(item)):
                if 'of' in row:
                    wanted += [job for job in self.scorings(row, split, seed)
                               if leave_out is None or not leave_out(next(iter(job.needs), job))]
        if 'pictures' in item:
            wanted += self.pictured(item).values()
        return in_order(wanted)

    def pictured(self, figure):
        """{picture: Job} of a figure of pictures; enhanced masks lie where they were scored."""
        return {name: self.scoring(job, split_of(figure)) if name == 'enhanced mask' else self.job(job)
                for name, job in figure['of'].items()}

    # Reading and checking

    def _tables(self, declared, kind):
        """The tables of a kind, without what is no table."""
        tables = declared.get(kind, {})
        if not isinstance(tables, dict):
            self.faults.append(f'{kind}: must be tables, [{kind}.name]')
            return {}
        self.faults += [f'{kind}.{name}: must be a table, [{kind}.{name}]'
                        for name, table in tables.items() if not isinstance(table, dict)]
        return {name: table for name, table in tables.items() if isinstance(table, dict)}

    def _filled(self, value, values):
        """Put values into the '{NAME}'s of every text in nested dicts and lists."""
        if isinstance(value, dict):
            return {key: self._filled(item, values) for key, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item, values) for item in value]
        if not isinstance(value, str) or '{' not in value:
            return value
        for name, given in values.items():
            if value == f'{{{name}}}':   # alone, it keeps its type
                return given
            value = value.replace(f'{{{name}}}', str(given))
        return value

    def _unrolled(self, tables, values):
        """{name: dict} with one experiment for each value of its `for`."""
        experiments = {}
        for name, table in tables.items():
            loops = self._filled(table.get('for', {}), values)
            checked = table | {'for': loops, 'script': next(iter(NETWORKS))}   # it may be looped over, too
            faults = toml_schema.faults_of(f'experiment.{name}', checked, 'experiment')
            ranges = [] if faults else [range(1, places + 1) if isinstance(places, int) else places
                                        for places in loops.values()]
            if math.prod(map(len, ranges)) > MOST:
                faults.append(f'experiment.{name}: makes more than {MOST} experiments')
            self.faults += faults
            for places in () if faults else itertools.product(*ranges):
                known = values | dict(zip(loops, places, strict=True))
                one = self._filled({key: item for key, item in table.items() if key != 'for'}, known)
                filled = str(self._filled(name, known))
                if filled in experiments:
                    self.faults.append(f'experiment.{filled}: is declared twice')
                experiments[filled] = one
        return experiments

    def _check_experiment(self, where, table):
        self.faults += [f'{where}: needs {need}, which is not declared'
                        for need in _needs(table) if need not in self.experiments]
        start = self.experiments.get(table.get('start'), table)
        if 'start' in table and (table['script'] not in NETWORKS or start['script'] != table['script']):
            self.faults.append(f'{where}: start must be an experiment of the same training script')
        if 'ROOT' in table:
            self.faults.append(f'{where}: ROOT is the folder of its run')
        overrides = {key: value for key, value in table.items() if key.isupper()}
        try:
            settings.resolved(REPOSITORY / table['script'], {'RECIPE': self.recipe, **overrides})
        except InputError as error:
            self.faults += [f'{where}: {fault}' for fault in error.faults]

    def _check_table(self, where, table):
        columns, labels = table['columns'], [row['label'] for row in table['rows']]
        if not columns or not labels:
            self.faults.append(f'{where}: needs columns and rows')
        self.faults += [f'{where}: two rows are labelled {label!r}' for label in sorted(set(labels))
                        if labels.count(label) > 1]
        for row in table['rows']:
            place = f'{where}, row {row["label"]!r}'
            if len(row.get('paper', ())) > len(columns):
                self.faults.append(f'{place}: has more printed scores than columns')
            if 'of' in row:
                self._check_scored(place, row, columns)
            elif 'masks' in row:
                self.faults += [f'{place}: masks have no {column}' for column in columns
                                if column not in COLUMNS['segmentation']]
            elif 'paper' not in row:
                self.faults.append(f'{place}: needs `of`, `masks` or `paper`')
            if {'of', 'masks'} <= row.keys():
                self.faults.append(f'{place}: has `of` and `masks`')
        self.faults += [f'{where}: compares {pair}, which are not two of its labels'
                        for pair in table.get('compare', ()) if not set(pair) <= set(labels)]

    def _check_scored(self, where, row, columns):
        """A row or point must score networks that exist and have these columns."""
        scored = _scored(row)
        for name in (*scored, *([row['with']] if 'with' in row else ())):
            if name not in self.experiments:
                self.faults.append(f'{where}: {name} is not declared')
            elif name in scored:
                script = self.experiments[name]['script']
                possible = COLUMNS[KINDS.get(script, 'segmentation')]
                self.faults += [f'{where}: {name} has no {column}' for column in columns
                                if column not in possible]
                if script not in SCORED and script != WEAK_EVALUATION:
                    self.faults.append(f'{where}: {name} trains no network that could be scored')

    def _check_figure(self, where, figure):
        if 'pictures' not in figure:
            if 'score' not in figure or not figure.get('panels'):
                self.faults.append(f'{where}: needs a score and panels, or pictures')
            for point in points(figure):
                self._check_scored(where, point, [figure.get('score')])
            return
        if not (figure['pictures'] and figure.get('of') and 'choose' in figure):
            self.faults.append(f'{where}: needs pictures, how to choose them, and `of`, the experiments that '
                               'they are of')
        of = {name: self.experiments.get(job, {}).get('script') for name, job in figure.get('of', {}).items()}
        self.faults += [f'{where}: {figure["of"][name]} is not declared' for name in of if of[name] is None]
        self.faults += [f'{where}: of.{name} must be an experiment of {script}'
                        for name, script in PICTURES.items()
                        if script and name in figure['pictures'] and of.get(name) != script]


def _needs(table):
    """Names of the experiments that must be finished before a declared one."""
    return [*table.get('needs', ()), *([table['start']] if 'start' in table else [])]


def _scored(row):
    """Names of the experiments that a table's row or a figure's point scores: one, or one for each fold."""
    folds = range(1, row.get('folds', 0) + 1)
    return [row['of'].replace('{fold}', str(fold)) for fold in folds] or [row['of']]


def split_of(item):
    """The split that a table or figure is scored on; the paper's ablations use the validation set."""
    return item.get('split', 'Validation')


def points(figure):
    """The scored points of a figure's lines: dicts with 'of' and 'x', panel by panel, line by line."""
    return [{'of': line['of'].replace('{x}', str(x)), 'x': x}
            for panel in figure.get('panels', ()) for line in panel.get('lines', ())
            for x in panel.get('x', ())]


def in_order(jobs):
    """Jobs and all that they need, each once, in an order in which they can run."""
    done = {}

    def visit(job):
        if job not in done:
            for need in job.before:
                visit(need)
            done[job] = None

    for job in jobs:
        visit(job)
    return list(done)
