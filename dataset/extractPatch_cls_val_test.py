"""Cut the 224 px classification crops of the validation or test images: stage 1 of the README.

Reads   dataset/data/ISIC-2017_{Validation,Testing}_Data/Images and the split's
        Part3_GroundTruth csv.
Writes  dataset/cls_data/{Validation,Testing}_resize_crop9_cls/<id>.png, <id>_9_<k>.png:
        9 crops of every image (scales: dataset/crops.py).

    python dataset/extractPatch_cls_val_test.py --SPLIT=Testing

Costs   3 s for 150 images of 256 px and 0.1 s for each image of 3008x2000 px on two cores, and
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

# --- Data
SPLIT = 'Validation'   # Validation or Testing

# --- Machine
NUM_WORKERS = 0        # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), choices={'SPLIT': ('Validation', 'Testing')})
    extraction.extract_crops(Layout(cfg.ROOT), cfg.SPLIT, cfg.NUM_WORKERS)


if __name__ == '__main__':
    cli.launch(main)
