"""From evaluation csv files to the cells of a table: scores, bootstrap intervals, paired differences."""
import csv
from dataclasses import dataclass, replace

import numpy as np

from dataset.errors import InputError
from dataset.isic import CLASSES
from engine import metrics

COLUMNS = {
    'segmentation': metrics.SEGMENTATION,
    'classification': ('mean AUC', *(f'{task} {name}' for task in metrics.TASKS
                                     for name in metrics.CLASSIFICATION)),
}
SMALL_P = 0.01            # below it, more resamples are drawn: a thousand say little about one in a thousand
MOST_RESAMPLES = 100_000   # ten times as many until p is no longer small, this many at most
HEADERS = {('image_id', *metrics.SEGMENTATION): 'segmentation', ('image_id', *CLASSES): 'classification'}


@dataclass(frozen=True, eq=False)
class Part:
    """One test fold: N images and what one network said of them."""
    names: tuple                      # image ids
    values: np.ndarray                # (N, 5) scores in [0, 1], or (N, 3) class probabilities
    labels: np.ndarray | None = None  # (N,) class numbers; None for segmentation
    source: str = 'a result'          # the file, for messages


@dataclass(frozen=True, eq=False)
class Result:
    """The evaluation of one training run: one part, or one a fold."""
    kind: str       # 'segmentation' or 'classification'
    parts: tuple

    @property
    def count(self):
        """Number of images in all parts."""
        return sum(len(part.names) for part in self.parts)


@dataclass(frozen=True)
class Difference:
    """First minus second, in percentage points; `p` is two-sided."""
    mean: float
    low: float
    high: float
    p: float
    resamples: int   # that were drawn; p is no smaller than 2 / (resamples + 1)


# --- Reading


def read(paths, labels=None):
    """The Result in csv files of eval_EnhancedSN.py or eval_MaskCN.py, one file a fold.

    labels : {image id: class number}, needed for classification
    Raises InputError naming every missing or damaged file and every image without a label.
    """
    parts, faults, kinds, owner = [], [], {}, {}
    for path in map(str, paths):
        kind, rows, found = _scan(path)
        faults += found
        if kind:
            kinds.setdefault(kind, path)
            faults += [f'{path}: {name} is in {owner[name]} too' for name in rows if name in owner]
            owner.update(dict.fromkeys(rows, path))
        if kind == 'classification':
            faults += [f'{path}: {name} has no label' for name in rows if _label(labels, name) is None]
        classes = [_label(labels, name) for name in rows] if kind == 'classification' else None
        parts.append((tuple(rows), list(rows.values()), classes, path))
    if len(kinds) > 1:
        faults.append(' and '.join(f'{path} ({kind})' for kind, path in kinds.items()) + ' do not mix')
    if faults:
        raise InputError('Results of an evaluation cannot be used', faults,
                         'run the evaluation again; labels are those of step 0')
    return Result(next(iter(kinds)), tuple(
        Part(names, np.array(values), None if classes is None else np.array(classes), path)
        for names, values, classes, path in parts))


def _label(labels, name):
    return (labels or {}).get(name)


def _scan(path):
    """(kind, {image id: [float]}, list of faults) of a csv file; kind None where it is none of ours."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        return None, {}, [f'{path}: is missing']
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        return None, {}, [f'{path}: cannot be read: {error}']
    kind = HEADERS.get(tuple(header))
    if kind is None:
        return None, {}, [f'{path}: has the columns {",".join(header)[:80]!r}, not those of an evaluation']
    found, faults = {}, []
    for number, row in enumerate(rows, start=2):
        values = _numbers(row[1:])
        if not row:
            continue
        if not row[0] or values is None or len(row) != len(header):
            faults.append(f'{path}, line {number}: {",".join(row)[:80]!r} is not an id and '
                          f'{len(header) - 1} numbers from 0 to 1')
        elif row[0] in found:
            faults.append(f'{path}, line {number}: {row[0]} is listed twice')
        else:
            found[row[0]] = values
    if not found and not faults:
        faults.append(f'{path}: has no rows')
    return kind, found, faults


def _numbers(words):
    """Text -> numbers in [0, 1]; None where one is not."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    return values if all(0 <= value <= 1 for value in values) else None   # NaN fails too


