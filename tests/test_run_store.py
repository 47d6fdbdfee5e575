"""Run folders: which of them serve, what outdates them, and what is done about missing parts."""
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from dataset import splits
from dataset.layout import Layout
from engine import settings
from engine.errors import InputError
from experiments import inputs, runner
from experiments.declarations import Declarations
from experiments.reproduction import Reproduction
from experiments.run_store import HERE, RunStore
from mbdcnn import coarse_masks
from reproduce_tables import without_data
from tests.stand_ins import SWEEP, SYSTEM, VALUES, declare, run_table

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
    seeds = [dict(declared.job('coarse', seed).overrides)['SEED'] for seed in range(3)]
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
    store = RunStore(root)
    jobs = declared.jobs_of(declared.figures['n'], leave_out=store.too_few)
    runner.run(store, jobs, {})
    assert names(calls) == ['coarse_n2', 'scores_coarse_n2-Validation']   # 4 of 4 is `coarse`; 9 is left out
    _, table = Reproduction(declared, store, (0,), {}).chart('n', tmp_path)
    cells = [row.cells['JA'] for row in table.rows]
    assert [len(cell.values) for cell in cells] == [1, 1, 0]
    assert cells[2].note == 'there are only 4 images'


def test_a_recipe_that_takes_at_most_so_many_images_leaves_nothing_out(tmp_path, root):
    job = declare(tmp_path, RANDOM).job('coarse')
    store = RunStore(root, 'cpu')
    assert store.values(job)['TRAIN_IMAGES'] == 600 and not store.too_few(job)   # there are 4
    (tmp_path / 'mine.toml').write_text(RANDOM.replace("'none'", "'none'\nTRAIN_IMAGES = 600"))
    named = Declarations(tmp_path / 'mine.toml', VALUES, 'cpu').job('coarse')
    assert store.too_few(named) == 'there are only 4 images'
    train_in_root(root, job, 'cpu')
    assert store.settings(job)['TRAIN_IMAGES'] == 0 and store.folder(job) == HERE


def test_a_run_that_was_made_longer_is_not_one_of_that_length(tmp_path, root):
    job = declare(tmp_path, RANDOM).job('coarse')
    train_in_root(root, job)
    assert RunStore(root).finished(job)
    train_in_root(root, job, earlier=[{'EPOCH': 1}])
    assert not RunStore(root).finished(job)


def train_in_root(root, job, recipe='default', **changed):
    """As if train_CoarseSN.py had run in ROOT itself: its weights and its config.json, with these changes."""
    layout, values = Layout(root), json.loads(json.dumps(RunStore(root, recipe).values(job)))
    run = layout.run('CoarseSN')
    run.mkdir(parents=True, exist_ok=True)
    (run / 'CoarseSN.pth').write_text('trained in ROOT')
    seen = {'training': splits.segmentation(layout, 'Training', values['CACHE_SIZE']).fingerprint,
            'validation': splits.segmentation(layout, 'Validation', values['INPUT_SIZE']).fingerprint}
    (run / 'config.json').write_text(json.dumps({
        'settings': values, 'inputs': seen, 'start': 'random weights', 'finished': {'step': 1}} | changed))
    return run


def test_stages_that_appear_in_root_later_leave_finished_runs_alone(tmp_path, root, calls):
    declared = declare(tmp_path, RANDOM + SWEEP)
    run_table(declared, root, 'K')
    train_in_root(root, declared.job('coarse'))
    calls.clear()
    run_table(declared, root, 'K')
    assert calls == []
    shutil.rmtree(root / 'runs')
    store, _ = run_table(declared, root, 'K')
    assert store.folder(declared.job('coarse')) == HERE and 'coarse' not in names(calls)


