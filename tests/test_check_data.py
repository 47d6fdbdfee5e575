"""check_data: a good root passes, and every kind of fault is named in one go."""
import shutil

import numpy as np
import pytest

from engine import images
from tests.test_data_scripts import BAD, draw, draw_bad, good_root, run, state
from tests.test_inputs import png_header


@pytest.fixture
def layout(tmp_path):
    return good_root(tmp_path / 'root')


def test_a_good_root_passes_with_its_notes(layout):
    training = layout.originals('Training')
    shutil.copy(training / 'Images' / 'ISIC_1.jpg',
                layout.originals('Validation') / 'Images' / 'ISIC_4.jpg')
    for k, value in ((2, 0), (3, 1)):
        path = training / 'Annotation' / f'ISIC_{k}_segmentation.png'
        images.write_mask(path, np.full_like(images.read_mask(path), value))
    before = state(layout.root)
    text = run('check_data', layout.root)
    assert 'no faults' in text and 'superpixels' not in text and 'metadata' not in text
    assert [line.split() for line in text.splitlines() if line.split()[:1] == ['Training']] == [
        ['Training', '3', '3', '1', '1', '1', '60x90', '200x150']]
    for note in ('ISIC_2_segmentation.png: the mask is empty', 'Training: 1 labels have no picture',
                 'ISIC_3_segmentation.png: the mask is full', 'Testing: ',
                 'identical pictures: ISIC_1 (Training) = ISIC_4 (Validation)'):
        assert note in text
    assert state(layout.root) == before


def spoil(layout):
    """Put every kind of fault into a root; returns the line that must name each."""
    training = layout.originals('Training')
    folder, masks = training / 'Images', training / 'Annotation'
    names = ('truncated', 'empty', 'text', 'cmyk', 'deep', 'palette', 'turned', 'tiny', 'bomb',
             'maskless', 'unequal', 'grey', 'unlabelled', 'both', 'twice', 'shared', 'fine')
    for name in names:
        draw(training, name)
    path = {name: folder / f'{name}.jpg' for name in names}
    path['truncated'].write_bytes(path['truncated'].read_bytes()[:900])
    path['empty'].write_bytes(b'')
    path['text'].write_text('not a picture')
    for name in ('deep', 'palette', 'bomb'):
        path[name].unlink()
    draw_bad(folder)
    (folder / 'bomb.png').write_bytes(png_header(50000, 50000))
    (masks / 'maskless_segmentation.png').unlink()
    images.write_png(masks / 'unequal_segmentation.png', np.zeros((30, 50), np.uint8))
    images.write_png(masks / 'grey_segmentation.png', np.full((60, 100), 9, np.uint8))
    draw(training, 'twice', suffix='.png')
    draw(layout.originals('Validation'), 'shared')
    with open(layout.labels('Training'), 'a') as file:
        file.writelines(f'{name},0,0\n' for name in names if name not in ('unlabelled', 'both'))
        file.write('both,1,1\nfine,1,0\n')
    return ['truncated.jpg: is damaged', 'empty.jpg: is empty', 'text.jpg: is not a readable',
            *BAD, 'bomb.png: declares more than', 'maskless.jpg: has no mask',
            'unequal_segmentation.png: is 50x30 px', 'grey_segmentation.png: is not a binary',
            'unlabelled.jpg: unlabelled has no row', 'both is melanoma and seborrheic',
            'fine is listed twice', 'twice.jpg and twice.png have the same id',
            'shared: is in two splits', 'Validation_Data/Images/shared.jpg: shared has no row']


def test_all_faults_of_a_bad_root_are_listed_at_once(layout):
    expected = spoil(layout)
    before = state(layout.root)
    text = run('check_data', layout.root, code=2)
    faults = text[text.index('error:'):]
    assert [line for line in expected if line not in faults] == []
    # The tiny picture does not fit its mask either.
    assert f'{len(expected) + 1} faults in' in faults, faults
    assert 'ISIC_' not in faults
    assert state(layout.root) == before


def test_missing_folders_and_files_are_faults(layout, tmp_path):
    text = run('check_data', tmp_path / 'nothing', code=2)
    assert 'ISIC-2017_Training_Data: is missing' in text
    assert f'python dataset/download.py --ROOT={tmp_path / "nothing"} fetches' in text
    assert '`make demo`' in text and 'python dataset/make_demo_data.py' in text
    shutil.rmtree(layout.originals('Training') / 'Annotation')
    layout.labels('Validation').unlink()
    text = run('check_data', layout.root, code=2)
    assert '2 faults' in text and 'Annotation: is missing' in text
    assert 'Validation_Part3_GroundTruth.csv: is missing' in text


def test_check_data_notes_unpaired_pictures_on_demand(layout):
    (layout.originals('Training') / 'Annotation' / 'ISIC_1_segmentation.png').unlink()
    run('check_data', layout.root, code=2)
    assert 'ISIC_1.jpg: has no mask' in run('check_data', layout.root, '--SKIP_UNPAIRED=True')
