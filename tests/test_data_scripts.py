"""Stage 1 as it is used: the scripts run as processes on small roots of drawn pictures."""
import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dataset import crops, extraction, isic
from dataset.layout import Layout
from engine import contents, files, images
from engine.errors import InputError
from experiments import inputs
from tests.test_inputs import smooth_picture

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPTS = ('extractPatch_cls_train', 'extractPatch_cls_val_test', 'extractPatch_seg_train',
           'list_cls', 'list_seg', 'check_data')


def run(script, root, *words, code=0):
    """Run dataset/<script>.py on a root; returns stdout and stderr as one text."""
    command = [sys.executable, f'dataset/{script}.py', f'--ROOT={root}', *words]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert 'Traceback' not in text
    return text


def draw(folder, image_id, size=(100, 60), suffix='.jpg', seed=None):
    """Write a picture and its elliptic mask below a split's folder."""
    width, height = size
    (folder / 'Images').mkdir(parents=True, exist_ok=True)
    (folder / 'Annotation').mkdir(exist_ok=True)
    picture = smooth_picture(width, height, seed=hash_of(image_id) if seed is None else seed)
    mask = np.zeros((height, width), np.uint8)
    cv2.ellipse(mask, (width // 2, height // 2), (width // 4, height // 4), 0, 0, 360, 255, -1)
    path = folder / 'Images' / f'{image_id}{suffix}'
    Image.fromarray(picture).save(path, quality=90)
    Image.fromarray(mask).save(folder / 'Annotation' / f'{image_id}_segmentation.png')
    return path


def hash_of(text):
    return sum(ord(letter) * (k + 1) for k, letter in enumerate(text))


def write_labels(path, labels):
    """Write a challenge csv from {image id: class number}."""
    with open(path, 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['image_id', 'melanoma', 'seborrheic_keratosis'])
        writer.writerows([i, float(label == 1), float(label == 2)] for i, label in labels.items())


def good_root(folder):
    """Layout of a root: three training images, one of each class; one to validate; no test split."""
    layout = Layout(folder)
    training = layout.originals('Training')
    draw(training, 'ISIC_1', (100, 60))
    draw(training, 'ISIC_2', (60, 90))
    draw(training, 'ISIC_3', (200, 150), '.png')
    for name in ('ISIC_1_superpixels.png', 'ISIC-2017_Training_Data_metadata.csv', '.ISIC_9.png'):
        (training / 'Images' / name).write_text('not a picture')
    draw(layout.originals('Validation'), 'ISIC_4')
    # Another order than that of the files; one label too many.
    write_labels(layout.labels('Training'), {'ISIC_3': 2, 'ISIC_8': 1, 'ISIC_1': 0, 'ISIC_2': 1})
    write_labels(layout.labels('Validation'), {'ISIC_4': 1})
    return layout


@pytest.fixture
def layout(tmp_path):
    return good_root(tmp_path / 'root')


def state(folder):
    """{relative path: (bytes, mtime in ns)} of a folder's files, what saves time alone aside."""
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob('*'))
            if path.is_file() and path.parent.name != 'contents' and path.name != '.lock'}


def pixels(folder):
    """{relative path: bytes} of the pictures below a folder, what a kill left over aside."""
    return {name: data for name, (data, _) in state(folder).items()
            if '/.' not in f'/{name}' and 'extraction.json' not in name}


# Crops

def test_crops_have_the_released_names_counts_and_pixels(layout):
    text = run('extractPatch_cls_train', layout.root)
    run('extractPatch_cls_val_test', layout.root)
    assert 'Training crops: 0 of 39 were up to date, 39 written' in text
    folder = layout.crops('Training')
    names = {path.name for path in folder.glob('*.png')}
    assert names == {name for image_id, scales in (('ISIC_1', crops.SCALES_9),
                                                   ('ISIC_2', crops.SCALES_15),
                                                   ('ISIC_3', crops.SCALES_15))
                     for name in crops.crop_names(image_id, scales)}
    assert len(list(layout.crops('Validation').glob('ISIC_4*.png'))) == 9   # a melanoma too
    picture = images.read_rgb(layout.originals('Training') / 'Images' / 'ISIC_3.png')
    for name, box in zip(crops.crop_names('ISIC_3', crops.SCALES_15),
                         crops.crop_boxes(200, 150, crops.SCALES_15), strict=True):
        expected = images.resize_rgb(picture, (224, 224), box)
        np.testing.assert_array_equal(images.read_rgb(folder / name), expected)


