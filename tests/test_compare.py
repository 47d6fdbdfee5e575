"""compare.py and its scorer: against slow loops, against the challenge's own scorer, and on bad folders."""
import csv
import itertools
import json
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import compare
from dataset.layout import Layout
from engine import images, metrics, scoring
from engine.errors import InputError
from tests.conftest import figure, run_in_turn, run_script

COUNT = 12
NAMES = [f'ISIC_{number:07d}' for number in range(COUNT)]
pytestmark = pytest.mark.filterwarnings('ignore:The inplace keyword')   # the challenge's scorer, pandas 3


def slow_scores(mask, truth):
    """JA, DI, AC, SE, SP of two (H, W) of {0, 1}, pixel by pixel."""
    pairs = list(zip(mask.ravel().tolist(), truth.ravel().tolist(), strict=True))
    tp, fp, fn, tn = (pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1), (0, 0)))
    return [a / b if b else 1.0 for a, b in (
        (tp, tp + fp + fn), (2 * tp, 2 * tp + fp + fn), (tp + tn, len(pairs)), (tp, tp + fn), (tn, tn + fp))]


@pytest.fixture
def root(tmp_path):
    """Layout of a root with a listed test split and three methods' masks: good, poor and empty."""
    layout, rng, lines = Layout(tmp_path / 'root'), np.random.default_rng(0), []
    folder = layout.originals('Testing')
    for number, name in enumerate(NAMES):
        size = (20 + number, 31)
        truth = images.resize_mask(rng.integers(0, 2, (4, 5)).astype(np.uint8), size)
        images.write_png(folder / 'Images' / f'{name}.png', np.zeros((*truth.shape, 3), np.uint8))
        images.write_mask(folder / 'Annotation' / f'{name}_segmentation.png', truth)
        lines.append(f'Images/{name}.png Annotation/{name}_segmentation.png\n')
        for method, share, ending in (('good', 0.05, '_segmentation'), ('poor', 0.03 * number, '')):
            noisy = np.where(rng.random(truth.shape) < share, 1 - truth, truth)
            images.write_mask(layout.root / method / f'{name}{ending}.png', noisy)
        images.write_mask(layout.root / 'empty' / f'{name}.png', np.zeros_like(truth))
    layout.lists.mkdir(parents=True)
    layout.segmentation_list('Testing').write_text(''.join(lines))
    return layout


def masks_of(layout, *methods):
    return '--MASKS=' + ','.join(f'{method}={layout.root / method}' for method in methods)


def slow_difference(a, b, resamples):
    """The paired bootstrap as nested loops."""
    rng, means = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = rng.integers(0, len(a), len(a)).tolist()
        means.append(sum(a[number] - b[number] for number in drawn) / len(a))
    reached = min(sum(mean <= 0 for mean in means), sum(mean >= 0 for mean in means))
    return (sum(a) - sum(b)) / len(a), *np.percentile(means, [2.5, 97.5]), min(1, 2 * (reached + 1) / (
        resamples + 1))


# --- The scorer

def test_a_folders_scores_are_those_pixel_by_pixel_and_the_challenges(root, tmp_path):
    truths = {name: root.originals('Testing') / 'Annotation' / f'{name}_segmentation.png' for name in NAMES}
    folders = {method: root.root / method for method in ('good', 'poor', 'empty')}
    found = scoring.score_folders(folders, truths)
    read = {name: images.read_mask(path) for name, path in truths.items()}
    for method, ending in (('good', '_segmentation'), ('poor', ''), ('empty', '')):
        masks = [images.read_mask(folders[method] / f'{name}{ending}.png') for name in NAMES]
        slow = [slow_scores(mask, read[name]) for mask, name in zip(masks, NAMES, strict=True)]
        np.testing.assert_allclose(found[method], slow, atol=1e-12)
        as_arrays = scoring.score_arrays(({'x': mask > 0} for mask in masks), truths.values())
        assert np.array_equal(as_arrays['x'], found[method])
    theirs = pytest.importorskip('isic_challenge_scoring.segmentation').SegmentationScore.from_dir(
        root.originals('Testing') / 'Annotation', folders['good'])
    columns = ['jaccard', 'dice', 'accuracy', 'sensitivity', 'specificity', 'threshold_jaccard']
    ours = scoring.thresholded(found['good'], 0.65)
    np.testing.assert_allclose(ours.mean(0), theirs.macro_average[columns], atol=1e-12)
    assert 0 < np.count_nonzero(scoring.thresholded(found['poor'], 0.65)[:, 5]) < COUNT


