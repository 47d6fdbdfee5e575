"""The lists of step 1 that a script reads: what is missing, how much there is, whether it changed."""
import hashlib
import os

from dataset import isic
from dataset.layout import SPLITS
from engine.errors import InputError

KINDS = 'seg', 'cls'
EVERYTHING = tuple((kind, split) for kind in KINDS for split in SPLITS)
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
    lines = _lines(path_of(layout, kind, split))
    if kind == 'seg':
        return len(lines)
    return len({isic.image_id_of(layout.root / line.split()[0]) for line in lines})


def entries(layout, kind, split):
    """Number of lines of a list: pictures or crops; 0 without a list."""
    return len(_lines(path_of(layout, kind, split)))


def _lines(path):
    if not path.is_file():
        return []
    return [line for line in path.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]


def missing(layout, lists):
    """InputErrors, one for each list that is absent or cannot be used."""
    errors = []
    for kind, split in lists:
        try:
            if kind == 'seg':
                isic.read_segmentation_list(layout, split)
            else:
                isic.read_classification_list(layout, split)
        except InputError as error:
            errors.append(error)
    return errors


def fingerprint(layout, kind, split):
    """Hash of a list, and of the sizes and times of the files in it; 'none' without a list."""
    if not path_of(layout, kind, split).is_file():
        return 'none'
    digest = hashlib.sha256()
    for word, paths in _files(layout, kind, split):
        for path in paths:
            facts = path.stat()
            digest.update(f'{path.name} {facts.st_size} {facts.st_mtime_ns} '.encode())
        digest.update(f'{word}\n'.encode())
    return digest.hexdigest()[:16]


def changed_since(layout, lists, stamp):
    """True when a list, or a file in one, was written after `stamp` (seconds since the epoch).

    By the time of the last change, which copying does not preserve: a copied root counts as changed.
    """
    for kind, split in lists:
        path = path_of(layout, kind, split)
        if path.is_file() and (path.stat().st_ctime > stamp or any(
                one.stat().st_ctime > stamp for _, paths in _files(layout, kind, split) for one in paths)):
            return True
    return False


def _files(layout, kind, split):
    """(second word, existing files) of each line of a list."""
    folder = layout.segmentation(split) if kind == 'seg' else layout.crops(split)
    for path, word in isic.read_list(path_of(layout, kind, split), folder):
        paths = (path, folder / word) if kind == 'seg' else (path,)
        yield word, [one for one in paths if os.path.isfile(one)]   # the script reports a missing mask
