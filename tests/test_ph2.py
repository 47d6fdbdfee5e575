"""PH2: reading the download as it is laid out, and dataset/prepare_PH2.py on a small one."""
import csv
import os
import random
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dataset import crops, isic, label_csv, ph2, prepare_PH2
from dataset.layout import Layout
from engine import images
from engine.errors import InputError
from tests.conftest import REPOSITORY, run_in_turn, run_script
from tests.test_data_scripts import draw, write_labels
from tests.test_inputs import smooth_picture

SCRIPT = 'dataset/prepare_PH2.py'
IDS = [f'IMD{number:03d}' for number in (3, 9, 2, 4, 10, 20, 63, 75, 105, 168, 400, 417)]
LABELS = {image_id: number % 3 for number, image_id in enumerate(IDS)}   # four of each
HEADER = '||   Name   || Histological Diagnosis || Clinical Diagnosis || Asymmetry || Pigment Network ||'
LEGEND = '\n\nLegend:\n  Clinical Diagnosis: \n  0 - Common Nevus; 1 - Atypical Nevus; 2 - Melanoma.\n'


def add_case(source, image_id, direct=False, size=(40, 30)):
    """Write a picture and its 1-bit mask as the download has them, or directly into the id's folder."""
    folder = source / 'PH2 Dataset images' / image_id
    width, height = size
    y, x = np.mgrid[:height, :width]
    lesion = (x - width / 2) ** 2 + (y - height / 2) ** 2 < 100
    picture = Image.fromarray(smooth_picture(width, height, seed=int(image_id[3:])))
    for place, pixels in ((f'{image_id}_Dermoscopic_Image/{image_id}.bmp', picture),
                          (f'{image_id}_lesion/{image_id}_lesion.bmp', Image.fromarray(lesion))):
        path = folder / (Path(place).name if direct else place)
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(path)


def write_table(source, rows):
    """The txt: rows of (id, diagnosis) between what stands above and below them."""
    lines = [f'|| {image_id} ||                        ||         {number}          ||     0     ||  T  ||'
             for image_id, number in rows]
    (source / 'PH2_dataset.txt').write_text('\n'.join([HEADER, *lines]) + LEGEND)


def make_source(folder):
    """A download of twelve pictures; returns its folder."""
    for image_id in IDS:
        add_case(folder, image_id, direct=image_id == IDS[1])
    (folder / 'PH2 Dataset images' / 'Thumbs.db').write_text('no picture')
    write_table(folder, LABELS.items())
    return folder


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path / 'PH2Dataset')


# Reading

def test_pictures_masks_and_diagnoses_are_joined_by_id(source):
    folder = source / 'PH2 Dataset images'
    (folder / 'IMD004').rename(folder / 'imd004')   # as some unpack it
    cases = ph2.read(source)
    assert [case.image_id for case in cases] == sorted(IDS)
    assert {case.image_id: case.diagnosis for case in cases} == LABELS
    assert all(case.image.name == f'{case.image_id}.bmp' for case in cases)
    assert all(case.mask.name == f'{case.image_id}_lesion.bmp' for case in cases)
    assert {case.image.parent.name for case in cases} >= {IDS[1], f'{IDS[0]}_Dermoscopic_Image'}


def test_one_bit_masks_are_read_as_0_and_1(source):
    path = ph2.read(source)[0].mask
    with Image.open(path) as image:
        assert image.mode == '1'
    mask = images.read_mask(path)
    assert mask.dtype == np.uint8 and mask.shape == (30, 40) and set(np.unique(mask)) == {0, 1}
    assert mask[15, 20] == 1 and mask[0, 0] == 0


