"""Run folders: which of them serve, what outdates them, and what is done about missing parts."""
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from dataset.errors import InputError
from dataset.layout import Layout
from engine import coarse_masks, runner, settings
from engine.exhibits import Exhibits
from engine.library import HERE, Library
from reproduce_tables import without_data
from tests.stand_ins import SWEEP, SYSTEM, declare, run_table

NEW = """
[experiment.focal]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
FOCAL = true
[table.focal]
columns = ['JA']
rows = [{ label = 'r', of = 'focal' }, { label = 'default', of = 'enhanced' }]
"""


RANDOM = SYSTEM.replace("'train_CoarseSN.py'", "'train_CoarseSN.py'\nPRETRAINED = 'none'")


def names(made):
    return [name for _, name, _ in made]


def test_a_new_constant_with_another_value_is_another_run(tmp_path, root, calls, monkeypatch):
    run_table(declare(tmp_path, SYSTEM + SWEEP), root, 'K')
    calls.clear()
    plain = settings.read_values
    monkeypatch.setattr(settings, 'read_values', lambda script: plain(script) | (
        {'FOCAL': False} if script.name == 'train_EnhancedSN.py' else {}))
    assert run_table(declare(tmp_path, SYSTEM + NEW), root, 'focal')[1] == {}
    assert names(calls) == ['focal', 'scores_focal-Validation']


def test_weights_to_start_from_are_part_of_what_a_run_is(tmp_path, root, calls):
    for name in 'ab':
        (tmp_path / f'{name}.pth').write_text(name)
    text = SYSTEM + ''.join(f"""
[experiment.from_{name}]
script = 'train_EnhancedSN.py'
needs = ['mask_cn']
INITIAL_WEIGHTS = '{tmp_path}/{name}.pth'
""" for name in 'ab') + """
[table.x]
columns = ['JA']
rows = [{ label = 'd', of = 'enhanced' }, { label = 'a', of = 'from_a' }, { label = 'b', of = 'from_b' }]
"""
    run_table(declare(tmp_path, text), root, 'x')
    assert [name for name in names(calls) if name in ('enhanced', 'from_a', 'from_b')] == [
        'enhanced', 'from_a', 'from_b']
    calls.clear()
    (tmp_path / 'b.pth').write_text('retrained')
    run_table(declare(tmp_path, text), root, 'x')
    assert names(calls) == ['from_b-2', 'scores_from_b-Validation-2']


def test_an_experiments_own_seed_is_the_first(tmp_path, root, calls):
    declared = declare(tmp_path, """
[experiment.coarse]
script = 'train_CoarseSN.py'
SEED = 1
""")
    seeds = [dict(declared.step('coarse', seed).overrides)['SEED'] for seed in range(3)]
    assert seeds == [1, 2, 3]


def test_a_subset_of_all_images_is_all_images(tmp_path, root, calls):
    text = SYSTEM + """
[experiment.'coarse_n{n}']
for.n = [2, 4, 9]
script = 'train_CoarseSN.py'
TRAIN_IMAGES = '{n}'
[figure.n]
score = 'JA'
panels = [{ axis = 'images', x = [2, 4, 9], lines = [{ label = 'l', of = 'coarse_n{x}' }] }]
[table.all]
columns = ['JA']
rows = [{ label = 'all', of = 'coarse' }]
"""
    declared = declare(tmp_path, text)
    run_table(declared, root, 'all')
    calls.clear()
    library = Library(root)
    steps = declared.steps_of(declared.figures['n'], leave_out=library.too_few)
    runner.run(library, steps, {})
    assert names(calls) == ['coarse_n2', 'scores_coarse_n2-Validation']   # 4 of 4 is `coarse`; 9 is left out
    _, table = Exhibits(declared, library, (0,), {}).chart('n', tmp_path)
    cells = [row.cells['JA'] for row in table.rows]
    assert [len(cell.values) for cell in cells] == [1, 1, 0]
    assert cells[2].note == 'there are only 4 images'


def test_stages_that_appear_in_root_later_leave_finished_runs_alone(tmp_path, root, calls):
    declared = declare(tmp_path, RANDOM + SWEEP)
    library, _ = run_table(declared, root, 'K')
    run = Layout(root).run('CoarseSN')
    run.mkdir(parents=True)
    (run / 'CoarseSN.pth').write_text('trained in ROOT')
    values = json.loads(json.dumps(library.values(declared.step('coarse'))))
    (run / 'config.json').write_text(json.dumps({'settings': values, 'start': 'random weights',
                                                 'finished': {'step': 1}}))
    calls.clear()
    run_table(declared, root, 'K')
    assert calls == []
    shutil.rmtree(root / 'runs')
    library, _ = run_table(declared, root, 'K')
    assert library.folder(declared.step('coarse')) == HERE and 'coarse' not in names(calls)


