"""Weak labels: draw lesions in the layout of HAM10000, to try all commands without a download.

Reads   nothing
Writes  <ROOT>/dataset/HAM10000/: images/, masks/, HAM10000_metadata.csv, demo_data.json

    python -m companions.weak_labels.make_demo_lesions --ROOT=demo

Wavy blobs on a noisy background; some lesions have two pictures. The same settings give the same bytes.
Cost: 2 s.
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import cv2
import numpy as np

from dataset.isic import MASK_SUFFIX
from dataset.layout import DRAWN, Layout
from engine import cli, files, images, settings
from engine.errors import InputError

# --- Folders
ROOT = 'demo'             # experiment root; the pictures go to <ROOT>/dataset/HAM10000
RECIPE = 'default'        # default (this file), or of recipes/: demo

# --- Data set
IMAGES = 200              # pictures
SIDE = 120                # px
SEED = 0                  # of everything that is drawn


def draw(rng, side):
    """A blob darker than its background: picture (side, side, 3) uint8, mask (side, side) of {0, 1}."""
    unit, (y, x) = side / 120, np.mgrid[:side, :side].astype(float)
    middle, axis = rng.uniform(45, 75, 2) * unit, rng.uniform(14, 38) * unit
    turn, aspect = rng.uniform(0, np.pi), rng.uniform(0.45, 1)
    dx, dy = x - middle[0], y - middle[1]
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    angle = np.arctan2(across / aspect, along)
    waves = 1 + 0.12 * np.sin(rng.integers(3, 7) * angle + rng.uniform(0, 2 * np.pi))
    mask = np.hypot(along, across / aspect) < axis * waves
    coarse = cv2.GaussianBlur(rng.standard_normal((side, side)), (0, 0), 10 * unit)
    grey = 160 + 18 * coarse / max(coarse.std(), 1e-9) - rng.uniform(25, 60) * mask
    tint = np.array([1.1, 0.9, 0.8]) * grey[..., None] + rng.normal(0, 10, (side, side, 3))
    return tint.clip(0, 255).astype(np.uint8), mask.astype(np.uint8)


def main():
    cfg = settings.resolve(globals(), positive=('IMAGES',), least={'SEED': 0, 'SIDE': 32})
    folder = Layout(cfg.ROOT).root / 'dataset' / 'HAM10000'
    if folder.exists() and any(folder.iterdir()) and not (folder / DRAWN).is_file():
        raise InputError('A folder holds pictures of another origin', [f'{folder}: is not empty'],
                         'choose another --ROOT')
    files.write_text(folder / DRAWN, json.dumps(vars(cfg)) + '\n')
    for stale in (*folder.glob('images/*.png'), *folder.glob('masks/*.png')):
        stale.unlink()
    rows, lesion = [('lesion_id', 'image_id')], 0
    for number in range(cfg.IMAGES):
        rng, name = np.random.default_rng([cfg.SEED, number]), f'ISIC_{number:07}'
        picture, mask = draw(rng, cfg.SIDE)
        images.write_png(folder / 'images' / f'{name}.png', picture)
        images.write_mask(folder / 'masks' / f'{name}{MASK_SUFFIX}.png', mask)
        lesion += number % 4 > 0   # two of four pictures share their lesion with another
        rows.append((f'HAM_{lesion:07}', name))
    files.write_csv(folder / 'HAM10000_metadata.csv', rows)
    print(f'{folder}: {cfg.IMAGES} pictures')


if __name__ == '__main__':
    cli.launch(main)
