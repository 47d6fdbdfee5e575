"""Mask2Lesion: write pairs as [mask | image] png files, as pix2pix reads them.

Reads   dataset/ISIC/{Training,Validation}_seg.txt and the pictures they list (stage 1),
        or the folders IMAGES and MASKS, a mask of the same name and size for each picture
Writes  Mask2Lesion/pairs/{train,test}/<name>.png below ROOT, or OUT: mask left, picture right, not resized

    python -m companions.mask2lesion.make_pairs
    python -m companions.mask2lesion.make_pairs --IMAGES=pictures --MASKS=masks --OUT=pairs

All files that cannot be used are listed before any is written. Pairs of an earlier call that are not among
the present ones are removed; other files are never overwritten. The training reads a root's lists without
this; it reads these files with --PAIRS=folder. Cost: 0.1 s for a pair of 1600 px on two CPU cores.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.mask2lesion import pairs
from dataset import isic, pairing
from dataset.layout import Layout
from engine import cli, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds dataset/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo

# --- Pairs
IMAGES = ''               # folder of pictures; '' = those of ROOT's lists
MASKS = ''                # folder of their masks, <name>.png or <name>_segmentation.png
PHASE = 'train'           # folder below OUT for IMAGES and MASKS: train or test
GREY_ABOVE = 0            # masks with grey values are lesion above this one, as 127; 0 = they are refused
OUT = ''                  # folder of train/ and test/; '' = ROOT/Mask2Lesion/pairs


def main():
    phases = tuple(pairs.PHASES.values())
    cfg = settings.resolve(globals(), choices={'PHASE': phases}, least={'GREY_ABOVE': 0})
    layout = Layout(cfg.ROOT)
    out = Path(cfg.OUT) if cfg.OUT else layout.root / 'Mask2Lesion' / 'pairs'
    if bool(cfg.IMAGES) != bool(cfg.MASKS):
        raise InputError('Two folders make pairs', ['IMAGES and MASKS: one of them is missing'])
    if cfg.IMAGES:
        sets = {cfg.PHASE: pairing.pair_up(Path(cfg.IMAGES), Path(cfg.MASKS))}
    else:
        sets = {phase: pairing.same_sizes([(image.stem, image, mask) for image, mask in
                                         isic.read_segmentation_list(layout, split)])
                for split, phase in pairs.PHASES.items()}
    sets = {out / phase: found for phase, found in sets.items()}
    pairs.refuse_overwriting(sets, layout)
    pairs.refuse_unusable(sets, layout, cfg.GREY_ABOVE)
    for folder, found in sets.items():
        pairs.write_combined(found, folder, layout, cfg.GREY_ABOVE)
        print(f'{folder}: {len(found)} pairs')


if __name__ == '__main__':
    cli.launch(main)
