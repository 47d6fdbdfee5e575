"""Draw a small synthetic data set in ISIC-2017's form, to try the whole pipeline without downloads.

Reads    nothing
Writes   <ROOT>/dataset/data/ as the ISIC-2017 downloads are laid out when unpacked: three splits
         with Images/ and Annotation/ and a label csv for each, extra training pictures without
         masks and their csv, a metadata csv and superpixel pictures (which the readers ignore),
         and demo_data.json, the settings it was drawn with
Command  python dataset/make_demo_data.py --ROOT=demo
Cost     6 s and 14 MB for the default 250 pictures on 2 cores (40 pictures a second)

The same settings give the same bytes. A second run draws only what is missing; with other settings
all that this script drew is removed and drawn anew. A folder that holds pictures or tables of any
other origin is refused and left as it is.
"""
import contextlib
import json
import os
import sys
from functools import partial
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import cv2
import numpy as np

from dataset import isic, label_csv, synthetic
from dataset.classes import PAPER
from dataset.layout import ADDED, DRAWN, LABEL_FILES, Layout
from engine import cli, files, images, settings
from engine.errors import InputError

# --- Folders
ROOT = 'demo'              # experiment root; the data go to <ROOT>/dataset/data
RECIPE = 'default'         # table of recipes/<RECIPE>.toml that replaces constants below

# --- Data set
SEED = 2017                # whole number >= 0; the same seed gives the same bytes
TRAINING_IMAGES = 120      # pictures; 3 or more, and every class occurs
VALIDATION_IMAGES = 30     # pictures, likewise
TESTING_IMAGES = 60        # pictures, likewise
EXTRA_IMAGES = 40          # classification pictures without masks, as the paper's 1320 extra ones; 0 = none
MELANOMA_SHARE = 0.3       # of a split's pictures, and of the extra ones
KERATOSIS_SHARE = 0.3      # likewise; the rest are nevi
MAX_SIDE = 768             # pixels, long side of the largest pictures; 64 or more

# --- Machine
NUM_WORKERS = 0            # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('TRAINING_IMAGES', 'VALIDATION_IMAGES',
                                                'TESTING_IMAGES', 'MELANOMA_SHARE',
                                                'KERATOSIS_SHARE'), check=check,
                           least={'SEED': 0, 'EXTRA_IMAGES': 0, 'MAX_SIDE': 64, 'NUM_WORKERS': 0})
    layout = Layout(cfg.ROOT)
    record = {name: getattr(cfg, name) for name in RECORDED} | {'VERSION': synthetic.VERSION}
    claim(layout, record)
    jobs = {paths: write for paths, write in everything(layout, record).items()
            if not all(path.exists() for path in paths)}
    files.for_all(lambda write: write(), jobs.values(), 'Drawing', cfg.NUM_WORKERS)
    labels = [label for part in PARTS for _, _, label in entries(record, part)]
    drawn = sum(paths[0].suffix == '.jpg' for paths in jobs)
    print(f'{layout.data}: {len(labels)} pictures ({drawn} drawn now): '
          + ', '.join(f'{labels.count(number)} {name}' for number, name in enumerate(PAPER.names)))


# Below main(), where settings.resolve does not look: these are fixed, not settings.
RECORDED = ('SEED', 'TRAINING_IMAGES', 'VALIDATION_IMAGES', 'TESTING_IMAGES', 'EXTRA_IMAGES',
            'MELANOMA_SHARE', 'KERATOSIS_SHARE', 'MAX_SIDE')
BEFORE = {'EXTRA_IMAGES': 0}   # of a record of the time when there was no such setting
METADATA = 'ISIC-2017_Training_Data_metadata.csv'
MOST = 100_000             # pictures of a part: each has its own range of numbers
# Part -> the setting that counts its pictures, and the first of their numbers.
PARTS = {'Training': ('TRAINING_IMAGES', 0), 'Validation': ('VALIDATION_IMAGES', MOST),
         'Testing': ('TESTING_IMAGES', 2 * MOST), ADDED: ('EXTRA_IMAGES', 4 * MOST)}
METADATA_NUMBER = 3 * MOST   # of the metadata's random stream
FIRST_ID = 9_000_000       # far above ISIC-2017's own ids
SUPERPIXELS = 2            # training pictures that have such a file
JPEG_QUALITY = 90


def check(cfg):
    """Faults of numbers that make no data set, a list of lines."""
    faults = [f'{name}={getattr(cfg, name)}: must be at most {MOST}'
              for name in RECORDED if name.endswith('_IMAGES') and getattr(cfg, name) > MOST]
    if cfg.MELANOMA_SHARE + cfg.KERATOSIS_SHARE >= 1:
        faults.append(f'MELANOMA_SHARE={cfg.MELANOMA_SHARE} and KERATOSIS_SHARE='
                      f'{cfg.KERATOSIS_SHARE}: together they must leave a share for nevi')
    return faults


