"""Mask2Lesion: make masks to draw lesions for.

Reads   the masks in dataset/ISIC/Training_seg.txt (stage 1), or the folder MASKS; nothing for KIND=shapes
Writes  Mask2Lesion/masks/ below ROOT, or OUT:  <name>_segmentation.png, masks.json (kind and source of
        each); beside the folder <its name>_panel.png, some of each kind. Those of an earlier call are
        removed; other masks in the folder, as drawn by hand, stay

    python -m companions.mask2lesion.draw_masks --KIND=pca --COUNT=300
    python -m companions.mask2lesion.draw_masks --KIND=real,shapes,elastic,walks

real are the masks themselves; shapes circles, ellipses, polygons and stars; elastic deformed real masks
(needs torchvision); pca samples of a shape model of the real masks, and walks go along its components from +
to -, the mean in the middle. The same settings give the same masks. Cost: seconds.
"""
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import numpy as np

from companions.mask2lesion import masks, panels
from dataset import isic, splits
from dataset.layout import Layout
from dataset.pairing import mask_files
from engine import cache, cli, files, images, settings
from engine.augment import generator
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds dataset/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SEED = 0                  # of everything that is random, and of TRAIN_IMAGES

# --- Masks
KIND = 'pca'              # of real, shapes, elastic, pca, walks, one or several: real,shapes
COUNT = 100               # masks of each kind, but for walks; 0 = one for each real mask
SIZE = 256                # px, side of the masks
OUT = ''                  # folder; '' = ROOT/Mask2Lesion/masks

# --- Real masks
MASKS = ''                # folder of them; '' = those of ROOT's training list
TRAIN_IMAGES = 0          # use those of this many pictures only, as the trainings do; 0 = all

# --- Elastic deformation
ELASTIC_ALPHA = 2000.0    # strength: torchvision's alpha, for 256 px
ELASTIC_SIGMA = 20.0      # smoothness: torchvision's sigma, for 256 px

# --- Shape model
COMPONENTS = 10           # principal components of the signed distance maps
WALKS = 1, 3              # components that are walked along (paper's figure)
WALK_STEPS = 7            # masks of a walk (paper's figure)
WALK_SHARE = 0.95         # of the real masks, whose scores lie within a walk


def real_masks(cfg, layout):
    """[(name, mask, picture or None)], paths, of the masks that the others are made of."""
    if cfg.MASKS:
        found = [(name, path, None) for name, path in mask_files(cfg.MASKS).items()]
    else:
        found = [(image.stem, mask, image) for image, mask in
                 isic.read_segmentation_list(layout, 'Training')]
    return splits.subset(found, cfg.TRAIN_IMAGES, cfg.SEED)


class Factory:
    """Makes the masks of each kind: methods named after them give (name, mask, what it is, source) each.

    source : an entry of `real_masks`, or None. cfg : Settings
    """

    def __init__(self, cfg, layout):
        self.cfg, self.layout, self._found, self._model = cfg, layout, None, None

    @property
    def found(self):
        """`real_masks`, looked for when they are needed."""
        if self._found is None:
            self._found = real_masks(self.cfg, self.layout)
        return self._found

    @property
    def model(self):
        if self._model is None:
            read = self.read(self.found, masks.MODEL_SIDE)
            self._model = masks.ShapeModel(np.stack(read), self.cfg.COMPONENTS)
        return self._model

    @staticmethod
    def read(found, side):
        """Masks (side, side) of entries of `real_masks`. Raises InputError naming every bad file."""
        return files.for_all(lambda one: cache.read_mask_square(one[1], side), found, 'reading masks',
                             summary='Masks cannot be used')

    def numbers(self):
        """(Number, its own random generator) of COUNT masks."""
        return [(number, generator(self.cfg.SEED, number)) for number in
                range(self.cfg.COUNT or len(self.found))]

    def real(self):
        chosen = splits.subset(self.found, self.cfg.COUNT, self.cfg.SEED)
        for one, mask in zip(chosen, self.read(chosen, self.cfg.SIZE), strict=True):
            yield f'real_{one[0]}', mask, one[0], one

    def shapes(self):
        names = list(masks.CORNERS)
        for number, rng in self.numbers():
            name = names[number % len(names)]
            yield f'shapes_{number:04}_{name}', masks.shape(rng, name, self.cfg.SIZE), name, None

    def elastic(self):
        scale, read = self.cfg.SIZE / 256, self.read(self.found, self.cfg.SIZE)
        for number, rng in self.numbers():
            mask, chosen = masks.elastic(rng, read, scale**2 * self.cfg.ELASTIC_ALPHA,
                                         scale * self.cfg.ELASTIC_SIGMA)
            one = self.found[chosen]
            yield f'elastic_{number:04}', mask, f'{one[0]}, deformed', one

    def pca(self):
        for number, rng in self.numbers():
            yield f'pca_{number:04}', self.model.sample(rng, self.cfg.SIZE), 'sample of the shape model', None

    def walks(self):
        for component in self.cfg.WALKS:
            steps = self.model.walk(component, self.cfg.WALK_STEPS, self.cfg.WALK_SHARE, self.cfg.SIZE)
            for place, (score, mask) in enumerate(steps):
                what = f'{score:+.1f} standard deviations of PC{component}'
                yield f'walk_pc{component}_{place}', mask, what, None


