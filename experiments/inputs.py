"""The lists of step 1 that a script reads: what is missing, how much there is, what is in it."""
import hashlib
import json
import os

from tqdm import tqdm

from dataset import isic, splits
from dataset.layout import SPLITS
from engine import files
from engine.errors import InputError

READERS = {'seg': isic.read_segmentation_list, 'cls': isic.read_classification_list}   # kinds of lists
EVERYTHING = tuple((kind, split) for kind in READERS for split in SPLITS)
TRAINING = {'train_CoarseSN.py': (('seg', 'Training'), ('seg', 'Validation')),
            'train_MaskCN.py': (('cls', 'Training'), ('cls', 'Validation')),
            'train_EnhancedSN.py': (('seg', 'Training'), ('seg', 'Validation'))}


def read_by(script, values):
    """((kind, split), ...) of the lists that a script cannot do without. values : its settings"""
    if script == 'train_EnhancedSN.py' and values.get('TRANSFER') == 'mdc':
        return (*TRAINING[script], ('cls', 'Training'))
    if script in TRAINING:
        return TRAINING[script]
    if script == 'generate_Coarse_mask.py':
        return ()   # it draws what is listed, whatever that is
    return (('cls' if script == 'eval_MaskCN.py' else 'seg', values['SPLIT']),)


def path_of(layout, kind, split):
    """Path of a list. kind : 'seg' or 'cls'"""
    return layout.segmentation_list(split) if kind == 'seg' else layout.classification_list(split)


def count(layout, kind, split):
    """Number of images in a list (crops of one image count once), 0 without a list."""
    found = lines(layout, kind, split)
    if kind == 'seg':
        return len(found)
    return len({isic.image_id_of(layout.root / line.split()[0]) for line in found})


def lines(layout, kind, split):
    """Lines of a list, one a picture or crop; [] without a list."""
    path = path_of(layout, kind, split)
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]


def missing(layout, lists):
    """InputErrors, one for each list that is absent or cannot be used."""
    errors = []
    for kind, split in lists:
        try:
            READERS[kind](layout, split)
        except InputError as error:
            errors.append(error)
    return errors


def fingerprint(layout, kind, split):
    """Hash of a list and of the content of the files in it, wherever they lie; 'none' without a list.

    The files are read once: the hash of their content is kept in dataset/cache/ and holds as long as the
    list, and names, sizes and times of its files, are the same (`stamp`). So a picture that is replaced by
    another one of the same size *and* time is noticed when the times change, as they do in a copy. The
    training scripts look at every pixel.
    """
    path = path_of(layout, kind, split)
    if not path.is_file():
        return 'none'
    words = hashlib.sha256(' '.join(path.read_text('utf-8-sig', 'replace').split()).encode()).hexdigest()
    return f'{words[:16]}-{content(layout, kind, split)}'


def content(layout, kind, split):
    """Hash of the content of the files in a list alone, in order: what an evaluation records as its data."""
    kept, present = layout.cache / 'contents.json', stamp(layout, kind, split)
    known, name = files.read_json(kept), f'{kind} {split}'
    if known.get(name, [''])[0] != present:
        paths = [path for _, some in _files(layout, kind, split) for path in some]
        known[name] = present, files.fingerprint(*tqdm(
            paths, desc=f'reading {path_of(layout, kind, split).name}', unit='file', leave=False))
        files.write_text(kept, json.dumps(known, indent=1) + '\n')
    return known[name][1]


def stamp(layout, kind, split):
    """Hash of a list, and of names, sizes and times of the files in it; what runs recorded formerly."""
    if not path_of(layout, kind, split).is_file():
        return 'none'
    digest = hashlib.sha256()
    for word, paths in _files(layout, kind, split):
        for path in paths:
            facts = path.stat()
            digest.update(f'{path.name} {facts.st_size} {facts.st_mtime_ns} '.encode())
        digest.update(f'{word}\n'.encode())
    return digest.hexdigest()[:16]


def pixels(layout, script, values):
    """Fingerprints of the pixels that a training or mask-CN's evaluation would read now, as one set.

    Pictures, true masks and labels, not coarse masks; and of MDC not the pictures without a mask, which are
    those that its mask-CN was trained on. They are cached as the script itself caches them.
    values : the script's settings. Raises InputError where lists or files cannot be used.
    """
    limit = {'limit': values.get('TRAIN_IMAGES', 0), 'seed': values.get('SEED', 0)}
    if script == 'eval_MaskCN.py':
        loaded = [splits.classification(layout, values['SPLIT'], values['INPUT_SIZE'], False)]
    elif script == 'train_MaskCN.py':
        loaded = [splits.classification(layout, 'Training', values['INPUT_SIZE'], False, **limit),
                  splits.classification(layout, 'Validation', values['INPUT_SIZE'], False,
                                        whole_only=values['VALIDATION_CROPS'] == 1)]
    else:
        loaded = [splits.segmentation(layout, 'Training', values['CACHE_SIZE'], **limit),
                  splits.segmentation(layout, 'Validation', values['INPUT_SIZE'])]
    return {part for data in loaded for part in data.fingerprint.split('-')}


def _files(layout, kind, split):
    """(second word, existing files) of each line of a list."""
    folder = layout.segmentation(split) if kind == 'seg' else layout.crops(split)
    for path, word in isic.read_list(path_of(layout, kind, split), folder):
        paths = (path, folder / word) if kind == 'seg' else (path,)
        yield word, [one for one in paths if os.path.isfile(one)]   # the script reports a missing mask
