"""Reproduce the paper's tables and figures: run what they need, print the paper's numbers beside ours.

Reads   experiments.toml, the data of stage 1, and the stages 2 to 6 that are there already
Writes  runs/<experiment>/        each experiment below a root of its own; what is equal is shared
        results/tables/table_<n>.{md,csv,tex} and results/figures/figure_<n>.{png,pdf}

    python reproduce_tables.py --TABLE=6
    python reproduce_tables.py --TABLE=4,5,6 --FIGURE=7
    python reproduce_tables.py --ALL=True --LIST=True

Run it again after an interruption and it goes on where it stopped. A constant that changed re-runs
what depends on it; earlier runs stay. Cost: LIST=True says, for every experiment; about 4 EFLOP for
everything at the paper's 500 epochs, and up to 0.9 GB of disk for each training.
"""
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np

from dataset.layout import Layout
from engine import cli, settings
from engine.errors import InputError
from experiments import costs, inputs, runner
from experiments.declarations import Declarations, in_order
from experiments.reproduction import Reproduction
from experiments.run_store import HERE, RunStore
from experiments.tables import to_text, write
from mbdcnn import stages

# --- Experiment
ROOT = '.'                        # folder that holds dataset/, models/ and results/; runs/ is added
RECIPE = 'default'                # default (the scripts' file tops), or a file of recipes/
EXPERIMENTS = 'experiments.toml'  # file that declares experiments, tables and figures

# --- What
TABLE = ''                        # numbers or names, separated by commas: 6 or 4,5,mine
FIGURE = ''                       # likewise
ALL = False                       # every declared table and figure
LIST = False                      # only show what there is, what has been run, and what the rest costs
DRY_RUN = False                   # only print the commands that would be run
RUN = True                        # False: only print and draw what the finished runs give

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
        raise InputError(f'CROSS_FIT={cfg.CROSS_FIT}: must be at least 2')
    declared = Declarations(cfg.EXPERIMENTS, {'FOLDS': cfg.FOLDS, 'CROSS_FIT': cfg.CROSS_FIT}, cfg.RECIPE)
    wanted = choose(declared, cfg)
    machine = {name: vars(cfg)[name] for name in ('DEVICE', 'AMP') if vars(cfg)[name] != 'auto'}
    store, seeds = RunStore(cfg.ROOT, cfg.RECIPE, cfg.PROCESSES, machine), tuple(range(cfg.SEEDS))
    jobs = {(kind, name): declared.jobs_of(item, seeds, store.too_few)
             for kind, name, item in wanted}
    if cfg.LIST:
        show_list(store, wanted, jobs, measured_rates(store, declared, seeds))
        return
    everything = in_order([job for some in jobs.values() for job in some])
    missing = [job for job in everything if not store.finished(job)]
    print(f'{len(everything)} runs, {len(everything) - len(missing)} of them finished')
    if cfg.DRY_RUN:
        print('\n'.join(['to run, each in a folder that this script prepares with links to what it reads:',
                         *map(store.command, missing)]))
        return
    reproduction = Reproduction(declared, store, seeds, without_data(store, missing, cfg) if cfg.RUN else {})
    faults = []
    for kind, name, item in wanted:
        if cfg.RUN:
            runner.run(store, jobs[kind, name], reproduction.failed)
        try:
            make(reproduction, kind, name, item, Layout(cfg.ROOT).results)
        except InputError as error:   # the others can still be made
            faults += [f'{kind} {name}: {fault}' for fault in error.faults or [error.summary]]
    faults += [f'{job.name}: {why}' for job, why in reproduction.failed.items()]
    if faults:
        raise InputError('Not everything could be made', faults,
                         'mend what these lines and the messages above say, then run the same command again')


def choose(declared, cfg):
    """[('table' or 'figure', name, its declaration)] of what the settings ask for."""
    there = {'table': declared.tables, 'figure': declared.figures}
    asked = {kind: [word.strip() for word in text.split(',') if word.strip()]
             for kind, text in (('table', cfg.TABLE), ('figure', cfg.FIGURE))}
    if cfg.ALL or (cfg.LIST and not any(asked.values())):
        asked = there
    faults = [f'{kind} {name}: is not declared; there are {", ".join(there[kind])}'
              for kind, names in asked.items() for name in names if name not in there[kind]]
    if not any(asked.values()):
        faults.append('nothing was asked for: --TABLE=6, --FIGURE=5, --ALL=True or --LIST=True')
    if faults:
        raise InputError(f'{declared.path}: no such table or figure', faults)
    return [(kind, name, there[kind][name]) for kind, names in asked.items() for name in names]


