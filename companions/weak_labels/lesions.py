"""Prepared lesions: patches, true masks and ellipses below <ROOT>/WeakLabels/<data>/, and the table of them.

    patches/<name>.png    the lesion, RGB, square
    masks/<name>.png      its true mask, where there is one; nothing trains on it but METHOD=mask
    ellipses/<name>.png   the approximate target
    lesions.csv           COLUMNS, a row a lesion; written last, so that where it is, the others are
    prepared.json         side of the patches, settings, whether a program drew the pictures
"""
import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset.isic import MASK_SUFFIX
from dataset.layout import SPLITS
from dataset.splits import subset
from engine import cache, files
from engine.errors import InputError

ELLIPSE = 'x', 'y', 'short', 'long', 'angle'   # px of the patch, see ellipses.py
COLUMNS = ('name', 'split', 'group', 'picture_width', 'picture_height', *ELLIPSE, 'iou')
SHARES = 0.7, 0.2   # of the training and of the validation split; the rest is tested on
PARTS = 'patches', 'ellipses', 'masks'
PREPARE = 'prepare_HAM10000', 'prepare_LiTS', 'prepare_DeepLesion', 'prepare_ISIC'


@dataclass(frozen=True)
class Lesions:
    """Lesions of a split. N of them, patches of side P.

    names : list of text; images : (N, P, P, 3) uint8; ellipses, masks : (N, P, P) uint8 of {0, 1}, masks None
    where true ones are missing; parameters : (N, 5) float, see ELLIPSE; sizes : [(width, height)] in px of
    what each patch shows; fingerprint : text that changes with any pixel; groups : of each, a text
    """
    names: list
    images: np.ndarray
    ellipses: np.ndarray
    masks: np.ndarray | None
    parameters: np.ndarray
    sizes: list
    fingerprint: str
    groups: list = ()

    @property
    def side(self):
        """P, in pixels."""
        return self.images.shape[1]


def folder(layout, data):
    """Where a data set's prepared lesions lie."""
    return layout.root / 'WeakLabels' / data


def table(layout, data):
    """Path of lesions.csv."""
    return folder(layout, data) / 'lesions.csv'


def command(layout, data):
    """The command that prepares a data set."""
    script = f'prepare_{data}'
    if script in PREPARE:
        return layout.command(f'-m companions.weak_labels.{script}')
    return layout.command('-m companions.weak_labels.prepare_folder', f'--DATA={data}', '--IMAGES=...')


def rows(layout, data, split=None):
    """The rows of lesions.csv as dicts, of a split or of all. Raises InputError where it cannot be used."""
    path, faults, found = table(layout, data), [], []
    remedy = command(layout, data)
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f'must have the columns {",".join(COLUMNS)}')
            for row in reader:
                try:
                    found.append(_read(row))
                except (TypeError, ValueError) as error:
                    faults.append(f'{path}, line {reader.line_num}: {error}')
    except FileNotFoundError:
        raise InputError(f'{data} is not prepared', [f'{path}: is missing'], remedy) from None
    except (OSError, ValueError, csv.Error) as error:
        faults.append(f'{path}: {error}')
    if len({row['name'] for row in found}) < len(found):
        faults.append(f'{path}: names stand in it twice')
    chosen = [row for row in found if split in (None, row['split'])]
    if not chosen and not faults:
        faults.append(f'{path}: has no lesion of the split {split or ""}')
    if faults:
        raise InputError('Prepared lesions cannot be used', faults, remedy)
    return chosen


def _read(row):
    """A row with its numbers as numbers. Raises ValueError or TypeError."""
    if row['split'] not in SPLITS or not row['name'] or Path(row['name']).name != row['name']:
        raise ValueError(f'{row["name"]!r}, {row["split"]!r}: must be a file\'s name and one of '
                         f'{", ".join(SPLITS)}')
    sizes = {name: int(row[name]) for name in ('picture_width', 'picture_height')}
    numbers = {name: float(row[name]) for name in ELLIPSE}
    if not np.isfinite(list(numbers.values())).all() or min(sizes.values()) < 1:
        raise ValueError('holds what is no length')
    return row | sizes | numbers | {'iou': float(row['iou']) if row['iou'] else None}


def write(layout, data, found):
    """Write lesions.csv from rows as `rows` gives them, sorted by name."""
    lines = [[row[name] if name not in (*ELLIPSE, 'iou') else _number(row[name]) for name in COLUMNS]
             for row in sorted(found, key=lambda row: row['name'])]
    files.write_csv(table(layout, data), [COLUMNS, *lines])


