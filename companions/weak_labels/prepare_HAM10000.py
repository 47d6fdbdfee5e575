"""Weak labels: prepare HAM10000, patches, true masks and ellipses (Tschandl et al. 2018).

Reads   SOURCE: HAM10000_images_part_1/ and _part_2/ with HAM10000_segmentations_lesion_tschandl/ as they are
        downloaded, or images/ and masks/; HAM10000_metadata.csv, which says the lesion of each picture
Writes  WeakLabels/HAM10000/ below ROOT: patches/, masks/, ellipses/, lesions.csv, panel.png

    python -m companions.weak_labels.prepare_HAM10000 --SOURCE=HAM10000

The ellipse is fitted to the convex hull of the true mask, in place of the two diameters that nobody measured.
Pictures whose mask has none are left out and named. Pictures of one lesion stay in one split; SPLIT=random
splits as the original does. Run it again after an interruption and it goes on. Cost: 14 ms a picture on one
core.
"""
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.weak_labels import preparation
from dataset import isic, label_csv
from dataset.layout import DRAWN, Layout
from engine import cli, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds WeakLabels/
RECIPE = 'default'        # default (this file), or of recipes/: paper, demo

# --- Data
SOURCE = ''               # folder of the download; '' = ROOT/dataset/HAM10000
DATA = 'HAM10000'         # folder below WeakLabels/
PATCH_SIZE = 120          # px, side that pictures are squashed to (paper)
SPLIT = 'group'           # group: pictures of one lesion stay together; random (released)
SEED = 1                  # of the splits, 70, 20 and 10 % (released)

# --- Machine
NUM_WORKERS = 0           # threads; 0 = one for each core


def find(source):
    """[(image id, lesion id, picture, mask)], sorted. Raises InputError with every fault of the folders."""
    folders = [path for path in (source / 'HAM10000_images_part_1', source / 'HAM10000_images_part_2',
                                 source / 'images') if path.is_dir()]
    masked = next((path for path in (source / 'HAM10000_segmentations_lesion_tschandl', source / 'masks')
                   if path.is_dir()), source / 'masks')
    pictures, faults = {}, [] if folders else [f'{source}: has no HAM10000_images_part_1/ and no images/']
    for folder in folders:
        found, more = isic.scan_folder(folder, 'pictures')
        faults += more + [f'{found[name]}: is there twice, see {pictures[name]}' for name in
                          found.keys() & pictures.keys()]
        pictures |= found
    masks, more = isic.scan_folder(masked, 'masks')
    groups, others = read_groups(source)
    faults += more + others
    if pictures and masks and groups:
        faults += [f'{pictures[name]}: has no mask {name}_segmentation.png in {masked}'
                   for name in sorted(pictures.keys() - masks.keys())]
        faults += [f'{masks[name]}: has no picture' for name in sorted(masks.keys() - pictures.keys())]
        faults += [f'{pictures[name]}: has no row in the metadata'
                   for name in sorted(pictures.keys() - groups.keys())]
    found = [(name, groups.get(name, ''), pictures[name], masks[name])
             for name in sorted(pictures.keys() & masks.keys())]
    preparation.check_pairs([entry[2:] for entry in found], faults,
                            '--SOURCE=folder with what is downloaded, unpacked')
    return found


def read_groups(source):
    """({image id: lesion id}, list of faults) of HAM10000_metadata.csv."""
    path = next((path for path in (source / 'HAM10000_metadata.csv', source / 'HAM10000_metadata')
                 if path.is_file()), source / 'HAM10000_metadata.csv')
    _, rows, faults = label_csv.read_rows(path)
    faults += [f'{path}, line {line}: needs image_id and lesion_id' for line, row in rows
               if not (row.get('image_id') and row.get('lesion_id'))]
    return {} if faults else {row['image_id']: row['lesion_id'] for _, row in rows}, faults


def main():
    cfg = settings.resolve(globals(), choices={'SPLIT': preparation.SPLITTING}, positive=('PATCH_SIZE',),
                           least={'SEED': 0, 'NUM_WORKERS': 0})
    layout = Layout(cfg.ROOT)
    source = Path(cfg.SOURCE) if cfg.SOURCE else layout.root / 'dataset' / 'HAM10000'
    if not source.is_dir():
        draw = 'python', '-m', 'companions.weak_labels.make_demo_lesions', f'--ROOT={cfg.ROOT}'
        raise InputError('HAM10000 is missing', [f'{source}: is no folder'],
                         f'--SOURCE=folder, or draw some: {shlex.join(draw)}')

    units = [preparation.picture_unit(*entry, cfg.PATCH_SIZE) for entry in find(source)]
    preparation.run(layout, cfg.DATA, cfg, units, (source / DRAWN).exists())


if __name__ == '__main__':
    cli.launch(main)