def test_a_run_of_several_processes_is_another_run(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    for path in (root / 'runs').glob('*/experiment.json'):   # as they were before this was recorded
        record = json.loads(path.read_text())
        assert record['made from'].pop('processes') == 1
        path.write_text(json.dumps(record))
    calls.clear()
    assert run_table(declared, root, 'K')[1] == {} and calls == []
    library, step = Library(root, processes=2), declared.step('coarse')
    assert Library(root).folder(step) == 'runs/coarse' and library.folder(step) == 'runs/coarse-2'
    assert Library(root, processes=2).made_from(step)['processes'] == 2


@pytest.mark.parametrize('what', ['picture', 'line', 'unfinished', 'setting', 'fine-tuned', 'processes'])
def test_roots_stage_serves_only_what_it_was_trained_on(tmp_path, root, calls, what):
    declared = declare(tmp_path, RANDOM + SWEEP)
    step, layout = declared.step('coarse'), Layout(root)
    run = layout.run('CoarseSN')
    run.mkdir(parents=True)
    (run / 'CoarseSN.pth').write_text('trained in ROOT')
    config = {'settings': json.loads(json.dumps(Library(root).values(step))), 'start': 'random weights',
              'finished': {'step': 1}}
    (run / 'config.json').write_text(json.dumps(config))
    assert Library(root).folder(step) == HERE
    listing, picture = layout.segmentation_list('Training'), layout.segmentation('Training') / 'Images'
    if what == 'picture':
        (picture / 'Training0.png').write_text('another')
    elif what == 'line':
        listing.write_text(listing.read_text().replace('Training3', 'Training2'))
    else:
        changed = {'unfinished': {'finished': None}, 'fine-tuned': {'start': 'weights (sha256 1...)'},
                   'processes': {'processes': [2, 1]},
                   'setting': {'settings': config['settings'] | {'MARGIN': 0.2}}}[what]
        (run / 'config.json').write_text(json.dumps(config | changed))
    assert Library(root).folder(step) == 'runs/coarse'


def test_masks_that_are_topped_up_outdate_nothing(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    calls.clear()
    shutil.copy(Layout(root).segmentation_list('Validation'), Layout(root).segmentation_list('Testing'))
    shutil.copytree(Layout(root).segmentation('Validation'), Layout(root).segmentation('Testing'))
    library = Library(root)
    assert library.folder(declared.step('enhanced')) == 'runs/enhanced'     # LIST says so before any run
    assert library.finished(declared.step('enhanced')) and not library.finished(declared.step('masks'))
    run_table(declared, root, 'K')
    assert names(calls) == ['masks']


@pytest.mark.parametrize('gone', ['coarse/models', 'scores_enhanced-Validation/results'])
def test_what_was_deleted_is_made_again_in_its_place(tmp_path, root, calls, gone):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    calls.clear()
    shutil.rmtree(root / 'runs' / gone)
    assert run_table(declared, root, 'K')[1] == {}
    assert names(calls) == [gone.split('/')[0]]      # the same weights again: what is below still holds


def test_runs_may_lie_on_another_disk(tmp_path, root, calls):
    elsewhere = tmp_path / 'big' / 'deep' / 'disk'
    elsewhere.mkdir(parents=True)
    (root / 'runs').symlink_to(elsewhere)
    assert run_table(declare(tmp_path, SYSTEM + SWEEP), root, 'K')[1] == {}
    assert os.path.samefile(elsewhere / 'enhanced/models/CoarseSN', elsewhere / 'coarse/models/CoarseSN')
    assert os.path.samefile(elsewhere / 'enhanced/dataset', root / 'dataset')


def test_masks_of_another_experiment_are_not_drawn_over(tmp_path, root, calls):
    run_table(declare(tmp_path, SYSTEM + SWEEP), root, 'K')
    folder = root / 'runs/enhanced/Coarse_masks/Training_MaskCN'
    with pytest.raises(InputError, match='belong to another experiment'):
        coarse_masks.begin(folder, {'coarse_sn': 'x'})
    assert (root / 'runs/masks/Coarse_masks/Training_MaskCN' / coarse_masks.RECORD).is_file()


def test_ph2_is_scored_with_its_own_masks(tmp_path, root, calls):
    (root / 'PH2/all').mkdir(parents=True)
    (root / 'PH2/all/dataset').symlink_to(root / 'dataset')
    declared = declare(tmp_path, SYSTEM + """
[experiment.masks_ph2]
script = 'generate_Coarse_mask.py'
needs = ['coarse']
data = 'PH2/all'
[table.x]
columns = ['JA']
rows = [{ label = 'direct', of = 'enhanced', with = 'masks_ph2' }, { label = 'own', of = 'enhanced' }]
""")
    assert run_table(declared, root, 'x')[1] == {}
    direct = root / 'runs/scores_enhanced-Validation-masks_ph2'
    assert os.path.samefile(direct / 'Coarse_masks', root / 'runs/masks_ph2/Coarse_masks')
    assert os.path.samefile(direct / 'models/EnhancedSN', root / 'runs/enhanced/models/EnhancedSN')
    own = root / 'runs/scores_enhanced-Validation'
    assert os.path.samefile(own / 'Coarse_masks', root / 'runs/masks/Coarse_masks')


def test_experiments_without_data_are_left_out_and_the_others_run(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + """
[experiment.tuned]
script = 'train_CoarseSN.py'
start = 'coarse'
data = 'PH2/fold_1'
[table.x]
columns = ['JA']
rows = [{ label = 'tuned', of = 'tuned' }, { label = 'plain', of = 'coarse' }]
""")
    library = Library(root)
    steps = declared.steps_of(declared.tables['x'])
    blocked = without_data(library, steps, SimpleNamespace(FOLDS=4))
    assert {step.name for step in blocked} == {'tuned', 'scores_tuned-Validation'}
    assert all('PH2 is not prepared' in why for why in blocked.values())
    runner.run(library, steps, blocked)
    assert names(calls) == ['coarse', 'scores_coarse-Validation']
    table = Exhibits(declared, library, (0,), blocked).table('x')
    assert 'PH2 is not prepared' in table.rows[0].cells['JA'].note
    assert len(table.rows[1].cells['JA'].values) == 1
    with pytest.raises(InputError, match='dataset/prepare_PH2.py'):
        without_data(library, [step for step in steps if step in blocked], SimpleNamespace(FOLDS=4))