@pytest.mark.parametrize('forms', [('NFC', 'NFD'), ('NFD', 'NFC'), ('NFD', 'NFD')])
def test_masks_are_found_whichever_way_unicode_spells_their_names(tmp_path, forms):
    wanted, named = (unicodedata.normalize(form, 'm\xf6le') for form in forms)
    path = tmp_path / f'{named}_segmentation.png'
    images.write_mask(path, np.eye(8))
    assert scoring.find_masks(tmp_path, [wanted]) == ({wanted: path}, [])


def test_every_mask_at_fault_is_named_at_once(root):
    truths = {name: root.originals('Testing') / 'Annotation' / f'{name}_segmentation.png' for name in NAMES}
    good, poor = root.root / 'good', root.root / 'poor'
    (good / f'{NAMES[0]}_segmentation.png').unlink()
    images.write_mask(good / f'{NAMES[1]}.png', np.zeros((31, 21)))
    images.write_mask(good / 'ISIC_9999999_segmentation.png', np.zeros((5, 5)))
    images.write_mask(poor / f'{NAMES[2]}.png', np.zeros((31, 30)))
    images.write_png(poor / f'{NAMES[3]}.png', np.full((31, 23), 7, np.uint8))
    (poor / f'{NAMES[4]}.png').write_bytes(b'no picture')
    (poor / '.hidden.png').write_bytes(b'')
    (poor / 'notes.txt').write_text('of no interest')
    truths[NAMES[5]].write_bytes(b'')
    with pytest.raises(InputError) as caught:
        scoring.score_folders({'good': good, 'poor': poor, 'none': root.root / 'none'}, truths)
    assert sorted(caught.value.faults) == sorted([
        f'{good}: has no mask of {NAMES[0]}',
        f'{good / NAMES[1]}_segmentation.png: {NAMES[1]} is there twice, see {NAMES[1]}.png',
        f'{good}/ISIC_9999999_segmentation.png: is of no image of this split',
        f'{poor / NAMES[2]}.png: is 30x31 but the truth is 22x31',
        f'{poor / NAMES[3]}.png: is not a binary mask: it holds values other than 0 and 255',
        f'{poor / NAMES[4]}.png: is not a readable jpg, png or bmp', f'{truths[NAMES[5]]}: is empty',
        f'{root.root / "none"}: is not a folder'])
    assert 'size of the true mask' in caught.value.remedy


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_correction_is_that_of_its_definition(p):
    found, order = scoring.holm(p), sorted(range(len(p)), key=lambda number: p[number])
    for rank, number in enumerate(order):
        assert found[number] == max(min(1, (len(p) - below) * p[order[below]]) for below in range(rank + 1))


# --- The script

def test_what_is_written_agrees_and_is_printed(root):
    methods = 'good', 'poor', 'empty'
    text = run_script('compare.py', root.root, masks_of(root, *methods))
    stem = root.results / 'compare_Testing'
    assert {path.name for path in root.results.iterdir()} == {
        f'compare_Testing.{ending}' for ending in ('csv', 'json', 'md', 'png')}
    assert stem.with_suffix('.md').read_text() in text and 'a bootstrap' in text
    result = json.loads(stem.with_suffix('.json').read_text())
    with open(stem.with_suffix('.csv'), newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['image_id'] for row in rows] == NAMES
    columns = {(method, column): [float(row[f'{method} {column}']) for row in rows]
               for method in methods for column in scoring.COLUMNS}
    for (method, column), values in columns.items():
        scores = result['methods'][method]
        low, high = scores['ci95'][column]
        assert scores[column] == pytest.approx(np.mean(values), abs=1e-6)
        assert 0 <= low <= scores[column] <= high <= 1
    assert np.mean(columns['good', 'JA']) > np.mean(columns['poor', 'JA'])
    pairs = list(itertools.product(scoring.COLUMNS, itertools.combinations(methods, 2)))
    assert [(found['score'], (found['first'], found['second'])) for found in result['differences']] == pairs
    for found in result['differences']:
        mean, low, high, p = slow_difference(*(columns[found[which], found['score']]
                                               for which in ('first', 'second')), 1000)
        near = 2e-6 if found['resamples'] == 1000 else 0.01   # small p: more are drawn
        assert [found['mean'], *found['ci95']] == pytest.approx([mean, low, high], abs=near)
        assert found['p'] <= found['p_holm'] and found['p'] == pytest.approx(p, abs=0.01)
    table = stem.with_suffix('.md').read_text().splitlines()
    ja = result['methods']['good']['JA']
    assert f'{100 * ja:.1f} [' in next(line for line in table if '| good' in line)
    assert figure(stem.with_suffix('.png')).std() > 10


