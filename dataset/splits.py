"""A split as arrays ready for training or validation: pictures, masks and labels, decoded once."""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import isic
from dataset.layout import ADDED
from engine import cache, settings
from engine.contents import Contents, Record
from engine.errors import InputError

MADE_BY = 'made_by.json'   # beside coarse masks: how, and of what pictures, they were drawn
DRAWN_BY = 'generate_Coarse_mask.py'


@dataclass(frozen=True)
class Segmentation:
    """images : (N, S, S, 3) uint8; masks, coarse : (N, S, S) uint8 {0, 1}, coarse may be None
    names : image ids; fingerprint : text that changes with any pixel
    """
    images: np.ndarray
    masks: np.ndarray
    coarse: np.ndarray
    names: list
    fingerprint: str


@dataclass(frozen=True)
class Classification:
    """images, coarse : as in Segmentation, one entry a crop; labels : (N,) class numbers
    owners : (N,) number of the image that a crop is of; names : image ids, one an image
    fingerprint : text that changes with any pixel or label
    """
    images: np.ndarray
    coarse: np.ndarray
    labels: np.ndarray
    owners: np.ndarray
    names: list
    fingerprint: str


@dataclass(frozen=True)
class Unmasked:
    """Training images without a pixel mask, as mask-CN and as a segmentation network see them.

    crops : (N, s, s, 3) uint8, the whole images; coarse : (N, s, s) uint8 {0, 1}, their masks, or None
    pictures : (N, S, S, 3) uint8; names : image ids; fingerprint : text that changes with any pixel
    """
    crops: np.ndarray
    coarse: np.ndarray
    pictures: np.ndarray
    names: list
    fingerprint: str


class Joined:
    """Two arrays one after the other, neither copied: items by number, len, shape."""

    def __init__(self, first, second):
        self.first, self.second = first, second
        self.shape = (len(first) + len(second), *first.shape[1:])

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, number):
        number = range(len(self))[number]
        return self.first[number] if number < len(self.first) else self.second[number - len(self.first)]


def segmentation(layout, split, size, coarse=False, limit=0, seed=0, workers=0):
    """Load a split's pictures and masks squashed to size x size (cached on disk).

    coarse : also load the coarse masks; limit, seed : only a subset, see `subset`
    Raises InputError naming every file that cannot be used.
    """
    pairs = subset(isic.read_segmentation_list(layout, split), limit, seed)
    name = f'{split}_seg' + (f'_{limit}' if limit else '')
    paths = [image for image, _ in pairs]
    pictures = cache.load(layout.cache, f'{name}_images', paths, size, 'rgb', workers)
    masks = cache.load(layout.cache, f'{name}_masks', [mask for _, mask in pairs], size, 'mask', workers)
    drawn = _drawn(layout, coarse and layout.coarse_for_segmentation(split), name, paths, size, workers)
    return Segmentation(pictures.pixels, masks.pixels, drawn and drawn.pixels,
                        list(map(isic.id_of, paths)), _joined(pictures, masks, drawn))


def with_extra(data, layout, folder, size, ratio, seed=0, workers=0):
    """A training set and, behind it, pairs from a folder that no list names: Segmentation.

    data : Segmentation; folder : with Images/ and Annotation/, a path below the root or one of its own
    ratio : extra pairs for each picture of `data`, chosen by `seed`; 0 = all
    Raises InputError naming every file without a partner, and where there are too few.
    """
    folder = layout.root / folder
    pictures, masks = isic.find_images(folder / 'Images'), isic.find_images(folder / 'Annotation', 'masks')
    faults, wanted = isic.unpaired(folder, pictures, masks), round(ratio * len(data.names))
    if wanted > len(pictures):
        faults.append(f'{folder}: holds {len(pictures)} pairs, {wanted} are asked for')
    if faults:
        raise InputError('Extra pairs cannot be used', faults, 'complete the folder, or change EXTRA_RATIO')
    names = subset(list(pictures), wanted, seed)
    more, drawn = (cache.load(layout.cache, f'extra_{len(names)}_{kind}', [paths[name] for name in names],
                              size, kind, workers) for kind, paths in (('rgb', pictures), ('mask', masks)))
    return Segmentation(Joined(data.images, more.pixels), Joined(data.masks, drawn.pixels), None,
                        [*data.names, *names], f'{data.fingerprint}-{_joined(more, drawn)}')


def classification(layout, split, size, coarse=True, whole_only=False, limit=0, seed=0, workers=0):
    """Load a split's crops, and their coarse masks with `coarse`, at size x size (cached on disk).

    whole_only : only the whole-image crop of each image; limit, seed : the crops of a subset of the
    images, see `subset`. Raises InputError naming every file that cannot be used.
    """
    entries = crops_of_subset(isic.read_classification_list(layout, split), limit, seed)
    name = f'{split}_cls' + (f'_{limit}' if limit else '')
    if whole_only:
        name += '_whole'
        entries = [(path, label) for path, label in entries if isic.id_of(path) == isic.image_id_of(path)]
    paths, labels = [path for path, _ in entries], np.array([label for _, label in entries])
    pictures = cache.load(layout.cache, f'{name}_images', paths, size, 'rgb', workers)
    drawn = _drawn(layout, coarse and layout.coarse_for_classification(split), name, paths, size, workers)
    ids = [isic.image_id_of(path) for path in paths]
    names = sorted(set(ids))
    number = {image_id: index for index, image_id in enumerate(names)}
    digest = hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()[:16]
    owners = np.array([number[image_id] for image_id in ids])
    return Classification(pictures.pixels, drawn and drawn.pixels, labels, owners, names,
                          f'{_joined(pictures, drawn)}-{digest}')


