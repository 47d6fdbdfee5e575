"""What evaluation csv files say: scores of a table's columns, their intervals, and paired differences."""
import csv
from dataclasses import dataclass, replace

import numpy as np

from companions.weak_labels import shape_scores
from dataset.classes import PAPER
from engine import bootstrap, metrics
from engine.errors import InputError
from mbdcnn import evaluation

COLUMNS = {
    'segmentation': metrics.SEGMENTATION,
    'classification': ('mean AUC', *(f'{task} {name}' for task in PAPER.tasks
                                     for name in metrics.CLASSIFICATION)),
    'weak': shape_scores.COLUMNS,
}


@dataclass(frozen=True, eq=False)
class Part:
    """One test fold: N images and what one network said of them."""
    names: tuple                      # image ids
    values: np.ndarray                # (N, 5) scores in [0, 1], (N, 3) class probabilities, or (N, 8) weak
    labels: np.ndarray | None = None  # (N,) class numbers; None where not of a classification
    source: str = 'a result'          # the file, for messages


@dataclass(frozen=True, eq=False)
class Result:
    """The evaluation of one training run: one part, or one a fold."""
    kind: str       # of COLUMNS
    parts: tuple

    @property
    def count(self):
        """Number of images in all parts."""
        return sum(len(part.names) for part in self.parts)

    def under(self, column, weights):
        """A column's score in each resample: (R,). weights : one (R, N) array a part, see bootstrap.draw

        Masks: mean over the images of all parts. Classification: mean over the parts of each
        part's score, since the folds' networks have probabilities on scales of their own.
        """
        if self.kind != 'classification':
            place = COLUMNS[self.kind].index(column)
            return sum(drawn @ part.values[:, place]
                       for part, drawn in zip(self.parts, weights, strict=True)) / self.count
        return np.mean([_task_score(part, number, column.split()[1], drawn)
                        for part, drawn in zip(self.parts, weights, strict=True)
                        for number in _tasks(column)], axis=0)

    def defined(self, column):
        """False where a part has one class only of what a column distinguishes."""
        if column not in COLUMNS[self.kind]:
            raise ValueError(f'{column!r} is not a score of a {self.kind}: {", ".join(COLUMNS[self.kind])}')
        return self.kind != 'classification' or all(
            bootstrap.both(part.labels == number) for part in self.parts for number in _tasks(column))


def read(paths, labels=None):
    """The Result in csv files of eval_EnhancedSN.py or eval_MaskCN.py, one file a fold.

    labels : {image id: class number}, needed for classification
    Raises InputError naming every missing or damaged file and every image without a label.
    """
    parts, faults, kinds, labels = [], [], set(), labels or {}
    for path in map(str, paths):
        try:
            kind, names, values = evaluation.read_csv(path, others={'weak': shape_scores.COLUMNS},
                                                      unbounded=shape_scores.PIXELS)
        except (OSError, ValueError, csv.Error) as error:
            faults.append(f'{path}: cannot be read: {error}')
            continue
        kinds.add(kind)
        classes = None
        if kind == 'classification':
            classes = np.array([labels.get(name, -1) for name in names])
            faults += [f'{path}: {name} has no label' for name in names if name not in labels]
        parts.append(Part(names, values, classes, path))
    if len(kinds) > 1:
        faults.append(f'{", ".join(part.source for part in parts)}: must be of one kind of network')
    if faults:
        raise InputError('Results of an evaluation cannot be used', faults,
                         'run the evaluation again; labels are those of stage 0')
    return Result(kinds.pop(), tuple(parts))


def scale(column):
    """What a score is printed times: 100 for fractions, 1 for pixels."""
    return 1 if column in shape_scores.PIXELS else 100


def score(result, column):
    """A column of COLUMNS, in [0, 1] or pixels; None if not defined. AC, SE and SP are at the arg-max."""
    if not result.defined(column):
        return None
    return float(result.under(column, [np.ones((1, len(part.names))) for part in result.parts])[0])


