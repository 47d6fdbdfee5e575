"""List the classification crops of every split with their classes: stage 1 of the README.

Reads   the images and csv files below dataset/data, and the crops that extractPatch_cls_train.py
        and extractPatch_cls_val_test.py made; crops that are missing or outdated are refused.
Writes  dataset/ISIC/{Training_Add,Validation_crop9,Testing_crop9}_cls.txt, a line "crop class"
        each: 0 nevus, 1 melanoma, 2 seborrheic keratosis. Validation and Testing may be absent.

    python dataset/list_cls.py

Costs   less than a second for 2000 images.
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


def main():
    layout = Layout(settings.resolve(globals()).ROOT)
    extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)


if __name__ == '__main__':
    cli.launch(main)