def without_data(store, missing, cfg):
    """{job: reason} of the missing jobs that lack what stage 1 of the README makes.

    Raises InputError with all reasons when no job is left that could run.
    """
    blocked, remedies, folds = {}, [], len(list((store.root / 'PH2').glob('fold_*')))
    for job in missing:
        layout = store.data_root(job)
        errors = inputs.missing(layout, inputs.read_by(job.script, store.values(job)))
        if job.data and not layout.data.is_dir():
            errors = [InputError('', [f'{layout.data}: is missing, PH2 is not prepared'],
                                 Layout(store.root).command('dataset/prepare_PH2.py'))]
        elif job.data.startswith('PH2/fold') and folds != cfg.FOLDS:
            errors.append(InputError('', [f'PH2 is prepared with {folds} folds, not {cfg.FOLDS}'],
                                     f'--FOLDS={folds}'))
        if errors:
            blocked[job] = '; '.join(fault for error in errors for fault in error.faults[:1])
            remedies += [error.remedy for error in errors]
    scorings = [job for job in missing if job.script.startswith('eval')]
    if scorings and all(any(need in blocked for need in in_order([job])) for job in scorings):
        raise InputError('Data are missing', dict.fromkeys(blocked.values()),
                         '; '.join(dict.fromkeys(remedies)))
    for reason in dict.fromkeys(blocked.values()):
        print(f'left out for now: {reason}')
    return blocked


def show_list(store, wanted, jobs, rates):
    """Print every wanted table and figure with its runs: finished, begun or missing, and their cost."""
    counted, pflops, minutes = set(), 0.0, 0.0
    for kind, name, item in wanted:
        done = sum(store.finished(job) for job in jobs[kind, name])
        title = f'{kind} {name}: {item.get("title", "")}'
        print(f'\n{title} ({done} of {len(jobs[kind, name])} runs finished)')
        for job in jobs[kind, name]:
            folder = 'ROOT itself' if store.folder(job) == HERE else store.folder(job)
            state = f'finished in {folder}'
            if not store.finished(job):
                pflop = costs.of_job(job, store.settings(job), store.data_root(job))
                time = pflop and pflop / rates.get(job.script, float('nan')) / 60
                begun = (store.root / store.folder(job)).exists()
                state = f'{"begun in" if begun else "missing,"} {folder}: {work(pflop, time)}'
                if inputs.missing(store.data_root(job), inputs.read_by(job.script, store.values(job))):
                    state = 'missing, and so are its data'
                elif job not in counted:
                    pflops, minutes = pflops + pflop, minutes + time
            counted.add(job)
            print(f'  {job.name:38} {state}')
    print(f'\nstill to run, everything counted once: {work(pflops, minutes)}')
    unused = store.unused(counted)
    if unused:
        print(f'not used by what is listed: {", ".join(unused)}')


def work(pflop, minutes):
    """'0.3 PFLOP, about 5 min'; the time only where finished runs tell it (not NaN)."""
    return f'{pflop:.3g} PFLOP' + (f', about {minutes:.0f} min' if minutes == minutes else '')


def measured_rates(store, declared, seeds):
    """{script: PFLOP a second} of the finished runs below this root."""
    done = {}   # {script: [PFLOP, seconds]}
    everything = [*declared.tables.values(), *declared.figures.values()]
    for job in in_order([job for one in everything for job in declared.jobs_of(one, seeds)]):
        seconds = store.record(job)['seconds']
        if store.finished(job) and seconds:
            pflop = costs.of_job(job, store.settings(job), store.data_root(job))
            done[job.script] = np.add(done.get(job.script, 0), (pflop, seconds))
    return {script: pflop / seconds for script, (pflop, seconds) in done.items()}


def make(reproduction, kind, name, item, results):
    """Write and print one table, or draw one figure."""
    if 'pictures' in item:
        paths, why = reproduction.panel(name, results / 'figures')
        if why:
            print(f'\nfigure {name}: not drawn; {why}')
    else:
        paths, table = ([], reproduction.table(name)) if kind == 'table' else \
            reproduction.chart(name, results / 'figures')
        paths += write(table, results / f'{kind}s', f'{kind}_{name}')
        print(f'\n{to_text(table)}')
    for path in paths:
        print(f'written: {path}')


if __name__ == '__main__':
    cli.launch(main)
