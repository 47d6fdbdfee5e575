"""The graph of experiments: what is shared, what is run again, what is refused."""
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from dataset import isic
from dataset.layout import Layout
from engine import scoring, settings, trainer
from engine.bootstrap import Difference
from engine.cli import Interrupted
from engine.errors import InputError
from experiments import costs, reproduction, runner
from experiments.declarations import REPOSITORY, Declarations, in_order
from experiments.reproduction import Reproduction
from experiments.run_store import HERE, RECORD, RunStore
from tests.conftest import STAGES
from tests.stand_ins import SWEEP, SYSTEM, VALUES, declare, run_table

# --- The file of the repository

def test_the_papers_experiments_are_declared():
    declared = Declarations(REPOSITORY / 'experiments.toml', VALUES)
    assert set(declared.tables) == {*map(str, range(1, 8)), 'mask2lesion', 'supervision', *(
        f'weak_labels{end}' for end in ('', '_lits', '_deeplesion', '_isic'))}
    assert set(declared.figures) == {str(number) for number in range(4, 10)}
    for item in (*declared.tables.values(), *declared.figures.values()):
        jobs = declared.jobs_of(item)
        assert all(jobs.index(need) < jobs.index(job) for job in jobs for need in job.before)
    assert declared.job('enhanced_k30') == declared.job('enhanced')      # the default, under one name
    assert declared.job('enhanced_k30').name == 'enhanced'
    assert declared.job('enhanced_k50') != declared.job('enhanced')
    assert dict(declared.job('enhanced_lambda0.5').overrides) == {'RANK_WEIGHT': 0.5}
    assert dict(declared.job('coarse_folds').overrides) == {'CROSS_FIT': 3}


def test_the_tables_hold_what_the_paper_prints():
    declared = Declarations(REPOSITORY / 'experiments.toml', VALUES)

    def printed(table, label):
        found = declared.tables[table]
        row = next(row for row in found['rows'] if row['label'] == label)
        return dict(zip(found['columns'], row['paper'], strict=False))

    whole = {'JA', 'DI', 'pixel-AC', 'pixel-SE', 'pixel-SP'}
    ours = [(name, row['label']) for name in '1467' for row in declared.tables[name]['rows']
            if 'ours' not in row['label']]
    assert len(ours) == 13 and all(printed(*each).keys() == whole for each in ours)
    for label in ('without coarse masks', 'with coarse masks'):
        areas = printed('5', label)
        mean = (areas['melanoma AUC'] + areas['keratosis AUC']) / 2
        assert areas['mean AUC'] == pytest.approx(mean, abs=0.051) and len(areas) == 3
    assert printed('7', 'E-layer') == printed('6', 'full') == printed('4', 'Dice + rank')
    for name in '235':
        assert {'melanoma AC', 'melanoma SE', 'melanoma SP'} <= set(declared.tables[name]['columns'])
        assert 'not in our sources' in declared.tables[name]['notes'][0]


def test_model_b_is_there_with_and_without_coarse_sn():
    declared = Declarations(REPOSITORY / 'experiments.toml', VALUES)
    scripts = {name: [job.script for job in in_order([declared.job(name)])]
               for name in ('enhanced_rgb', 'enhanced_rgb_alone')}
    assert scripts == {'enhanced_rgb': ['train_MaskCN.py', 'train_CoarseSN.py', 'train_EnhancedSN.py'],
                       'enhanced_rgb_alone': ['train_MaskCN.py', 'train_EnhancedSN.py']}


def test_tables_share_one_coarse_sn():
    declared = Declarations(REPOSITORY / 'experiments.toml', VALUES)
    jobs = in_order([job for name in '4567' for job in declared.jobs_of(declared.tables[name])])
    assert [job.name for job in jobs].count('coarse') == 1
    assert len({job for job in jobs if job.script == 'train_CoarseSN.py'}) == 3   # dice, hybrid, folds


