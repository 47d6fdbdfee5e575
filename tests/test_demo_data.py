"""dataset/make_demo_data.py and dataset/synthetic.py: form of the data, repeatability, refusals."""
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from dataset import isic, label_csv, make_demo_data, synthetic
from dataset.layout import ADDED, SPLITS, Layout
from engine import images

REPOSITORY = Path(__file__).resolve().parent.parent
COUNTS = {'Training': 7, 'Validation': 3, 'Testing': 4}
EXTRA = 4
SMALL = ('--MAX_SIDE=96', f'--EXTRA_IMAGES={EXTRA}',
         *(f'--{split.upper()}_IMAGES={n}' for split, n in COUNTS.items()))


def run(root, *overrides):
    """Run the script as a user does; a later override takes the place of an earlier one."""
    words = {word.partition('=')[0]: word for word in (f'--ROOT={root}', *SMALL, *overrides)}
    return subprocess.run([sys.executable, 'dataset/make_demo_data.py', *words.values()],
                          cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def contents(root):
    return {path.relative_to(root): path.read_bytes()
            for path in sorted(root.rglob('*')) if path.is_file()}


def times(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp('demo')
    result = run(root)
    assert result.returncode == 0, result.stderr
    return root


def test_readers_accept_every_split(demo):
    layout, seen = Layout(demo), set()
    for split in SPLITS:
        pairs = isic.classification_images(layout, split)
        own = [image_id for image_id, path, _ in pairs if ADDED not in str(path)]
        assert len(own) == COUNTS[split] and len(pairs) - len(own) == (EXTRA if split == 'Training' else 0)
        assert {label for _, _, label in pairs} == {0, 1, 2}
        triples, unpaired = isic.segmentation_images(layout, split)
        assert not unpaired and [triple[0] for triple in triples] == own
        seen |= {image_id for image_id, _, _ in pairs}
    assert len(seen) == sum(COUNTS.values()) + EXTRA


def test_the_extra_pictures_are_others_and_have_no_masks(demo):
    layout = Layout(demo)
    folder = layout.originals(ADDED)
    assert [path.name for path in folder.iterdir()] == ['Images']
    added = isic.find_images(folder / 'Images')
    assert label_csv.read(layout.labels(ADDED)) == dict(zip(added, (0, 1, 2, 0), strict=True))
    assert not any(images.inspect_image(path)[1] for path in added.values())
    pictures = [path.read_bytes() for path in demo.rglob('*.jpg')]
    assert len(set(pictures)) == len(pictures) == sum(COUNTS.values()) + EXTRA


def test_masks_are_binary_and_fit_their_pictures(demo):
    layout, sizes = Layout(demo), set()
    for split in SPLITS:
        for _, image_path, mask_path in isic.segmentation_images(layout, split)[0]:
            size, faults = images.inspect_image(image_path)
            mask = images.read_mask(mask_path)
            assert not faults and mask.shape == size[::-1] and max(size) <= 96
            assert 0.03 < np.mean(mask > 0) < 0.6
            sizes.add(size)
    assert len(sizes) > 1


def test_label_file_is_written_as_the_challenge_does(demo):
    lines = (demo / 'dataset/data/ISIC-2017_Test_v2_Part3_GroundTruth.csv').read_text().split()
    assert lines[0] == 'image_id,melanoma,seborrheic_keratosis'
    assert [line.partition(',')[2] for line in lines[1:4]] == ['0.0,0.0', '1.0,0.0', '0.0,1.0']


def test_files_that_the_readers_must_ignore_are_there(demo):
    folder = demo / 'dataset/data/ISIC-2017_Training_Data/Images'
    superpixels = sorted(folder.glob('*_superpixels.png'))
    assert len(superpixels) == 2 and (folder / 'ISIC-2017_Training_Data_metadata.csv').is_file()
    picture = superpixels[0].with_name(superpixels[0].name.replace('_superpixels.png', '.jpg'))
    assert images.image_size(superpixels[0]) == images.image_size(picture)


def test_same_seed_gives_the_same_bytes_and_another_seed_redraws_all(demo, tmp_path):
    assert run(tmp_path, '--SEED=5', '--TRAINING_IMAGES=9', '--NUM_WORKERS=1').returncode == 0
    other = contents(tmp_path)
    assert run(tmp_path, '--NUM_WORKERS=1').returncode == 0
    assert contents(tmp_path) == contents(demo)   # nothing of the other set is left
    common = [path for path in other if path.suffix == '.jpg' and path in contents(demo)]
    assert common and all(other[path] != contents(demo)[path] for path in common)


def test_second_run_draws_only_what_is_missing(demo):
    before, stamps = contents(demo), times(demo)
    assert run(demo).returncode == 0
    assert times(demo) == stamps
    lost = sorted(demo.rglob('*_segmentation.png'))[2]
    lost.unlink()
    result = run(demo)
    assert '(1 drawn now)' in result.stdout and contents(demo) == before


def test_the_extra_pictures_come_and_go_and_the_others_keep_their_bytes(demo, tmp_path):
    """As after the version that knew no extra pictures: its record is this script's own too."""
    assert run(tmp_path, '--EXTRA_IMAGES=0').returncode == 0
    record = tmp_path / 'dataset/data/demo_data.json'
    earlier = json.loads(record.read_text())
    del earlier['EXTRA_IMAGES']
    record.write_text(json.dumps(earlier))
    stamps = times(tmp_path)
    assert run(tmp_path, '--EXTRA_IMAGES=0').returncode == 0
    assert times(tmp_path) == stamps
    without = contents(tmp_path)
    assert run(tmp_path).returncode == 0
    with_extra = contents(tmp_path)
    assert with_extra == contents(demo)
    del without[record.relative_to(tmp_path)]
    assert all(with_extra[path] == data for path, data in without.items())
    assert len(with_extra) - len(without) == EXTRA + 2   # pictures, their csv, the record
    assert run(tmp_path, '--EXTRA_IMAGES=0').returncode == 0
    assert contents(tmp_path).keys() - without.keys() == {record.relative_to(tmp_path)}
    assert not Layout(tmp_path).originals(ADDED).exists()   # stage 1 refuses an empty folder


@pytest.mark.parametrize('place', ['ISIC-2017_Training_Data/Images/ISIC_0000000.jpg',
                                   'ISIC-2017_Validation_Data/ISIC_0001769.jpg',
                                   'ISIC-2017_Training_Part3_GroundTruth.csv'])
def test_refuses_a_folder_with_data_of_other_origin(tmp_path, place):
    path = tmp_path / 'dataset' / 'data' / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b'irreplaceable')
    result = run(tmp_path)
    assert result.returncode == 2 and path.name in result.stderr
    assert contents(tmp_path) == {path.relative_to(tmp_path): b'irreplaceable'}


def test_refuses_real_pictures_among_its_own(demo, tmp_path):
    link = tmp_path / 'dataset' / 'data'
    link.parent.mkdir()
    link.symlink_to(demo / 'dataset' / 'data')
    foreign = demo / 'dataset/data/ISIC-2017_Testing_Data/Images/ISIC_0012086.jpg'
    foreign.write_bytes(b'irreplaceable')
    before = contents(demo)
    try:
        assert run(tmp_path, '--SEED=6').returncode == 2
        assert contents(demo) == before
    finally:
        foreign.unlink()


def test_settings_that_make_no_data_set_are_named_together(tmp_path):
    result = run(tmp_path, '--SEED=-1', '--MAX_SIDE=20', '--MELANOMA_SHARE=0.8', '--EXTRA_IMAGES=-1')
    assert result.returncode == 2 and not list(tmp_path.iterdir())
    assert all(name in result.stderr for name in ('SEED', 'MAX_SIDE', 'KERATOSIS_SHARE', 'EXTRA_IMAGES'))


@pytest.mark.parametrize('shares', [(0.4, 0.3, 0.3), (0.9, 0.05, 0.05), (0.2, 0.5, 0.3)])
def test_classes_keep_their_shares(shares):
    counts = Counter(make_demo_data.class_sequence(200, shares))
    assert [counts[label] for label in range(3)] == [round(200 * share) for share in shares]
    for count in (3, 4, 10):
        assert set(make_demo_data.class_sequence(count, shares)) == {0, 1, 2}


@pytest.mark.parametrize('label', range(3))
def test_a_drawing_depends_on_its_generator_only(label):
    cv2.setRNGSeed(label)
    first = synthetic.draw(np.random.default_rng((1, label)), label, 160)
    second = synthetic.draw(np.random.default_rng((1, label)), label, 160)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    image, mask = first
    assert image.dtype == np.uint8 and image.shape == (*mask.shape, 3)
    assert cv2.connectedComponents(mask)[0] == 2   # the background and one lesion
