"""List the segmentation images of every split with their masks: stage 1 of the README.

Reads   the images and masks below dataset/data, and for training those that
        extractPatch_seg_train.py made; if they are missing or outdated they are refused.
Writes  dataset/ISIC/{Training,Validation,Testing}_seg.txt, a line "Images/x Annotation/y" each,
        relative to dataset/seg_data/Training_resize_seg or the split's folder in dataset/data.
        Validation and Testing may be absent.

    python dataset/list_seg.py

Costs   less than a second for 2000 images.
"""
import sys
from functools import partial
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
SKIP_UNPAIRED = False   # leave out pictures without a mask and masks without a picture


def main():
    cfg = settings.resolve(globals())
    layout = Layout(cfg.ROOT)
    lines_of = partial(extraction.segmentation_lines, skip_unpaired=cfg.SKIP_UNPAIRED)
    extraction.write_lists(layout, lines_of, layout.segmentation_list, cfg.SKIP_UNPAIRED)


if __name__ == '__main__':
    cli.launch(main)
