"""Pictures and masks of two folders, paired by name."""
from pathlib import Path

from dataset import isic, label_csv
from engine import images
from engine.errors import InputError

NAMES = 'one mask a picture, of the same name (a suffix _segmentation is dropped) and the same size'


def stem_of(path):
    """A file's name as ids are joined, without extension and, in whatever letters, `_segmentation`."""
    stem = label_csv.plain_id(path.stem)
    return stem[:-len(isic.MASK_SUFFIX)] if stem.lower().endswith(isic.MASK_SUFFIX) else stem


def mask_files(folder):
    """{name: path} of a folder's masks, sorted. Raises InputError where there are none, or two of a name."""
    found, faults = _scan(Path(folder))
    if faults:
        raise InputError('Masks cannot be used', faults)
    return found


def _scan(folder):
    if not folder.is_dir():
        return {}, [f'{folder}: is not a folder']
    found, faults = {}, []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in images.EXTENSIONS and not path.name.startswith('.'):
            if stem_of(path) in found:
                faults.append(f'{path}: {stem_of(path)} is there twice, see {found[stem_of(path)].name}')
            found.setdefault(stem_of(path), path)
    return found, faults or ([] if found else [f'{folder}: holds no picture'])


def pair_up(image_folder, mask_folder):
    """[(name, picture, mask)] of two folders. Raises InputError with every file that has no partner, is there
    twice, cannot be opened, or is of another size than its partner."""
    pictures, faults = _scan(Path(image_folder))
    masks, more = _scan(Path(mask_folder))
    faults += more
    if pictures and masks:
        faults += [f'{path}: has no mask in {mask_folder}' for name, path in pictures.items()
                   if name not in masks]
        faults += [f'{path}: has no picture in {image_folder}' for name, path in masks.items()
                   if name not in pictures]
    return same_sizes([(name, path, masks[name]) for name, path in pictures.items() if name in masks], faults)


def same_sizes(found, faults=()):
    """`found`, [(name, picture, mask)]. Raises InputError with `faults` and with every pair of two sizes."""
    faults = list(faults)
    for _, *paths in found:
        try:
            sizes = list(map(images.image_size, paths))
        except InputError as error:
            faults += error.faults
            continue
        if sizes[0] != sizes[1]:
            words = ['x'.join(map(str, size)) for size in sizes]
            faults.append(f'{paths[1]}: is {words[1]} but the picture is {words[0]}')
    if faults:
        raise InputError('Pictures and masks do not pair up', faults, NAMES)
    return found