def test_one_method_alone_has_no_differences_and_no_scatter(root):
    root.results.mkdir(exist_ok=True)
    (root.results / 'compare_Testing.png').write_bytes(b'of an earlier comparison')
    text = run_script('compare.py', root.root, masks_of(root, 'good'), '--THRESHOLD=0.9')
    summary = json.loads((root.results / 'compare_Testing.json').read_text())
    assert scoring.SELECTED.format('') in compare.markdown(summary | {'split': 'Validation'})
    assert 'good' in text and 'p (Holm)' not in text and 'below 90 %' in text and 'also chose' not in text
    assert not (root.results / 'compare_Testing.png').exists()


def test_a_reference_and_masks_that_nothing_was_trained_for(root):
    """A picture is dark where Otsu's mask must be; the middle's is a quarter of it."""
    for number, name in enumerate(NAMES):
        picture = np.full((31, 20 + number, 3), 200, np.uint8)
        picture[4:9, 2:12] = 90
        images.write_png(root.originals('Testing') / 'Images' / f'{name}.png', picture)
    stale = root.results / 'otsu_Testing_masks' / 'of_a_former_list_segmentation.png'
    images.write_mask(stale, np.ones((4, 4), np.uint8))
    run_script('compare.py', root.root, masks_of(root, 'good', 'poor'), '--REFERENCE=poor',
               '--BASELINES=otsu,middle')
    assert not stale.exists()
    result = json.loads((root.results / 'compare_Testing.json').read_text())
    assert list(result['methods']) == ['good', 'poor', 'otsu', 'middle']
    assert [(found['first'], found['second']) for found in result['differences'][:3]] == [
        ('good', 'poor'), ('otsu', 'poor'), ('middle', 'poor')] and len(result['differences']) == 18
    for name in NAMES:
        folders = (root.results / f'{kind}_Testing_masks' for kind in ('otsu', 'middle'))
        otsu, middle = (images.read_mask(folder / f'{name}_segmentation.png') > 0 for folder in folders)
        assert otsu.sum() == 50 and otsu[4:9, 2:12].all()
        assert middle.mean() == pytest.approx(0.25, abs=0.02) and middle[15, middle.shape[1] // 2]
        assert (middle == middle[::-1, ::-1]).all()
    assert figure(root.results / 'compare_Testing.png').std() > 10


def test_it_agrees_with_the_evaluation(chain):
    layout = chain.layout
    masks = {network: layout.results / f'{network}_Validation_masks'
             for network in ('CoarseSN', 'EnhancedSN')}
    words = ','.join(f'{network}={folder}' for network, folder in masks.items())
    before = set(layout.results.iterdir())
    run_script('compare.py', layout.root, f'--MASKS={words}', '--SPLIT=Validation')
    result = json.loads((layout.results / 'compare_Validation.json').read_text())
    for network in masks:
        theirs = json.loads((layout.results / f'{network}_Validation.json').read_text())
        for column in metrics.SEGMENTATION:
            assert result['methods'][network][column] == theirs[column]
            assert result['methods'][network]['ci95'][column] == theirs['ci95'][column]
    for path in set(layout.results.iterdir()) - before:
        path.unlink()


def test_what_cannot_be_compared_is_refused(root):
    refused = {(): 'MASKS must say whose masks', ('--MASKS=folder',): "'folder': must be name=folder",
               ('--MASKS=a|b=x',): 'must be name=folder',
               ('--MASKS=a=x,a=y',): 'the name a must be given once',
               ('--MASKS=a=x', '--THRESHOLD=1.5'): 'must be from 0 to 1',
               ('--MASKS=a=x', '--REFERENCE=b'): 'REFERENCE=b must be one of a',
               ('--MASKS=otsu=x', '--BASELINES=otsu,best'): 'best is none of otsu, middle',
               ('--MASKS=otsu=x', '--BASELINES=otsu'): 'otsu is the name of several',
               ('--MASKS=a=x', '--SPLIT=Training'): 'must be one of',
               ('--MASKS=a=x',): 'x: is not a folder', ('--MASKS=a=x', '--SPLIT=Validation'): 'list_seg.py'}
    commands = [('compare.py', root.root, *words) for words in refused]
    for said, text in zip(refused.values(), run_in_turn(*commands, expect=2), strict=True):
        assert said in text and 'Traceback' not in text, text
    assert not root.results.exists()
