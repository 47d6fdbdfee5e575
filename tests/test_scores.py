"""Scores of evaluation files: against metrics and sklearn, by hand, and what the bootstrap must obey."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from dataset.errors import InputError
from dataset.layout import Layout
from engine import evaluation, metrics, scores
from engine.scores import Part, Result

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


def ids(count, start=0):
    return tuple(f'ISIC_{number:07d}' for number in range(start, start + count))


def segmentation(*parts):
    """A Result of lists of JA, one a part; the other columns are 0."""
    made, start = [], 0
    for values in parts:
        table = np.zeros((len(values), 5))
        table[:, 0] = values
        made.append(Part(ids(len(values), start), table))
        start += len(values)
    return Result('segmentation', tuple(made))


def classified(seed, count=120, start=0, lean=0.8, decimals=2):
    """A Part with all classes, some probabilities tied."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, count - 3)])
    p = rng.gamma(1.0, size=(count, 3)) + lean * np.eye(3)[labels]
    return Part(ids(count, start), np.round(p / p.sum(1, keepdims=True), decimals), labels)


def classification(*parts):
    return Result('classification', parts)


# --- Reading

def test_what_the_evaluations_write_is_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, 'RESAMPLES', 200)
    layout, rng = Layout(tmp_path), np.random.default_rng(0)
    values = rng.random((7, 5))
    summary = evaluation.report_segmentation(layout, 'EnhancedSN', 'Testing', ids(7), {'plain': values}, {})
    found = scores.read([layout.results / 'EnhancedSN_Testing.csv'])
    assert found.kind == 'segmentation' and found.count == 7 and found.parts[0].names == ids(7)
    assert found.parts[0].labels is None
    np.testing.assert_allclose(found.parts[0].values, values, atol=1e-6)
    for column in metrics.SEGMENTATION:
        assert scores.score(found, column) == pytest.approx(100 * summary[column], abs=1e-4)
        assert scores.interval(found, column) == pytest.approx(
            [100 * bound for bound in summary['ci95'][column]], abs=1e-4)

    part = classified(1, 60)
    summary = evaluation.report_classification(layout, 'Testing', part.names, {'9-crop': part.values},
                                               part.labels, {})
    labels = dict(zip(part.names, part.labels.tolist(), strict=True)) | {'another': 1}
    found = scores.read([layout.results / 'MaskCN_Testing.csv'], labels)
    assert found.kind == 'classification' and found.parts[0].labels.tolist() == part.labels.tolist()
    for task in metrics.TASKS:
        for name in metrics.CLASSIFICATION:
            assert scores.score(found, f'{task} {name}') == pytest.approx(100 * summary[task][name])
    for column in ('mean AUC', 'melanoma AUC', 'keratosis AUC'):
        assert scores.interval(found, column) == pytest.approx(
            [100 * bound for bound in summary['ci95'][column]])


def test_every_bad_file_and_line_and_missing_label_is_named(tmp_path):
    head = 'image_id,nevus,melanoma,keratosis\n'
    texts = {'good': head + 'a,0.2,0.3,0.5\nb,1,0,0\n', 'short': head + 'c,0.2,0.3\nd,0.2,0.3,0.5\n',
             'range': head + 'e,0.2,1.3,0.5\nf,nan,0,0\ng,x,0,0\n,1,0,0\n',
             'twice': head + 'h,1,0,0\nh,1,0,0\n', 'again': head + 'a,1,0,0\n', 'empty': '', 'rows': head,
             'other': 'image,melanoma\nq,1\n',
             'mixed': 'image_id,JA,DI,pixel-AC,pixel-SE,pixel-SP\nz,1,1,1,1,1\n'}
    paths = [tmp_path / f'{name}.csv' for name in (*texts, 'missing')]
    for path, text in zip(paths, texts.values(), strict=False):
        path.write_text(text)
    (tmp_path / 'binary.csv').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(InputError) as caught:
        scores.read([*paths, tmp_path / 'binary.csv'], {'a': 0, 'd': 1, 'h': None})
    text = '\n'.join(caught.value.faults)
    for words in ('good.csv: b has no label', "short.csv, line 2: 'c,0.2,0.3'", "range.csv, line 2: 'e,",
                  'range.csv, line 3', 'range.csv, line 4', 'range.csv, line 5', 'line 3: h is listed twice',
                  'h has no label', 'again.csv: a is in', 'empty.csv: has the columns',
                  'rows.csv: has no rows', "other.csv: has the columns 'image,melanoma'",
                  '(segmentation) do not mix', 'missing.csv: is missing', 'binary.csv: cannot be read'):
        assert words in text, words
    assert 'd has no label' not in text and len(caught.value.faults) == 15
    with pytest.raises(InputError, match='a has no label'):
        scores.read(paths[:1])
    assert scores.read(paths[-2:-1]).kind == 'segmentation'


