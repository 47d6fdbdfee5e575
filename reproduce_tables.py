"""Reproduce the paper's tables and figures: run what they need, print the paper's numbers beside ours.

Reads   experiments.toml, the data of step 1, and the stages of steps 2 to 6 that are there already
Writes  runs/<experiment>/        each experiment below a root of its own; what is equal is shared
        results/tables/table_<n>.{md,csv,tex} and results/figures/figure_<n>.{png,pdf}

    python reproduce_tables.py --TABLE=6
    python reproduce_tables.py --TABLE=4,5,6 --FIGURE=7
    python reproduce_tables.py --ALL=True --LIST=True

Run it again after an interruption and it goes on where it stopped. A constant that changed re-runs
what depends on it; earlier runs stay. Cost: LIST=True says, for every experiment; about 1 EFLOP and
days on a GPU for everything at the paper's 500 epochs.
"""
from dataset import isic
from dataset.errors import InputError
from dataset.layout import Layout
from engine import costs, runner, script, settings, stages
from engine.exhibits import Exhibits
from engine.experiments import Declarations, in_order
from engine.library import HERE, Library
from engine.tables import to_text, write

# --- Experiment
ROOT = '.'                        # folder that holds dataset/, models/ and results/; runs/ is added
RECIPE = 'default'                # default (the scripts' file tops), paper, released, cpu or demo
EXPERIMENTS = 'experiments.toml'  # file that declares experiments, tables and figures

# --- What
TABLE = ''                        # numbers or names, separated by commas: 6 or 4,5,mine
FIGURE = ''                       # likewise
ALL = False                       # every declared table and figure
LIST = False                      # only show what there is, what has been run, and what the rest costs
DRY_RUN = False                   # only print the commands that would be run

# --- How
SEEDS = 1                         # trainings of each network, with seeds 0, 1, ...: mean and spread
CROSS_FIT = 5                     # coarse-SNs of the cross-fitted experiments
FOLDS = 4                         # folds of PH2, as given to dataset/prepare_PH2.py (paper)

# --- Machine
PROCESSES = 1                     # of each training; more than 1: by torchrun, one for each GPU
DEVICE = 'auto'                   # auto (cuda, else mps, else cpu), cuda, mps or cpu
AMP = 'auto'                      # precision: auto (bf16, else fp16 on GPUs), bf16, fp16, fp32


def main():
    cfg = settings.resolve(globals(), choices=stages.MACHINE_CHOICES,
                           positive=('SEEDS', 'FOLDS', 'PROCESSES'))
    if cfg.CROSS_FIT < 2:
        raise InputError(f'CROSS_FIT={cfg.CROSS_FIT}: cross-fitting needs at least 2 coarse-SNs')
    declared = Declarations(cfg.EXPERIMENTS, {'FOLDS': cfg.FOLDS, 'CROSS_FIT': cfg.CROSS_FIT}, cfg.RECIPE)
    wanted = choose(declared, cfg)
    machine = {name: getattr(cfg, name) for name in ('DEVICE', 'AMP') if getattr(cfg, name) != 'auto'}
    library, seeds = Library(cfg.ROOT, cfg.RECIPE, cfg.PROCESSES, machine), tuple(range(cfg.SEEDS))
    steps = in_order([step for _, _, exhibit in wanted for step in declared.steps_of(exhibit, seeds)])
    if cfg.LIST:
        show_list(declared, library, wanted, seeds)
        return
    missing = [step for step in steps if not library.finished(step)]
    print(f'{len(steps)} runs, {len(steps) - len(missing)} of them finished')
    if cfg.DRY_RUN:
        print('\n'.join(library.command(step) for step in missing))
        return
    require_data(library, missing)
    failed = runner.run(library, steps)
    exhibits = Exhibits(declared, library, seeds, failed)
    for kind, name, exhibit in wanted:
        make(exhibits, kind, name, exhibit, Layout(cfg.ROOT).results)
    if failed:
        raise InputError('Some runs failed', [f'{step.name}: {why}' for step, why in failed.items()],
                         'mend what their messages say, then run the same command again')