@pytest.mark.parametrize(('text', 'said'), [
    ("[experiment.a]\nscript = 'eval_MaskCN.py'", 'experiment.a: script must be one of'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\nneeds = ['b']", 'needs b, which is not declared'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\nneeds = ['a']", 'experiment.a: needs itself'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\nSTEP = 3", 'did you mean STEPS?'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\nSTEPS = 'many'", 'STEPS=many: must be a whole number'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\nneed = []", 'experiment.a: need is not known here'),
    ('[table.x]\ncolumns = ["JA"]\nrows = [{ label = "r", of = "nothing" }]', 'nothing is not declared'),
    ('[table.x]\ncolumns = ["mIoU"]\nrows = [{ label = "r", paper = [1] }]', 'column mIoU must be one of'),
    ("[experiment.a]\nscript = 'train_MaskCN.py'\n[table.x]\ncolumns = ['JA']\n"
     "rows = [{ label = 'r', of = 'a' }]", 'a has no JA'),
    ('[table.x]\ncolumns = ["JA"]\nrows = [{ label = "r", paper = [1] }]\ncompare = [["r", "s"]]',
     'which are not two of its labels'),
    ('[table.x]\ncolumns = ["JA"]\nrows = [{ label = "r", paper = [1] }, { label = "r", paper = [2] }]',
     "two rows are labelled 'r'"),
    ('[figure.x]\npictures = ["moon"]\nchoose = "spread"', 'picture moon must be one of'),
    ('[tables.x]', 'tables: is neither'), ('x = [', 'cannot be read'),
])
def test_faults_of_a_declaration_are_named(tmp_path, text, said):
    with pytest.raises(InputError) as caught:
        declare(tmp_path, text)
    assert said in str(caught.value) and 'mine.toml' in str(caught.value)


# --- Sharing, resuming, running again

def test_equal_runs_are_shared_and_nothing_runs_twice(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    store, failed = run_table(declared, root, 'K')
    assert not failed
    assert [(script, name) for script, name, _ in calls] == [
        ('train_CoarseSN.py', 'coarse'), ('generate_Coarse_mask.py', 'masks'), ('train_MaskCN.py', 'mask_cn'),
        ('train_EnhancedSN.py', 'enhanced_k10'), ('eval_EnhancedSN.py', 'scores_enhanced_k10-Validation'),
        ('train_EnhancedSN.py', 'enhanced'), ('eval_EnhancedSN.py', 'scores_enhanced-Validation')]
    run = root / 'runs/enhanced_k10'
    assert (run / 'models/CoarseSN').resolve() == (root / 'runs/coarse/models/CoarseSN').resolve()
    assert (run / 'Coarse_masks').resolve() == (root / 'runs/masks/Coarse_masks').resolve()
    assert (run / 'dataset').resolve() == (root / 'dataset').resolve()
    assert not (run / 'models/EnhancedSN').is_symlink()
    calls.clear()
    assert run_table(declared, root, 'K')[1] == {} and calls == []


def test_what_was_interrupted_goes_on_in_its_folder(tmp_path, root, calls, monkeypatch):
    declared, whole = declare(tmp_path, SYSTEM + SWEEP), runner.call

    def interrupted(words):
        if 'enhanced_k10' in ' '.join(words) and 'train' in words[1]:
            raise Interrupted(2)
        return whole(words)

    monkeypatch.setattr(runner, 'call', interrupted)
    with pytest.raises(Interrupted):
        run_table(declared, root, 'K')
    assert json.loads((root / f'runs/enhanced_k10/{RECORD}').read_text())['finished'] is False
    before = len(calls)
    monkeypatch.setattr(runner, 'call', whole)
    assert run_table(declared, root, 'K')[1] == {}
    assert calls[before][:2] == ('train_EnhancedSN.py', 'enhanced_k10')
    assert not (root / 'runs/enhanced_k10-2').exists()


def test_a_changed_constant_runs_what_depends_on_it_and_nothing_else(tmp_path, root, calls, monkeypatch):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    calls.clear()
    plain = settings.read_values

    def edited(script):
        values = plain(script)
        return values | ({'LEARNING_RATE': 5e-4} if Path(script).name == 'train_MaskCN.py' else {})

    monkeypatch.setattr(settings, 'read_values', edited)      # as if the file top had been edited
    assert run_table(declare(tmp_path, SYSTEM + SWEEP), root, 'K')[1] == {}
    assert [(script, name) for script, name, _ in calls] == [
        ('train_MaskCN.py', 'mask_cn-2'), ('train_EnhancedSN.py', 'enhanced_k10-2'),
        ('eval_EnhancedSN.py', 'scores_enhanced_k10-Validation-2'), ('train_EnhancedSN.py', 'enhanced-2'),
        ('eval_EnhancedSN.py', 'scores_enhanced-Validation-2')]
    calls.clear()
    monkeypatch.setattr(settings, 'read_values', plain)       # edited back: the first runs serve again
    store, _ = run_table(declare(tmp_path, SYSTEM + SWEEP), root, 'K')
    assert calls == [] and store.folder(declared.job('mask_cn')) == 'runs/mask_cn'


def test_a_constant_that_a_script_gained_later_outdates_nothing(tmp_path, root, calls, monkeypatch):
    declared, plain = declare(tmp_path, SYSTEM + SWEEP), settings.read_values
    run_table(declared, root, 'K')
    calls.clear()
    monkeypatch.setattr(settings, 'read_values', lambda script: plain(script) | {'NEW_SWITCH': False})
    assert run_table(declared, root, 'K')[1] == {} and calls == []


@pytest.mark.parametrize(('constant', 'value'), [
    ('NUM_WORKERS', 3), ('DEVICE', 'cuda'), ('PICTURES_ON', 'device'), ('COMPILE', 'default')])
def test_how_the_machine_is_used_outdates_nothing(tmp_path, root, calls, monkeypatch, constant, value):
    declared, plain = declare(tmp_path, SYSTEM + SWEEP), settings.read_values
    run_table(declared, root, 'K')
    calls.clear()
    monkeypatch.setattr(settings, 'read_values',
                        lambda script: {name: value if name == constant else given
                                        for name, given in plain(script).items()})
    assert run_table(declared, root, 'K')[1] == {} and calls == []


def test_changed_pictures_run_everything_that_saw_them(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    calls.clear()
    (Layout(root).crops('Validation') / 'Validation1.png').write_text('another picture')
    run_table(declared, root, 'K')
    assert [name for _, name, _ in calls] == [                # coarse-SN saw no crop of it
        'masks', 'mask_cn-2', 'enhanced_k10-2', 'scores_enhanced_k10-Validation-2', 'enhanced-2',
        'scores_enhanced-Validation-2']


def test_a_failure_costs_only_what_needs_it(tmp_path, root, calls, monkeypatch):
    declared, whole = declare(tmp_path, SYSTEM + SWEEP), runner.call
    monkeypatch.setattr(runner, 'call',
                        lambda words: 2 if words[2].endswith('enhanced_k10') else whole(words))
    store, failed = run_table(declared, root, 'K')
    assert [job.name for job in failed] == ['enhanced_k10', 'scores_enhanced_k10-Validation']
    assert failed[list(failed)[1]].startswith('needs enhanced_k10: python train_EnhancedSN.py')
    assert 'exit code 2' in failed[declared.job('enhanced_k10')]
    table = Reproduction(declared, store, (0,), failed).table('K')
    cells = {row.label: row.cells['JA'] for row in table.rows}
    assert cells['ten'].values == () and 'enhanced_k10' in cells['ten'].note
    assert cells['default'].values == cells['thirty'].values != ()
    assert table.rows[-1].printed and cells['theirs'].paper == 0.765


def test_seeds_train_everything_anew_and_are_averaged(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    store, failed = run_table(declared, root, 'K', seeds=(0, 1))
    assert not failed
    seeded = [(name, options) for script, name, options in calls if name.endswith('-seed1')]
    assert [name for name, _ in seeded] == ['coarse-seed1', 'masks-seed1', 'mask_cn-seed1',
                                            'enhanced_k10-seed1', 'enhanced-seed1']
    assert all(options['SEED'] == '1' for _, options in seeded)
    table = Reproduction(declared, store, (0, 1), {}).table('K')
    cell = table.rows[0].cells['JA']
    assert len(cell.values) == 2 and cell.spread is not None
    assert cell.mean == pytest.approx(sum(cell.values) / 2)
    place, = (number for number, note in enumerate(table.notes) if '"thirty" minus "ten"' in note)
    assert table.notes[place + 1].startswith('p is not corrected for the number of pairs; of so few images')
    assert any('also chose' in note and '500 validations' in note for note in table.notes)   # of validation


@pytest.mark.parametrize('failing', [0, 1, 2])
def test_a_seed_that_failed_takes_no_other_with_it(tmp_path, root, calls, failing):
    declared, seeds = declare(tmp_path, SYSTEM + SWEEP), (0, 1, 2)
    store, _ = run_table(declared, root, 'K', seeds=tuple(seed for seed in seeds if seed != failing))
    cell = Reproduction(declared, store, seeds, {}).table('K').rows[0].cells['JA']
    assert len(cell.values) == 2 and cell.note == 'not run yet'


def test_two_programs_do_not_run_one_root_at_once(tmp_path, root, calls, monkeypatch):
    declared, whole = declare(tmp_path, SYSTEM + SWEEP), runner.call
    refusals = []

    def second(words):
        if not refusals:
            with pytest.raises(InputError, match='another process works here') as caught:
                run_table(declared, root, 'K')
            refusals.append(caught)
        return whole(words)

    monkeypatch.setattr(runner, 'call', second)
    assert run_table(declared, root, 'K')[1] == {} and refusals


# --- Cross-fitting, fine-tuning, other data

@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE])
def test_a_run_that_was_interrupted_ends_all(number):
    """SIGPIPE : nobody reads what it prints, nor what others would print."""
    with pytest.raises(Interrupted) as end:
        runner.call([sys.executable, '-c', f'raise SystemExit({128 + number})'])
    assert end.value.number == number


def test_what_shall_outlive_its_terminal_does(monkeypatch):
    """As after nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = 'import os, signal; os.kill(os.getppid(), signal.SIGHUP)'
        assert runner.call([sys.executable, '-c', hang_up]) == 0
        with trainer.Stopping() as stopping:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stopping.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_cross_fitted_masks_read_the_folds_and_the_whole(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + """
[experiment.folds]
script = 'train_CoarseSN.py'
CROSS_FIT = '{CROSS_FIT}'
[experiment.masks_cross]
script = 'generate_Coarse_mask.py'
needs = ['coarse', 'folds']
CROSS_FIT = '{CROSS_FIT}'
[experiment.cn]
script = 'train_MaskCN.py'
needs = ['masks_cross']
[table.x]
columns = ['mean AUC']
rows = [{ label = 'r', of = 'cn' }]
""")
    assert run_table(declared, root, 'x')[1] == {}
    models = root / 'runs/masks_cross/models'
    assert sorted(path.name for path in models.iterdir()) == ['CoarseSN', 'CoarseSN_fold1', 'CoarseSN_fold2',
                                                              'CoarseSN_fold3']
    assert (models / 'CoarseSN_fold2').resolve() == (root / 'runs/folds/models/CoarseSN_fold2').resolve()
    assert (root / 'runs/cn/Coarse_masks').resolve() == (root / 'runs/masks_cross/Coarse_masks').resolve()


def test_fine_tuning_starts_from_the_named_weights_on_other_data(tmp_path, root, calls):
    (root / 'PH2/fold_1').mkdir(parents=True)
    (root / 'PH2/fold_1/dataset').symlink_to(root / 'dataset')
    declared = declare(tmp_path, SYSTEM + """
[experiment.'tuned_{fold}']
for.fold = 1
script = 'train_CoarseSN.py'
start = 'coarse'
data = 'PH2/fold_{fold}'
[table.x]
columns = ['JA']
rows = [{ label = 'r', of = 'tuned_{fold}', folds = 1 }]
""")
    store, failed = run_table(declared, root, 'x')
    assert not failed
    options = {name: given for _, name, given in calls}['tuned_1']
    assert options['INITIAL_WEIGHTS'] == str(root / 'runs/coarse/models/CoarseSN/CoarseSN.pth')
    assert (root / 'runs/tuned_1/dataset').resolve() == (root / 'dataset').resolve()
    assert store.layout(declared.job('tuned_1')).root.name == 'tuned_1'
    record = store.layout(declared.job('tuned_1')).run('CoarseSN') / 'config.json'
    for step, said in ((40, []), (0, ['r: 1 of 1 trainings kept the weights that they began with.'])):
        record.write_text(json.dumps({'finished': {'best_step': step}}))
        notes = Reproduction(declared, store, (0,), {}).table('x').notes
        assert [note for note in notes if 'kept' in note] == said


# --- Commands, cost, ROOT's own stages

def test_commands_can_be_typed(tmp_path, root):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    store = RunStore('run', 'demo')
    assert store.command(declared.job('coarse')) == (
        'python train_CoarseSN.py --ROOT=run/runs/coarse --RECIPE=demo')
    store = RunStore('run', processes=2)
    assert store.command(declared.job('enhanced_k10')) == (
        'torchrun --nproc-per-node=2 train_EnhancedSN.py --ROOT=run/runs/enhanced_k10 --HARD_PIXELS=10')
    assert store.command(declared.job('masks')).startswith('python generate')   # works alone


def test_costs_count_arithmetic(root):
    layout, common = Layout(root), {'TRAIN_IMAGES': 0, 'VALIDATE_EVERY': 5, 'BATCH_SIZE': 2}
    declared = Declarations(REPOSITORY / 'experiments.toml', VALUES)
    coarse = common | {'EPOCH': 10, 'INPUT_SIZE': 224, 'CROSS_FIT': 0}
    expected = 31.7e9 * (3 * 4 * 10 + 4 * 2) / 1e15    # 4 pictures, 10 epochs, 2 validations of 4
    assert costs.of_job(declared.job('coarse'), coarse, layout) == pytest.approx(expected)
    half = costs.of_job(declared.job('coarse'), coarse | {'INPUT_SIZE': 112}, layout)
    assert half == pytest.approx(expected / 4)
    folds = costs.of_job(declared.job('coarse'), coarse | {'CROSS_FIT': 3}, layout)
    assert folds == pytest.approx(31.7e9 * (3 * 4 * 10 * 2 + 3 * 4 * 2) / 1e15)
    cn = {'TRAIN_IMAGES': 0, 'STEPS': 6, 'BATCH_SIZE': 2, 'VALIDATE_EVERY': 4, 'VALIDATION_CROPS': 1,
          'INPUT_SIZE': 224}
    assert costs.of_job(declared.job('mask_cn'), cn, layout) == pytest.approx(
        10.7e9 * (3 * 6 * 2 + 2 * 4) / 1e15)


def test_stages_that_lie_in_root_serve(chain, tmp_path):
    """The chain's own stages are found in ROOT under their settings, and only under these."""
    text = SYSTEM + "[table.x]\ncolumns = ['JA']\nrows = [{ label = 'r', of = 'enhanced' }]\n"
    for name, script in (('coarse', 'train_CoarseSN.py'), ('masks', 'generate_Coarse_mask.py'),
                         ('mask_cn', 'train_MaskCN.py'), ('enhanced', 'train_EnhancedSN.py')):
        options = dict(word.removeprefix('--').split('=', 1) for word in STAGES[script])
        lines = ''.join(f'{key} = {value!r}\n' for key, value in options.items())
        text = text.replace(f'[experiment.{name}]\n', f'[experiment.{name}]\n{lines}')
    declared = declare(tmp_path, text)
    store = RunStore(chain.root)
    for name in ('coarse', 'masks', 'mask_cn', 'enhanced'):
        assert store.folder(declared.job(name)) == HERE, name
    other = declare(tmp_path, text.replace("EPOCH = '1'", "EPOCH = '7'"))     # enhanced-SN alone
    store = RunStore(chain.root)
    assert store.folder(other.job('mask_cn')) == HERE
    assert store.folder(other.job('enhanced')) == 'runs/enhanced'
    assert not (chain.root / 'runs').exists()


@pytest.mark.parametrize('p, resamples, said', [
    (0.0423, 1000, 'p = 0.042.'), (0.0098, 10_000, 'p = 0.01.'), (0.00234, 100_000, 'p = 0.002.'),
    (2 / 100_001, 100_000, 'p <= 2e-05.'), (2 / 701, 700, 'p <= 0.003.')])
def test_p_is_said_as_precisely_as_it_is_known(monkeypatch, p, resamples, said):
    monkeypatch.setattr(reproduction.results, 'paired_difference',
                        lambda *_: Difference(1.0, 0.5, 1.5, p, resamples))
    assert reproduction._compared('a', 'b', {'a': {0: None}, 'b': {0: None}}, 'JA')[0].endswith(said)


def test_tables_of_the_test_set_do_not_speak_of_validation(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    store, _ = run_table(declared, root, 'K')
    rows = declared.tables['K']['rows']
    shown = Reproduction(declared, store, (0,), {})
    results = {row['label']: shown._results(row, 'Validation')[0] for row in rows if 'of' in row}
    for columns, luck in ((['JA', 'DI'], reproduction.LUCK), (['mean AUC'], '')):   # its figures are of JA
        assert scoring.SELECTED.format(luck) in shown._facts(rows, results, 'Validation', columns)
        assert not any('also chose' in note for note in shown._facts(rows, results, 'Testing', columns))


def test_masks_of_an_interrupted_evaluation_are_in_no_figure(tmp_path, root):
    figure = "[figure.f]\npictures = ['image', 'enhanced mask']\nchoose = 'spread'\n" \
             "of = { 'enhanced mask' = 'enhanced' }\n"
    declared, layout = declare(tmp_path, SYSTEM + figure), Layout(root)
    store = Mock(layout=lambda _: layout, data_root=lambda _: layout)
    shown = Reproduction(declared, store, (0,), {})
    folder = layout.results / 'EnhancedSN_Validation_masks'
    for image, truth in isic.read_segmentation_list(layout, 'Validation'):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(truth, folder / f'{image.stem}_segmentation.png')
    assert shown.panel('f', tmp_path)[1] == '' and (tmp_path / 'figure_f.png').is_file()
    (folder / scoring.INCOMPLETE).touch()
    assert shown.panel('f', tmp_path) == ([], scoring.incomplete(folder))