def test_every_fault_is_listed_at_once(source):
    folder = source / 'PH2 Dataset images'
    pictures = {i: folder / f'{i}/{i}_Dermoscopic_Image/{i}.bmp' for i in IDS}
    masks = {i: folder / f'{i}/{i}_lesion/{i}_lesion.bmp' for i in IDS}
    pictures['IMD003'].unlink()
    masks['IMD002'].unlink()
    pictures['IMD004'].write_bytes(pictures['IMD004'].read_bytes()[:1000])
    Image.fromarray(np.zeros((30, 41), bool)).save(masks['IMD010'])
    Image.fromarray(np.full((30, 40), 128, np.uint8)).save(masks['IMD020'])
    add_case(source, 'IMD063', direct=True)   # a second time
    rows = [(i, number) for i, number in LABELS.items() if i != 'IMD075']
    write_table(source, [*rows, ('IMD105', 1), ('IMD400', 3), ('IMD999', 0)])
    with pytest.raises(InputError) as caught:
        ph2.read(source)
    text, table = str(caught.value), source / 'PH2_dataset.txt'
    for fault in (f'{pictures["IMD003"]}: is missing', f'{masks["IMD002"]}: is missing',
                  f'{pictures["IMD004"]}: is damaged', f'{masks["IMD020"]}: is not a binary mask',
                  f'{masks["IMD010"]}: is 41x30 px, its picture IMD010.bmp is 40x30 px',
                  f'{masks["IMD010"]}: shows no lesion', 'IMD063_lesion.bmp: two masks of one id',
                  'IMD063.bmp: two pictures of one id', 'IMD075: has no diagnosis',
                  f'{table}, line 13: IMD105 is listed twice', f'{table}, line 14: IMD400 is listed twice',
                  "line 14: IMD400 has the diagnosis clinical diagnosis = '3'",
                  'IMD999: has a diagnosis, but no folder'):
        assert fault in text, fault
    assert len(caught.value.faults) == 13


@pytest.mark.parametrize('text', ['', 'Name Clinical Diagnosis\nIMD003 0\n', HEADER + LEGEND,
                                  '|| Name || Diagnosis ||\n|| IMD003 || 0 ||\n'])
def test_a_table_without_rows_or_columns_is_one_fault(source, text):
    (source / 'PH2_dataset.txt').write_text(text)
    with pytest.raises(InputError, match='lists no pictures below a line with') as caught:
        ph2.read(source)
    assert len(caught.value.faults) == 1


def test_a_row_that_lacks_its_diagnosis_is_named(source):
    path = source / 'PH2_dataset.txt'
    path.write_text(re.sub(r'IMD003 .*', 'IMD003 ||', path.read_text()))
    with pytest.raises(InputError, match='line 2: IMD003 has the diagnosis') as caught:
        ph2.read(source)
    assert len(caught.value.faults) == 1


def write_sheet(source, marks):
    """The xlsx instead of the txt; marks : {id: the three cells below the diagnoses}."""
    book = pytest.importorskip('openpyxl').Workbook()
    book.active.append(['PH2 Dataset'])
    book.active.append([None, 'Legend: Common Nevus, Atypical Nevus, Melanoma'])
    book.active.append([])
    book.active.append(['Image Name', 'Histological\nDiagnosis', 'Common Nevus', 'Atypical  Nevus',
                        'Melanoma', 'Asymmetry\n(0/1/2)'])
    for image_id, cells in marks.items():
        book.active.append([image_id, None, *cells, 0])
    book.save(source / 'PH2_dataset.xlsx')
    (source / 'PH2_dataset.txt').unlink()


def test_the_sheet_gives_the_same_cases_as_the_text(source):
    expected = ph2.read(source)
    write_sheet(source, {i: [' x' if number == k else None for k in range(3)]
                         for i, number in LABELS.items()})
    assert ph2.read(source) == expected


def test_marks_that_contradict_each_other_are_listed(source):
    marks = {i: ['X' if number == k else None for k in range(3)] for i, number in LABELS.items()}
    write_sheet(source, marks | {'IMD003': ['X', None, 'X'], 'IMD009': [None] * 3,
                                 'IMD002': [None, 'Y', None]})
    with pytest.raises(InputError) as caught:
        ph2.read(source)
    assert len(caught.value.faults) == 3
    assert ("PH2_dataset.xlsx, row 5: IMD003 has the diagnosis common nevus = 'x', atypical nevus = '', "
            "melanoma = 'x'") in str(caught.value)


