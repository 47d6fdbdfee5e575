"""Scores against pixel-by-pixel Python, against the challenge's own scorer, and at the edges."""
import csv
import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset.classes import PAPER
from dataset.layout import Layout
from engine import bootstrap, images, metrics, scoring
from mbdcnn import evaluation

QUICK = settings(max_examples=100, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)
pytestmark = pytest.mark.filterwarnings('ignore:The inplace keyword')   # the challenge's scorer, pandas 3


def slow_counts(prediction, truth):
    counts = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
    for row, other in zip(prediction.tolist(), truth.tolist(), strict=True):
        for found, there in zip(row, other, strict=True):
            counts[found, there] += 1
    return list(counts.values())   # tp, fp, fn, tn


def slow_scores(tp, fp, fn, tn):
    def ratio(a, b):
        return a / b if b else 1.0
    return [ratio(tp, tp + fp + fn), ratio(2 * tp, 2 * tp + fp + fn), ratio(tp + tn, tp + fp + fn + tn),
            ratio(tp, tp + fn), ratio(tn, tn + fp)]


def masks(rng, count=2, height=12, width=9):
    """Boolean masks, empty and full ones among them."""
    shares = rng.choice([0.0, 0.2, 0.5, 0.9, 1.0], count)
    return [rng.random((height, width)) < share for share in shares]


# --- Segmentation

@QUICK
@given(SEEDS, st.integers(1, 12), st.integers(1, 12))
def test_counts_and_scores_are_those_of_single_pixels(seed, height, width):
    prediction, truth = masks(np.random.default_rng(seed), 2, height, width)
    counts = metrics.confusion(prediction, truth)
    assert counts.dtype == np.int64 and counts.tolist() == slow_counts(prediction, truth)
    np.testing.assert_allclose(metrics.segmentation_scores(counts), [slow_scores(*counts.tolist())])


@QUICK
@given(st.lists(st.tuples(*[st.integers(0, 10**8)] * 4), min_size=1, max_size=8))
def test_bounds_and_identities(counts):
    ja, di, ac, se, sp = metrics.segmentation_scores(counts).T
    for score in (ja, di, ac, se, sp):
        assert ((score >= 0) & (score <= 1)).all()
    np.testing.assert_allclose(di, 2 * ja / (1 + ja), rtol=1e-12)
    assert (ja <= di).all() and (ja <= se + 1e-12).all()
    swapped = metrics.segmentation_scores([(tn, fn, fp, tp) for tp, fp, fn, tn in counts]).T
    np.testing.assert_allclose(swapped[2:], [ac, sp, se])   # lesion and background exchanged


@pytest.mark.parametrize('prediction, truth, expected', [
    (0, 0, [1, 1, 1, 1, 1]), (1, 1, [1, 1, 1, 1, 1]), (1, 0, [0, 0, 0, 1, 0]), (0, 1, [0, 0, 0, 0, 1])])
def test_empty_and_full_masks(prediction, truth, expected):
    counts = metrics.confusion(np.full((4, 5), bool(prediction)), np.full((4, 5), bool(truth)))
    assert metrics.segmentation_scores(counts)[0].tolist() == expected


def test_scores_agree_with_the_challenges_scorer(tmp_path):
    scoring = pytest.importorskip('isic_challenge_scoring.segmentation')
    rng, rows = np.random.default_rng(1), []
    kinds = [np.zeros((30, 41), bool), rng.random((30, 41)) < 0.3, np.ones((30, 41), bool)]
    pairs = [*itertools.product(kinds, kinds), *(masks(rng, 2, 30, 41) for _ in range(12))]
    for number, (prediction, truth) in enumerate(pairs):
        for folder, mask in (('truth', truth), ('found', prediction)):
            images.write_mask(tmp_path / folder / f'ISIC_{number:07d}_segmentation.png', mask)
        rows.append(metrics.confusion(prediction, truth))
    ours = metrics.segmentation_scores(rows)
    names = ['jaccard', 'dice', 'accuracy', 'sensitivity', 'specificity']
    mean = scoring.SegmentationScore.from_dir(tmp_path / 'truth', tmp_path / 'found').macro_average
    np.testing.assert_allclose(ours.mean(0), mean[names], atol=1e-12)
    alone = {int(pair.image_id.partition('_')[2]): scoring.SegmentationScore([pair]).macro_average[names]
             for pair in scoring.iter_image_pairs(tmp_path / 'truth', tmp_path / 'found')}
    np.testing.assert_allclose(ours, [alone[number] for number in range(len(pairs))], atol=1e-12)
    assert metrics.SEGMENTATION == ('JA', 'DI', 'pixel-AC', 'pixel-SE', 'pixel-SP')