KINDS = 'real', 'shapes', 'elastic', 'pca', 'walks'
RECORD = 'masks.json'


def check(cfg):
    """Faults of settings that do not fit together, a list of lines."""
    unknown = [kind for kind in cfg.KIND.split(',') if kind not in KINDS]
    faults = [f'KIND={cfg.KIND}: {", ".join(unknown)} must be of {", ".join(KINDS)}'] if unknown else []
    return faults + ([] if 0 < cfg.WALK_SHARE <= 1 else [f'WALK_SHARE={cfg.WALK_SHARE}: must be from 0 to 1'])


def earlier(folder, sources):
    """The masks of an output folder that RECORD lists, those of this script: a dict by name.

    sources : MASKS. Raises InputError where that is the folder, or where pictures lie without a record.
    """
    if sources and Path(sources).resolve() == folder.resolve():
        raise InputError('MASKS and OUT are one folder', [f'{folder}: its masks would be removed'],
                         'choose another --OUT')
    there = sorted(folder.glob('*.png'))
    if there and not (folder / RECORD).is_file():
        raise InputError('A folder holds pictures of another origin', there[:5], 'choose another --OUT')
    return files.read_json(folder / RECORD, 'masks').get('masks', {})


def mask_path(folder, name):
    return folder / f'{name}{isic.MASK_SUFFIX}.png'


def main():
    cfg = settings.resolve(globals(), positive=('SIZE', 'COMPONENTS', 'WALK_STEPS', 'ELASTIC_SIGMA'),
                           least={'SEED': 0, 'COUNT': 0, 'TRAIN_IMAGES': 0, 'ELASTIC_ALPHA': 0}, check=check)
    layout = Layout(cfg.ROOT)
    out = Path(cfg.OUT) if cfg.OUT else layout.root / 'Mask2Lesion' / 'masks'
    before = earlier(out, cfg.MASKS)
    factory, record, made, shown = Factory(cfg, layout), {}, {}, {}
    kinds = cfg.KIND.split(',')
    # real last: others read all real masks, not COUNT of them, and so name all that are bad.
    drawn = {kind: list(getattr(factory, kind)()) for kind in sorted(kinds, key='real'.__eq__)}
    for kind in kinds:
        for name, mask, what, source in drawn[kind]:
            made[name] = mask
            row = name.rpartition('_')[0] if kind == 'walks' else kind
            of = [str(path) for path in (source or ())[1:] if path]
            record[name] = {'kind': row, 'what': what, 'of': of}
            shown.setdefault(row, []).append(mask)
    files.write_text(out / RECORD, json.dumps({'masks': before | record}) + '\n')   # not finished
    for name in before.keys() - record.keys():
        mask_path(out, name).unlink(missing_ok=True)
    for name, mask in made.items():
        images.write_mask(mask_path(out, name), mask)
    whole = Path(os.path.abspath(out))   # '.' has no name
    panel = whole.parent / f'{whole.name}_panel.png'
    panels.grid(shown, panel)
    content = {'settings': vars(cfg), 'masks': record,
               'content': files.fingerprint(*(mask_path(out, name) for name in record))}
    files.write_text(out / RECORD, json.dumps(content, indent=1) + '\n')
    print(f'{out}: {len(record)} masks, {panel}')


if __name__ == '__main__':
    cli.launch(main)
