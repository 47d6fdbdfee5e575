"""Label transfer: draw a small data set on which the training can be watched.

Reads   nothing
Writes  LabelTransfer/<KIND>/ below ROOT, or OUT, in the published layout: trainA/ and trainB/ (diseased,
        healthy), val/ and testA/ with images/ and labels/, testB/

    python -m companions.label_transfer.make_toy_data --KIND=brain
    python -m companions.label_transfer.train_LabelTransfer --DATA=LabelTransfer/brain --KIND=brain

brain is a textured ellipse on black, diseased with a bright blob; skin is noise, diseased with a dark blob.
The same settings draw the same pictures. Cost: seconds.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.label_transfer import data, toys
from companions.label_transfer.making import making
from dataset.isic import MASK_SUFFIX
from dataset.layout import Layout
from engine import augment, cli, images, settings

# --- Experiment
ROOT = '.'                # folder that holds LabelTransfer/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SEED = 0                  # of the pictures

# --- Pictures
KIND = 'brain'            # brain or skin
OUT = ''                  # folder; '' = ROOT/LabelTransfer/<KIND>
SIZE = 96                 # px, side
TRAIN_IMAGES = 40         # of each kind
HELD_OUT_IMAGES = 20      # diseased ones with masks, for validation and again for the test
HEALTHY_TEST_IMAGES = 10  # healthy ones for the test


def plan(cfg):
    """[(picture, mask or '', diseased)] of the whole set, places relative to its folder."""
    for part, count, diseased in (('trainA', cfg.TRAIN_IMAGES, True), ('trainB', cfg.TRAIN_IMAGES, False),
                                  ('testB', cfg.HEALTHY_TEST_IMAGES, False)):
        for number in range(count):
            yield f'{part}/{part}_{number:03}.png', '', diseased
    for part in ('val', 'testA'):
        for number in range(cfg.HELD_OUT_IMAGES):
            name = f'{part}_{number:03}'
            yield f'{part}/images/{name}.png', f'{part}/labels/{name}{MASK_SUFFIX}.png', True


def main():
    cfg = settings.resolve(globals(), choices={'KIND': data.KINDS},
                           positive=('SIZE', 'TRAIN_IMAGES', 'HELD_OUT_IMAGES', 'HEALTHY_TEST_IMAGES'),
                           least={'SEED': 0})
    layout = Layout(cfg.ROOT)
    out, count = Path(cfg.OUT) if cfg.OUT else layout.root / 'LabelTransfer' / cfg.KIND, 0
    drawn_by = {'kind': cfg.KIND, 'seed': cfg.SEED, 'size': cfg.SIZE, 'version': toys.VERSION,
                'counts': [cfg.TRAIN_IMAGES, cfg.HELD_OUT_IMAGES, cfg.HEALTHY_TEST_IMAGES]}
    with making(out, drawn_by, layout) as maker:
        for number, (place, mask_place, diseased) in enumerate(plan(cfg)):
            picture, mask = toys.draw(augment.generator(cfg.SEED, number), cfg.KIND, diseased, cfg.SIZE)
            maker.put(place, 'drawn', images.write_png, picture)
            if mask_place:
                maker.put(mask_place, 'drawn', images.write_mask, mask)
            count += 1
    print(f'{out}: {count} pictures of {cfg.KIND}')


if __name__ == '__main__':
    cli.launch(main)
