"""One's own pictures, masks, labels and classes: from a folder and a csv to scores."""
import csv
import itertools
import json
import shutil
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import cv2
import numpy as np
import pytest

import eval_MaskCN
import predict
import train_CoarseSN
import train_MaskCN
from dataset import check_data, classes, extraction, folds, isic, label_csv, own, prepare_own, splits
from dataset.classes import PAPER, ClassTable
from dataset.layout import SPLITS, Layout
from engine import files, images
from engine.errors import InputError
from mbdcnn import networks, stages
from tests.test_data_scripts import state
from tests.test_inputs import smooth_picture

FIVE = ClassTable(('nv', 'mel', 'bkl', 'bcc', 'akiec'), ('mel', 'bcc'), ('bcc',),
                  {'mel': ('melanoma',), 'akiec': ('AK', 'actinic keratosis')})
ISIC_2019 = 'image,MEL,NV,BCC,AK,BKL,UNK,score_weight\n'


# --- The class table

def test_a_class_table_is_kept_as_it_is_and_is_the_papers_without_a_file(tmp_path):
    layout = Layout(tmp_path)
    assert layout.classes == PAPER and PAPER.tasks == {'melanoma': 1, 'keratosis': 2} and layout.of_paper
    classes.write(layout.data, FIVE)
    assert layout.classes == FIVE and FIVE.tasks == {'mel': 1, 'bcc': 3} and not layout.of_paper
    assert classes.of_record(json.loads(json.dumps(FIVE.record())), 'x').tasks == FIVE.tasks
    (layout.data / classes.FILE).write_text('classes = ["a b", "ö"]')
    assert layout.classes == ClassTable(('a b', 'ö'), ('a b', 'ö'))


@pytest.mark.parametrize('text, faults', [
    ('classes = [', ['not close|Unclosed|Invalid']), ('classes = ["a"]', ['2 to 100']),
    ('classes = "ab"', ['list of 2']), (
        'colour = 1\nclasses = ["a", "b"]', ['colour is not known']),
    ('classes = ["a", "A", "x,y", " b", "note", "Mean"]\nscored = ["c", "a", "a"]\nrare = 3', [
        "'x,y'", "' b'", "'note'", "'Mean'", "scored: 'c'", 'names a class twice', 'rare must',
        "'a' stands"]),
    ('classes = ["a", "b"]\nscored = []\n[words]\na = ["B"]\nc = []', [
        'no class', "words: 'c'", "'b' stands"])])
def test_a_bad_class_table_is_refused_with_all_its_faults(tmp_path, text, faults):
    (tmp_path / classes.FILE).write_text(text)
    with pytest.raises(InputError) as error:
        classes.read(tmp_path)
    assert len(error.value.faults) == len(faults)
    for line, fault in zip(error.value.faults, faults, strict=True):
        assert any(part in line for part in fault.split('|')) and str(tmp_path / classes.FILE) in line


def test_no_class_is_called_like_another_column_of_the_results(trained):
    summary = json.loads((trained.results / 'MaskCN_Validation.json').read_text())
    taken = set(predict.columns_of(())) | set(summary) | set(summary['9-crop']) | {'image_id', 'image'}
    assert {name.casefold() for name in taken - set(trained.classes.scored)} <= classes.RESERVED


# --- Labels

@pytest.mark.parametrize('text', [
    'image,label\na.jpg,nv\nb,MELANOMA\nc,actinic_keratosis\nd,bcc\n',
    'lesion_id,image_id,dx,dx_type,age\nL1,a,nv,histo,80.0\nL1,b,mel,,1\nL2,c,akiec,histo,0\nL3,d,bcc,x,\n',
    # ISIC-2018 has no UNK, ISIC-2019 one that is 0, and weights in its test labels
    ISIC_2019 + 'a,0.0,1.0,0.0,0.0,0.0,0.0,1.0\nb,1,0,0,0,0,0,1.0\nc,0,0,0,1,0,0,0.0\nd,0,0,1,0,0,0,1.0\n',
    'image_name,patient_id,diagnosis,target\na,p,nv,0\nb,p,melanoma,1\nc,q,ak,0\nd,q,bcc,0\n'])
