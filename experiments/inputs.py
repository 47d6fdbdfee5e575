"""The lists that a script reads, of stage 1 or of lesions: what is missing, how much there is, what it is."""
import contextlib
import hashlib
import json
import os

from companions.weak_labels import lesions
from dataset import isic, splits
from dataset.layout import SPLITS
from engine import files
from engine.contents import Contents
from engine.errors import InputError
from experiments.toml_schema import WEAK_EVALUATION, WEAK_TRAINING

# Kinds of lists. A list is (kind, split); for the lesions of a companion it is ('weak', data set).
READERS = {'seg': isic.read_segmentation_list, 'cls': isic.read_classification_list, 'weak': lesions.rows}
EVERYTHING = tuple((kind, split) for kind in ('seg', 'cls') for split in SPLITS)


def read_by(script, values):
    """((kind, split), ...) of the lists that a script cannot do without. values : its settings"""
    if script == 'generate_Coarse_mask.py':
        return ()   # it draws what is listed, whatever that is
    if script in (WEAK_TRAINING, WEAK_EVALUATION):
        return (('weak', values['DATA']),)
    kind = 'cls' if 'MaskCN' in script else 'seg'
    splits_read = (values['SPLIT'],) if 'SPLIT' in values else ('Training', 'Validation')
    also = (('cls', 'Training'),) if values.get('TRANSFER') == 'mdc' else ()
    return (*((kind, split) for split in splits_read), *also)


def path_of(layout, kind, split):
    """Path of a list. kind : of READERS"""
    if kind == 'weak':
        return lesions.table(layout, split)
    return layout.segmentation_list(split) if kind == 'seg' else layout.classification_list(split)


def count(layout, kind, split):
    """Number of images in a list, 0 without one; crops of one image count once, of lesions the training's."""
    if kind == 'weak':
        return lesion_count(layout, split, 'Training')
    found = [layout.root / line.split()[0] for line in lines(layout, kind, split)]
    return len(found if kind == 'seg' else set(map(isic.image_id_of, found)))


def lesion_count(layout, data, split):
    """Number of a data set's prepared lesions of a split, 0 where they cannot be read."""
    try:
        return len(lesions.rows(layout, data, split))
    except InputError:
        return 0


def drawn(layout, lists):
    """True where a program drew the pictures of a script's lists."""
    return any(lesions.drawn(layout, split) if kind == 'weak' else layout.drawn for kind, split in lists)


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
    """Hash of a list and of the content of the files in it, wherever they lie; 'none' without a list."""
    path = path_of(layout, kind, split)
    if not path.is_file():
        return 'none'
    if kind == 'weak':   # the record holds the fingerprints of all patches, masks and ellipses
        return files.fingerprint(path, path.with_name(isic.RECORD))
    words = hashlib.sha256(' '.join(path.read_text('utf-8-sig', 'replace').split()).encode()).hexdigest()
    return f'{words[:16]}-{content(layout, kind, split)}'


def content(layout, kind, split):
    """Hash of the content of the files in a list, in order: what an evaluation records as its data.

    The hash is kept in dataset/cache/ beside the hashes of the single files, of which it is a function.
    """
    folder = layout.segmentation(split) if kind == 'seg' else layout.crops(split)
    named = isic.read_list(path_of(layout, kind, split), folder)
    paths = [one for path, word in named for one in ((path, folder / word) if kind == 'seg' else (path,))
             if os.path.isfile(one)]   # the script reports a missing mask
    kept, name = layout.cache / 'contents.json', f'{kind} {split}'
    single = Contents(layout.cache).of_all(paths, f'reading {kind} {split}')
    state, known = hashlib.sha256(' '.join(single).encode()).hexdigest()[:16], files.read_json(kept)
    before = known.get(name)
    if isinstance(before, list) and len(before) == 2 and before[0] == state:
        return before[1]
    known[name] = state, files.fingerprint(*paths, progress=f'reading {kind} {split}')
    with contextlib.suppress(OSError):   # it saves time alone
        files.write_text(kept, json.dumps(known, indent=1) + '\n')
    return known[name][1]


def read_by_training(layout, script, values, masked):
    """The data that a training would read now, (training, validation) as dataset.splits loads them.

    Of MDC without the pictures that have no mask, of CROSS_FIT with those of all folds; cached as the script
    itself caches them. values : its settings; masked : whether they have coarse masks beside them
    Raises InputError where lists or files cannot be used.
    """
    limit = {'limit': values.get('TRAIN_IMAGES', 0), 'seed': values.get('SEED', 0)}
    if script == 'train_MaskCN.py':
        return (splits.classification(layout, 'Training', values['INPUT_SIZE'], masked, **limit),
                splits.classification(layout, 'Validation', values['INPUT_SIZE'], masked,
                                      whole_only=values['VALIDATION_CROPS'] == 1))
    return (splits.segmentation(layout, 'Training', values['CACHE_SIZE'], masked, **limit),
            splits.segmentation(layout, 'Validation', values['INPUT_SIZE'], masked))
