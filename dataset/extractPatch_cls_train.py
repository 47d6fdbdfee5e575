"""Cut the 224 px classification crops of the training images: stage 1 of the README.

Reads   dataset/data/ISIC-2017_Training_Data/Images and, where it exists, the extra
        ISIC-2017_Training_Add_Data/Images, with their Part3_GroundTruth csv files.
Writes  dataset/cls_data/Training_Add_resize_crop_cls/<id>.png, <id>_9_<k>.png, <id>_15_<k>.png:
        9 crops of a nevus, 15 of a melanoma or keratosis (scales: dataset/crops.py).

    python dataset/extractPatch_cls_train.py

Costs   40 s for 2000 images of 256 px and 0.1 s for each image of 3008x2000 px on two cores, and
        50 kB of disk for each crop.

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
ROOT = '.'             # folder with dataset/data below it (released: the repository)
RECIPE = 'default'     # default, or a file of recipes/

# --- Machine
NUM_WORKERS = 0        # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals())
    extraction.extract_crops(Layout(cfg.ROOT), 'Training', cfg.NUM_WORKERS)


if __name__ == '__main__':
    cli.launch(main)
