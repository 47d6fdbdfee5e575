"""Diseased and healthy pictures without pairs, and held-out pictures with masks: which files they are.

Three sources: a root's lists (stage 1) with the healthy patches of prepare_ISIC; a folder in the layout that
the authors published, which prepare_BraTS and make_toy_data write too; any two folders.
"""
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from companions.label_transfer import volumes
from companions.label_transfer.networks import FACTOR
from dataset import isic, pairing
from dataset.splits import subset
from engine import cache, files, images
from engine.augment import Window
from engine.errors import InputError
from engine.samples import Pictures

KINDS = ('skin', 'brain')
CUT = re.compile(r'_(flair(\.nii)?_\d+|health)$')   # of slices, ours and published; of healthy skin
GREY = 127   # masks of the published data have grey edges: lesion is what lies above
# Folders of the published layout, of one part the first that is there; of 'healthy' the first with a picture.
PARTS = {'A': ('trainA', '*_A_weak'), 'B': ('trainB', '*_B_weak'), 'Validation': ('val',),
         'Testing': ('testA', 'test'), 'healthy': ('valB', 'testB')}
SPLITS = ('Training', 'Validation', 'Testing')


@dataclass(frozen=True)
class Set:
    """images : (N, S, S, 3) uint8; masks : (N, S', S') uint8 {0, 1}, or None
    names : of the pictures; fingerprint : text that changes with any pixel of the pictures
    """
    images: np.ndarray
    masks: np.ndarray
    names: list
    fingerprint: str


@dataclass(frozen=True)
class Source:
    """Where pictures come from. layout : of the root; data : folder of the published layout, '' for the lists
    a, b : folders of diseased and healthy training pictures in place of the source's own, or ''
    limit, seed : train on so many pictures of each kind only (0 = all), see dataset.splits.subset
    """
    layout: object
    data: str = ''
    a: str = ''
    b: str = ''
    limit: int = 0
    seed: int = 0

    @property
    def healthy_folder(self):
        """Where prepare_ISIC puts healthy patches."""
        return self.layout.root / 'LabelTransfer' / 'healthy'

    @property
    def diseased_folder(self):
        """Where prepare_ISIC copies pictures without border, for `a`."""
        return self.layout.root / 'LabelTransfer' / 'diseased'

    def refuse_other_kind(self, kind):
        """Raise InputError where the script that made the data says that they are of another of KINDS."""
        folder = self.layout.root / self.data
        made_as = files.read_json(folder / isic.RECORD).get('kind', kind)
        if made_as != kind:
            raise InputError('Pictures are of another kind', [f'{folder}: holds {made_as}, KIND is {kind}'],
                             f'--KIND={made_as}')

    def part(self, name):
        """The folder of a part of PARTS, None where there is none."""
        return next(self._folders(name), None)

    def _folders(self, name):
        for pattern in PARTS[name]:
            for folder in sorted((self.layout.root / self.data).glob(pattern)):
                if folder.is_dir():
                    yield folder

    def diseased(self):
        """Paths of the diseased training pictures."""
        if self.a or self.data:
            found = pictures_in(self.layout.root / self.a if self.a else self._needed('A'))
        else:
            found = [image for image, _ in isic.read_segmentation_list(self.layout, 'Training')]
        return subset(found, self.limit, self.seed)

    def healthy(self):
        """Paths of the healthy training pictures."""
        if self.b or self.data:
            found = pictures_in(self.layout.root / self.b if self.b else self._needed('B'))
        else:
            command = self.layout.command('-m companions.label_transfer.prepare_ISIC')
            found = pictures_in(self.healthy_folder, command)
        return subset(found, self.limit, self.seed)

    def held_out_healthy(self):
        """Paths of healthy pictures that are not trained on; those of the training where there are none."""
        found = map(_pictures, self._folders('healthy') if self.data else ())
        return next(filter(None, found), None) or self.healthy()

    def pairs(self, split):
        """[(name, picture, mask)] of a split; masks are None for Training, which has none to be used.

        Raises InputError naming every file without a partner, or of another size than its partner, and all
        of Training whose masks would share a name.
        """
        if split == 'Training':
            found = self.diseased()
            _refuse_same_names(found)
            return [(path.stem, path, None) for path in found]
        if not self.data:
            return pairing.same_sizes([(image.stem, image, mask) for image, mask in
                                       isic.read_segmentation_list(self.layout, split)])
        folder = self._needed(split)
        return pairing.pair_up(folder / 'images', folder / 'labels')

    def has(self, split):
        """Whether a split with masks is there."""
        return (self.part(split) is not None if self.data
                else self.layout.segmentation_list(split).is_file())

    def _needed(self, part):
        folder = self.part(part)
        if folder is None:
            raise InputError('Pictures are missing', [
                f'{self.layout.root / self.data / " or ".join(PARTS[part])}: is missing'],
                'companions/README.md shows the layout; or name folders: --A=diseased --B=healthy')
        return folder


