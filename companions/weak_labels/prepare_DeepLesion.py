"""Weak labels: prepare DeepLesion, a patch for each lesion with the diameters that radiologists measured.

Reads   SOURCE: DL_info.csv and Images_png/<series>/<slice>.png, 16 bits (Yan et al. 2018)
Writes  WeakLabels/DeepLesion/ below ROOT: patches/, ellipses/, masks/, lesions.csv, panel.png

    python -m companions.weak_labels.prepare_DeepLesion --SOURCE=DeepLesion

A patch's three channels are the slices 2 mm below, at and 2 mm above the key slice, in the lesion's own
window. Its ellipse is that of the two diameters. Nobody drew masks: masks/ is what GrabCut finds within the
ellipse, and scores against it say no more than that. The official split stays. Run it again after an
interruption and it goes on.
"""
import csv
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import cv2
import numpy as np

from companions.weak_labels import ellipses, preparation
from dataset import extraction
from dataset.layout import SPLITS, Layout
from engine import cli, images, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds WeakLabels/
RECIPE = 'default'        # default (this file), or of recipes/: paper

# --- Data
SOURCE = ''               # folder of DL_info.csv and Images_png/; '' = ROOT/dataset/DeepLesion
DATA = 'DeepLesion'       # folder below WeakLabels/
SKIP_ABSENT = False       # leave out lesions whose slice is not there, as with some of the 56 parts alone
PATCH_SIZE = 120          # px, side of the patches, cut around the bounding box's middle (paper)
DISTANCE = 2.0            # mm, of the two slices beside the key slice (released)
STROKE = 0                # px, an outline painted around the ellipse; 5 (released)
GRABCUT = 'patch'         # what GrabCut sees: patch, or dark, divided by 255 (released, by a mistake)

# --- Machine
NUM_WORKERS = 0           # threads; 0 = one for each core


def numbers(text, count):
    """`count` finite numbers of a cell. Raises ValueError."""
    found = [float(word) for word in (text or '').split(',')]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f'{text!r} must be {count} numbers')
    return found


def read_row(row):
    """What a row of DL_info.csv says of a lesion, a dict. Raises ValueError or KeyError."""
    spacing = [float(word) for word in row['Spacing_mm_px_'].split(',')]
    series, _, place = row['File_name'].removesuffix('.png').rpartition('_')
    split = int(row['Train_Val_Test'])
    if not series or split not in (1, 2, 3):
        raise ValueError(f'{row["File_name"]!r}, {row["Train_Val_Test"]!r}: no slice, or no split of 1 to 3')
    low, high = numbers(row['DICOM_windows'], 2)
    if not low < high:
        raise ValueError(f'the window {row["DICOM_windows"]!r} must be two rising numbers')
    return {'series': series, 'place': int(place), 'ends': numbers(row['Measurement_coordinates'], 8),
            'box': numbers(row['Bounding_boxes'], 4), 'window': (low, high), 'interval': spacing[2],
            'group': row['Patient_index'], 'split': SPLITS[split - 1]}


def find(source, skip_absent):
    """([(name, what `read_row` says)], folder of the series). Raises InputError with every fault."""
    path, found, faults, absent = source / 'DL_info.csv', [], [], []
    folder = source / 'Images_png'
    folder = folder / folder.name if (folder / folder.name).is_dir() else folder
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            for number, row in enumerate(csv.DictReader(file), start=1):
                try:
                    lesion = read_row(row)
                except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                    faults.append(f'{path}, lesion {number}: {error}')
                    continue
                if slice_path(folder, lesion).is_file():
                    found.append((f'{number:05}_{row["File_name"].removesuffix(".png")}', lesion))
                else:
                    absent.append(f'{slice_path(folder, lesion)}: is missing, of lesion {number}')
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        faults.append(f'{path}: {error}')
    if skip_absent:
        extraction.print_lines('left out', absent)
    else:
        faults += absent
    if faults or not found:
        raise InputError('DeepLesion cannot be prepared', faults or [f'{source}: holds no lesion'],
                         '--SOURCE=folder with what is downloaded, unpacked; of some parts alone: '
                         '--SKIP_ABSENT=True')
    return found, folder


def slice_path(folder, lesion, offset=0):
    """Path of the slice `offset` away from a lesion's key slice."""
    return folder / lesion['series'] / f'{lesion["place"] + offset:03}.png'


def neighbour(folder, lesion, direction, distance):
    """[(path, weight)] of the slice `distance` mm away, 1 or -1 in direction: two slices, linearly.

    What is missing is replaced by the nearest towards the key slice; without a known interval it is that.
    """
    interval = lesion['interval']
    if not interval > 0:   # also where it is no number
        return [(slice_path(folder, lesion), 1.0)]
    whole, part = divmod(distance / interval, 1)
    found = []
    for steps, weight in ((int(whole), 1 - part), (int(whole) + 1, part)):
        while steps and not slice_path(folder, lesion, direction * steps).is_file():
            steps -= 1
        if weight:
            found.append((slice_path(folder, lesion, direction * steps), weight))
    return found