def test_the_sheet_needs_openpyxl_only_without_the_text(source, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openpyxl', None)   # as if it were not installed
    (source / 'PH2_dataset.xlsx').write_bytes(b'PK')
    assert len(ph2.read(source)) == 12
    (source / 'PH2_dataset.txt').unlink()
    with pytest.raises(InputError, match='pip install openpyxl, or put PH2_dataset.txt beside it'):
        ph2.read(source)


def test_a_damaged_sheet_is_named(source):
    pytest.importorskip('openpyxl')
    (source / 'PH2_dataset.txt').unlink()
    (source / 'PH2_dataset.xlsx').write_bytes(b'PK')
    with pytest.raises(InputError, match='PH2_dataset.xlsx: cannot be read'):
        ph2.read(source)


# Folds

@pytest.mark.parametrize(('counts', 'k'), [((80, 80, 40), 4), ((7, 5, 3), 3), ((4, 9, 2), 2)])
def test_folds_are_disjoint_complete_and_stratified(tmp_path, counts, k):
    cases = [ph2.Case(f'IMD{100 * diagnosis + place:03d}', Path(), Path(), diagnosis)
             for diagnosis, count in enumerate(counts) for place in range(count)]
    settings = SimpleNamespace(FOLDS=k, SEED=0)
    parts, table = prepare_PH2.make_folds(cases, tmp_path, settings)
    tested = [case for splits in parts.values() for case in splits['Testing']]
    assert len(parts) == k and Counter(tested) == Counter(cases)
    for splits in parts.values():
        assert Counter(splits['Training'] + splits['Testing']) == Counter(cases)
        assert not set(splits['Training']) & set(splits['Testing'])
    for numbers in zip(*(prepare_PH2.count_diagnoses(splits['Testing']) for splits in parts.values()),
                       strict=True):
        assert max(numbers) - min(numbers) <= 1
    shuffled = random.Random(5).sample(cases, len(cases))
    again = prepare_PH2.make_folds(shuffled, tmp_path, settings)[1]
    assert sorted(again.splitlines()) == sorted(table.splitlines())
    assert prepare_PH2.make_folds(cases, tmp_path, SimpleNamespace(FOLDS=k, SEED=1))[1] != table


# The script

def make_root(folder):
    """A root with three validation pictures of ISIC-2017."""
    layout = Layout(folder)
    for number in range(3):
        draw(layout.originals('Validation'), f'ISIC_{number}')
    write_labels(layout.labels('Validation'), {f'ISIC_{number}': number for number in range(3)})
    return folder


def prepare(root, *words, expect=0):
    words = {word.partition('=')[0]: word for word in (f'--SOURCE={root.parent / "PH2Dataset"}', '--FOLDS=2',
                                                       *words)}
    return run_script(SCRIPT, root, *words.values(), expect=expect)


def state(folder):
    """{relative path: where a link leads to, or the bytes and time of a file}, lists without time."""
    found = {}
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file() and path.parent.name != 'contents' and path.name != '.lock':
            found[name] = path.read_bytes(), None if path.suffix == '.txt' else path.stat().st_mtime_ns
    return found


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
    """A root after the script with two folds; tests that change something take `copy`."""
    folder = tmp_path_factory.mktemp('ph2')
    make_source(folder / 'PH2Dataset')
    prepare(make_root(folder / 'root'))
    return folder / 'root'


@pytest.fixture
def copy(prepared, tmp_path):
    shutil.copytree(prepared.parent, tmp_path / 'copy', symlinks=True)
    return tmp_path / 'copy' / 'root'


def folds_of(root):
    with open(root / 'PH2' / 'folds.csv', newline='') as file:
        return {row['image_id']: (row['diagnosis'], row['fold']) for row in csv.DictReader(file)}


def check_fold(root, number, labels=LABELS):
    """A fold's pictures, labels, crops and lists are those of folds.csv, and nothing else is there."""
    table, fold = folds_of(root), Layout(root / 'PH2' / f'fold_{number}')
    for split in ('Training', 'Testing'):
        training = split == 'Training'
        ids = sorted(i for i, (_, own) in table.items() if (own != str(number)) == training)
        pictures = isic.classification_images(fold, split)
        assert [(i, label) for i, _, label in pictures] == [(i, int(labels[i] == 2)) for i in ids]
        assert list(label_csv.read(fold.labels(split))) == ids
        assert [i for i, _, _ in isic.segmentation_images(fold, split)[0]] == ids
        lines = [(name, label) for i, _, label in pictures
                 for name in crops.crop_names(i, crops.scales_of(label, training))]
        listed = isic.read_classification_list(fold, split)
        assert [(path.name, label) for path, label in listed] == lines
        assert {path.name for path in fold.crops(split).glob('*.png')} == {name for name, _ in lines}
        pairs = isic.read_segmentation_list(fold, split)
        assert [image.stem for image, _ in pairs] == ids
        assert set(fold.segmentation(split).rglob('*.png')) == {path for pair in pairs for path in pair}
    validation = [i for i, _, _ in isic.classification_images(fold, 'Validation')]
    assert validation == ['ISIC_0', 'ISIC_1', 'ISIC_2']
    assert len(isic.read_classification_list(fold, 'Validation')) == 27


def test_all_of_ph2_is_the_test_split_of_one_root(prepared):
    whole = Layout(prepared / 'PH2' / 'all')
    assert not whole.originals('Training').exists() and not whole.originals('Validation').exists()
    assert isic.classification_images(whole, 'Testing') == [
        (i, whole.originals('Testing') / 'Images' / f'{i}.png', int(LABELS[i] == 2)) for i in sorted(IDS)]
    for case, (image, mask) in zip(ph2.read(prepared.parent / 'PH2Dataset'),
                                   isic.read_segmentation_list(whole, 'Testing'), strict=True):
        np.testing.assert_array_equal(images.read_rgb(image), images.read_rgb(case.image))
        np.testing.assert_array_equal(images.read_mask(mask), images.read_mask(case.mask))
        with Image.open(mask) as written:
            assert written.mode == 'L'
    assert len(isic.read_classification_list(whole, 'Testing')) == 12 * 9
    assert len(list(whole.crops('Testing').glob('*.png'))) == 12 * 9
    assert Layout(prepared).of_paper and not whole.of_paper


def test_folds_hold_what_their_table_says(prepared):
    table = folds_of(prepared)
    assert {i: name for i, (name, _) in table.items()} == {i: ph2.DIAGNOSES[LABELS[i]] for i in IDS}
    assert set(Counter(table.values()).values()) == {2}   # of each diagnosis in each fold
    for number in (1, 2):
        check_fold(prepared, number)
    for text in run_in_turn(*(('dataset/check_data.py', prepared / 'PH2' / f'fold_{n}') for n in (1, 2))):
        assert 'no faults' in text


def test_pictures_and_validation_crops_are_there_once(prepared):
    folds = [Layout(prepared / 'PH2' / f'fold_{number}') for number in (1, 2)]
    for fold in folds:
        for split in ('Training', 'Testing'):
            pictures = list(fold.originals(split).rglob('*.png'))
            assert len(pictures) == 12
            assert all(path.is_symlink() and not os.readlink(path).startswith('/') for path in pictures)
        for own, shared in ((fold.crops('Validation'), Layout(prepared).crops('Validation')),
                            (fold.originals('Validation'), Layout(prepared).originals('Validation'))):
            assert own.is_symlink() and own.samefile(shared)


def test_a_second_run_touches_nothing(prepared):
    before = state(prepared)
    text = prepare(prepared)
    assert state(prepared) == before
    assert 'masks: 24 of 24 were up to date' in text and not re.search(r'[1-9]\d* written', text)


def test_a_changed_picture_and_a_changed_diagnosis_are_taken_over(copy):
    source = copy.parent / 'PH2Dataset'
    add_case(source, 'IMD009', direct=True, size=(50, 36))
    labels = LABELS | {'IMD002': 0, 'IMD003': 2}   # no melanoma any more; a nevus no more
    write_table(source, labels.items())
    assert '22 of 24 were up to date, 2 written' in prepare(copy)
    table = folds_of(copy)
    assert {i: name for i, (name, _) in table.items()} == {i: ph2.DIAGNOSES[labels[i]] for i in IDS}
    for number in (1, 2):
        check_fold(copy, number, labels)
        folder = Layout(copy / 'PH2' / f'fold_{number}').originals(
            'Testing' if table['IMD009'][1] == str(number) else 'Training')
        assert images.image_size(folder / 'Images' / 'IMD009.png') == (50, 36)
        assert images.image_size(folder / 'Annotation' / 'IMD009_segmentation.png') == (50, 36)


def test_other_folds_leave_nothing_of_the_former_ones(copy, prepared):
    prepare(copy, '--FOLDS=3', '--SEED=4')
    assert set(Counter(fold for _, fold in folds_of(copy).values()).values()) == {4}
    for number in (1, 2, 3):
        check_fold(copy, number)
    (copy / 'PH2' / 'fold_3' / 'notes.txt').write_text('of the user')
    prepare(copy)
    assert [str(path.relative_to(copy)) for path in copy.glob('PH2/fold_3/*')] == ['PH2/fold_3/notes.txt']
    (copy / 'PH2' / 'fold_3' / 'notes.txt').unlink()
    contents = [{name: entry if isinstance(entry, str) else entry[0] for name, entry in state(root).items()}
                for root in (copy, prepared)]
    assert contents[0] == contents[1]


def test_a_run_that_is_stopped_leaves_no_lists_of_other_folds(copy, monkeypatch):
    words = [SCRIPT, f'--ROOT={copy}', f'--SOURCE={copy.parent / "PH2Dataset"}', '--FOLDS=2', '--SEED=4']
    before, stage_1 = folds_of(copy), prepare_PH2.stage_1

    def stop(layout, splits, cfg):
        if layout.root.name == 'fold_2':
            raise KeyboardInterrupt
        stage_1(layout, splits, cfg)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare_PH2, 'stage_1', stop)
        patch.setattr(sys, 'argv', words)
        prepare_PH2.main()
    assert folds_of(copy) != before and not (copy / 'PH2/fold_2/dataset/ISIC').exists()
    prepare(copy, '--SEED=4')
    for number in (1, 2):
        check_fold(copy, number)