# --- Classification

def predictions(seed=0, count=60):
    """Probabilities (N, 3) that lean towards the truth, some tied, and labels (N,) of all classes."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, count - 3)])
    scores = rng.gamma(1.0, size=(count, 3)) + 0.8 * np.eye(3)[labels]
    return np.round(scores / scores.sum(1, keepdims=True), 2), labels


def slow_area(p, truth):
    """AUC as the share of (positive, negative) pairs in the right order, ties one half."""
    pairs = [(a > b) + 0.5 * (a == b) for a in p[truth] for b in p[~truth]]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize('seed', range(5))
def test_classification_scores_are_those_of_single_images(seed):
    p, labels = predictions(seed)
    scores = metrics.classification_scores(p, labels, PAPER.tasks)
    for task, number in (('melanoma', 1), ('keratosis', 2)):
        truth = labels == number
        assert scores[task]['AUC'] == pytest.approx(slow_area(p[:, number], truth))
        for suffix, found in (('', p.argmax(1) == number), (' at 0.5', p[:, number] > 0.5)):
            tp, fp, fn, tn = slow_counts(found[None], truth[None])
            assert scores[task][f'AC{suffix}'] == pytest.approx((tp + tn) / len(labels))
            assert scores[task][f'SE{suffix}'] == pytest.approx(tp / (tp + fn))
            assert scores[task][f'SP{suffix}'] == pytest.approx(tn / (tn + fp))
    mean = (scores['melanoma']['AUC'] + scores['keratosis']['AUC']) / 2
    assert scores['mean AUC'] == pytest.approx(mean)


@QUICK
@given(SEEDS, st.integers(1, 20))
def test_any_predictions_and_labels_give_scores_within_bounds(seed, count):
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet([1, 1, 1], count), rng.integers(0, 3, count)
    scores = metrics.classification_scores(p, labels, PAPER.tasks)
    for task in PAPER.tasks:
        assert set(metrics.CLASSIFICATION) <= set(scores[task])
        assert all(value is None or 0 <= value <= 1 for value in scores[task].values())
    json.dumps(scores)   # plain numbers


def test_classification_agrees_with_the_challenges_scorer(tmp_path):
    scoring = pytest.importorskip('isic_challenge_scoring.classification')
    pd = pytest.importorskip('pandas')
    p, labels = predictions(7)
    names, columns = [f'ISIC_{n:07d}' for n in range(len(p))], ['melanoma', 'seborrheic_keratosis']
    layout = Layout(tmp_path)
    evaluation.report_classification(layout, 'Testing', names, {'9-crop': p, '1-crop': p}, labels,
                                     {'recipe': 'default'})
    # The package's own csv parser needs pandas < 3, hence its two checks by hand: columns and index.
    found = pd.read_csv(layout.results / 'MaskCN_Testing_challenge.csv', header=0)
    assert list(found.columns) == ['image', *columns]
    found = found.set_index('image')
    assert found.index.tolist() == names and not found.isna().any().any()
    truth = pd.DataFrame({name: (labels == k + 1).astype(float) for k, name in enumerate(columns)}, names)
    ones = pd.DataFrame({'score_weight': 1.0, 'validation_weight': 1.0}, names)
    theirs = scoring.ClassificationScore(truth, found, ones, scoring.ClassificationMetric.AUC)
    ours = metrics.classification_scores(p, labels, PAPER.tasks)
    for task, column in zip(PAPER.tasks, columns, strict=True):
        row = theirs.per_category.loc[column]
        for name, their_name in (('AUC', 'auc'), ('AP', 'ap'), ('AC at 0.5', 'accuracy'),
                                 ('SE at 0.5', 'sensitivity'), ('SP at 0.5', 'specificity')):
            assert ours[task][name] == pytest.approx(row[their_name], abs=1e-9), (task, name)
    assert theirs.overall == pytest.approx(ours['mean AUC'])


@pytest.mark.parametrize('labels, undefined', [
    ([0, 0, 0, 0], ['melanoma', 'keratosis']), ([1, 1, 1, 1], ['melanoma', 'keratosis']),
    ([0, 1, 0, 1], ['keratosis'])])
def test_one_class_alone_gives_none_and_no_crash(tmp_path, capsys, labels, undefined):
    p = np.random.default_rng(0).dirichlet([1, 1, 1], len(labels))
    scores = metrics.classification_scores(p, labels, PAPER.tasks)
    for task in PAPER.tasks:
        missing = task in undefined
        assert (scores[task]['AUC'] is None) is (scores[task]['AP'] is None) is missing
        truth = np.array(labels) == PAPER.tasks[task]
        for suffix in ('', ' at 0.5'):
            assert (scores[task][f'SE{suffix}'] is None) == (not truth.any())
            assert (scores[task][f'SP{suffix}'] is None) == truth.all()
    assert scores['mean AUC'] is None
    bounds = bootstrap.intervals_of_areas(p, np.array(labels), PAPER.tasks)
    assert {name for name, pair in bounds.items() if pair is None} == {
        'mean AUC', *(f'{task} AUC' for task in undefined)}
    names = [f'ISIC_{number:07d}' for number in range(len(labels))]
    evaluation.report_classification(Layout(tmp_path), 'Validation', names, {'9-crop': p, '1-crop': p},
                                     np.array(labels), {'recipe': 'default'})
    printed = capsys.readouterr().out
    assert f'AUC, AP and one of SE and SP of {" and ".join(undefined)} are undefined' in printed
    assert scoring.SELECTED.format('') in printed   # of validation
    lines = {line[:len('keratosis SE')]: line.split()[2:] for line in printed.splitlines()}
    assert set(lines['keratosis SE']) == {'-'} != set(lines['keratosis SP'])   # no picture has one
    written = json.loads((tmp_path / 'results' / 'MaskCN_Validation.json').read_text())
    assert written['mean AUC'] is None and written['recipe'] == 'default'
    assert written['keratosis']['SE'] is None is written['1-crop']['keratosis']['SE at 0.5']


def test_the_csv_ranks_as_the_json_does(tmp_path):
    """Also where a network is so sure that all probabilities of a class are tiny."""
    rare = np.array([1e-9] * 5 + [1e-10] * 5 + [1 - 2e-9, 1 - 1e-9])
    p = np.stack([1 - rare, rare, np.zeros(12)], 1)
    labels = np.array([1] * 5 + [0] * 5 + [0, 1])
    names = [f'ISIC_{number:07d}' for number in range(12)]
    summary = evaluation.report_classification(Layout(tmp_path), 'Testing', names, {'9-crop': p, '1-crop': p},
                                               labels, {})
    _, _, read = evaluation.read_csv(tmp_path / 'results' / 'MaskCN_Testing.csv')
    again = metrics.classification_scores(read, labels, PAPER.tasks)
    assert again['melanoma']['AUC'] == summary['melanoma']['AUC'] != 0.5


# --- Reports

def test_segmentation_report_holds_every_image_and_both_means(tmp_path, capsys):
    rng = np.random.default_rng(4)
    scores = {'plain': rng.random((6, 5)), 'tta': rng.random((6, 5))}
    names = [f'ISIC_{number:07d}' for number in range(6)]
    summary = evaluation.report_segmentation(Layout(tmp_path), 'EnhancedSN', 'Testing', names, scores,
                                             {'recipe': 'paper'})
    with open(tmp_path / 'results' / 'EnhancedSN_Testing.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['image_id'] for row in rows] == names
    for k, name in enumerate(metrics.SEGMENTATION):
        np.testing.assert_allclose([float(row[name]) for row in rows], scores['tta'][:, k], atol=1e-6)
        assert summary[name] == pytest.approx(scores['tta'][:, k].mean())
        assert summary['without TTA'][name] == pytest.approx(scores['plain'][:, k].mean())
    written = json.loads((tmp_path / 'results' / 'EnhancedSN_Testing.json').read_text())
    assert written == summary and written['n'] == 6 and written['recipe'] == 'paper'
    printed = capsys.readouterr().out
    assert '80.4' in printed and 'also chose' not in printed   # the paper's JA stands beside
