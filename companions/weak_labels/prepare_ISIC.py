"""Weak labels: prepare ISIC-2017, so that weak labels stand beside the masks of coarse-SN.

Reads   dataset/ISIC/{Training,Validation,Testing}_seg.txt and the pictures and masks they list (stage 1)
Writes  WeakLabels/ISIC/ below ROOT: patches/, masks/, ellipses/, lesions.csv, panel.png

    python -m companions.weak_labels.prepare_ISIC

The challenge's split stays. The ellipse is fitted to the convex hull of the true mask, in place of the two
diameters that nobody measured. Run it again after an interruption and it goes on. Cost: as decoding.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.weak_labels import preparation
from dataset import isic
from dataset.layout import SPLITS, Layout
from engine import cli, settings

# --- Experiment
ROOT = '.'                # folder that holds dataset/ and WeakLabels/
RECIPE = 'default'        # default (this file), or of recipes/: paper, demo

# --- Data
DATA = 'ISIC'             # folder below WeakLabels/
PATCH_SIZE = 120          # px, side that pictures are squashed to (paper)

# --- Machine
NUM_WORKERS = 0           # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('PATCH_SIZE',), least={'NUM_WORKERS': 0})
    layout = Layout(cfg.ROOT)
    there = [split for split in SPLITS if split == 'Training' or layout.segmentation_list(split).is_file()]
    listed = [(split, *pair) for split in there for pair in isic.read_segmentation_list(layout, split)]
    preparation.check_pairs([pair for _, *pair in listed])
    units = [preparation.picture_unit(image.stem, image.stem, image, mask, cfg.PATCH_SIZE, split)
             for split, image, mask in listed]
    preparation.run(layout, cfg.DATA, cfg, units, layout.drawn)


if __name__ == '__main__':
    cli.launch(main)