def pictures_in(folder, remedy=''):
    """Sorted paths of the pictures in a folder and all below it. Raises InputError for none."""
    folder = Path(folder)
    found = _pictures(folder)
    if not found:
        raise InputError('There are no pictures', [
            f'{folder}: {"holds no picture" if folder.is_dir() else "is missing"}'], remedy)
    return found


def _pictures(folder):
    return sorted(path for path in folder.rglob('*') if path.suffix.lower() in images.EXTENSIONS
                  and not path.name.startswith('.') and not path.stem.endswith('_superpixels'))


def _refuse_same_names(paths):
    """Raise InputError for pictures, of several folders or file types, whose masks would be one file."""
    first = {}
    faults = [f'{path}: would have the same mask as {first[path.stem]}' for path in paths
              if first.setdefault(path.stem, path) != path]
    if faults:
        raise InputError('Pictures share a name', faults, 'rename them')


def case_of(name):
    """What a picture is of, by its name: a slice of a case, healthy skin of a picture."""
    return volumes.patient(CUT.sub('', name))


def cases(*sets):
    """`case_of` all pictures of Sets."""
    return [case_of(name) for one in sets for name in one.names]


def load(layout, name, paths, side, workers=0):
    """Pictures squashed to side x side, cached on disk: Set without masks. name : of the cache"""
    found = cache.load(layout.cache, f'LabelTransfer_{name}', paths, side, 'rgb', workers)
    return Set(found.pixels, None, [path.stem for path in paths], found.fingerprint)


def load_pairs(layout, name, pairs, side, mask_side, workers=0):
    """As `load`, with masks at mask_side px. pairs : of Source.pairs"""
    found = load(layout, name, [path for _, path, _ in pairs], side, workers)
    masks = files.for_all(
        lambda one: images.resize_mask(images.read_mask(one[2], GREY), (mask_side, mask_side)), pairs,
        f'{name}: reading masks', workers)
    return Set(found.images, np.stack(masks), found.names,
               f'{found.fingerprint}-{files.fingerprint(*(mask for _, _, mask in pairs))}')


def side_faults(cfg):
    """Faults of INPUT_SIZE and LOAD_SIZE, a list of lines."""
    faults = []
    if cfg.INPUT_SIZE % FACTOR:
        faults.append(f'INPUT_SIZE={cfg.INPUT_SIZE}: must be a multiple of {FACTOR}')
    if cfg.LOAD_SIZE < cfg.INPUT_SIZE:
        faults.append(f'LOAD_SIZE={cfg.LOAD_SIZE}: must be at least INPUT_SIZE={cfg.INPUT_SIZE}')
    return faults


def training_sets(cfg, a, b):
    """{'a': samples.Pictures, 'b': ...}: random windows of INPUT_SIZE of Sets of LOAD_SIZE, flipped.

    cfg : INPUT_SIZE, LOAD_SIZE, FLIPS, SEED
    """
    window = Window(cfg.LOAD_SIZE, cfg.INPUT_SIZE, cfg.FLIPS, cfg.FLIPS, last=True)
    return {name: Pictures(part.images, {}, None, cfg.INPUT_SIZE, window, seed=2 * cfg.SEED + number)
            for number, (name, part) in enumerate((('a', a), ('b', b)))}


@dataclass(frozen=True)
class Gathered:
    """What a training reads. a, b, healthy : Set; held_out : Set with masks, or None
    fingerprints : of what decides its weights, {part: text}
    """
    a: Set
    b: Set
    held_out: Set
    healthy: Set
    fingerprints: dict


def gather(source, load_side, side, mask_side, limit=0):
    """The training pictures of a Source at load_side px, and its validation pictures at `side`, masks at
    mask_side; limit : on these, 0 = all."""
    layout = source.layout
    a = load(layout, 'A', source.diseased(), load_side)
    b = load(layout, 'B', source.healthy(), load_side)
    held_out, fingerprints = None, {'diseased': a.fingerprint, 'healthy': b.fingerprint}
    if source.has('Validation'):
        chosen = subset(source.pairs('Validation'), limit, source.seed)
        held_out = load_pairs(layout, 'Validation', chosen, side, mask_side)
        fingerprints['validation'] = held_out.fingerprint
    else:
        print('there are no validation masks to choose by: the last weights will be kept')
    healthy = load(layout, 'healthy', source.held_out_healthy(), side)
    return Gathered(a, b, held_out, healthy, fingerprints)
