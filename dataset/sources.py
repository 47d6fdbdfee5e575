"""A split as arrays ready for training or validation: pictures, masks and labels, decoded once."""
import hashlib
from dataclasses import dataclass

import numpy as np

from dataset import cache, files, isic
from dataset.errors import InputError


@dataclass(frozen=True)
class Segmentation:
    """images : (N, S, S, 3) uint8; masks, coarse : (N, S, S) uint8 {0, 255}, coarse may be None
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


def segmentation(layout, split, size, coarse=False, limit=0, seed=0, workers=0):
    """Load a split's pictures and masks squashed to size x size (cached on disk).

    coarse : also load the coarse masks; limit, seed : only a subset, see `subset`
    Raises InputError naming every file that cannot be used.
    """
    pairs = subset(isic.read_segmentation_list(layout, split), limit, seed)
    name = f'{split}_seg' + (f'_{limit}' if limit else '')
    pictures = cache.load(layout.cache, f'{name}_images', [image for image, _ in pairs], size, 'rgb', workers)
    masks = cache.load(layout.cache, f'{name}_masks', [mask for _, mask in pairs], size, 'mask', workers)
    drawn = None
    if coarse:
        paths = coarse_paths(layout, layout.coarse_for_segmentation(split), [image for image, _ in pairs])
        drawn = cache.load(layout.cache, f'{name}_coarse', paths, size, 'mask', workers)
    return Segmentation(pictures.pixels, masks.pixels, drawn and drawn.pixels,
                        [image.stem for image, _ in pairs], _joined(pictures, masks, drawn))


def classification(layout, split, size, coarse=True, whole_only=False, limit=0, seed=0, workers=0):
    """Load a split's crops, and their coarse masks with `coarse`, at size x size (cached on disk).

    whole_only : only the whole-image crop of each image; limit, seed : the crops of a subset of the
    images, see `subset`. Raises InputError naming every file that cannot be used.
    """
    entries = crops_of_subset(isic.read_classification_list(layout, split), limit, seed)
    name = f'{split}_cls' + (f'_{limit}' if limit else '')
    if whole_only:
        name += '_whole'
        entries = [(path, label) for path, label in entries if path.stem == isic.image_id_of(path)]
    paths, labels = [path for path, _ in entries], np.array([label for _, label in entries])
    pictures = cache.load(layout.cache, f'{name}_images', paths, size, 'rgb', workers)
    drawn = None
    if coarse:
        drawn = cache.load(layout.cache, f'{name}_coarse',
                           coarse_paths(layout, layout.coarse_for_classification(split), paths), size,
                           'mask', workers)
    ids = [isic.image_id_of(path) for path in paths]
    names = sorted(set(ids))
    number = {image_id: index for index, image_id in enumerate(names)}
    digest = hashlib.sha256(labels.astype(np.int64).tobytes()).hexdigest()[:16]
    owners = np.array([number[image_id] for image_id in ids])
    return Classification(pictures.pixels, drawn and drawn.pixels, labels, owners, names,
                          f'{_joined(pictures, drawn)}-{digest}')


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

    Raises InputError naming those that are missing, or drawn of an earlier state of the picture.
    """
    paths = [folder / f'{picture.stem}.png' for picture in pictures]
    outdated = [f'{path}: is missing, or not drawn from the present {picture}'
                for path, picture in zip(paths, pictures, strict=True)
                if not files.is_current(path, picture.stat().st_mtime_ns)]
    if outdated:
        raise InputError(f'{len(outdated)} coarse masks are missing', outdated,
                         layout.command('generate_Coarse_mask.py'))
    return paths
