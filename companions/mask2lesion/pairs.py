"""Pairs of mask and picture: from a root's lists, from two folders, and in pix2pix's [mask | image] files."""
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset import extraction, isic, splits
from engine import cache, files, images
from engine.contents import Contents, Record
from engine.errors import InputError

MASK_FILTERS = ('bicubic', 'nearest')
PHASES = {'Training': 'train', 'Validation': 'test'}   # split: folder of pix2pix's layout


@dataclass(frozen=True)
class Pairs:
    """images : (N, S, S, 3) uint8; masks : (N, S, S) uint8, 0 to 255, grey where an edge was resampled
    names : of the pictures; fingerprint : text that changes with any pixel
    """
    images: np.ndarray
    masks: np.ndarray
    names: list
    fingerprint: str


def load(layout, split, folder, size, mask_filter, limit=0, seed=0, workers=0):
    """The pairs of a split, squashed to size x size, from a root's lists or a folder in pix2pix's layout.

    folder : path with train/ and test/, '' for the lists; mask_filter : of MASK_FILTERS
    limit, seed : only a subset, the one that train_CoarseSN.py takes of a root under these, see splits.subset
    Raises InputError naming every file that cannot be used.
    """
    if folder:
        return _load_combined(Path(folder) / PHASES[split], size, mask_filter, limit, seed, workers)
    listed = splits.subset(isic.read_segmentation_list(layout, split), limit, seed)
    paths, mask_paths = map(list, zip(*listed, strict=True))
    name, smooth = f'{split}_pairs' + (f'_{limit}' if limit else ''), mask_filter == 'bicubic'
    pictures = cache.load(layout.cache, f'{name}_images', paths, size, 'rgb', workers)
    masks = cache.load(layout.cache, f'{name}_masks_{mask_filter}', mask_paths, size,
                       'soft mask' if smooth else 'mask', workers)
    return Pairs(pictures.pixels, masks.pixels if smooth else 255 * masks.pixels,
                 [path.stem for path in paths], f'{pictures.fingerprint}-{masks.fingerprint}')


def _load_combined(folder, size, mask_filter, limit, seed, workers):
    paths = splits.subset(combined_files(folder), limit, seed)

    def read(path):
        mask, image = read_combined(path)
        return squash_mask(mask, size, mask_filter), images.resize_rgb(image, (size, size))

    read_pairs = files.for_all(read, paths, 'reading pairs', workers, 'Pairs that cannot be read')
    masks, pictures = map(np.stack, zip(*read_pairs, strict=True))
    digest = hashlib.sha256(pictures.tobytes() + masks.tobytes()).hexdigest()[:16]
    return Pairs(pictures, masks, [path.stem for path in paths], digest)


def combined_files(folder):
    """Sorted paths of the [mask | image] files in a folder and all below it. Raises InputError for none."""
    found = sorted(path for path in folder.rglob('*') if path.suffix.lower() in images.EXTENSIONS
                   and not path.name.startswith('.'))
    if not found:
        raise InputError('There are no pairs', [f'{folder}: holds no picture'],
                         'python -m companions.mask2lesion.make_pairs')
    return found


def read_combined(path):
    """A [mask | image] file: (mask (H, W), image (H, W, 3)) uint8. Raises InputError for an odd width."""
    both = images.read_rgb(path)
    middle, odd = divmod(both.shape[1], 2)
    if odd:
        raise InputError('A pair cannot be used', [f'{path}: has an odd width, {both.shape[1]} px'])
    return both[:, :middle, 0], both[:, middle:]


def combined(mask, image):
    """[mask | image]: mask (H, W) of {0, 1} and image (H, W, 3) -> (H, 2 W, 3) uint8."""
    return np.concatenate([np.repeat(255 * mask[..., None], 3, axis=2), image], axis=1)


def squash_mask(mask, size, mask_filter):
    """A mask (H, W) uint8, 0 to 255, at (size, size); bicubic as pix2pix has it gives grey edges."""
    if mask.shape == (size, size):
        return mask
    if mask_filter == 'nearest':
        return images.resize_mask(mask, (size, size))
    return images.resize_rgb(mask, (size, size))


def refuse_overwriting(sets, layout):
    """Raise InputError naming every file that `write_combined` would replace or remove and must not: what it
    did not write, and what it reads.

    sets : {folder: [(name, picture, mask)]}; layout : as there
    """
    sources = {Path(path).resolve() for found in sets.values() for _, *paths in found for path in paths}
    faults = []
    for folder, found in sets.items():
        own = _own(Record(folder / isic.RECORD, Contents(layout.cache)))
        for name in sorted({f'{name}.png' for name, *_ in found} | own.keys()):
            path = folder / name
            if path.resolve() in sources:
                faults.append(f'{path}: is one of the pictures and masks')
            elif path.exists() and name not in own:
                faults.append(f'{path}: is of another origin')
    if faults:
        raise InputError('Pairs would overwrite other files', faults, 'choose another --OUT')


def refuse_unusable(sets, layout, grey_above=0):
    """Raise InputError naming every file that cannot be decoded or is no binary mask; parameters as above.

    Pairs that are not up to date are decoded for this alone: all of them would not fit into memory.
    """
    def check(entry):
        record, name, *sources = entry
        content = ' '.join(map(record.contents.of, sources))
        if record.head == {'grey_above': grey_above} and record.holds(f'{name}.png', content):
            return
        *_, faults = extraction.inspect_pair(*sources, grey_above)
        if faults:
            raise InputError('A pair cannot be made', faults)

    records = {folder: Record(folder / isic.RECORD, Contents(layout.cache)) for folder in sets}
    files.for_all(check, [(records[folder], *entry) for folder, found in sets.items() for entry in found],
                  'checking pairs', summary='Pairs that cannot be made',
                  remedy='replace these files; masks with grey values: --GREY_ABOVE=127')


def _own(record):
    """What the Record of a folder says of pairs: its `made`, {} where another script wrote it."""
    return record.made if 'grey_above' in record.head else {}


def write_combined(found, folder, layout, grey_above=0):
    """Write [mask | image] files of [(name, picture, mask)]; current ones stay, those written of others go.
    `refuse_overwriting` and `refuse_unusable` come before.

    layout : of the root that remembers what was read
    grey_above : masks that are not binary are lesion above this value; 0 refuses them
    Raises InputError naming every file that cannot be decoded, is no binary mask, or changes meanwhile.
    """
    folder = Path(folder)

    def write(entry):
        name, *sources = entry
        contents = list(map(record.contents.of, sources))
        if record.holds(f'{name}.png', ' '.join(contents)):
            return
        image = images.read_rgb(sources[0])
        mask = images.read_mask(sources[1], grey_above)
        images.write_png(folder / f'{name}.png', combined(mask, image))
        for source, content in zip(sources, contents, strict=True):
            extraction.refuse_changed(source, content, record.contents.of(source))
        record.note(f'{name}.png', ' '.join(contents))

    own = _own(Record(folder / isic.RECORD, Contents(layout.cache)))
    names = {f'{name}.png' for name, *_ in found}
    with extraction.at_work(folder, {'grey_above': grey_above}, layout) as record:
        for name in (own.keys() | names) - record.made.keys():   # not done, but of this script
            record.made[name] = '', ''
        record.finish()   # for a call that is killed
        files.for_all(write, found, f'writing {folder}', summary='Pairs that cannot be made',
                      remedy='run the same command again')
        for name in record.made.keys() - names:
            (folder / name).unlink(missing_ok=True)
            del record.made[name]