def choose(declared, cfg):
    """[('table' or 'figure', name, its declaration)] of what the settings ask for."""
    there = {'table': declared.tables, 'figure': declared.figures}
    asked = {'table': _names(cfg.TABLE), 'figure': _names(cfg.FIGURE)}
    if cfg.ALL or (cfg.LIST and not any(asked.values())):
        asked = {kind: list(known) for kind, known in there.items()}
    faults = [f'{kind} {name}: is not declared; there are {", ".join(there[kind])}'
              for kind, names in asked.items() for name in names if name not in there[kind]]
    if not any(asked.values()):
        faults.append('nothing was asked for: --TABLE=6, --FIGURE=5, --ALL=True or --LIST=True')
    if faults:
        raise InputError(f'{declared.path}: no such table or figure', faults)
    return [(kind, name, there[kind][name]) for kind, names in asked.items() for name in names]


def _names(text):
    return [word.strip() for word in text.split(',') if word.strip()]


def require_data(library, steps):
    """Raise InputError with all that is missing of step 1 before the first run begins."""
    faults, remedies = [], []
    for data in dict.fromkeys(step.data for step in steps):
        layout = Layout(library.root / data)
        try:
            if data and not layout.data.is_dir():
                raise InputError('PH2 is not prepared', [f'{layout.data}: is missing'],
                                 Layout(library.root).command('dataset/prepare_PH2.py'))
            isic.read_segmentation_list(layout, 'Validation' if not data.endswith('all') else 'Testing')
        except InputError as error:
            faults += error.faults
            remedies.append(error.remedy)
    if faults:
        raise InputError('Data are missing', faults, '; '.join(dict.fromkeys(remedies)))


def show_list(declared, library, wanted, seeds):
    """Print every wanted table and figure with its runs: finished, begun or missing, and their cost."""
    rates, counted, left = measured_rates(library, declared, seeds), set(), [0.0, 0.0, True]
    for kind, name, exhibit in wanted:
        steps = declared.steps_of(exhibit, seeds)
        done = sum(library.finished(step) for step in steps)
        print(f'\n{kind} {name}: {exhibit.get("title", "")} ({done} of {len(steps)} runs finished)')
        for step in steps:
            pflop = cost(library, step)
            folder = 'ROOT itself' if library.folder(step) == HERE else library.folder(step)
            if library.finished(step):
                state = f'finished in {folder}'
            else:
                begun = (library.root / library.folder(step)).exists()
                state = f'{"begun in" if begun else "missing,"} {folder}: {pflop:.3g} PFLOP'
                rate = rates.get(step.script)
                state += f', about {pflop / rate / 60:.0f} min' if rate else ''
                if step not in counted:
                    left = [left[0] + pflop, left[1] + (pflop / rate if rate else 0), left[2] and bool(rate)]
            counted.add(step)
            print(f'  {step.name:38} {state}')
    time = f', about {left[1] / 60:.0f} min at the rate of the runs that are finished' if left[2] else ''
    print(f'\nstill to run, everything counted once: {left[0]:.3g} PFLOP{time}')
    unused = library.unused(counted)
    if unused:
        print(f'not used by what is listed: {", ".join(unused)}')


def cost(library, step):
    """PFLOP of a step."""
    return costs.of_step(step, library.settings(step), library.data_root(step))


def measured_rates(library, declared, seeds):
    """{script: PFLOP a second} of the finished runs below this root."""
    work, seconds = {}, {}
    everything = [*declared.tables.values(), *declared.figures.values()]
    for step in in_order([step for one in everything for step in declared.steps_of(one, seeds)]):
        if library.finished(step) and library.seconds(step):
            work[step.script] = work.get(step.script, 0) + cost(library, step)
            seconds[step.script] = seconds.get(step.script, 0) + library.seconds(step)
    return {name: work[name] / seconds[name] for name in work}


def make(exhibits, kind, name, exhibit, results):
    """Write and print one table, or draw one figure."""
    if kind == 'table':
        table = exhibits.table(name)
        paths = write(table, results / 'tables', f'table_{name}')
    elif 'pictures' in exhibit:
        table, paths = None, exhibits.panel(name, results / 'figures')
        if not paths:
            print(f'\nfigure {name}: not drawn, a run that it needs is missing')
    else:
        paths, table = exhibits.chart(name, results / 'figures')
        paths += write(table, results / 'figures', f'figure_{name}')
    if table is not None:
        print(f'\n{to_text(table)}')
    for path in paths:
        print(f'written: {path}')


if __name__ == '__main__':
    script.launch(main)