def read_slice(path):
    """Hounsfield units (H, W) float32 of a 16-bit png, which holds them plus 32768. Raises InputError."""
    with images.open_image(path, {'PNG': 'png'}) as image:
        if not image.mode.startswith('I'):
            raise InputError('A slice cannot be used', [f'{path}: has mode {image.mode}, not 16 bits'])
        return np.asarray(image).astype(np.float32) - 32768


def cut(lesion, channels, cfg):
    """(patch (P, P, 3) uint8, ellipse in px of the patch) of a lesion. ValueError for degenerate diameters,
    and naming slices of another size than the key slice.

    channels : [[(path, weight)]], of the slices below, at and above. Slices of other sides than 512 are
    resized to it, and the coordinates with them; these count from 1.
    """
    read = {path: read_slice(path) for parts in channels for path, _ in parts}
    height, width = read[channels[1][0][0]].shape
    if others := [f'{path}: is {values.shape[1]}x{values.shape[0]}, its key slice {width}x{height}'
                  for path, values in read.items() if values.shape != (height, width)]:
        raise ValueError('; '.join(others))
    slices = [sum(weight * read[path] for path, weight in parts) for parts in channels]
    factor = SIDE / min(slices[1].shape)
    box, ends = ((np.array(lesion[name]) - 1) * factor for name in ('box', 'ends'))
    middle = [round((box[place] + box[place + 2]) / 2) for place in (0, 1)]
    side, (left, top) = cfg.PATCH_SIZE, (place - cfg.PATCH_SIZE // 2 for place in middle)
    ends = ends - np.tile((left, top), 4)
    patch = []
    for values in slices:
        grey = preparation.windowed(values, lesion['window'])
        if factor != 1:
            size = tuple(round(length * factor) for length in grey.shape[::-1])
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR)
        rows, columns = (np.arange(start, start + side).clip(0, length - 1)
                         for start, length in zip((top, left), grey.shape, strict=True))
        patch.append(grey[rows][:, columns])   # beyond the slice its edge is repeated
    return np.stack(patch, 2), ellipses.from_diameters(ends[:4], ends[4:])


SIDE = 512   # px, of a slice


def grabcut(patch, ellipse):
    """What GrabCut finds in a patch (P, P, 3) within an ellipse (P, P) of {0, 1}; if nothing, that."""
    x, y, width, height = cv2.boundingRect(ellipse)
    found, models = np.zeros(ellipse.shape, np.uint8), [np.zeros((1, 65)) for _ in range(2)]
    cv2.setRNGSeed(0)   # it begins with a random clustering
    try:
        cv2.grabCut(patch * ellipse[..., None], found, (x, y, width, height), *models, 5,
                    cv2.GC_INIT_WITH_RECT)
    except cv2.error:   # the ellipse leaves no background
        return ellipse
    found = (found & 1) * ellipse   # 1 and 3 are certain and probable foreground
    return found if found.any() else ellipse


def make(name, lesion, channels, cfg):
    """The preparation.Lesion of a row, or LeftOut."""
    try:
        patch, parameters = cut(lesion, channels, cfg)
    except ValueError as error:
        return [preparation.LeftOut(name, str(error))]
    ellipse = ellipses.draw(parameters, patch.shape[1::-1], cfg.STROKE)
    if not ellipse.any():
        return [preparation.LeftOut(name, 'the ellipse lies outside the patch')]
    mask = grabcut(patch // 255 if cfg.GRABCUT == 'dark' else patch, ellipse)
    return [preparation.Lesion(name, lesion['group'], patch, ellipse, mask, parameters, patch.shape[1::-1],
                               lesion['split'])]


def main():
    cfg = settings.resolve(globals(), choices={'GRABCUT': ('patch', 'dark')},
                           positive=('PATCH_SIZE', 'DISTANCE'),
                           least={'STROKE': 0, 'NUM_WORKERS': 0})
    layout = Layout(cfg.ROOT)
    found, folder = find(Path(cfg.SOURCE or layout.root / 'dataset' / 'DeepLesion'), cfg.SKIP_ABSENT)

    def unit(name, lesion):
        channels = [neighbour(folder, lesion, -1, cfg.DISTANCE), [(slice_path(folder, lesion), 1.0)],
                    neighbour(folder, lesion, 1, cfg.DISTANCE)]
        paths = list(dict.fromkeys(path for parts in channels for path, _ in parts))
        return preparation.Unit(name, paths, lambda: make(name, lesion, channels, cfg), json.dumps(lesion))

    preparation.run(layout, cfg.DATA, cfg, [unit(*entry) for entry in found],
                    truth='GrabCut within the ellipse: nobody drew masks of DeepLesion')


if __name__ == '__main__':
    cli.launch(main)
