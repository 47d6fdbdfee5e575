"""The bootstrap over images: 95 % intervals of scores, and paired differences. Arrays in, fractions out.

A resample draws as many images as there are, with replacement. It is written as a row of *weights*, how
often it draws each image, so that a score of a thousand resamples is a few products of matrices.
"""
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000           # drawn at a time, a chunk
SMALL_P = 0.01             # below it, more are drawn: a thousand say little about one in a thousand
MOST_RESAMPLES = 100_000   # ten times as many until p is no longer small, this many at most
TIE = 1e-12                # differences up to it are none: means over seeds or folds are rounded
FEW = 30                   # images; below, what is said of p says what a bootstrap cannot tell


@dataclass(frozen=True)
class Difference:
    """First score minus second, its 95 % interval, and the two-sided p of "they do not differ"."""
    mean: float
    low: float
    high: float
    p: float         # no smaller than a test that swaps both scores of images can find, see `difference`
    resamples: int   # that were drawn; p is no smaller than 2 / (resamples + 1) either


def draw(parts, seed=0, chunk=0):
    """How often each resample draws each image, within the parts (test folds): one (R, N) float64 a part.

    parts : (N, truths) pairs; truths : (N,) bool arrays, one a classification task. Resamples in which a
    task has lost one of its two classes are left out, so R may be below RESAMPLES; a task that has one
    class from the start does not count. Each chunk has draws of its own.
    """
    rng = np.random.default_rng([seed, chunk] if chunk else seed)
    weights, kept = [], np.ones(RESAMPLES, bool)
    for count, truths in parts:
        drawn = rng.integers(0, count, (RESAMPLES, count))
        cells = drawn + count * np.arange(RESAMPLES)[:, None]   # one bincount for all resamples
        weights.append(np.bincount(cells.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float))
        for truth in truths:
            if both(truth):
                kept &= weights[-1][:, truth].any(1) & weights[-1][:, ~truth].any(1)
    return [drawn[kept] for drawn in weights]


def both(truth):
    """True where both classes are among (N,) bool."""
    return truth.any() and not truth.all()


def bounds(scores):
    """The 95 % percentile interval of resampled scores (R, ...): array (2, ...), low and high."""
    return np.percentile(scores, [2.5, 97.5], axis=0)


def difference(first, second, resampled, count):
    """Difference of two scores; None where no resample is defined.

    resampled : function of a chunk's number -> (R,) first minus second in each of its resamples
    count : of images; p is at least 2 / 2 ** count, since both scores of an image can be swapped in no more
        ways than that, however alike the resamples of a few images are

    p = 2 (b + 1) / (R + 1), at most 1, with b the resamples on the rarer side of zero (ties on both): what
    was measured counts as a resample, so p is never 0. The images are what is drawn; how much one training
    differs from the next shows in the spread over seeds alone.
    """
    found, chunks, most = resampled(0), 1, MOST_RESAMPLES // RESAMPLES
    if not len(found):
        return None
    least = min(1.0, 2 * 0.5 ** count)
    while max(least, two_sided(found)) < SMALL_P and chunks < most:
        wanted = min(10 * chunks, most)
        found = np.concatenate([found, *map(resampled, range(chunks, wanted))])
        chunks = wanted
    return Difference(float(first - second), *map(float, bounds(found)), max(least, two_sided(found)),
                      len(found))


def p_in_words(difference):
    """'p = 0.031', or 'p <= 2e-05' where more resamples would make it smaller still."""
    least = difference.p <= 2 / (difference.resamples + 1)
    return f'p {"<=" if least else "="} {difference.p:.{"3f" if difference.p >= SMALL_P else "1g"}}'


def of_few(count):
    """'; of so few images ...' where a p that stands before is of fewer than FEW, else ''."""
    return '; of so few images a bootstrap\'s p comes out too small' if count < FEW else ''


def two_sided(differences):
    """p of "they do not differ" from the differences in resamples, see `difference`."""
    rarer = min((differences <= TIE).sum(), (differences >= -TIE).sum())
    return float(min(1, 2 * (rarer + 1) / (len(differences) + 1)))


def interval_of_means(values, seed=0):
    """Interval of the mean of each column: (N, M) scores -> (M, 2)."""
    values = np.asarray(values, dtype=np.float64)
    weights, = draw([(len(values), ())], seed)
    return bounds(weights @ values / len(values)).T


def paired_difference(first, second, seed=0):
    """Difference of the means of two methods' scores of the same images in the same order, (N,) each."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f'{len(first)} and {len(second)} scores must be of the same images')
    return difference(first.mean(), second.mean(), lambda chunk: draw([(len(first), ())], seed, chunk)[0]
                      @ (first - second) / len(first), len(first))


def intervals_of_areas(probabilities, labels, tasks, seed=0):
    """Intervals of the AUCs: {'<task> AUC': [low, high], ..., 'mean AUC': ...}.

    probabilities : (N, K); labels : (N,) class numbers; tasks : {name: class number against the rest}
    None where a task, or any of them for the mean, has one class only.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    truths = {name: labels == number for name, number in tasks.items()}
    weights, = draw([(len(labels), truths.values())], seed)
    areas = {f'{name} AUC': area(probabilities[:, tasks[name]], truth, weights)
             if both(truth) and len(weights) else None for name, truth in truths.items()}
    defined = [found for found in areas.values() if found is not None]
    areas['mean AUC'] = np.mean(defined, axis=0) if len(defined) == len(tasks) else None
    return {name: None if found is None else bounds(found).tolist() for name, found in areas.items()}


def area(p, truth, weights):
    """AUC under image weights: the weighted share of pairs in the right order, ties one half.

    p : (N,) scores; truth : (N,) bool, both values; weights : (R, N). Returns (R,).
    """
    above, below = p[truth][:, None], p[~truth][None]
    order = (above > below) + 0.5 * (above == below)   # (positives, negatives)
    positive, negative = weights[:, truth], weights[:, ~truth]
    return ((positive @ order) * negative).sum(1) / (positive.sum(1) * negative.sum(1))


def average_precision(p, truth, weights):
    """AP under image weights: precision at each threshold times the recall gained; as `area`.

    As sklearn's: no interpolation, tied scores share one threshold.
    """
    order = np.argsort(-p, kind='stable')
    last = np.append(np.diff(p[order]) != 0, True)   # of each group of ties
    found = np.cumsum(weights[:, order], axis=1)[:, last]
    hits = np.cumsum((weights * truth)[:, order], axis=1)[:, last]
    gained = np.diff(hits, prepend=0, axis=1)
    return (gained * hits / np.maximum(found, 1)).sum(1) / hits[:, -1]   # found is 0 before the first