def _number(value):
    return '' if value is None else f'{value:.4f}'


def facts(layout, data):
    """What prepared.json says, {} where it is not there."""
    return files.read_json(folder(layout, data) / 'prepared.json', 'settings')


def write_facts(layout, data, about):
    """Write prepared.json."""
    files.write_text(folder(layout, data) / 'prepared.json', json.dumps(about, indent=1) + '\n')


def drawn(layout, data):
    """True where a program drew the pictures."""
    return bool(facts(layout, data).get('drawn'))


def paths(layout, data, part, found):
    """Paths of a part (of PARTS) of rows."""
    return [folder(layout, data) / part / f'{row["name"]}.png' for row in found]


def load(layout, data, split, limit=0, seed=0, workers=0):
    """The Lesions of a split, decoded once into <ROOT>/dataset/cache/.

    limit, seed : only a subset, see dataset.splits.subset
    Raises InputError naming every file that cannot be used.
    """
    found = subset(rows(layout, data, split), limit, seed)
    side = facts(layout, data).get('side')
    if not isinstance(side, int) or side < 1:
        raise InputError('Prepared lesions cannot be used', [
            f'{folder(layout, data) / "prepared.json"}: does not say the side of the patches'],
            command(layout, data))
    true = all(row['iou'] is not None for row in found)
    name = f'{data}_{split}' + (f'_{limit}' if limit else '')
    parts = {part: cache.load(layout.cache, f'{name}_{part}', paths(layout, data, part, found), side,
                              'rgb' if part == 'patches' else 'mask', workers)
             for part in (PARTS if true else PARTS[:2])}
    return Lesions([row['name'] for row in found], parts['patches'].pixels, parts['ellipses'].pixels,
                   parts['masks'].pixels if true else None,
                   np.array([[row[column] for column in ELLIPSE] for row in found]),
                   [(row['picture_width'], row['picture_height']) for row in found],
                   '-'.join(part.fingerprint for part in parts.values()), [row['group'] for row in found])


def mask_names(folder, names):
    """Where the masks that are found are written: <name>_segmentation.png, as the challenge names them."""
    return [folder / f'{name}{MASK_SUFFIX}.png' for name in names]


# --- Splits

def by_group(groups, seed):
    """A split for each sample such that no group (lesion, patient, volume) is in two: list of text.

    groups : list of text, one a sample. Groups in a random order fill the training split until SHARES[0] of
    the samples are in it, then the validation split, then the test split.
    """
    order, counts = sorted(set(groups)), {}
    random.Random(seed).shuffle(order)
    for group in groups:
        counts[group] = counts.get(group, 0) + 1
    limits, seen, split_of = np.cumsum(SHARES) * len(groups), 0, {}
    for group in order:
        split_of[group] = SPLITS[int((limits <= seen).sum())]
        seen += counts[group]
    return [split_of[group] for group in groups]


def at_random(count, seed):
    """A split for each of `count` samples as the original drew them: list of text.

    Python's shuffle of all numbers; the first 70 % are trained on, the next 20 % validated on, whole numbers.
    """
    order, found = list(range(count)), [SPLITS[2]] * count
    random.Random(seed).shuffle(order)
    first, second = (int(share * count) for share in SHARES)
    for place, number in enumerate(order[:first + second]):
        found[number] = SPLITS[place >= first]
    return found


def by_files(where, count):
    """A split for each of `count` samples from tr_ind.npy, val_ind.npy and test_ind.npy, as LiTS had them.

    Raises InputError where they are not each number below `count` once.
    """
    found, faults = [None] * count, []
    for name, split in zip(('tr_ind', 'val_ind', 'test_ind'), SPLITS, strict=True):
        path = Path(where) / f'{name}.npy'
        try:
            numbers = np.load(path, allow_pickle=False).ravel()
        except (OSError, ValueError) as error:
            faults.append(f'{path}: {error}')
            continue
        fitting = [int(number) for number in numbers if 0 <= number < count and found[int(number)] is None]
        for number in fitting:
            found[number] = split
        if len(fitting) < len(numbers):
            faults.append(f'{path}: {len(numbers) - len(fitting)} of {len(numbers)} numbers are of no lesion '
                          f'(there are {count}) or are there twice')
    if not faults and None in found:
        faults.append(f'{where}: {found.count(None)} of {count} lesions are in no file')
    if faults:
        raise InputError('These splits are of other lesions', faults,
                         'leave out --INDEX_FILES, then the split is by volume')
    return found