def test_a_second_run_touches_nothing(layout):
    scripts = ('extractPatch_cls_train', 'extractPatch_seg_train')
    for script in scripts:
        run(script, layout.root)
    before = state(layout.root)
    assert 'crops: 39 of 39 were up to date, 0 written' in run(scripts[0], layout.root)
    assert 'masks: 6 of 6 were up to date, 0 written' in run(scripts[1], layout.root)
    assert state(layout.root) == before


def test_only_what_changed_or_is_missing_is_redone(layout):
    run('extractPatch_cls_train', layout.root)
    folder, source = layout.crops('Training'), layout.originals('Training') / 'Images'
    before = state(folder)
    (folder / 'ISIC_1_9_3.png').unlink()
    draw(layout.originals('Training'), 'ISIC_2', (60, 90), seed=77)
    os.utime(source / 'ISIC_3.png')   # which says nothing
    assert '23 of 39 were up to date, 16 written' in run('extractPatch_cls_train', layout.root)
    after = state(folder)
    changed = {name for name in before if before[name][0] != after[name][0]} - {'extraction.json'}
    assert changed == set(crops.crop_names('ISIC_2', crops.SCALES_15))


def test_a_changed_label_gets_its_missing_crops_and_the_list_drops_the_others(layout):
    run('extractPatch_cls_train', layout.root)
    write_labels(layout.labels('Training'), {'ISIC_1': 1, 'ISIC_2': 1, 'ISIC_3': 0})
    run('list_cls', layout.root, code=2)
    assert '17 of 39 were up to date, 22 written' in run('extractPatch_cls_train', layout.root)
    run('extractPatch_cls_val_test', layout.root)
    run('list_cls', layout.root)
    lines = layout.classification_list('Training').read_text().splitlines()
    assert [line for line in lines if line.startswith('ISIC_3')] == [
        f'{name} 0' for name in crops.crop_names('ISIC_3', crops.SCALES_9)]
    assert 'ISIC_1_15_14.png 1' in lines and not any('ISIC_1_9' in line for line in lines)


def test_other_settings_redo_everything(layout):
    run('extractPatch_cls_train', layout.root)
    record = layout.crops('Training') / 'extraction.json'
    good = record.read_text()
    record.write_text(good.replace('224', '225'))
    assert '0 of 39 were up to date' in run('extractPatch_cls_train', layout.root)
    record.write_text('[')   # unreadable counts as other settings
    assert '0 of 39 were up to date' in run('extractPatch_cls_train', layout.root)
    assert record.read_text() == good


def test_the_extra_training_images_join_by_id(layout):
    extra = layout.originals('Training_Add')
    draw(extra, 'ISIC_0')
    shutil.rmtree(extra / 'Annotation')
    write_labels(layout.labels('Training_Add'), {'ISIC_0': 1})
    assert '54 written' in run('extractPatch_cls_train', layout.root)
    run('extractPatch_cls_val_test', layout.root)
    run('list_cls', layout.root)
    lines = layout.classification_list('Training').read_text().splitlines()
    assert lines[:2] == ['ISIC_0.png 1', 'ISIC_0_15_1.png 1'] and len(lines) == 54
    assert 'Training_Add           1           0           0           1' in run('check_data',
                                                                             layout.root)


def test_every_picture_that_cannot_be_cut_is_listed(layout):
    folder = layout.originals('Training') / 'Images'
    (folder / 'ISIC_1.jpg').write_bytes(b'')
    (folder / 'ISIC_2.jpg').write_bytes((folder / 'ISIC_2.jpg').read_bytes()[:700])
    text = run('extractPatch_cls_train', layout.root, code=2)
    assert 'ISIC_1.jpg: is empty' in text and 'ISIC_2.jpg: is damaged' in text
    assert len(list(layout.crops('Training').glob('ISIC_3*'))) == 15