# --- Scores

def test_areas_by_hand():
    p = np.array([0.1, 0.4, 0.35, 0.8])
    truth = np.array([False, False, True, True])
    once = np.ones((1, 4))
    assert scores.area(p, truth, once).tolist() == [0.75]              # 3 of 4 pairs
    assert scores.average_precision(p, truth, once)[0] == pytest.approx(1 / 2 + 2 / 3 / 2)
    assert scores.area(np.zeros(4), truth, once).tolist() == [0.5]     # all tied
    assert scores.average_precision(np.zeros(4), truth, once).tolist() == [0.5]
    assert scores.area(p, truth, np.array([[1, 0, 1, 1], [1, 3, 1, 1]])).tolist() == [1.0, 5 / 8]


@QUICK
@given(SEEDS, st.integers(2, 40), st.integers(0, 3))
def test_weighted_areas_are_sklearns_of_repeated_images(seed, count, decimals):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(count), decimals)   # few decimals: many ties
    truth = np.arange(count) < rng.integers(1, count)
    rng.shuffle(truth)
    weights = rng.integers(0, 4, (5, count))
    weights[:, [truth.argmax(), (~truth).argmax()]] += 1
    for found, theirs in ((scores.area, roc_auc_score), (scores.average_precision, average_precision_score)):
        expected = [theirs(np.repeat(truth, row), np.repeat(p, row)) for row in weights]
        np.testing.assert_allclose(found(p, truth, weights), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_scores_are_those_of_metrics_and_folds_are_averaged(seed):
    parts = classified(seed), classified(seed + 10, 80, 200, lean=0.2)
    columns = [f'{task} {name}' for task in metrics.TASKS for name in metrics.CLASSIFICATION] + ['mean AUC']
    assert set(columns) == set(scores.COLUMNS['classification'])
    for column in columns:
        each = []
        for part in parts:
            expected = metrics.classification_scores(part.values, part.labels)
            task, name = column.split()
            each.append(100 * (expected[column] if column == 'mean AUC' else expected[task][name]))
            assert scores.score(classification(part), column) == pytest.approx(each[-1], abs=1e-9)
        assert scores.score(classification(*parts), column) == pytest.approx(np.mean(each), abs=1e-9)


def test_scales_of_the_folds_do_not_matter():
    first, second = classified(1), classified(2, start=500)
    scaled = Part(second.names, second.values * 0.01, second.labels)
    assert scores.score(classification(first, second), 'mean AUC') \
        == scores.score(classification(first, scaled), 'mean AUC')


def test_images_of_all_folds_count_alike_in_segmentation():
    assert scores.score(segmentation([0.0], [1.0, 1.0, 1.0]), 'JA') == 75.0
    assert scores.score(segmentation([0.0], [1.0, 1.0, 1.0]), 'DI') == 0.0


def test_one_class_alone_gives_none():
    part = classified(1, 40)
    bare = Part(part.names, part.values, np.where(part.labels == 2, 0, part.labels))   # as PH2 is
    assert scores.score(classification(bare), 'keratosis AUC') is None
    assert scores.score(classification(bare), 'mean AUC') is None
    assert scores.interval(classification(bare), 'keratosis SE') is None
    assert scores.paired_difference(classification(bare), classification(bare), 'mean AUC') is None
    low, high = scores.interval(classification(bare), 'melanoma AUC')
    assert low < scores.score(classification(bare), 'melanoma AUC') < high
    other = Part(ids(40, 100), part.values, part.labels)
    assert scores.score(classification(other, bare), 'keratosis AUC') is None


def test_columns_of_the_other_kind_are_refused():
    with pytest.raises(ValueError, match="'JA' is not a score of a classification"):
        scores.score(classification(classified(0)), 'JA')
    with pytest.raises(ValueError, match='not a score of a segmentation'):
        scores.interval(segmentation([1.0]), 'mean AUC')


# --- Intervals

@pytest.mark.parametrize('seed', [0, 5])
def test_intervals_are_those_of_metrics(seed):
    values = np.random.default_rng(1).random((90, 5))
    result = Result('segmentation', (Part(ids(90), values),))
    for place, column in enumerate(metrics.SEGMENTATION):
        expected = 100 * metrics.interval_of_means(values, seed)[place]
        assert scores.interval(result, column, seed) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize('count', [12, 60])   # of 12 images, some resamples lose a class
def test_intervals_of_areas_are_those_of_metrics(count, monkeypatch):
    monkeypatch.setattr(metrics, 'RESAMPLES', 200)
    part = classified(8, count)
    assert (len(scores._weights(classification(part), 0)[0]) < 200) == (count == 12)
    for column, bounds in metrics.intervals_of_areas(part.values, part.labels).items():
        assert scores.interval(classification(part), column) == pytest.approx(
            [100 * bound for bound in bounds], abs=1e-9)


def test_intervals_cover_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(60):
        low, high = scores.interval(segmentation(rng.beta(8, 2, 80)), 'JA')
        covered += low <= 80 <= high   # the mean of Beta(8, 2)
    assert covered >= 52   # 56 expected, as the coverage at n = 80 is 94 %


def test_folds_are_resampled_apart():
    halves = segmentation([0.2] * 20, [0.8] * 30)   # no spread within a fold
    assert scores.interval(halves, 'JA') == pytest.approx((56.0, 56.0))
    low, high = scores.interval(segmentation([0.2] * 20 + [0.8] * 30), 'JA')
    assert low < 50 and high > 62


def test_the_interval_over_seeds_is_that_of_their_mean():
    rng = np.random.default_rng(4)
    first, second = rng.random(50), rng.random(50)
    both = scores.interval([segmentation(first), segmentation(second)], 'JA')
    assert both == pytest.approx(scores.interval(segmentation((first + second) / 2), 'JA'))
    assert scores.interval([segmentation(first)], 'JA') == scores.interval(segmentation(first), 'JA')


# --- Paired differences

def test_equal_results_differ_by_nothing():
    for result, column in ((segmentation(np.random.default_rng(5).random(40)), 'JA'),
                           (classification(classified(5), classified(6, start=900)), 'mean AUC')):
        assert scores.paired_difference(result, result, column) == scores.Difference(0.0, 0.0, 0.0, 1.0, 1000)


def test_a_constant_shift_is_found_exactly():
    values = np.random.default_rng(6).random(40) * 0.9
    found = scores.paired_difference(segmentation(values + 0.05), segmentation(values), 'JA')
    assert (found.mean, found.low, found.high) == pytest.approx((5, 5, 5))
    assert found.p == 2 / 100_001 and found.resamples == 100_000
    back = scores.paired_difference(segmentation(values), segmentation(values + 0.05), 'JA')
    assert back.mean == pytest.approx(-5) and back.p == found.p


def test_pairs_are_by_id_not_by_place():
    part = classified(7)
    order = np.random.default_rng(0).permutation(len(part.names))
    shuffled = Part(tuple(np.array(part.names)[order].tolist()), part.values[order], part.labels[order])
    found = scores.paired_difference(classification(part), classification(shuffled), 'melanoma AP')
    assert found == scores.Difference(0.0, 0.0, 0.0, 1.0, 1000)


@pytest.mark.parametrize('below, p', [(0, 2 / 11), (1, 4 / 11), (4, 10 / 11), (5, 1), (10, 2 / 11)])
def test_p_counts_what_was_measured_as_one_of_the_resamples(below, p):
    differences = np.where(np.arange(10) < below, -1.0, 1.0)
    assert scores._two_sided(differences) == p == scores._two_sided(-differences)


def test_small_p_gets_more_resamples_which_are_always_the_same():
    rng = np.random.default_rng(12)
    a, b = (segmentation(values) for values in rng.random((2, 60)))
    few = scores.paired_difference(a, b, 'JA')
    assert few.p > 0.01 and few.resamples == 1000
    near = segmentation(np.clip(b.parts[0].values[:, 0] + 0.1 * rng.random(60) - 0.02, 0, 1))
    many = scores.paired_difference(near, b, 'JA')
    assert many.p < 0.001 and many.resamples == 100_000
    assert many == scores.paired_difference(near, b, 'JA')
    assert many.p == scores.paired_difference(b, near, 'JA').p
    assert scores.paired_difference(near, b, 'JA', seed=1).low != many.low
    chunks = [scores._weights(a, 0, chunk)[0] for chunk in (0, 1, 2)]
    assert all(len(chunk) == 1000 for chunk in chunks)       # memory for one at a time
    assert not any(np.array_equal(chunks[i], chunks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_p_is_that_of_the_normal_distribution_where_it_is_small():
    values = np.random.default_rng(13).normal(0.5, 0.1, 200)
    shifted = values + np.random.default_rng(14).normal(0.0, 0.05, 200)
    change = shifted - values
    shifted += 3.2 * change.std() / np.sqrt(200) - change.mean()   # 3.2 standard errors above
    found = scores.paired_difference(segmentation(shifted), segmentation(values), 'JA')
    assert found.resamples == 100_000 and found.p == pytest.approx(0.00137, rel=0.4)


def test_pairing_narrows_the_interval_and_p_follows_it():
    rng = np.random.default_rng(8)
    hard = rng.random(100) * 0.8   # how easy each image is, for both
    a, b = (segmentation(hard + shift + 0.02 * rng.random(100)) for shift in (0.01, 0.0))
    found = scores.paired_difference(a, b, 'JA')
    low, high = scores.interval(a, 'JA')
    assert found.mean == pytest.approx(scores.score(a, 'JA') - scores.score(b, 'JA'))
    assert 0 < found.low < found.mean < found.high and found.high - found.low < (high - low) / 10
    assert found.p < 0.05
    noise = scores.paired_difference(segmentation(rng.random(100)), segmentation(rng.random(100)), 'JA')
    assert (noise.low < 0 < noise.high) == (noise.p > 0.05)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(9)
    ps = [scores.paired_difference(segmentation(rng.random(60)), segmentation(rng.random(60)), 'JA').p
          for _ in range(60)]
    assert np.mean(ps) == pytest.approx(0.5, abs=0.12) and sum(p < 0.1 for p in ps) <= 14


def test_seeds_are_averaged_within_each_resample():
    rng = np.random.default_rng(10)
    a, b = rng.random((3, 50)), rng.random((3, 50))
    found = scores.paired_difference(list(map(segmentation, a)), list(map(segmentation, b)), 'JA')
    expected = scores.paired_difference(segmentation(a.mean(0)), segmentation(b.mean(0)), 'JA')
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p))
    with pytest.raises(ValueError, match='3 and 2 results'):
        scores.paired_difference(list(map(segmentation, a)), list(map(segmentation, b[:2])), 'JA')


def test_other_images_or_labels_or_folds_are_refused():
    part = classified(11, 20)
    cut = Part(part.names[1:], part.values[1:], part.labels[1:], 'cut.csv')
    other = Part(part.names, part.values, np.append(part.labels[:-1], (part.labels[-1] + 1) % 3), 'other.csv')
    whole = classification(part)
    for wrong, words in ((cut, f'cut.csv: {part.names[0]} is missing'),
                         (other, f'{part.names[-1]} has the class')):
        with pytest.raises(InputError, match=words):
            scores.paired_difference(whole, classification(wrong), 'mean AUC')
        with pytest.raises(InputError, match=words):
            scores.interval([whole, classification(wrong)], 'mean AUC')
    with pytest.raises(InputError, match='one of 2 parts'):
        scores.paired_difference(whole, classification(part, classified(3, start=99)), 'mean AUC')