def test_the_forms_of_a_label_file_are_known_by_their_headers(tmp_path, text):
    (tmp_path / 'l.csv').write_text(text)
    assert label_csv.read(tmp_path / 'l.csv', FIVE) == {'a': 0, 'b': 1, 'c': 4, 'd': 3}


@pytest.mark.parametrize('text, table, faults', [
    ('image,label\na,nv\nb,scc\nb,nv\nc,\n,nv\n', FIVE, [
        'line 3: b is scc, which', 'line 4: b is listed twice', 'line 5: c is of no class',
        "line 6: image ''"]),
    (ISIC_2019 + 'a,0,0,0,0,0,1,1\nb,1,1,0,0,0,0,1\nc,0,0,0,0,0,0,1\nd,0,,1,0,0,0,1\n', FIVE, [
        'a is UNK, which', 'b is MEL and NV at once', 'c is of no class', "d: NV ''"]),
    # ISIC-2018's and HAM10000's rows of other classes do not become nevi of the paper's three
    ('image,MEL,NV,BCC\na,1,0,0\nb,0,1,0\nc,0,0,1\n', PAPER, ['c is BCC, which']),
    ('image_id,dx\na,nv\nb,bkl\nc,mel\n', PAPER, ['b is bkl, which']),
    ('image,label,dx\na,nv,nv\n', FIVE, ['several columns that name a class: label, dx']),
    ('image,image,label\na,b,nv\n', FIVE, ['has several columns image']),
    ('name,label\na,nv\n', FIVE, ['has no column image or']),
    ('image,age\na,4\n', FIVE, ['has no column label or class or dx'])])
def test_labels_that_no_class_table_explains_are_refused_together(tmp_path, text, table, faults):
    (tmp_path / 'l.csv').write_text(text)
    with pytest.raises(InputError) as error:
        label_csv.read(tmp_path / 'l.csv', table)
    assert len(error.value.faults) == len(faults)
    for line, fault in zip(error.value.faults, faults, strict=True):
        assert fault in line and 'l.csv' in line
    assert table.names[0] in error.value.remedy


# --- Shares

def test_shares_keep_groups_together_and_give_each_part_some_of_every_stratum():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ids = [f'p{number}' for number in range(rng.integers(60, 200))]
        lesion = {image_id: int(rng.integers(0, len(ids) * 0.7)) for image_id in ids}
        kind = {group: (int(min(rng.geometric(0.4), 6)),) for group in lesion.values()}
        strata = {image_id: (kind[lesion[image_id]],) for image_id in ids}
        shares = {'Training': 0.7, 'Validation': 0.2, 'Testing': 0.1}
        parts = folds.share_out(lesion, strata, shares, seed)
        assert set(parts) == set(ids)
        assert len({(lesion[name], part) for name, part in parts.items()}) == len(set(lesion.values()))
        for stratum, groups in Counter(kind.values()).items():
            held = Counter(parts[image_id] for image_id in ids if strata[image_id] == (stratum,))
            assert len(held) >= min(groups, 3)
            assert all(abs(held[part] - share * held.total()) <= 6 for part, share in shares.items())
        again = dict(sorted(lesion.items(), key=lambda item: item[0][::-1]))   # another order of the files
        assert folds.share_out(again, strata, shares, seed) == parts
    assert folds.share_out(lesion, strata, shares, 99) != parts


# --- From a folder to a root