# Refusals

def test_faults_of_ph2_and_of_the_validation_split_are_listed_together(tmp_path):
    text = prepare(tmp_path / 'root', expect=2)
    for fault in ('PH2Dataset/PH2 Dataset images: is missing', 'PH2Dataset/PH2_dataset.txt: is missing',
                  'ISIC-2017_Validation_Data/Images: is missing'):
        assert text.count(fault) == 1, text
    assert 'Remedy: unpack the download anew' in text and 'stage 0 of the README' in text
    assert not (tmp_path / 'root').exists()


def test_settings_that_make_no_folds_are_refused(source, tmp_path):
    root = make_root(tmp_path / 'root')
    before = state(root)
    text = prepare(root, '--FOLDS=1', '--SEED=-1', expect=2)
    assert 'FOLDS=1: must be at least 2' in text and 'SEED=-1: must be at least 0' in text
    text = prepare(root, '--FOLDS=5', expect=2)
    assert 'holds 4 common nevus, 4 atypical nevus, 4 melanoma' in text and 'a lower FOLDS' in text
    assert state(root) == before
    default = Layout(root).data / 'PH2Dataset' / ph2.IMAGES
    assert f'{default}: is missing' in run_script(SCRIPT, root, expect=2)


def test_trained_folds_and_files_of_others_are_not_overwritten(copy):
    weights = copy / 'PH2' / 'fold_2' / 'models' / 'CoarseSN' / 'CoarseSN.pth'
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b'hours of work')
    prepare(copy)   # the same folds
    link = next(path for path in copy.rglob('PH2/fold_1/**/Images/*.png') if path.is_symlink())
    link.unlink()
    link.write_bytes(b'of the user')
    before = state(copy)
    text = prepare(copy, '--SEED=4', expect=2)
    assert f'{weights}: was trained with other folds' in text and 'take the former FOLDS and SEED' in text
    assert f'{link}: is no link of this script' in prepare(copy, expect=2)
    assert state(copy) == before


def test_the_script_explains_itself_and_imports_no_torch():
    text = run_script(SCRIPT, None, '--help')
    constants = re.findall(r'^([A-Z_]+) = ', (REPOSITORY / SCRIPT).read_text(), flags=re.MULTILINE)
    assert all(f'--{name}=' in text for name in constants)
    assert f'python {SCRIPT}' in text and 'Costs' in text
    run_script('-c', None, 'import runpy, sys; sys.argv = ["x"]; runpy.run_path("dataset/prepare_PH2.py"); '
                           'sys.exit("torch" in sys.modules)')