def class_sequence(count, shares):
    """Class number of each of `count` pictures, a list.

    shares : 3 numbers, sum 1. The first three pictures are one of each class; from then on the
    class that lacks most comes next, so that every beginning of the list keeps the shares.
    """
    sequence = list(range(len(shares)))
    drawn = np.ones(len(shares))
    for total in range(len(shares) + 1, count + 1):
        sequence.append(int(np.argmax(np.multiply(shares, total) - drawn)))
        drawn[sequence[-1]] += 1
    return sequence[:count]


def entries(record, part):
    """The pictures of a split or of ADDED: list of (image id, number, class number)."""
    melanoma, keratosis = record['MELANOMA_SHARE'], record['KERATOSIS_SHARE']
    setting, first = PARTS[part]
    labels = class_sequence(record[setting], (1 - melanoma - keratosis, melanoma, keratosis))
    return [(f'ISIC_{FIRST_ID + number:07d}', number, label)
            for number, label in enumerate(labels, start=first)]


def everything(layout, record):
    """{paths (tuple): function without arguments that writes them} of all that a set consists of."""
    jobs, seed, side = {}, record['SEED'], record['MAX_SIDE']
    for part in PARTS:
        folder, pictures = layout.originals(part), entries(record, part)
        for image_id, number, label in pictures:
            paths = folder / 'Images' / f'{image_id}.jpg',
            if part != ADDED:   # the extra pictures have no masks
                paths += folder / 'Annotation' / f'{image_id}{isic.MASK_SUFFIX}.png',
            jobs[paths] = partial(draw_picture, (seed, number), label, side, *paths)
        if pictures:
            path = layout.data / LABEL_FILES[part][0]
            labels = {image_id: label for image_id, _, label in pictures}
            jobs[path,] = partial(label_csv.write, path, labels)
    folder, pictures = layout.originals('Training') / 'Images', entries(record, 'Training')
    for image_id, number, _ in pictures[:SUPERPIXELS]:
        path = folder / f'{image_id}_superpixels.png'
        size = synthetic.picture_size(np.random.default_rng((seed, number)), side)
        jobs[path,] = partial(images.write_png, path, synthetic.superpixels(size))
    rng = np.random.default_rng((seed, METADATA_NUMBER))
    rows = [('image_id', 'age_approximate', 'sex')]
    rows += [(entry[0], 5 * rng.integers(3, 18), rng.choice(('female', 'male'))) for entry in pictures]
    path = folder / METADATA
    jobs[path,] = partial(files.write_csv, path, rows)
    return jobs


def claim(layout, record):
    """Make sure that the data folder is this script's own, and that it holds one set only.

    Raises InputError when pictures or tables lie there that no earlier run can have written. An
    earlier set with other settings is removed before the new record takes the old one's place:
    a run that is killed in between leaves a folder that the next run still recognises.
    """
    previous = read_record(layout)
    own, foreign = set(chain(*everything(layout, previous))) if previous else set(), {}
    for folder, _, names in os.walk(layout.data, followlinks=True):
        for path in (Path(folder) / name for name in names if not name.startswith('.')):
            if path.suffix.lower() in (*images.EXTENSIONS, '.csv') and path not in own:
                foreign.setdefault(folder, []).append(path.name)
    if foreign:
        raise InputError(f'{layout.data} holds data that this script did not draw',
                         [f'{folder}: {len(names)} files, such as {min(names)}'
                          for folder, names in sorted(foreign.items())],
                         'choose another folder: --ROOT=<a new folder>')
    if previous != record:
        for path in own:
            path.unlink(missing_ok=True)
        # Stage 1 asks for the extra pictures wherever their folder is there.
        with contextlib.suppress(OSError):   # absent, or not empty
            (layout.originals(ADDED) / 'Images').rmdir()
            layout.originals(ADDED).rmdir()
        files.write_text(layout.data / DRAWN, json.dumps(record, indent=2) + '\n')


def read_record(layout):
    """Settings (dict) of the set that lies in the data folder; None where there is no whole record."""
    record = BEFORE | files.read_json(layout.data / DRAWN)
    return record if record.keys() >= set(RECORDED) else None


def draw_picture(seed, label, max_side, image_path, mask_path=None):
    """Draw a picture and write it, with its mask where it has one."""
    image, mask = synthetic.draw(np.random.default_rng(seed), label, max_side)
    _, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR),
                           [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    files.write_bytes(image_path, data.tobytes())
    if mask_path:
        images.write_mask(mask_path, mask)


if __name__ == '__main__':
    cli.launch(main)