def make_mine(folder, lesions=18):
    """A folder with 1 to 3 pictures a lesion, four classes, masks of two thirds in three forms, and a csv."""
    (folder / 'pictures' / 'part_2').mkdir(parents=True)
    (folder / 'masks').mkdir()
    rows, numbers = [('lesion_id', 'image_id', 'dx')], itertools.count()
    for lesion in range(lesions):
        for _ in range(1 + lesion % 3):
            number = next(numbers)
            name = f'mine_{number:02d}'
            picture = smooth_picture(48, 36, seed=number)
            images.write_png(folder / 'pictures' / ('part_2' if number % 2 else '.') / f'{name}.png', picture)
            mask = np.zeros((36, 48), np.uint8)
            cv2.circle(mask, (24, 18), 9, 1, -1)
            if lesion % 3:
                stem = f'{name}_segmentation' if number % 4 else name
                images.write_mask(folder / 'masks' / f'{stem}.png', mask.repeat(3, 0).repeat(3, 1)
                                  if number % 5 == 0 else mask)
            rows.append((f'L{lesion}', name, ('nv', 'nv', 'mel', 'bkl', 'bcc', 'nv')[lesion % 6]))
    with open(folder / 'labels.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    return folder


def call(monkeypatch, script, *words):
    monkeypatch.setattr('sys.argv', [f'{script.__name__}.py', *map(str, words)])
    script.main()


def words_of(mine, root, *more):
    return (f'--ROOT={root}', f'--IMAGES={mine / "pictures"}', f'--MASKS={mine / "masks"}',
            f'--LABELS={mine / "labels.csv"}', '--VALIDATION_SHARE=0.25', '--TESTING_SHARE=0.25', *more)


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """(folder of pictures, masks and labels, Layout of the root that is made of them)."""
    mine, patch = make_mine(tmp_path_factory.mktemp('mine')), pytest.MonkeyPatch()
    with patch.context() as patch:
        call(patch, prepare_own, *words_of(mine, mine / 'own', '--RESIZE_MASKS=True', '--SCORED=mel,bkl'))
    return mine, Layout(mine / 'own')


@pytest.fixture
def copied(prepared, tmp_path):
    mine = shutil.copytree(prepared[0], tmp_path / 'mine', symlinks=True)
    return mine, Layout(mine / 'own')


def split_rows(layout):
    with open(layout.root / 'split.csv', newline='') as file:
        return {row['image_id']: row for row in csv.DictReader(file)}


def test_a_folder_becomes_a_root_in_which_no_lesion_is_in_two_splits(prepared):
    mine, layout = prepared
    assert layout.classes == ClassTable(('bcc', 'bkl', 'mel', 'nv'), ('mel', 'bkl'), ('bcc', 'bkl'))
    with open(mine / 'labels.csv', newline='') as file:
        rows = {row['image_id']: row for row in csv.DictReader(file)}
    split_of, masked = {}, {}
    for split in SPLITS:
        for image_id, path, label in isic.classification_images(layout, split):
            split_of[image_id] = split
            assert layout.classes.names[label] == rows[image_id]['dx']
            source = next(mine.glob(f'pictures/**/{image_id}.png'))
            assert path.is_symlink() and path.resolve() == source.resolve()
        for _, path, mask in isic.segmentation_images(layout, split, skip_unpaired=True)[0]:
            masked[path.stem] = images.read_mask(mask)
            assert masked[path.stem].shape == (36, 48) and 200 < masked[path.stem].sum() < 300
        listed = {isic.image_id_of(path) for path, _ in isic.read_classification_list(layout, split)}
        assert listed == {image_id for image_id, its in split_of.items() if its == split}
        assert {path.stem for path, _ in isic.read_segmentation_list(layout, split)} == listed & masked.keys()
        assert {rows[image_id]['dx'] for image_id in listed} == {'bcc', 'bkl', 'mel', 'nv'}
    assert split_of.keys() == rows.keys() and len(masked) == sum(int(row['lesion_id'][1:]) % 3 > 0
                                                                 for row in rows.values())
    assert len({(rows[image_id]['lesion_id'], split) for image_id, split in split_of.items()}) == 18
    assert {image_id: row['split'] for image_id, row in split_rows(layout).items()} == split_of
    counts = Counter(isic.image_id_of(path) for path, _ in isic.read_classification_list(layout, 'Training'))
    assert all(count == (15 if rows[name]['dx'] in ('bcc', 'bkl') else 9) for name, count in counts.items())


def test_a_second_run_changes_nothing_another_split_only_before_training(copied, monkeypatch, capsys):
    mine, layout = copied
    before = state(layout.root)
    call(monkeypatch, prepare_own, *words_of(mine, layout.root, '--RESIZE_MASKS=True'))   # has classes.toml
    assert state(layout.root) == before and ' 0 brought to the size' in capsys.readouterr().out
    weights = layout.weights('CoarseSN')
    weights.parent.mkdir(parents=True)
    weights.write_text('trained')
    other = words_of(mine, layout.root, '--RESIZE_MASKS=True', '--SEED=1', '--SCORED=bcc')
    with pytest.raises(InputError, match='split.csv would change') as error:
        call(monkeypatch, prepare_own, *other)
    assert str(weights) in error.value.faults[-1] and ': would move from ' in error.value.faults[0]
    assert state(layout.root).keys() - before.keys() == {'models/CoarseSN/CoarseSN.pth'}
    rows = split_rows(layout)   # a corrected label, in the splits that there are
    assert rows['mine_00']['class'] == 'nv'
    with open(mine / 'again.csv', 'w', newline='') as file:
        csv.writer(file).writerows([('lesion_id', 'image_id', 'dx', 'split'), *(
            (row['group'], name, 'bkl' if name == 'mine_00' else row['class'], row['split'])
            for name, row in rows.items())])
    call(monkeypatch, prepare_own, *(word.replace('labels.csv', 'again.csv') for word in words_of(
        mine, layout.root, '--RESIZE_MASKS=True')))
    now, written = split_rows(layout), (layout.root / 'split.csv').read_text()
    for text, fault in ((written + 'gone,nv,Training,gone,no\n', 'gone: is no longer'),   # or has a new name
                        (written + 'gone\n', 'does not say'),
                        (written.replace(',', ';'), 'its first line is not')):
        (layout.root / 'split.csv').write_text(text)
        with pytest.raises(InputError, match=fault):
            call(monkeypatch, prepare_own, *(word.replace('labels.csv', 'again.csv') for word in words_of(
                mine, layout.root, '--RESIZE_MASKS=True')))
    (layout.root / 'split.csv').write_text('\ufeff' + written)   # as a spreadsheet saves it
    assert now['mine_00']['class'] == 'bkl'
    assert all(now[name]['split'] == row['split'] for name, row in rows.items())
    weights.unlink()
    table = layout.classes
    call(monkeypatch, prepare_own, *other)
    rows = split_rows(layout)
    assert layout.classes == replace(table, scored=('bcc',)) != table
    with pytest.raises(InputError, match="'df' is no class of"):
        call(monkeypatch, prepare_own, *other[:-1], '--SCORED=df')
    for split in SPLITS:
        there = {image_id for image_id, row in rows.items() if row['split'] == split}
        assert {path.stem for path in (layout.originals(split) / 'Images').iterdir()} == there
        masks = {path.stem for path in (layout.originals(split) / 'Annotation').iterdir()}
        assert masks == {f'{name}_segmentation' for name in there if rows[name]['mask'] == 'yes'}
    call(monkeypatch, check_data, f'--ROOT={layout.root}', '--SKIP_UNPAIRED=True')


def test_all_faults_of_a_folder_are_listed_before_anything_is_written(tmp_path, monkeypatch):
    mine = make_mine(tmp_path / 'mine', lesions=6)
    pictures, masks = mine / 'pictures', mine / 'masks'
    (pictures / 'mine_00.png').write_bytes(b'no picture')
    shutil.copy(pictures / 'mine_02.png', pictures / 'part_2' / 'mine_02.png')
    shutil.copy(pictures / 'mine_02.png', pictures / 'unknown.png')
    shutil.copy(pictures / 'mine_02.png', pictures / 'two words.png')
    images.write_png(masks / 'mine_03_segmentation.png', np.full((36, 48), 9, np.uint8))
    images.write_mask(masks / 'mine_04.png', np.ones((36, 36), np.uint8))
    with open(mine / 'labels.csv', 'a') as file:
        file.write('L9,mine_05,bkl\ntwo words,two words,nv\n')
    with pytest.raises(InputError) as error:
        call(monkeypatch, prepare_own, *words_of(mine, mine / 'own'))
    wanted = ['mine_05 is listed twice', 'have the same id', 'unknown has no row in', 'name with spaces',
              'mine_00.png: is not a readable', 'mine_03_segmentation.png: is not a binary mask',
              'mine_04.png: is 36x36 px',
              *(f'{name}_segmentation.png: is 144x108 px, its picture {name}.png is 48x36 px; --RESIZE'
                for name in ('mine_05', 'mine_10'))]
    for fault in wanted:
        assert sum(fault in line for line in error.value.faults) == 1, (fault, error.value.faults)
    assert len(error.value.faults) == len(wanted) and not (mine / 'own').exists()
    with pytest.raises(InputError, match='settings') as error:
        call(monkeypatch, prepare_own, '--VALIDATION_SHARE=0.9', '--TESTING_SHARE=0.1')
    assert len(error.value.faults) == 3


def test_given_splits_and_patients_are_followed_and_a_straddling_one_is_refused(tmp_path, monkeypatch):
    mine = tmp_path / 'mine'
    for number in range(12):
        images.write_png(mine / 'pictures' / f'p{number}.png', smooth_picture(20, 20, seed=number))

    def labels(split_of):
        rows = [f'p{n},{"ab"[n % 2]},{split_of(n)},{"" if n == 11 else n // 2}' for n in range(12)]
        (mine / 'labels.csv').write_text('\n'.join(['image,label,split,patient_id', *rows]) + '\n')

    def run(*more):
        words = [word for word in words_of(mine, mine / 'own', *more) if 'MASKS' not in word]
        call(monkeypatch, prepare_own, *words)
        return {image_id: row['split'] for image_id, row in split_rows(Layout(mine / 'own')).items()}

    labels(lambda n: 'train' if n < 8 else 'test')   # the validation split is taken from the training's
    found = run()
    assert all((found[f'p{n}'] == 'Testing') == (n >= 8) for n in range(12))
    assert Counter(found.values()) == {'Training': 6, 'Validation': 2, 'Testing': 4}
    assert all(found[f'p{n}'] == found[f'p{n + 1}'] for n in range(0, 10, 2))
    labels(lambda n: ('Train', 'valid', 'TEST')[n // 2 % 3])
    assert Counter(run().values()) == {'Training': 4, 'Validation': 4, 'Testing': 4}
    images.write_png(mine / 'pictures' / 'p11.png', smooth_picture(20, 20, seed=0))   # the picture of p0
    labels(lambda n: ('train', 'val', 'test', 'train')[n % 4] if n < 4 else 'dev' if n == 5 else 'test')
    with pytest.raises(InputError, match='given splits') as error:
        run()
    assert len(error.value.faults) == 1 and "p5: split is 'dev'" in error.value.faults[0]
    labels(lambda n: 'val' if n in (2, 4, 5) else 'test' if n > 9 else 'train')
    with pytest.raises(InputError, match='given splits') as error:
        run()
    assert error.value.faults == ['p0 is in Training and p11 in Testing: they belong together',
                                  'p2 is in Validation and p3 in Training: they belong together']


def make_few(folder, names, classes=('a', 'b')):
    """A folder with pictures of these names in two classes in turn, their masks, and a csv."""
    for number, name in enumerate(names):
        images.write_png(folder / 'pictures' / f'{name}.png', smooth_picture(20, 20, seed=number))
        images.write_mask(folder / 'masks' / f'{name}.png', np.eye(20, dtype=np.uint8))
    files.write_csv(folder / 'labels.csv', [('image', 'label'), *zip(names, itertools.cycle(classes))])
    return folder


def test_masks_below_the_pictures_are_masks_however_their_folder_is_named(tmp_path, monkeypatch):
    mine = make_few(tmp_path / 'mine', [f'p{number}' for number in range(8)])
    (mine / 'masks').rename(mine / 'pictures' / 'masks')
    (mine / 'link').symlink_to(mine / 'pictures')
    monkeypatch.chdir(mine)
    for folder, masks in (('pictures', mine / 'pictures' / 'masks'), ('pictures', 'link/masks'),
                          ('link', 'pictures/masks'), (mine / 'pictures', 'pictures/masks')):
        pictures, found, faults = own.find(Path(folder), Path(masks))
        assert not faults and len(found) == len(pictures) == 8
        assert all(path.parent.name != 'masks' for path in pictures.values())


def test_a_root_among_the_pictures_is_not_taken_for_pictures(tmp_path, monkeypatch):
    mine = make_few(tmp_path / 'mine', [f'p{number}' for number in range(8)])
    (tmp_path / 'link').symlink_to(mine)
    (mine / 'pictures' / 'own_too').mkdir()   # a name that begins alike
    (mine / 'pictures' / 'p0.png').rename(mine / 'pictures' / 'own_too' / 'p0.png')
    layout, state_of = Layout(mine / 'pictures' / 'own'), []
    for root in (layout.root, tmp_path / 'link' / 'pictures' / 'own'):
        call(monkeypatch, prepare_own, *words_of(mine, root))
        state_of.append(state(layout.root))
    assert state_of[0] == state_of[1] and len(split_rows(layout)) == 8
    monkeypatch.chdir(mine)
    before = state(mine)
    for folder, root in (('.', '.'), ('pictures', mine / 'pictures'), ('new/dataset', 'new')):
        with pytest.raises(InputError, match='settings') as error:
            call(monkeypatch, prepare_own, f'--IMAGES={folder}', '--LABELS=labels.csv', f'--ROOT={root}')
        fault, = error.value.faults
        assert fault.startswith(f'IMAGES={folder}: ') and '--ROOT=' in fault and state(mine) == before


def test_commas_and_quotes_in_names_are_read_as_they_were_written(tmp_path, monkeypatch, capsys):
    names = ['p,0', '"p1"', 'p"2', "p'3", '""', '"p5', '#6', 'p7"']
    mine, layout = make_few(tmp_path / 'mine', names, ('nv', '"big" mole')), Layout(tmp_path / 'own')
    for _ in range(2):
        call(monkeypatch, prepare_own, *words_of(mine, layout.root))
        assert sorted(split_rows(layout)) == sorted(names)
    assert layout.classes.names == ('"big" mole', 'nv')
    found = {}
    for split in SPLITS:
        found |= {image_id: label for image_id, _, label in isic.classification_images(layout, split)}
        assert label_csv.read(layout.labels(split), layout.classes).items() <= found.items()
        listed = {isic.image_id_of(path) for path, _ in isic.read_classification_list(layout, split)}
        assert listed == {isic.id_of(path) for path, _ in isic.read_segmentation_list(layout, split)}
    assert found == {name: 1 - number % 2 for number, name in enumerate(names)}
    call(monkeypatch, check_data, f'--ROOT={layout.root}')
    assert 'no faults' in capsys.readouterr().out


def test_names_that_are_spelt_in_two_forms_of_unicode_are_one(tmp_path, monkeypatch, capsys):
    names = [f'lésion{number}' for number in range(8)]
    mine, layout = make_few(tmp_path / 'mine', names), Layout(tmp_path / 'own')
    for path in (mine / 'pictures').iterdir():   # as macOS spells them
        path.rename(path.with_name(unicodedata.normalize('NFD', path.name)))
    words = words_of(mine, layout.root)
    call(monkeypatch, prepare_own, *words)
    assert 'have no picture' not in capsys.readouterr().out
    rows = split_rows(layout)
    assert sorted(rows) == names and {row['mask'] for row in rows.values()} == {'yes'}
    layout.weights('CoarseSN').parent.mkdir(parents=True)
    layout.weights('CoarseSN').write_text('trained')
    (layout.root / 'split.csv').write_text(   # of an earlier version
        unicodedata.normalize('NFD', (layout.root / 'split.csv').read_text()))
    call(monkeypatch, prepare_own, *words)
    for split in SPLITS:   # the same where pictures were put by hand, and lists are of an earlier version
        for path in list((layout.originals(split) / 'Images').iterdir()):
            path.rename(path.with_name(unicodedata.normalize('NFD', path.name)))
        assert isic.classification_images(layout, split) and isic.segmentation_images(layout, split)
    extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)
    data = splits.classification(layout, 'Validation', 16, coarse=False, whole_only=True)
    assert data.names == sorted(name for name in names if rows[name]['split'] == 'Validation')
    shutil.copy(next((mine / 'pictures').glob('*1.png')), mine / 'pictures' / 'lésion2.png')
    with pytest.raises(InputError, match='have the same id'):
        call(monkeypatch, prepare_own, *words)


def test_data_of_others_and_classes_without_pictures_are_refused(copied, monkeypatch):
    mine, layout = copied
    (layout.root / 'split.csv').unlink()
    before = state(layout.root)
    with pytest.raises(InputError, match='did not put there'):
        call(monkeypatch, prepare_own, *words_of(mine, layout.root))
    assert state(layout.root) == before
    with pytest.raises(InputError, match='needs pictures') as error:
        call(monkeypatch, prepare_own, *words_of(mine, mine / 'new', '--CLASSES=nv,mel,bkl,bcc,df',
                                                 '--RESIZE_MASKS=True'))
    assert error.value.faults == ['Training: no picture of df', 'Validation: no picture of df']
    with pytest.raises(InputError, match='cannot be used') as error:
        call(monkeypatch, prepare_own, *words_of(mine, mine / 'new', '--CLASSES=nv,mel,bkl',
                                                 '--RESIZE_MASKS=True'))
    assert all('is bcc, which the class table does not know' in line for line in error.value.faults)
    assert not (mine / 'new' / 'split.csv').exists()


@pytest.mark.parametrize('header', ['image,label,split,lesion_id,age,remark', ','.join(prepare_own.COLUMNS),
                                    ','.join((*prepare_own.COLUMNS, 'remark'))])
def test_a_split_csv_of_others_opens_no_root(tmp_path, monkeypatch, header):
    mine, layout = make_mine(tmp_path / 'mine', lesions=6), Layout(tmp_path / 'isic')
    mask = layout.originals('Testing') / 'Annotation' / 'x_segmentation.png'
    images.write_mask(mask, np.ones((9, 9), np.uint8))
    (layout.root / 'split.csv').write_text(header + '\n')
    before = state(tmp_path)
    with pytest.raises(InputError, match='did not put there') as error:
        call(monkeypatch, prepare_own, *words_of(mine, layout.root, '--RESIZE_MASKS=True'))
    assert error.value.faults[-1].startswith(str(mask if header.endswith(',mask') else mask.parents[1]))
    assert len(error.value.faults) == 2 - header.endswith(',mask') and state(tmp_path) == before


def test_the_label_file_is_not_written_over(tmp_path, monkeypatch):
    mine = make_mine(tmp_path / 'mine', lesions=6)
    (mine / 'split.csv').symlink_to('labels.csv')   # or the file itself
    before = state(mine)
    with pytest.raises(InputError, match='split.csv: is the label file'):
        call(monkeypatch, prepare_own, *words_of(mine, mine, '--RESIZE_MASKS=True'))
    assert state(mine) == before


def test_pictures_and_masks_of_others_stay_where_links_would_lie(copied, monkeypatch):
    mine, layout = copied
    image = next((layout.originals('Training') / 'Images').iterdir())
    mask = next(path for path in (layout.originals('Testing') / 'Annotation').iterdir() if path.is_symlink())
    for path in (image, mask):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    before = state(layout.root)
    with pytest.raises(InputError, match='did not put there') as error:
        call(monkeypatch, prepare_own, *words_of(mine, layout.root, '--RESIZE_MASKS=True'))
    assert error.value.faults == [f'{image}: is there', f'{mask}: is there'] and state(layout.root) == before


def test_a_kill_between_a_mask_and_its_note_makes_it_nobody_elses(copied, monkeypatch):
    mine, layout = copied
    shutil.rmtree(layout.root)
    words = words_of(mine, layout.root, '--RESIZE_MASKS=True')
    with monkeypatch.context() as patch:
        patch.setattr(prepare_own.extraction, 'note', Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call(patch, prepare_own, *words)
    assert any(not path.is_symlink() for path in layout.data.glob('*/Annotation/*.png'))
    call(monkeypatch, prepare_own, *words)


# --- Without masks, and with other classes, to the scores

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Layout of a root without masks; mask-CN was trained for two steps on the pictures alone, and scored."""
    mine, patch = make_mine(tmp_path_factory.mktemp('maskless'), 12), pytest.MonkeyPatch()
    layout = Layout(mine / 'own')
    with patch.context() as patch:
        words = (word for word in words_of(mine, layout.root) if 'MASKS' not in word and 'TEST' not in word)
        call(patch, prepare_own, *words, '--TESTING_SHARE=0')   # two lesions of most classes
        call(patch, train_MaskCN, *training_words(layout))
        call(patch, eval_MaskCN, f'--ROOT={layout.root}', '--INPUT_SIZE=32', '--AMP=fp32')
    yield layout
    shutil.rmtree(mine)


def training_words(layout):
    return (f'--ROOT={layout.root}', '--INPUT_CHANNEL=3', '--INPUT_SIZE=32', '--AMP=fp32', '--STEPS=2',
            '--PRETRAINED=none', '--VALIDATE_EVERY=2', '--BATCH_SIZE=4', '--VALIDATION_CROPS=1')


def test_without_masks_the_stages_that_need_none_can_be_run(trained, monkeypatch):
    with pytest.raises(InputError, match='Training: no picture has a mask') as error:
        call(monkeypatch, train_CoarseSN, f'--ROOT={trained.root}')
    assert 'train_MaskCN.py --INPUT_CHANNEL=3' in error.value.remedy
    assert 'models/CoarseSN/' in error.value.remedy and trained.weights('MaskCN').is_file()


def test_scores_and_the_report_are_of_the_tables_classes(trained, capsys):
    names, labels = trained.classes.names, label_csv.read(trained.labels('Validation'), trained.classes)
    assert names == trained.classes.scored == ('bcc', 'bkl', 'mel', 'nv')
    with open(trained.results / 'MaskCN_Validation.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    p = np.array([[float(row[name]) for name in names] for row in rows])
    assert {row['image_id'] for row in rows} == labels.keys() and np.allclose(p.sum(1), 1, atol=1e-6)
    summary = json.loads((trained.results / 'MaskCN_Validation.json').read_text())
    assert np.isclose(summary['mean AUC'], np.mean([summary[name]['AUC'] for name in names]))
    assert np.sum(summary['confusion'], 1).tolist() == [list(labels.values()).count(n) for n in range(4)]
    challenge = (trained.results / 'MaskCN_Validation_challenge.csv').read_text().splitlines()
    assert challenge[0] == 'image,bcc,bkl,mel,nv' and len(challenge) == len(labels) + 1
    page = (trained.results / 'report.html').read_text()
    assert all(page.count(f'{name} AUC') >= 2 for name in names) and '>paper<' not in page
    assert 'The paper\'s numbers' not in page and page.count('class="right"') == 4
    row = json.loads((trained.run('MaskCN') / 'metrics.jsonl').read_text().splitlines()[-1])
    assert row['mean AUC'] == pytest.approx(np.mean([row[f'{name} AUC'] for name in names]))


def test_weights_and_runs_of_another_class_table_are_refused(trained, monkeypatch, tmp_path):
    config = json.loads((trained.run('MaskCN') / 'config.json').read_text())
    assert config['inputs']['classes'] == trained.classes.record()
    layout = Layout(tmp_path / 'mine' / 'own')
    shutil.copytree(trained.root.parent, tmp_path / 'mine', symlinks=True,
                    ignore=shutil.ignore_patterns('*.pth', 'cache'))
    for name in ('MaskCN.pth', 'last.pth'):
        (layout.run('MaskCN') / name).symlink_to(trained.run('MaskCN') / name)
    # The same numbers under other names: nothing but the record could tell.
    other = ClassTable(('a', 'bkl', 'mel', 'nv'), ('a', 'mel'), ('a', 'bkl'), {'a': ('bcc',)})
    classes.write(layout.data, other)
    with pytest.raises(InputError, match='tell other classes apart') as error:
        call(monkeypatch, eval_MaskCN, f'--ROOT={layout.root}', '--SPLIT=Validation', '--INPUT_SIZE=32')
    assert 'bcc, bkl, mel, nv' in error.value.faults[0] and 'a, bkl, mel, nv' in error.value.faults[1]
    with pytest.raises(InputError, match='other settings or data') as error:
        call(monkeypatch, train_MaskCN, *training_words(layout))
    assert any(line.startswith('classes: ') for line in error.value.faults)
    with pytest.raises(InputError, match='tell other classes apart'):
        networks.require_classes(layout.weights('MaskCN'), PAPER)
    # Without a record, as earlier versions left them, weights and runs are of the paper's three.
    inputs = {name: value for name, value in config['inputs'].items() if name != 'classes'}
    (layout.run('MaskCN') / 'config.json').write_text(json.dumps(config | {'inputs': inputs}))
    assert stages.read_config(layout.weights('MaskCN'))['inputs']['classes'] == PAPER.record()
    with pytest.raises(InputError, match='does not fit') as error:
        networks.load_classifier(layout, 'cpu', 'fp32')
    assert 'cls.weight has 4 outputs' in error.value.faults[0]
