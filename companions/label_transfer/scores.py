"""How well a soft map ranks and cuts: pixel AUC, and the JA of the best threshold."""
import numpy as np

from engine import bootstrap, metrics

LEVELS = 256   # thresholds that are tried: quantiles of all maps


def areas(maps, truths):
    """AUC of the pixels of each picture (N,), NaN where a truth has one value. maps, truths : (N, S, S)"""
    from sklearn.metrics import roc_auc_score  # slow to import
    return np.array([roc_auc_score(truth.ravel(), found.ravel()) if bootstrap.both(truth.ravel()) else np.nan
                     for found, truth in zip(maps, truths, strict=True)])


def best_threshold(maps, truths):
    """(JA of each picture (N,), threshold): the one threshold for all whose mean JA is highest.

    maps : (N, S, S); truths : (N, S, S) bool. The truths choose the threshold: a bound, no method.
    """
    edges = np.unique(np.quantile(maps, np.linspace(0, 1, LEVELS)))
    rows = []
    for found, truth in zip(maps, truths, strict=True):
        # Pixels of a level and all above it, of lesion and of skin.
        tp, fp = (np.histogram(found[part], [*edges, np.inf])[0][::-1].cumsum()[::-1]
                  for part in (truth, ~truth))
        wanted = truth.sum() + fp
        rows.append(np.where(wanted > 0, tp / np.maximum(wanted, 1), 1.0))
    rows = np.array(rows)
    best = rows.mean(0).argmax()
    return rows[:, best], float(edges[best])


def overlap(masks, truths):
    """Scores (N, 5) of masks, as metrics.segmentation_scores. masks, truths : (H, W) bool each, N of them"""
    return metrics.segmentation_scores(list(map(metrics.confusion, masks, truths)))