def unmasked(layout, masked, crop_size, size, coarse, workers=0):
    """Load the images of the classification training list that are not among `masked` (image ids).

    crop_size : px, of the whole-image crops and, with `coarse`, of their coarse masks; size : px, of the
    pictures, made from what segmentation reads, else from the original, else from the crop
    Raises InputError when there is no such image, and for every file that cannot be used.
    """
    crops = {isic.id_of(path): path for path, _ in isic.read_classification_list(layout, 'Training')
             if isic.id_of(path) == isic.image_id_of(path)}
    names = sorted(crops.keys() - set(masked))
    if not names:
        raise InputError('There is no training image without a pixel mask',
                         [f'{layout.classification_list("Training")}: names those of '
                          f'{layout.segmentation_list("Training")} alone'],
                         f'add the extra images ({layout.command("dataset/download.py", "--EXTRA=True")}), '
                         f'or leave masks out with --TRAIN_IMAGES=N')
    pictures = dict(crops)
    for part in (ADDED, 'Training'):
        pictures |= isic.scan_folder(layout.originals(part) / 'Images', 'pictures')[0]
    pictures |= {isic.id_of(image): image for image, _ in isic.read_segmentation_list(layout, 'Training')}
    paths, stem = [crops[name] for name in names], f'Training_unmasked_{len(names)}'
    folder = coarse and layout.coarse_for_classification('Training')
    drawn = _drawn(layout, folder, stem, paths, crop_size, workers)
    seen = cache.load(layout.cache, f'{stem}_crops', paths, crop_size, 'rgb', workers)
    shown = cache.load(layout.cache, f'{stem}_images', [pictures[name] for name in names], size, 'rgb',
                       workers)
    return Unmasked(seen.pixels, drawn and drawn.pixels, shown.pixels, names, _joined(seen, drawn, shown))


def _drawn(layout, folder, name, pictures, size, workers):
    """The cache of pictures' coarse masks, which lie in `folder`; None without a folder."""
    if not folder:
        return None
    return cache.load(layout.cache, f'{name}_coarse', coarse_paths(layout, folder, pictures), size, 'mask',
                      workers)


def _joined(*caches):
    """The fingerprints of those caches that are there, as one text."""
    return '-'.join(part.fingerprint for part in caches if part is not None)


def subset(items, limit, seed):
    """`limit` of a list's items, in the list's order; 0 = all.

    Subsets of one seed are nested: the 100 are within the 500.
    """
    if limit <= 0 or limit >= len(items):
        return items
    return [items[i] for i in sorted(np.random.default_rng(seed).permutation(len(items))[:limit])]


def crops_of_subset(entries, limit, seed):
    """The (crop, class) entries that belong to `limit` of the images; 0 = all."""
    kept = set(subset(sorted({isic.image_id_of(path) for path, _ in entries}), limit, seed))
    return [(path, label) for path, label in entries if isic.image_id_of(path) in kept]


def coarse_paths(layout, folder, pictures):
    """The coarse masks of pictures: `<stem>.png` in `folder`.

    Raises InputError naming those that are missing, changed, or drawn of an earlier state of the picture.
    """
    record, paths = coarse_record(layout, folder), [folder / f'{picture.stem}.png' for picture in pictures]
    contents = [record.contents.of_all(files, f'{folder.name}: reading') for files in (pictures, paths)]
    outdated = [f'{path}: is missing, or not as it was drawn from the present {picture}'
                for path, picture, source, own in zip(paths, pictures, *contents, strict=True)
                if not record.holds(path.name, source, own)]
    if outdated:
        raise InputError(f'{len(outdated)} coarse masks are missing', outdated,
                         draw_command(layout, record.head))
    return paths


def coarse_record(layout, folder):
    """The Record of a folder of coarse masks; its head holds 'facts' (how they were drawn) and 'settings'."""
    record = Record(folder / MADE_BY, Contents(layout.cache), ('facts', 'settings', 'pictures'))
    # What earlier versions recorded: {stem: hash of the picture}.
    for stem, content in record.head.pop('pictures', {}).items():
        record.made.setdefault(f'{stem}.png', (content, ''))
    return record


def draw_command(layout, record):
    """The command that draws coarse masks as those were drawn, or begun, that a record (dict) is of."""
    facts = record.get('facts', {})
    values = {'INPUT_SIZE': facts.get('input_size'), 'TTA': facts.get('views', 6) == 6}
    values |= record.get('settings', {})   # which earlier versions wrote at the end alone
    if 'fold_networks' in facts:
        values['CROSS_FIT'] = len(str(facts['fold_networks']).split(','))
    script = Path(__file__).resolve().parent.parent / DRAWN_BY
    return layout.command(DRAWN_BY, *settings.options(script, values))
