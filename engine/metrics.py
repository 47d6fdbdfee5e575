"""Scores of section IV of the paper: five for segmentation, five for each classification task."""
import numpy as np

SEGMENTATION = ('JA', 'DI', 'pixel-AC', 'pixel-SE', 'pixel-SP')
CLASSIFICATION = ('AUC', 'AP', 'AC', 'SE', 'SP')
RESAMPLES = 1000


def confusion(prediction, truth):
    """Pixel counts (tp, fp, fn, tn) of boolean arrays of one shape, as a (4,) int64 array."""
    tp = np.count_nonzero(prediction & truth)
    positives, actual = np.count_nonzero(prediction), np.count_nonzero(truth)
    return np.array([tp, positives - tp, actual - tp, truth.size - positives - actual + tp])


def segmentation_scores(counts):
    """(N, 4) pixel counts (tp, fp, fn, tn) of N images -> (N, 5) scores in [0, 1], see SEGMENTATION.

    A score whose denominator is empty is 1: nothing was asked for, and nothing was missed. So an
    empty prediction of an empty truth has JA = DI = 1.
    """
    tp, fp, fn, tn = np.asarray(counts, dtype=np.float64).reshape(-1, 4).T
    parts = ((tp, tp + fp + fn), (2 * tp, 2 * tp + fp + fn), (tp + tn, tp + fp + fn + tn),
             (tp, tp + fn), (tn, tn + fp))
    return np.stack([_ratio(*part) for part in parts], axis=1)


def _ratio(numerator, denominator):
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 1.0)


def classification_scores(probabilities, labels, tasks):
    """Scores of each task, a class against the rest, at the arg-max and at 0.5 (the challenge's rule).

    probabilities : (N, C) class probabilities; labels : (N,) class numbers
    tasks : {name: class number}
    Returns {name: {'AUC', 'AP', 'AC', 'SE', 'SP', 'AC at 0.5', ...}, ..., 'mean AUC'}. AUC and AP are None
    (and so is the mean) where one class is absent.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score  # slow to import
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    decided = probabilities.argmax(1)
    scores = {}
    for task, number in tasks.items():
        truth, p = labels == number, probabilities[:, number]
        both = truth.any() and not truth.all()
        scores[task] = {'AUC': float(roc_auc_score(truth, p)) if both else None,
                        'AP': float(average_precision_score(truth, p)) if both else None,
                        **_decision_scores(decided == number, truth),
                        **{f'{name} at 0.5': value
                           for name, value in _decision_scores(p > 0.5, truth).items()}}
    areas = [scores[task]['AUC'] for task in tasks]
    scores['mean AUC'] = None if None in areas else float(np.mean(areas))
    return scores


def _decision_scores(prediction, truth):
    row = segmentation_scores(confusion(prediction, truth))[0]
    return {name: float(row[SEGMENTATION.index(f'pixel-{name}')]) for name in ('AC', 'SE', 'SP')}


def interval_of_means(values, seed=0):
    """Bootstrap 95 % interval over images of the mean of each column.

    values : (N, M). Returns (M, 2): lower and upper bound (percentile bootstrap, 1000 resamples).
    """
    values = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    means = np.stack([values[draw].mean(0) for draw in draws])
    return np.percentile(means, [2.5, 97.5], axis=0).T


def intervals_of_areas(probabilities, labels, tasks, seed=0):
    """Bootstrap 95 % intervals over images of the AUCs: {'<task> AUC': [low, high], ..., 'mean AUC'}.

    Resamples in which a task has one class are skipped; None where that leaves none.
    """
    from sklearn.metrics import roc_auc_score  # slow to import
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(RESAMPLES):
        draw = rng.integers(0, len(labels), len(labels))
        truth = [labels[draw] == number for number in tasks.values()]
        if all(t.any() and not t.all() for t in truth):
            areas = [roc_auc_score(t, probabilities[draw, number])
                     for t, number in zip(truth, tasks.values(), strict=True)]
            rows.append([*areas, np.mean(areas)])
    names = [f'{task} AUC' for task in tasks] + ['mean AUC']
    if not rows:
        return dict.fromkeys(names)
    low, high = np.percentile(rows, [2.5, 97.5], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