def test_a_run_of_several_processes_is_another_run(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    two, job = RunStore(root, processes=2), declared.job('coarse')
    assert RunStore(root).folder(job) == 'runs/coarse' and two.folder(job) == 'runs/coarse-2'
    assert RunStore(root, processes=2).made_from(job)['processes'] == 2


@pytest.mark.parametrize('what', ['picture', 'line', 'unfinished', 'setting', 'fine-tuned', 'processes',
                                  'exchanged'])
def test_roots_stage_serves_only_what_it_was_trained_on(tmp_path, root, calls, what):
    declared = declare(tmp_path, RANDOM + SWEEP)
    job, layout = declared.job('coarse'), Layout(root)
    train_in_root(root, job)
    assert RunStore(root).folder(job) == HERE
    listing, pictures = layout.segmentation_list('Training'), layout.segmentation('Training') / 'Images'
    if what == 'picture':
        shutil.copy(pictures / 'Training1.png', pictures / 'Training0.png')
    elif what == 'line':
        listing.write_text(listing.read_text().replace('Training3', 'Training2'))
    else:
        values = json.loads(json.dumps(RunStore(root).values(job)))
        seen = json.loads((layout.run('CoarseSN') / 'config.json').read_text())['inputs']
        exchanged = {'training': seen['validation'], 'validation': seen['training']}
        train_in_root(root, job, **{
            'unfinished': {'finished': None}, 'setting': {'settings': values | {'MARGIN': 0.2}},
            'fine-tuned': {'start': 'weights (sha256 1...)'}, 'processes': {'processes': [2, 1]},
            'exchanged': {'inputs': exchanged}}[what])
    assert RunStore(root).folder(job) == 'runs/coarse'


# --- Copies

def copied(root):
    """A copy of a root in which no file has kept its time, links being links."""
    copy = root.with_name('copied')
    shutil.copytree(root, copy, symlinks=True, copy_function=shutil.copyfile)
    for number, path in enumerate(path for path in sorted(copy.rglob('*.png')) if not path.is_symlink()):
        os.utime(path, (10**9 + number, 10**9 + number))
    return copy


def test_a_copied_root_keeps_its_runs_and_its_own_stages(tmp_path, root, calls):
    declared = declare(tmp_path, RANDOM + SWEEP)
    train_in_root(root, declared.job('coarse'))
    run_table(declared, root, 'K')
    copy, made = copied(root), len(calls)
    store, failed = run_table(declared, copy, 'K')
    assert not failed and len(calls) == made > 0
    assert store.folder(declared.job('coarse')) == HERE
    assert all(store.finished(job) for job in declared.jobs_of(declared.tables['K']))


def test_copied_models_do_not_serve_other_pictures(tmp_path, root, calls):
    job = declare(tmp_path, RANDOM + SWEEP).job('coarse')
    train_in_root(root, job)
    other = copied(root)
    shade = other / 'dataset/seg_data/Training_resize_seg/Images/Training2.png'
    shutil.copyfile(shade.with_name('Training1.png'), shade)
    assert RunStore(other).folder(job) == 'runs/coarse' and RunStore(root).folder(job) == HERE


def test_networks_that_were_copied_over_a_finished_run_are_not_its_own(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    job = declared.job('coarse')
    path = root / 'runs/coarse/models/CoarseSN/CoarseSN.pth'
    before = path.read_text()
    path.write_text('of other pictures')
    assert not RunStore(root).finished(job)
    path.write_text(before)
    assert RunStore(root).finished(job) and RunStore(root).folder(job) == 'runs/coarse'


def test_pictures_are_told_apart_by_content(root):
    layout = Layout(root)
    path = layout.crops('Validation') / 'Validation1.png'
    before = inputs.fingerprint(layout, 'cls', 'Validation')
    os.utime(path, (1, 1))
    assert inputs.fingerprint(layout, 'cls', 'Validation') == before
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b'x')   # of the same size
    os.utime(path, (2, 2))
    assert inputs.fingerprint(layout, 'cls', 'Validation') != before
    path.write_bytes(data)
    (layout.cache / 'contents.json').unlink()
    assert inputs.fingerprint(layout, 'cls', 'Validation') == before
    for spoil in (lambda kept: kept.write_text('{"cls Validation": 5}'), lambda kept: kept.write_text('[]'),
                  lambda kept: kept.unlink() or kept.mkdir()):
        spoil(layout.cache / 'contents.json')
        assert inputs.fingerprint(layout, 'cls', 'Validation') == before
    listing = layout.classification_list('Validation')
    listing.write_text(listing.read_text().replace(' 2', ' 1'))
    assert inputs.fingerprint(layout, 'cls', 'Validation') != before


@pytest.mark.parametrize('earlier', [False, True])
def test_coarse_masks_of_a_copy_are_those_of_its_pictures(root, earlier):
    layout = Layout(root)
    folder, pictures = layout.coarse_for_classification('Training'), sorted(
        layout.crops('Training').glob('*.png'))
    draw_in(layout, folder, pictures, earlier)
    layout = Layout(copied(root))
    folder, pictures = layout.coarse_for_classification('Training'), sorted(
        layout.crops('Training').glob('*.png'))
    assert len(splits.coarse_paths(layout, folder, pictures)) == 4
    record = coarse_masks.begin(layout, folder, {'coarse_sn': 'x'}, settings.Settings())
    assert all(record.holds(path.name, record.contents.of(path)) for path in pictures)   # nothing to draw
    coarse_masks.finish(record, pictures)
    written = json.loads(record.path.read_text())
    assert set(written) == {'facts', 'complete', 'settings', 'masks', 'made'}
    assert all(all(hashes) for hashes in written['made'].values())
    shutil.copyfile(pictures[1], pictures[0])
    with pytest.raises(InputError, match='1 coarse masks are missing'):
        splits.coarse_paths(layout, folder, pictures)


def draw_in(layout, folder, pictures, earlier=False):
    """As if the masks of pictures had been drawn; `earlier`: by a version whose record had other keys."""
    record = coarse_masks.begin(layout, folder, {'coarse_sn': 'x'}, settings.Settings())
    for picture in pictures:
        shutil.copyfile(picture, folder / picture.name)
        record.note(picture.name, record.contents.of(picture))
    coarse_masks.finish(record, pictures)
    if earlier:
        written = json.loads(record.path.read_text())
        written['pictures'] = {Path(name).stem: entry[0] for name, entry in written.pop('made').items()}
        record.path.write_text(json.dumps(written))


def test_masks_that_were_swapped_or_drawn_over_are_noticed(root):
    layout = Layout(root)
    folder, pictures = layout.coarse_for_classification('Training'), sorted(
        layout.crops('Training').glob('*.png'))
    draw_in(layout, folder, pictures)
    for path in (*pictures, *folder.glob('*.png')):
        os.utime(path, (10**9, 10**9))
    assert len(splits.coarse_paths(layout, folder, pictures)) == 4
    pictures[0].rename(root / 'aside'), pictures[1].rename(pictures[0]), (root / 'aside').rename(pictures[1])
    with pytest.raises(InputError, match='2 coarse masks are missing'):
        splits.coarse_paths(layout, folder, pictures)
    mask = folder / pictures[2].name
    mask.write_bytes(mask.read_bytes()[:-1] + b'x')
    os.utime(mask, (10**9, 10**9))
    with pytest.raises(InputError, match='3 coarse masks are missing'):
        splits.coarse_paths(layout, folder, pictures)


def test_masks_that_are_topped_up_outdate_nothing(tmp_path, root, calls):
    declared = declare(tmp_path, SYSTEM + SWEEP)
    run_table(declared, root, 'K')
    calls.clear()
    shutil.copy(Layout(root).segmentation_list('Validation'), Layout(root).segmentation_list('Testing'))
    shutil.copytree(Layout(root).segmentation('Validation'), Layout(root).segmentation('Testing'))
    store = RunStore(root)
    assert store.folder(declared.job('enhanced')) == 'runs/enhanced'     # LIST says so before any run
    assert store.finished(declared.job('enhanced')) and not store.finished(declared.job('masks'))
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
    with pytest.raises(InputError, match='belong to another experiment'):
        coarse_masks.lock(Layout(root / 'runs/enhanced'))
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
    store = RunStore(root)
    jobs = declared.jobs_of(declared.tables['x'])
    blocked = without_data(store, jobs, SimpleNamespace(FOLDS=4))
    assert {job.name for job in blocked} == {'tuned', 'scores_tuned-Validation'}
    assert all('PH2 is not prepared' in why for why in blocked.values())
    runner.run(store, jobs, blocked)
    assert names(calls) == ['coarse', 'scores_coarse-Validation']
    table = Reproduction(declared, store, (0,), blocked).table('x')
    assert 'PH2 is not prepared' in table.rows[0].cells['JA'].note
    assert len(table.rows[1].cells['JA'].values) == 1
    with pytest.raises(InputError, match='dataset/prepare_PH2.py'):
        without_data(store, [job for job in jobs if job in blocked], SimpleNamespace(FOLDS=4))
