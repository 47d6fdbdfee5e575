"""Scores of section IV of the paper: five for segmentation, five for each classification task."""
import numpy as np

SEGMENTATION = ('JA', 'DI', 'pixel-AC', 'pixel-SE', 'pixel-SP')
CLASSIFICATION = ('AUC', 'AP', 'AC', 'SE', 'SP')


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
    Returns {name: {'AUC', 'AP', 'AC', 'SE', 'SP', 'AC at 0.5', ...}, ..., 'mean AUC', 'balanced accuracy',
    'confusion': C lists, of each true class how often it was taken for each}. AUC and AP are None (and so is
    the mean) where one class is absent, SE without images of the class, SP without others; balanced accuracy
    is the mean recall of the classes that are there.
    """
    from sklearn.metrics import (  # slow to import
        average_precision_score,
        confusion_matrix,
        recall_score,
        roc_auc_score,
    )
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
    # As balanced_accuracy_score, which warns where an absent class is predicted.
    scores['balanced accuracy'] = float(recall_score(labels, decided, labels=np.unique(labels),
                                                     average='macro'))
    scores['confusion'] = confusion_matrix(labels, decided, labels=range(probabilities.shape[1])).tolist()
    return scores


def _decision_scores(prediction, truth):
    tp, fp, fn, tn = confusion(prediction, truth).tolist()   # not the rule of masks, whose 0 / 0 is 1
    return {'AC': (tp + tn) / truth.size, 'SE': tp / (tp + fn) if tp + fn else None,
            'SP': tn / (tn + fp) if tn + fp else None}