@pytest.mark.parametrize('script', ['extractPatch_cls_train', 'extractPatch_seg_train'])
def test_a_killed_run_goes_on_to_the_same_bytes(layout, script):
    training = layout.originals('Training')
    ids = [f'ISIC_{k}' for k in range(100, 118)]
    for image_id in ids:
        draw(training, image_id, (320, 240))
    write_labels(layout.labels('Training'), dict.fromkeys(['ISIC_1', 'ISIC_2', 'ISIC_3', *ids], 0))
    words = ['--MAX_SIDE=300'] if script == 'extractPatch_seg_train' else []
    prepared = layout.root / 'dataset' / ('seg_data' if words else 'cls_data')
    run(script, layout.root, *words)
    undisturbed = pixels(prepared)
    shutil.rmtree(prepared)

    # One worker, so that there is time to kill it on a fast machine too.
    process = subprocess.Popen([sys.executable, f'dataset/{script}.py', f'--ROOT={layout.root}',
                                '--NUM_WORKERS=1', *words], cwd=REPOSITORY,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(prepared.rglob('*_1*.png'))) < 8 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    half = pixels(prepared)
    assert 0 < len(half) < len(undisturbed)
    assert all(undisturbed[name] == data for name, data in half.items())
    text = run(script, layout.root, *words)
    assert ': 0 of' not in text   # what was complete is kept
    assert pixels(prepared) == undisturbed


def test_a_run_that_stops_after_new_settings_never_mixes_old_and_new(layout, monkeypatch):
    prepared = layout.segmentation('Training')
    extraction.prepare_segmentation(layout, 50)
    undisturbed = pixels(prepared)
    extraction.prepare_segmentation(layout, 40)
    write, count = images.write_png, iter(range(100))

    def write_three(path, array):
        if next(count) == 3:
            raise RuntimeError
        write(path, array)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(images, 'write_png', write_three)
        extraction.prepare_segmentation(layout, 50, workers=1)
    assert pixels(prepared) != undisturbed
    extraction.prepare_segmentation(layout, 50)
    assert pixels(prepared) == undisturbed


# Done is decided by content

