"""Limit the long side of the training images and masks for segmentation: stage 1 of the README.

Reads   dataset/data/ISIC-2017_Training_Data/{Images,Annotation}.
Writes  dataset/seg_data/Training_resize_seg/{Images,Annotation}: larger pictures resized to png,
        the others copied byte for byte.

    python dataset/extractPatch_seg_train.py

Costs   4 s for 2000 images of 256 px and 0.1 s for each image of 3008x2000 px on two cores, and
        2 MB of disk for each resized one.

A later run redoes only what is missing or changed; after an interruption the same command goes on.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python dataset/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import extraction
from dataset.layout import Layout
from engine import cli, settings

# --- Where
ROOT = '.'              # folder with dataset/data below it (released: the repository)
RECIPE = 'default'      # default, or a file of recipes/

# --- Data
MAX_SIDE = 1600         # pixels of the long side (released); image bicubic, mask nearest
SKIP_UNPAIRED = False   # leave out pictures without a mask and masks without a picture

# --- Machine
NUM_WORKERS = 0         # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('MAX_SIDE',))
    extraction.prepare_segmentation(Layout(cfg.ROOT), cfg.MAX_SIDE, cfg.SKIP_UNPAIRED,
                                    cfg.NUM_WORKERS)


if __name__ == '__main__':
    cli.launch(main)