# --- Scores and intervals


def score(result, column):
    """A column of COLUMNS in percent; None where a part has one class only.

    Segmentation: mean over the images of all parts. Classification: mean over the parts of each
    part's score, since the folds' networks have probabilities on scales of their own; AC, SE and SP
    are those at the arg-max.
    """
    _require_column(result, column)
    if not _defined(result, column):
        return None
    return float(100 * _under(result, column, [np.ones((1, len(part.names))) for part in result.parts])[0])


def interval(results, column, seed=0):
    """Bootstrap 95 % interval over images: (low, high) percent, or None where the score is.

    results : a Result, or a list of them, one a training seed: then of their mean score, every
    resample being the same for all seeds. InputError where seeds hold different images.
    The percentile bootstrap of metrics.interval_of_means and intervals_of_areas, within each part.
    """
    results = _aligned(_listed(results), column)
    drawn = _resampled([results], column, seed)
    return None if drawn is None else _bounds(drawn[0])


def paired_difference(a, b, column, seed=0):
    """Difference a - b with its paired bootstrap over images: a Difference, or None where undefined.

    a, b : Results, or equally long lists of them, one a training seed, whose scores are averaged
    within each resample. All must hold the same images in each part (InputError).
    p = 2 (b + 1) / (B + 1), at most 1, of B resamples of which b lie on zero or on its other side: 1000,
    and up to MOST_RESAMPLES while p is below SMALL_P, which a seed determines. The images are what is
    drawn: how much training varies shows in the spread over seeds alone.
    """
    a, b = _listed(a), _listed(b)
    if len(a) != len(b):
        raise ValueError(f'{len(a)} and {len(b)} results: equal seeds must pair up')
    results = _aligned([*a, *b], column)
    first, second = results[:len(a)], results[len(a):]
    found = _differences(first, second, column, seed, [0])
    if not len(found):
        return None
    chunks = 1
    while _two_sided(found) < SMALL_P and chunks < MOST_RESAMPLES // metrics.RESAMPLES:
        wanted = min(10 * chunks, MOST_RESAMPLES // metrics.RESAMPLES)
        found = np.append(found, _differences(first, second, column, seed, range(chunks, wanted)))
        chunks = wanted
    mean = np.mean([score(result, column) for result in first]) \
        - np.mean([score(result, column) for result in second])
    return Difference(float(mean), *_bounds(found), _two_sided(found), len(found))


def _differences(first, second, column, seed, chunks):
    """First minus second in every resample of some chunks: (resamples,) percent, none where undefined."""
    drawn = [_resampled([first, second], column, seed, chunk) for chunk in chunks]
    return np.concatenate([np.empty(0), *(a - b for a, b in filter(None, drawn))])


def _two_sided(differences):
    """p of 'no difference'. With b + 1 of B + 1, what was measured counts as a resample: p is never 0."""
    other = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1, 2 * (other + 1) / (len(differences) + 1)))


def _listed(results):
    return [results] if isinstance(results, Result) else list(results)


def _bounds(values):
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _resampled(groups, column, seed, chunk=0):
    """Each group's mean score in each resample: [(resamples,) percent], or None where undefined.

    groups : lists of results, all aligned; chunk : number of the RESAMPLES that are drawn, see _weights
    """
    if not _defined(groups[0][0], column):
        return None
    weights = _weights(groups[0][0], seed, chunk)
    if not len(weights[0]):
        return None
    return [100 * np.mean([_under(result, column, weights) for result in results], axis=0)
            for results in groups]


