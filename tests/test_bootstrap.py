"""The bootstrap of plain arrays: against a loop over resamples, against sklearn, and by hand."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from dataset.classes import PAPER
from engine import bootstrap, metrics
from tests.test_metrics import predictions

QUICK = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**32 - 1)


# --- Areas under weights

def test_areas_by_hand():
    p = np.array([0.1, 0.4, 0.35, 0.8])
    truth = np.array([False, False, True, True])
    once = np.ones((1, 4))
    assert bootstrap.area(p, truth, once).tolist() == [0.75]              # 3 of 4 pairs
    assert bootstrap.average_precision(p, truth, once)[0] == pytest.approx(1 / 2 + 2 / 3 / 2)
    assert bootstrap.area(np.zeros(4), truth, once).tolist() == [0.5]     # all tied
    assert bootstrap.average_precision(np.zeros(4), truth, once).tolist() == [0.5]
    assert bootstrap.area(p, truth, np.array([[1, 0, 1, 1], [1, 3, 1, 1]])).tolist() == [1.0, 5 / 8]


@QUICK
@given(SEEDS, st.integers(2, 40), st.integers(0, 3))
def test_weighted_areas_are_sklearns_of_repeated_images(seed, count, decimals):
    rng = np.random.default_rng(seed)
    p = np.round(rng.random(count), decimals)   # few decimals: many ties
    truth = np.arange(count) < rng.integers(1, count)
    rng.shuffle(truth)
    weights = rng.integers(0, 4, (5, count))
    weights[:, [truth.argmax(), (~truth).argmax()]] += 1
    for found, theirs in ((bootstrap.area, roc_auc_score),
                          (bootstrap.average_precision, average_precision_score)):
        expected = [theirs(np.repeat(truth, row), np.repeat(p, row)) for row in weights]
        np.testing.assert_allclose(found(p, truth, weights), expected, rtol=0, atol=1e-12)


# --- Intervals

def slow_interval_of_means(values, seed):
    draws = np.random.default_rng(seed).integers(0, len(values), (bootstrap.RESAMPLES, len(values)))
    return np.percentile([values[draw].mean(0) for draw in draws], [2.5, 97.5], axis=0).T


def slow_intervals_of_areas(probabilities, labels, seed):
    rng, rows = np.random.default_rng(seed), []
    for _ in range(bootstrap.RESAMPLES):
        draw = rng.integers(0, len(labels), len(labels))
        truth = [labels[draw] == number for number in (1, 2)]
        if all(t.any() and not t.all() for t in truth):
            areas = [roc_auc_score(t, probabilities[draw, number]) for number, t in enumerate(truth, 1)]
            rows.append([*areas, np.mean(areas)])
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    return {name: (low[i], high[i]) for i, name in enumerate(('melanoma AUC', 'keratosis AUC', 'mean AUC'))}


@pytest.mark.parametrize('seed', [0, 5])
def test_intervals_of_means_are_those_of_a_loop(seed):
    values = np.random.default_rng(1).random((90, 5))
    np.testing.assert_allclose(bootstrap.interval_of_means(values, seed),
                               slow_interval_of_means(values, seed), atol=1e-12)


@pytest.mark.parametrize('count', [12, 60])   # of 12 images, some resamples lose a class
def test_intervals_of_areas_are_those_of_a_loop(count, monkeypatch):
    monkeypatch.setattr(bootstrap, 'RESAMPLES', 200)
    p, labels = predictions(8, count)
    weights, = bootstrap.draw([(count, [labels == 1, labels == 2])])
    assert (len(weights) < 200) == (count == 12)
    found = bootstrap.intervals_of_areas(p, labels, PAPER.tasks)
    slow = slow_intervals_of_areas(p, labels, 0)
    assert found.keys() == slow.keys()
    for name, bounds in found.items():
        assert bounds == pytest.approx(slow[name], abs=1e-12)


def test_bootstrap_intervals_of_means():
    values = np.random.default_rng(2).beta(8, 2, (400, 5))
    widths = []
    for count in (25, 100, 400):
        bounds = bootstrap.interval_of_means(values[:count])
        means = values[:count].mean(0)
        assert bounds.shape == (5, 2) and (bounds[:, 0] < means).all() and (means < bounds[:, 1]).all()
        np.testing.assert_array_equal(bounds, bootstrap.interval_of_means(values[:count]))
        widths.append((bounds[:, 1] - bounds[:, 0]).mean())
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2]   # about 1 / sqrt(n)
    half = 1.96 * values.std(0) / np.sqrt(len(values))      # the normal approximation
    np.testing.assert_allclose(widths[2], 2 * half.mean(), rtol=0.1)
    assert not np.array_equal(bounds, bootstrap.interval_of_means(values, seed=1))


def test_an_interval_of_one_image_is_that_image():
    np.testing.assert_array_equal(bootstrap.interval_of_means([[0.25, 1.0]]), [[0.25, 0.25], [1.0, 1.0]])


def test_bootstrap_intervals_of_areas(monkeypatch):
    monkeypatch.setattr(bootstrap, 'RESAMPLES', 200)
    p, labels = predictions(3, 400)
    widths = []
    for count in (60, 400):
        bounds = bootstrap.intervals_of_areas(p[:count], labels[:count], PAPER.tasks)
        scores = metrics.classification_scores(p[:count], labels[:count], PAPER.tasks)
        points = {'mean AUC': scores['mean AUC'],
                  **{f'{task} AUC': scores[task]['AUC'] for task in PAPER.tasks}}
        assert bounds.keys() == points.keys()
        assert all(low < points[name] < high for name, (low, high) in bounds.items())
        assert bounds == bootstrap.intervals_of_areas(p[:count], labels[:count], PAPER.tasks)
        widths.append(bounds['mean AUC'][1] - bounds['mean AUC'][0])
    assert widths[0] > 1.5 * widths[1]


# --- Paired differences

def test_the_paired_difference_of_two_arrays():
    rng = np.random.default_rng(0)
    hard = rng.random(80)
    first, second = hard + 0.02 + 0.05 * rng.random(80), hard + 0.05 * rng.random(80)
    found = bootstrap.paired_difference(first, second)
    slow = []   # p is small: all resamples are drawn, a thousand at a time
    for chunk in range(100):
        rng = np.random.default_rng([0, chunk] if chunk else 0)
        slow += [(first - second)[rng.integers(0, 80, 80)].mean() for _ in range(1000)]
    slow = np.array(slow)
    assert found.resamples == bootstrap.MOST_RESAMPLES == len(slow)
    assert found.mean == pytest.approx((first - second).mean())
    assert (found.low, found.high) == pytest.approx(np.percentile(slow, [2.5, 97.5]))
    assert found.p == 2 * ((slow <= 0).sum() + 1) / (len(slow) + 1)
    back = bootstrap.paired_difference(second, first)
    assert (back.mean, back.low, back.p) == pytest.approx((-found.mean, -found.high, found.p))
    assert bootstrap.paired_difference(first, first) == bootstrap.Difference(0.0, 0.0, 0.0, 1.0, 1000)
    with pytest.raises(ValueError, match='80 and 79 scores'):
        bootstrap.paired_difference(first, second[1:])


@pytest.mark.parametrize('below, p', [(0, 2 / 11), (1, 4 / 11), (4, 10 / 11), (5, 1), (10, 2 / 11)])
def test_p_counts_what_was_measured_as_one_of_the_resamples(below, p):
    differences = np.where(np.arange(10) < below, -1.0, 1.0)
    assert bootstrap.two_sided(differences) == p == bootstrap.two_sided(-differences)


def test_ties_that_rounding_hides_are_ties():
    """0.1 + 0.2 - 0.3 is 5.6e-17: means over seeds or folds of equal scores."""
    hidden = np.array([0.1 + 0.2 - 0.3, 0.3 - 0.2 - 0.1, 0.0, 1.0])
    assert bootstrap.two_sided(hidden) == bootstrap.two_sided(hidden.round(12)) == 1
    assert bootstrap.two_sided(np.array([1e-9, 1e-9, 1e-9])) == 0.5


@pytest.mark.parametrize('count, p', [(1, 1), (2, 0.5), (3, 0.25), (6, 1 / 32), (12, 2 / 4096)])
def test_p_of_a_few_images_is_not_below_that_of_a_sign_test(count, p):
    values = np.linspace(0.5, 0.8, count)
    found = bootstrap.paired_difference(values + 0.1, values)
    assert found.p == p and bootstrap.p_in_words(found) == f'p = {p:.{"3f" if p >= 0.01 else "1g"}}'
    assert (found.resamples == 1000) == (p >= bootstrap.SMALL_P)   # more would not change it
    assert 'too small' in bootstrap.of_few(count) and not bootstrap.of_few(bootstrap.FEW)


def test_a_seed_fixes_the_draws_and_every_chunk_has_its_own():
    rng = np.random.default_rng(12)
    first, second = rng.random((2, 60))
    few = bootstrap.paired_difference(first, second)
    assert few.p > bootstrap.SMALL_P and few.resamples == 1000
    near = second + 0.1 * rng.random(60) - 0.02
    many = bootstrap.paired_difference(near, second)
    assert many == bootstrap.paired_difference(near, second) and many.resamples == 100_000
    assert many.low != bootstrap.paired_difference(near, second, seed=1).low
    chunks = [bootstrap.draw([(60, ())], 0, chunk)[0] for chunk in (0, 1, 2)]
    assert not any(np.array_equal(chunks[i], chunks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_p_is_that_of_the_normal_distribution_where_it_is_small():
    values = np.random.default_rng(13).normal(0.5, 0.1, 200)
    change = np.random.default_rng(14).normal(0.0, 0.05, 200)
    change += 3.2 * change.std() / np.sqrt(200) - change.mean()   # 3.2 standard errors above zero
    found = bootstrap.paired_difference(values + change, values)
    assert found.resamples == 100_000 and found.p == pytest.approx(0.00137, rel=0.4)
