"""Scoring masks against the truth: arrays as they are found, or folders of png files by any method."""
import contextlib
import unicodedata

import numpy as np

from engine import bootstrap, files, images, metrics
from engine.errors import InputError

SUFFIX = '_segmentation'   # behind the image id in the challenge's file names
THRESHOLD = 0.65           # a JA below it counts as 0 in "thresholded JA" (the challenge of 2018)
COLUMNS = *metrics.SEGMENTATION, 'thresholded JA'
# To be said beside all scores of the validation split.
SELECTED = ("Where the validation images also chose a network's weights, as in our trainings, its scores on "
            'them are too high{}.')
INCOMPLETE = 'INCOMPLETE'  # the file in a folder of masks that are being written, or were until a kill
REMEDY = ('each method needs one binary png an image, <id>_segmentation.png or <id>.png, at the size of the '
          'true mask; enlarge smaller ones by nearest neighbour')


def score_arrays(found, truths):
    """Scores of masks that are found one image after another, so that none need be kept.

    found : iterable of {kind: (H, W) bool}, one an image; truths : paths of the true masks, in its order
    Returns {kind: (N, 5) scores in [0, 1]}, see metrics.SEGMENTATION.
    """
    counts = {}
    for masks, path in zip(found, truths, strict=True):
        truth = images.read_mask(path) > 0
        for kind, mask in masks.items():
            counts.setdefault(kind, []).append(metrics.confusion(mask, truth))
    return {kind: metrics.segmentation_scores(rows) for kind, rows in counts.items()}


def score_folders(folders, truths, workers=0):
    """Scores of the masks in folders: {name: (N, 5) in [0, 1]}, the images in the order of `truths`.

    folders : {name: Path}; truths : {image id: path of the true mask}; workers : see files.for_all
    Raises InputError with every mask of every folder that is missing, there twice, of an unknown image,
    unreadable, not binary or of another size than the truth.
    """
    masks, faults = {}, []
    for name, folder in folders.items():
        masks[name], found = find_masks(folder, truths)
        faults += found

    def score(image_id):
        return _score_one(truths[image_id], {name: paths[image_id] for name, paths in masks.items()
                                             if image_id in paths})

    scored = files.for_all(score, truths, 'scoring', workers)
    faults += [fault for _, found in scored for fault in found]
    if faults:
        raise InputError('Masks cannot be scored', faults, REMEDY)
    return {name: metrics.segmentation_scores([counts[name] for counts, _ in scored]) for name in folders}


def _score_one(truth_path, paths):
    """({name: pixel counts}, list of faults) of one image; the truth is decoded once for all methods."""
    read, faults = {}, []
    for name, path in {None: truth_path, **paths}.items():
        try:
            read[name] = images.read_mask(path) > 0
        except InputError as error:
            faults += error.faults
    truth, counts = read.pop(None, None), {}
    for name, mask in read.items() if truth is not None else ():
        if mask.shape == truth.shape:
            counts[name] = metrics.confusion(mask, truth)
        else:
            sizes = [f'{array.shape[1]}x{array.shape[0]}' for array in (mask, truth)]
            faults.append(f'{paths[name]}: is {sizes[0]} but the truth is {sizes[1]}')
    return counts, faults


@contextlib.contextmanager
def being_written(folder):
    """Mark a folder as INCOMPLETE, making it where it is missing, until all of its masks are written.

    Whatever ends this before, a kill too, leaves the mark: some masks may be of an earlier evaluation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INCOMPLETE).write_text('These masks are being written, or that was interrupted: some may be of '
                                     'an earlier evaluation.\n')
    yield   # no finally: after an exception masks are missing, too
    (folder / INCOMPLETE).unlink()


def incomplete(folder):
    """The line that reports a folder of masks whose writing was interrupted, '' for any other."""
    return f'{folder}: was not finished, see {INCOMPLETE} in it; evaluate again' if (
        folder / INCOMPLETE).exists() else ''


def find_masks(folder, wanted):
    """({image id: path}, list of faults) of a folder's png files, named with or without SUFFIX.

    wanted : image ids; files of other kinds and hidden ones are left alone. Names may be spelt in either form
        of Unicode
    """
    if not folder.is_dir():
        return {}, [f'{folder}: is not a folder']
    found, faults = {}, list(filter(None, [incomplete(folder)]))
    known = {unicodedata.normalize('NFC', name): name for name in wanted}
    for path in sorted(folder.glob('[!.]*.png')):
        image_id = known.get(unicodedata.normalize('NFC', path.stem.removesuffix(SUFFIX)))
        if image_id is None:
            faults.append(f'{path}: is of no image of this split')
        elif image_id in found:
            faults.append(f'{path}: {image_id} is there twice, see {found[image_id].name}')
        else:
            found[image_id] = path
    return found, faults + [f'{folder}: has no mask of {name}' for name in wanted if name not in found]


def thresholded(scores, threshold=THRESHOLD):
    """(N, 5) scores -> (N, 6), see COLUMNS: the last is JA where it reaches the threshold, else 0."""
    return np.column_stack([scores, np.where(scores[:, 0] >= threshold, scores[:, 0], 0.0)])


def summary(scores, columns=COLUMNS):
    """Means over images and their 95 % intervals: {'JA': mean, ..., 'ci95': {'JA': [low, high], ...}}.

    scores : (N, 6) in [0, 1], see `thresholded`, or (N, any) with the names of their columns
    """
    means, bounds = scores.mean(0), bootstrap.interval_of_means(scores)
    return {**dict(zip(columns, means.tolist(), strict=True)),
            'ci95': dict(zip(columns, bounds.tolist(), strict=True))}


def holm(p):
    """Holm's correction: p of several tests -> p such that any false alarm is as rare as one test's."""
    order, adjusted, highest = np.argsort(p, kind='stable'), np.empty(len(p)), 0.0
    for rank, number in enumerate(order):
        highest = adjusted[number] = max(highest, min(1.0, (len(p) - rank) * p[number]))
    return adjusted
