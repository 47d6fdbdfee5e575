"""Weak labels: prepare LiTS, a patch for each liver tumour in each slice (Bilic et al. 2019).

Reads   SOURCE: volume-<n>.nii and segmentation-<n>.nii (or .nii.gz) in it or below; label 2 is tumour
Writes  WeakLabels/LiTS/ below ROOT: patches/, masks/, ellipses/, lesions.csv, panel.png

    python -m companions.weak_labels.prepare_LiTS --SOURCE=LiTS

Each connected tumour of a slice is cut out with a margin, and an ellipse is fitted to its hull. Tumours that
are too small, or that no ellipse resembles, are left out and named. All of a volume stay in one split. The
slices keep the volumes' axes. Run it again after an interruption and it goes on, volume by volume; one of 600
slices takes 0.5 GB of memory.
"""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import cv2
import numpy as np

from companions.weak_labels import REQUIREMENTS, ellipses, preparation
from dataset.layout import Layout
from engine import cli, settings, volumes
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds WeakLabels/
RECIPE = 'default'        # default (this file), or of recipes/: paper

# --- Data
SOURCE = ''               # folder of the volumes; '' = ROOT/dataset/LiTS
DATA = 'LiTS'             # folder below WeakLabels/
PATCH_SIZE = 120          # px, side that the patches are resized to (paper)
WINDOW = -160.0, 240.0    # Hounsfield units shown as 0 to 255: soft tissue; 0, 255: clipped alone (released)
LEAST_AREA = 50           # px, of a tumour in a slice; 1: all (released, by a mistake)
LEAST_IOU = 0.4           # of the ellipse with the mask (released)
SPLIT = 'group'           # group: tumours of one volume stay together; random
SEED = 1                  # of the splits, 70, 20 and 10 % of the patches
INDEX_FILES = ''          # folder of the original's {tr,val,test}_ind.npy, with LEAST_AREA=1; '' = SPLIT

# --- Machine
NUM_WORKERS = 2           # volumes read at once, each into memory; 0 = one for each core


def find(source):
    """[(number, volume, segmentation)] sorted by name. Raises InputError with every fault."""
    found, faults = {'volume': {}, 'segmentation': {}}, []
    for path in sorted(source.rglob('*.nii*')):
        if fits := re.fullmatch(r'(volume|segmentation)-(\d+)\.nii(\.gz)?', path.name):
            kind, number = fits[1], fits[2]
            if number in found[kind]:
                faults.append(f'{path}: is there twice, see {found[kind][number]}')
            found[kind][number] = path
    for kind, other in (('volume', 'segmentation'), ('segmentation', 'volume')):
        faults += [f'{path}: has no {other}-{number}.nii' for number, path in found[kind].items()
                   if number not in found[other]]
    pairs = [(number, path, found['segmentation'][number]) for number, path in found['volume'].items()
             if number in found['segmentation']]
    for _, volume, segmentation in pairs:
        try:
            shapes = volumes.opened(volume).shape, volumes.opened(segmentation).shape
        except InputError as error:
            faults += error.faults
            continue
        if shapes[0] != shapes[1] or len(shapes[0]) != 3:
            sizes = ['x'.join(map(str, shape)) for shape in shapes]
            faults.append(f'{segmentation}: is {sizes[1]}, {volume.name} is {sizes[0]}; both must be volumes')
    if not pairs:
        faults.append(f'{source}: holds no volume-<n>.nii with its segmentation-<n>.nii')
    if faults:
        raise InputError('LiTS cannot be prepared', faults, '--SOURCE=folder of the download, unpacked')
    return pairs


def box_of(mask):
    """(left, right, top, bottom), ends included, of the square around a tumour, cut at the slice's edges.

    As the original has it: 18 px of margin, the longer side for both, the middle rounded.
    """
    (y, x), (height, width) = np.nonzero(mask), mask.shape
    (left, right), (top, bottom) = ((places.min(), places.max()) for places in (x, y))
    middle = round((left + right) / 2), round((top + bottom) / 2)
    spans = [min(end + MARGIN, limit) - max(start - MARGIN, 0) + 1
             for start, end, limit in ((left, right, width), (top, bottom, height))]
    half = max(spans) // 2
    return (max(0, middle[0] - half), min(width - 1, middle[0] + half - 1),
            max(0, middle[1] - half), min(height - 1, middle[1] + half - 1))


MARGIN = 18   # px, the original's 10 and 8
OF_ELLIPSE = 'parameters of the ellipse'   # earlier versions fitted them to the mask


def tumours(number, volume, segmentation, cfg):
    """The tumours of a volume (paths), slice by slice: a list of preparation.Lesion and LeftOut."""
    units, labels, found = volumes.read(volume), volumes.read(segmentation), []
    odd = sorted(set(np.unique(labels).tolist()) - {0, 1, 2})
    if odd:
        raise InputError('Labels cannot be used', [f'{segmentation}: holds {odd[:5]}, not 0, 1 and 2 alone'])
    for place in np.flatnonzero((labels == 2).any((0, 1))):
        count, parts = cv2.connectedComponents((labels[..., place] == 2).astype(np.uint8), connectivity=8)
        for part in range(1, count):
            name, mask = f'volume-{number}_{place}_{part}', (parts == part).astype(np.uint8)
            left, right, top, bottom = box_of(mask)
            cut = slice(top, bottom + 1), slice(left, right + 1)
            area = int(mask.sum())
            if area < cfg.LEAST_AREA:
                found.append(preparation.LeftOut(name, f'the tumour has {area} pixels'))
                continue
            grey = preparation.windowed(units[..., place][cut], cfg.WINDOW)
            picture = np.repeat(grey[..., None], 3, 2)
            lesion = preparation.from_mask(name, f'volume-{number}', picture, mask[cut], cfg.PATCH_SIZE,
                                           of_ellipse=True)
            if isinstance(lesion, preparation.Lesion):
                iou = ellipses.overlap(lesion.ellipse, lesion.mask)
                if not iou >= cfg.LEAST_IOU:
                    lesion = preparation.LeftOut(name, f'its ellipse fits with an IoU of {iou:.2f}')
            found.append(lesion)
    return found


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    faults = [] if len(cfg.WINDOW) == 2 and cfg.WINDOW[0] < cfg.WINDOW[1] else [
        f'WINDOW={cfg.WINDOW}: must be two rising numbers']
    if cfg.INDEX_FILES and cfg.LEAST_AREA > 1:
        faults.append(f'LEAST_AREA={cfg.LEAST_AREA}: INDEX_FILES count tumours from one pixel on; '
                      '--LEAST_AREA=1, or --RECIPE=paper')
    return faults


def main():
    cfg = settings.resolve(globals(), choices={'SPLIT': preparation.SPLITTING}, check=check,
                           positive=('PATCH_SIZE', 'LEAST_AREA'),
                           least={'SEED': 0, 'NUM_WORKERS': 0, 'LEAST_IOU': 0})
    cli.require('nibabel', where=REQUIREMENTS)
    layout = Layout(cfg.ROOT)

    def unit(number, *paths):
        return preparation.Unit(f'volume-{number}', paths, lambda: tumours(number, *paths, cfg), OF_ELLIPSE)

    source = Path(cfg.SOURCE or layout.root / 'dataset' / 'LiTS')
    preparation.run(layout, cfg.DATA, cfg, [unit(*entry) for entry in find(source)],
                    index_files=cfg.INDEX_FILES)


if __name__ == '__main__':
    cli.launch(main)