def step_1(layout):
    """Crops, prepared pictures and lists in this process; returns what they say of how much was done."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        for split in ('Training', 'Validation'):
            extraction.extract_crops(layout, split)
        extraction.prepare_segmentation(layout, 1600)
        extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)
        extraction.write_lists(layout, extraction.segmentation_lines, layout.segmentation_list)
    return list(map(int, re.findall(r'(\d+) written', said.getvalue())))


def readers(layout):
    """What a later step hears that reads the lists: {(kind, split): message} of those that refuse."""
    refusals = {}
    for kind, split in itertools.product(('seg', 'cls'), ('Training', 'Validation')):
        try:
            inputs.READERS[kind](layout, split)
        except InputError as error:
            refusals[kind, split] = str(error)
    return refusals


def test_a_copy_that_keeps_no_times_has_nothing_to_do(layout, tmp_path):
    assert step_1(layout) == [39, 9, 6]
    copy = Layout(shutil.copytree(layout.root, tmp_path / 'copy', copy_function=shutil.copyfile))
    for path in copy.root.rglob('*'):
        os.utime(path, (10**9, 10**9))   # as tar does that is told one time
    assert readers(copy) == {} and step_1(copy) == [0, 0, 0]


def test_pictures_that_swap_their_names_are_noticed_whatever_their_times(layout):
    source, other = (draw(layout.originals('Training'), image_id) for image_id in ('ISIC_1', 'ISIC_2'))
    os.utime(source, (10**9, 10**9)), os.utime(other, (10**9, 10**9))
    assert step_1(layout) == [39, 9, 6]
    source.rename(source.with_suffix('.aside')), other.rename(source)
    source.with_suffix('.aside').rename(other)
    heard = readers(layout)
    assert set(heard) == {('seg', 'Training'), ('cls', 'Training')}
    assert f'was not made from the present {source}' in heard['cls', 'Training']
    assert f'extractPatch_seg_train.py --ROOT={layout.root}, then python dataset/list_seg.py' in (
        heard['seg', 'Training'])
    assert step_1(layout) == [24, 0, 2] and readers(layout) == {}   # 9 and 15 crops, two pictures


def test_crops_that_were_changed_by_hand_are_cut_again(layout):
    step_1(layout)
    crop, other = (layout.crops('Training') / f'ISIC_{n}_{c}_1.png' for n, c in ((1, 9), (2, 15)))
    before = crop.read_bytes(), crop.stat().st_mtime_ns
    crop.write_bytes(other.read_bytes())
    os.utime(crop, ns=(before[1], before[1]))
    assert step_1(layout) == [1, 0, 0] and crop.read_bytes() == before[0]


def test_corrected_labels_and_replaced_pictures_need_step_1_again(layout):
    step_1(layout)
    write_labels(layout.labels('Validation'), {'ISIC_4': 2})
    heard = readers(layout)
    assert list(heard) == [('cls', 'Validation')]
    assert 'ISIC_4 is listed as melanoma, its label says keratosis' in heard['cls', 'Validation']
    assert step_1(layout) == [0, 0, 0] and readers(layout) == {}
    draw(layout.originals('Validation'), 'ISIC_4', seed=77)
    heard = readers(layout)
    assert list(heard) == [('cls', 'Validation')] and '--SPLIT=Validation, then' in heard['cls', 'Validation']
    assert step_1(layout) == [0, 9, 0] and readers(layout) == {}


def test_a_picture_that_changes_while_it_is_cut_is_said_and_cut_again(layout, monkeypatch):
    path, read = layout.originals('Training') / 'Images' / 'ISIC_2.jpg', extraction.read_reduced

    def read_and_change(source, cover):
        found = read(source, cover)
        if source == path:
            draw(layout.originals('Training'), 'ISIC_2', (60, 90), seed=77)
        return found

    with monkeypatch.context() as patch, pytest.raises(InputError, match='jpg: changed while it was read'):
        patch.setattr(extraction, 'read_reduced', read_and_change)
        extraction.extract_crops(layout, 'Training')
    assert step_1(layout) == [15, 9, 6]


def test_what_an_earlier_version_made_is_made_again_once(layout):
    """Its record says nothing of contents; a later step takes its files as they are."""
    step_1(layout)
    before = pixels(layout.root / 'dataset')
    for folder, more in ((layout.crops('Training'), ()),
                         (layout.segmentation('Training'), ('Images', 'Annotation'))):
        settings = json.loads((folder / 'extraction.json').read_text())
        del settings['made']
        (folder / 'extraction.json').unlink()
        for place in [folder / name for name in more] or [folder]:
            (place / 'extraction.json').write_text(json.dumps(settings) + '\n')
    assert readers(layout) == {}
    assert step_1(layout) == [39, 0, 6] and step_1(layout) == [0, 0, 0]
    assert pixels(layout.root / 'dataset') == before
    assert not (layout.segmentation('Training') / 'Images' / 'extraction.json').exists()


def test_a_second_program_in_a_folder_is_refused(layout):
    with extraction.at_work(layout.crops('Training'), {}, layout):
        with pytest.raises(InputError, match='another process writes there'):
            extraction.extract_crops(layout, 'Training')
    assert step_1(layout) == [39, 9, 6]


@pytest.mark.parametrize('name', ['Val_9_1', 'ISIC_2_15_14'])
def test_ids_that_crops_would_have_are_refused_with_all_their_names(layout, name):
    for split in ('Training', 'Validation'):
        draw(layout.originals(split), name)
    owner = name.rsplit('_', 2)[0]
    with pytest.raises(InputError) as caught:
        isic.classification_images(layout, 'Training')
    fault = f'{name}.jpg: a crop of {owner} would have this name, rename it'
    assert caught.value.faults == [f'{layout.originals("Training")}/Images/{fault}']
    assert run('check_data', layout.root, code=2).count(fault) == 2


def test_up_to_date_is_found_without_reading_anything(layout, monkeypatch):
    step_1(layout)
    monkeypatch.setattr(contents, 'SETTLED', 0)   # as if all of it were older than two seconds
    step_1(layout)
    monkeypatch.setattr(files, 'fingerprint', None)
    assert step_1(layout) == [0, 0, 0] and readers(layout) == {}


# Segmentation pictures and lists

def test_large_pictures_are_limited_and_small_ones_copied(layout):
    training, prepared = layout.originals('Training'), layout.segmentation('Training')
    run('extractPatch_seg_train', layout.root, '--MAX_SIDE=100')
    names = sorted(path.name for path in (prepared / 'Images').glob('ISIC*'))
    assert names == ['ISIC_1.jpg', 'ISIC_2.jpg', 'ISIC_3.png']
    for name in names[:2]:
        source = training / 'Images' / name
        assert (prepared / 'Images' / name).read_bytes() == source.read_bytes()
    picture = images.read_rgb(prepared / 'Images' / 'ISIC_3.png')
    mask = images.read_mask(prepared / 'Annotation' / 'ISIC_3_segmentation.png')
    original = images.read_rgb(training / 'Images' / 'ISIC_3.png')
    assert picture.shape == (75, 100, 3) and mask.shape == (75, 100)
    np.testing.assert_array_equal(picture, images.resize_rgb(original, (100, 75)))
    # Another limit: a picture that is resized now leaves its copy behind, which nothing lists.
    run('extractPatch_seg_train', layout.root, '--MAX_SIDE=80')
    run('list_seg', layout.root)
    assert layout.segmentation_list('Training').read_text().splitlines() == [
        f'Images/ISIC_{k}.png Annotation/ISIC_{k}_segmentation.png' for k in (1, 2, 3)]
    assert images.image_size(prepared / 'Images' / 'ISIC_1.png') == (80, 48)


def test_segmentation_faults_are_listed_before_anything_is_written(layout):
    masks = layout.originals('Training') / 'Annotation'
    images.write_png(masks / 'ISIC_1_segmentation.png', np.zeros((60, 99), np.uint8))
    (masks / 'ISIC_2_segmentation.png').write_text('text')
    text = run('extractPatch_seg_train', layout.root, code=2)
    assert 'ISIC_1_segmentation.png: is 99x60 px, its picture ISIC_1.jpg is 100x60 px' in text
    assert 'ISIC_2_segmentation.png: is not a readable' in text
    assert not layout.segmentation('Training').exists()


def test_a_grey_mask_is_refused(layout):
    mask = np.full((60, 100), 128, np.uint8)
    images.write_png(layout.originals('Training') / 'Annotation' / 'ISIC_1_segmentation.png', mask)
    assert 'is not a binary mask' in run('extractPatch_seg_train', layout.root, code=2)


def test_lists_hold_exactly_what_is_there(layout):
    draw(layout.originals('Testing'), 'ISIC_6')
    write_labels(layout.labels('Testing'), {'ISIC_6': 2})
    run('extractPatch_cls_train', layout.root)
    run('extractPatch_seg_train', layout.root)
    run('extractPatch_cls_val_test', layout.root)
    text = run('list_cls', layout.root, code=2)
    assert f'extractPatch_cls_val_test.py --ROOT={layout.root} --SPLIT=Testing' in text
    assert not layout.lists.exists()   # all of them or none
    run('extractPatch_cls_val_test', layout.root, '--SPLIT=Testing')
    for _ in range(2):   # rewritten, not appended to
        run('list_cls', layout.root)
        run('list_seg', layout.root)
    assert layout.segmentation_list('Training').read_text() == (
        'Images/ISIC_1.jpg Annotation/ISIC_1_segmentation.png\n'
        'Images/ISIC_2.jpg Annotation/ISIC_2_segmentation.png\n'
        'Images/ISIC_3.png Annotation/ISIC_3_segmentation.png\n')
    assert layout.segmentation_list('Testing').read_text() == (
        'Images/ISIC_6.jpg Annotation/ISIC_6_segmentation.png\n')
    assert layout.classification_list('Training').read_text().splitlines() == [
        f'{name} {label}' for image_id, label in (('ISIC_1', 0), ('ISIC_2', 1), ('ISIC_3', 2))
        for name in crops.crop_names(image_id, crops.scales_of(label, True))]
    assert layout.classification_list('Validation').read_text().splitlines() == [
        f'{name} 1' for name in crops.crop_names('ISIC_4', crops.SCALES_9)]


def test_lists_refuse_missing_and_outdated_pictures(layout):
    shutil.rmtree(layout.originals('Validation'))
    command = f'extractPatch_cls_train.py --ROOT={layout.root}'
    assert command in run('list_cls', layout.root, code=2)
    assert 'extractPatch_seg_train.py' in run('list_seg', layout.root, code=2)
    run('extractPatch_cls_train', layout.root)
    run('extractPatch_seg_train', layout.root)
    assert 'Validation' in run('list_seg', layout.root)   # says that it is absent
    (layout.crops('Training') / 'ISIC_1_9_2.png').unlink()
    draw(layout.originals('Training'), 'ISIC_3', (200, 150), '.png', seed=77)
    text = run('list_cls', layout.root, code=2)
    assert command in text and 'ISIC_1_9_2.png: missing' in text
    assert 'ISIC_3.png and 14 more' in text and 'ISIC_2' not in text
    assert 'Images/ISIC_3.png: missing, or not' in run('list_seg', layout.root, code=2)


def test_unpaired_pictures_are_left_out_only_on_demand(layout):
    run('extractPatch_seg_train', layout.root)
    (layout.originals('Validation') / 'Annotation' / 'ISIC_4_segmentation.png').unlink()
    draw(layout.originals('Validation'), 'ISIC_5')
    (layout.originals('Training') / 'Images' / 'ISIC_2.jpg').unlink()
    text = run('list_seg', layout.root, code=2)
    assert 'ISIC_4.jpg: has no mask' in text and '--SKIP_UNPAIRED=True' in text
    assert 'ISIC_2_segmentation.png: has no picture' in text
    run('extractPatch_seg_train', layout.root, code=2)
    assert 'left out (1):' in run('extractPatch_seg_train', layout.root, '--SKIP_UNPAIRED=True')
    assert 'ISIC_4.jpg: has no mask' in run('list_seg', layout.root, '--SKIP_UNPAIRED=True')
    assert layout.segmentation_list('Validation').read_text() == (
        'Images/ISIC_5.jpg Annotation/ISIC_5_segmentation.png\n')
    assert len(layout.segmentation_list('Training').read_text().splitlines()) == 2


def test_names_with_spaces_are_refused_where_a_list_could_not_hold_them(layout):
    draw(layout.originals('Validation'), 'ISIC 7')
    run('extractPatch_seg_train', layout.root)
    assert 'names with spaces' in run('list_seg', layout.root, code=2)
    assert 'ISIC 7.jpg: a name with spaces' in run('check_data', layout.root, code=2)


# All scripts

@pytest.mark.parametrize('script', SCRIPTS)
def test_scripts_explain_themselves_and_refuse_typos(script, tmp_path):
    text = run(script, tmp_path, '--help')
    source = (REPOSITORY / 'dataset' / f'{script}.py').read_text()
    constants = re.findall(r'^([A-Z_]+) = ', source, flags=re.MULTILINE)
    assert {'ROOT', 'RECIPE'} <= set(constants)
    assert all(f'--{name}=' in text for name in constants)
    assert f'python dataset/{script}.py' in text and 'Costs' in text
    text = run(script, tmp_path, '--ROTO=x', '--RECIPE=nonsense', code=2)
    assert 'ROTO is not a setting; did you mean ROOT?' in text and "RECIPE='nonsense'" in text


def test_the_split_and_the_limit_are_checked(tmp_path):
    text = run('extractPatch_cls_val_test', tmp_path, '--SPLIT=Training', code=2)
    assert "must be one of 'Validation', 'Testing'" in text
    assert 'greater than zero' in run('extractPatch_seg_train', tmp_path, '--MAX_SIDE=0', code=2)
    assert 'Images: is missing' in run('extractPatch_seg_train', tmp_path, code=2)


def test_scripts_import_no_torch():
    code = ('import sys; sys.argv = ["x"]; import runpy; '
            f'[runpy.run_path(f"dataset/{{name}}.py") for name in {SCRIPTS}]; '
            'sys.exit("torch" in sys.modules)')
    assert subprocess.run([sys.executable, '-c', code], cwd=REPOSITORY).returncode == 0