def _weights(result, seed, chunk=0):
    """How often each resample draws each image, within the parts: one (R, N) array a part.

    The draws of chunk 0 are those of `metrics`; each further chunk has draws of its own. As in `metrics`,
    resamples are left out in which a task has lost one of its classes, so R may be below RESAMPLES; a task
    that has one class from the start does not count.
    """
    rng = np.random.default_rng([seed, chunk] if chunk else seed)
    weights, kept = [], np.ones(metrics.RESAMPLES, bool)
    for part in result.parts:
        count = len(part.names)
        draws = rng.integers(0, count, (metrics.RESAMPLES, count))
        cells = draws + count * np.arange(metrics.RESAMPLES)[:, None]
        drawn = np.bincount(cells.ravel(), minlength=draws.size).reshape(draws.shape).astype(np.float64)
        weights.append(drawn)
        for number in metrics.TASKS.values() if result.kind == 'classification' else ():
            truth = part.labels == number
            if _both(truth):
                kept &= drawn[:, truth].any(1) & drawn[:, ~truth].any(1)
    return [drawn[kept] for drawn in weights]


def _under(result, column, weights):
    """The column's score in [0, 1] under image weights, one (R, N) array a part: (R,)."""
    if result.kind == 'segmentation':
        place = metrics.SEGMENTATION.index(column)
        sums = [drawn @ part.values[:, place] for part, drawn in zip(result.parts, weights, strict=True)]
        return np.sum(sums, axis=0) / result.count
    name = column.split()[1]
    return np.mean([_task_score(part, number, name, drawn)
                    for part, drawn in zip(result.parts, weights, strict=True)
                    for number in _tasks(column)], axis=0)


def _tasks(column):
    """Class numbers of the tasks that a classification column is made of."""
    task = column.split()[0]
    return [number for name, number in metrics.TASKS.items() if task in (name, 'mean')]


def _task_score(part, number, name, weights):
    truth, p = part.labels == number, part.values[:, number]
    if name == 'AUC':
        return area(p, truth, weights)
    if name == 'AP':
        return average_precision(p, truth, weights)
    right = (part.values.argmax(1) == number) == truth
    among = {'AC': np.ones_like(truth), 'SE': truth, 'SP': ~truth}[name]
    return weights @ (right & among) / (weights @ among)


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


def _both(truth):
    return truth.any() and not truth.all()


def _defined(result, column):
    return result.kind == 'segmentation' or all(
        _both(part.labels == number) for part in result.parts for number in _tasks(column))


def _require_column(result, column):
    if column not in COLUMNS[result.kind]:
        raise ValueError(f'{column!r} is not a score of a {result.kind}: {", ".join(COLUMNS[result.kind])}')


# --- Pairing


def _aligned(results, column):
    """Results with their images in the first one's order; InputError where images or labels differ."""
    first, aligned, faults = results[0], [], []
    for result in results:
        _require_column(result, column)
        if len(result.parts) != len(first.parts):
            faults.append(f'{result.parts[0].source} is one of {len(result.parts)} parts, '
                          f'{first.parts[0].source} one of {len(first.parts)}')
            continue
        pairs = list(zip(result.parts, first.parts, strict=True))
        found = [fault for part, like in pairs for fault in _mismatch(part, like)]
        faults += found
        if not found:
            aligned.append(replace(result, parts=tuple(_ordered(part, like.names) for part, like in pairs)))
    if faults:
        raise InputError('Results of different images cannot be compared', faults,
                         'evaluate all of them on the same data')
    return aligned


def _mismatch(part, like):
    """Lines that report images, or labels, that only one of two parts has."""
    names, others = set(part.names), set(like.names)
    lines = [f'{like.source}: {name} is missing, which {part.source} has' for name in sorted(names - others)]
    lines += [f'{part.source}: {name} is missing, which {like.source} has' for name in sorted(others - names)]
    if lines or part.labels is None:
        return lines
    classes = dict(zip(like.names, like.labels, strict=True))
    return [f'{part.source}: {name} has the class {label}, in {like.source} {classes[name]}'
            for name, label in zip(part.names, part.labels, strict=True) if label != classes[name]]


def _ordered(part, names):
    places = {name: place for place, name in enumerate(part.names)}
    order = [places[name] for name in names]
    return replace(part, names=names, values=part.values[order],
                   labels=None if part.labels is None else part.labels[order])
