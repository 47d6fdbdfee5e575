"""Weak labels: prepare any folder of pictures with masks, or with a csv of two diameters, or both.

Reads   IMAGES, a folder of pictures; MASKS, a folder of their masks, <name>.png or <name>_segmentation.png
        DIAMETERS, a csv with the columns image (a picture's name), x1, y1, x2, y2 (ends of the long diameter)
        and x3, y3, x4, y4 (of the short one) in pixels; besides, where there are any, group and split
Writes  WeakLabels/<DATA>/ below ROOT: patches/, masks/, ellipses/, lesions.csv, panel.png

    python -m companions.weak_labels.prepare_folder --DATA=mine --IMAGES=pictures --MASKS=masks
    python -m companions.weak_labels.prepare_folder --DATA=mine --IMAGES=pictures --DIAMETERS=diameters.csv

Ellipses are those of the diameters; without any, they are fitted to the masks. Without masks a network can be
trained, but not scored. Pictures are squashed whole: cut them around the lesion first. What has one group (a
patient) stays in one split. Run it again after an interruption and it goes on. Cost: as decoding.
"""
import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np

from companions.weak_labels import ellipses, preparation
from dataset import isic, label_csv, own
from dataset.layout import SPLITS, Layout
from engine import cli, files, images, scoring, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds WeakLabels/
RECIPE = 'default'        # default (this file), or of recipes/: paper, demo

# --- Data
IMAGES = ''               # folder of pictures
MASKS = ''                # folder of their true masks; '' = there are none
DIAMETERS = ''            # csv of two diameters a picture; '' = ellipses are fitted to the masks
DATA = 'mine'             # folder below WeakLabels/
PATCH_SIZE = 120          # px, side that pictures are squashed to (paper)
GREY_ABOVE = 0            # masks with grey values are lesion above this one, as 127; 0 = they are refused
SPLIT = 'group'           # group: what has one group stays together; random (released)
SEED = 1                  # of the splits, 70, 20 and 10 % (released)

# --- Machine
NUM_WORKERS = 0           # threads; 0 = one for each core


def read_diameters(path):
    """({picture's name: row}, list of faults) of a csv; a row: 'ends' (long, short), 'group', 'split'."""
    found, faults = {}, []
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            if missing := {'image', *ENDS} - set(reader.fieldnames or ()):
                raise ValueError(f'has no column {", ".join(sorted(missing))}')
            for row in reader:
                where, name = f'{path}, line {reader.line_num}', Path(row['image'] or '')
                name = label_csv.plain_id(   # not the ending of scan.001
                    name.stem if name.suffix.lower() in images.EXTENSIONS else name.name)
                try:
                    ends = [float(row[column]) for column in ENDS]
                    ellipses.from_diameters(ends[:4], ends[4:])
                except (TypeError, ValueError) as error:
                    faults.append(f'{where}: {error}')
                    continue
                split = (row.get('split') or '').strip()
                faults += [f'{where}: {name!r} is no name, or there twice'] if name in ('', *found) else []
                faults += [f'{where}: the split {split} must be of {", ".join(SPLITS)}'
                           ] if split not in ('', *SPLITS) else []
                group = (row.get('group') or '').strip() or name
                found[name] = {'ends': (ends[:4], ends[4:]), 'group': group, 'split': split}
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        faults.append(f'{path}: {error}')
    if 0 < sum(bool(row['split']) for row in found.values()) < len(found):
        faults.append(f'{path}: only some rows have a split')
    faults += [f'{path}: {fault}' for fault in own.straddling(
        *({name: row[part] for name, row in found.items()} for part in ('split', 'group')))]
    return found, faults


ENDS = 'x1', 'y1', 'x2', 'y2', 'x3', 'y3', 'x4', 'y4'


def of_more_bits(paths):
    """Lines that report pictures of 16 bits and more: Pillow would clip them to 8 instead of scaling them."""
    def check(path):
        with images.open_image(path) as opened:
            if opened.mode.startswith(('I', 'F')):
                raise InputError('Of more bits', [f'{path}: colour mode is {opened.mode}, not of 8 bits'])

    try:
        files.for_all(check, paths, 'colour modes')
    except InputError as error:
        return error.faults
    return []


def find(cfg):
    """[(name, picture, mask or None, row of `read_diameters` or None)]. InputError with every fault."""
    pictures, faults = isic.scan_folder(Path(cfg.IMAGES), 'pictures')
    faults += of_more_bits(pictures.values())
    masks, diameters = {}, {}
    if cfg.MASKS:
        masks, more = scoring.find_masks(Path(cfg.MASKS), pictures)
        faults += more
    if cfg.DIAMETERS:
        diameters, more = read_diameters(cfg.DIAMETERS)
        faults += more + [f'{path}: has no diameters in {cfg.DIAMETERS}' for name, path in pictures.items()
                          if diameters and name not in diameters]
        faults += [f'{cfg.DIAMETERS}: {name} is no picture of {cfg.IMAGES}' for name in diameters
                   if name not in pictures]
    preparation.check_pairs([(pictures[name], masks[name]) for name in pictures if name in masks], faults,
                            'one mask, or one line of diameters, a picture')
    return [(name, path, masks.get(name), diameters.get(name)) for name, path in pictures.items()]


def unit(name, picture, mask, row, cfg):
    """The preparation.Unit of a picture with its mask (path or None) and its diameters (or None)."""
    group, split = (name, '') if row is None else (row['group'], row['split'])

    def make():
        with images.open_image(picture) as opened:   # grey ones, too
            array = np.array(images.upright(opened).convert('RGB'))
        true = None if mask is None else images.read_mask(mask, cfg.GREY_ABOVE)
        if row is None:
            return [preparation.from_mask(name, group, array, true, cfg.PATCH_SIZE, split)]
        drawn = ellipses.draw(ellipses.from_diameters(*row['ends']), array.shape[1::-1])
        found = preparation.from_mask(name, group, array, drawn, cfg.PATCH_SIZE, split)
        if isinstance(found, preparation.LeftOut):
            return [found]
        side = cfg.PATCH_SIZE, cfg.PATCH_SIZE
        small = None if true is None else images.resize_mask(true, side)
        return [replace(found, ellipse=found.mask, mask=small)]

    return preparation.Unit(name, [path for path in (picture, mask) if path], make, json.dumps(row))


def main():
    cfg = settings.resolve(globals(), choices={'SPLIT': preparation.SPLITTING}, positive=('PATCH_SIZE',),
                           least={'SEED': 0, 'NUM_WORKERS': 0, 'GREY_ABOVE': 0})
    if not cfg.IMAGES or not (cfg.MASKS or cfg.DIAMETERS):
        raise InputError('Pictures need masks or diameters', [], '--IMAGES=folder --MASKS=folder, or '
                         '--IMAGES=folder --DIAMETERS=csv')
    preparation.run(Layout(cfg.ROOT), cfg.DATA, cfg, [unit(*entry, cfg) for entry in find(cfg)])


if __name__ == '__main__':
    cli.launch(main)