def interval(results, column, seed=0):
    """95 % interval over images: (low, high) in [0, 1], or None where the score is not defined.

    results : a Result, or a list of them, one a training seed: then of their mean score, every
    resample being the same for all seeds. InputError where seeds hold different images.
    """
    results = _aligned([results] if isinstance(results, Result) else results, column)
    drawn, = _resampled([results], column, seed) if results[0].defined(column) else [()]
    return tuple(bootstrap.bounds(drawn).tolist()) if len(drawn) else None


def paired_difference(a, b, column, seed=0):
    """bootstrap.Difference a - b, paired over images; None where undefined.

    a, b : equally long lists of Results, one a training seed, whose scores are averaged within each
    resample. All must hold the same images in each part (InputError).
    """
    if len(a) != len(b):
        raise ValueError(f'{len(a)} and {len(b)} results: equal seeds must pair up')
    results = _aligned([*a, *b], column)
    first, second = results[:len(a)], results[len(a):]
    if not first[0].defined(column):
        return None
    means = [np.mean([score(result, column) for result in group]) for group in (first, second)]
    return bootstrap.difference(*means, lambda chunk: np.subtract(
        *_resampled([first, second], column, seed, chunk)), first[0].count)


def _resampled(groups, column, seed, chunk=0):
    """Mean score of each group of aligned results in each resample: (groups, R); they share the draws."""
    result = groups[0][0]
    tasks = PAPER.tasks.values() if result.kind == 'classification' else ()
    weights = bootstrap.draw([(len(part.names), [part.labels == number for number in tasks])
                              for part in result.parts], seed, chunk)
    if not len(weights[0]):
        return np.empty((len(groups), 0))
    return np.array([np.mean([result.under(column, weights) for result in group], axis=0)
                     for group in groups])


def _tasks(column):
    """Class numbers of the tasks that a classification column is made of."""
    task = column.split()[0]
    return [number for name, number in PAPER.tasks.items() if task in (name, 'mean')]


def _task_score(part, number, name, weights):
    truth, p = part.labels == number, part.values[:, number]
    if name == 'AUC':
        return bootstrap.area(p, truth, weights)
    if name == 'AP':
        return bootstrap.average_precision(p, truth, weights)
    right = (part.values.argmax(1) == number) == truth
    among = {'AC': np.ones_like(truth), 'SE': truth, 'SP': ~truth}[name]
    return weights @ (right & among) / (weights @ among)


def _aligned(results, column):
    """Results with their images in the first one's order; InputError where images or labels differ."""
    first, faults = results[0], []
    for result in results:
        result.defined(column)   # refuses a column of the other kind
        if len(result.parts) != len(first.parts):
            faults.append(f'{result.parts[0].source} is one of {len(result.parts)} parts, '
                          f'{first.parts[0].source} one of {len(first.parts)}')
        faults += [fault for part, like in zip(result.parts, first.parts, strict=False)
                   for fault in _mismatch(part, like)]
    if faults:
        raise InputError('Results of different images cannot be compared', faults,
                         'evaluate all of them on the same data')
    return [replace(result, parts=tuple(
        replace(part, names=like.names, values=part.values[order],
                labels=None if part.labels is None else part.labels[order])
        for part, like in zip(result.parts, first.parts, strict=True)
        for order in [[part.names.index(name) for name in like.names]])) for result in results]


def _mismatch(part, like):
    """Lines that report images, or labels, that only one of two parts has."""
    missing = [f'{holder.source}: {name} is missing, which {other.source} has'
               for holder, other in ((like, part), (part, like))
               for name in sorted(set(other.names) - set(holder.names))]
    if missing or part.labels is None:
        return missing
    classes = dict(zip(like.names, like.labels, strict=True))
    return [f'{part.source}: {name} has the class {label}, in {like.source} {classes[name]}'
            for name, label in zip(part.names, part.labels, strict=True) if label != classes[name]]
