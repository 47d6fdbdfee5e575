"""Pictures, masks and labels of one's own: found, joined by image id, and shared out among the splits."""
from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dataset import classes, extraction, folds, isic, label_csv
from dataset.layout import SPLITS
from engine import files, images
from engine.contents import Contents
from engine.errors import InputError

TOGETHER = 'lesion_id', 'patient_id'   # columns; pictures with one value are in one split
SPLIT = 'split'                        # column, where the splits are given
WORDS = {word: split for split, said in zip(SPLITS, (('train', 'training'), ('val', 'valid', 'validation'),
                                                     ('test', 'testing')), strict=True) for word in said}
RARE = 0.5      # a class with fewer pictures than this share of the commonest gets more crops of each


@dataclass(frozen=True)
class Case:
    """image_id; image : path; mask : path or None; label : class number; size : (width, height) px
    row : of the label file, {column: text}
    """
    image_id: str
    image: Path
    mask: Path | None
    label: int
    size: tuple
    row: dict


def make_table(labels, names=(), scored=()):
    """The ClassTable of a label csv (path): the named classes, in their order, or all that occur in it.

    scored : names, all without any; classes with few pictures are rare. Raises InputError with all faults.
    """
    columns, rows, faults = label_csv.read_rows(labels)
    if not faults and not names:
        names, found = label_csv.classes_in(columns, rows)
        faults = [f'{labels}: {fault}' for fault in found]
    if not faults:
        words = {'words': classes.PAPER.words} if tuple(names) == classes.PAPER.names else {}
        found = classes.faults_of({'classes': list(names), 'scored': list(scored or names)})
        faults = [f'{labels}: {fault}' for fault in found]
    if faults:
        raise InputError('No class table can be made', faults, 'correct the label file, or name the classes: '
                         '--CLASSES=... and --SCORED=..., with commas between')
    table = classes.ClassTable(tuple(names), tuple(scored or names), **words)
    counts = Counter(label_csv.scan(labels, table)[0].values())
    rare = tuple(name for number, name in enumerate(names)
                 if counts[number] < RARE * max(counts.values(), default=0))
    return classes.ClassTable(table.names, table.scored, rare, table.words)


def read(image_folder, mask_folder, labels, table, resize_masks=False, workers=0, root=None):
    """([Case] sorted by id, columns of the csv, notes) of what lies in two folders and below them.

    mask_folder : None without masks; labels : path of the csv; resize_masks : masks may have another size
    than their pictures, in the same proportions. workers : threads, 0 = one for each core; root : see `find`
    Raises InputError with all faults at once: of the csv, pictures without a row, ids that occur twice,
    damaged files, and masks that are not binary or do not fit.
    """
    numbers, faults = label_csv.scan(labels, table)
    columns, rows, _ = label_csv.read_rows(labels)
    id_column = label_csv.column_of(columns, label_csv.IDS)
    rows = {label_csv.id_of(row, id_column): row for _, row in rows}
    pictures, masks, found = find(image_folder, mask_folder, root)
    faults += found
    if numbers:   # without any, the csv's fault says it all
        faults += [isic.unlabelled(image_id, path, labels) for image_id, path in pictures.items()
                   if image_id not in numbers]
    pairs = [(image_id, path, masks.get(image_id)) for image_id, path in pictures.items()]
    looked_at = files.for_all(lambda pair: inspect(*pair[1:], resize_masks), pairs, 'pictures and masks',
                              workers)
    faults += chain.from_iterable(found for _, found in looked_at)
    if faults:
        raise InputError('These pictures, masks and labels cannot be used', faults,
                         'replace, correct or remove what is listed; the README shows how files are named')
    notes = [f'{len(spare)} {what} have no picture, such as {min(spare)}' for what, spare in (
        ('masks', masks.keys() - pictures.keys()), ('labels', numbers.keys() - pictures.keys())) if spare]
    return [Case(image_id, image, mask, numbers[image_id], size, rows[image_id])
            for (image_id, image, mask), (size, _) in zip(pairs, looked_at, strict=True)], columns, notes


def find(image_folder, mask_folder, root=None):
    """({image id: picture}, {image id: mask}, list of faults) of all that is below two folders.

    A mask is called <id>_segmentation.png, or <id>.png in a folder of its own.
    root : folder of the experiment (Path); where it lies within one of the two, what is below it is left out
    """
    pictures, masks, faults = {}, {}, []
    of_masks = mask_folder is not None and mask_folder.resolve()
    own = of_masks and of_masks != image_folder.resolve()
    for folder, found, what in ((image_folder, pictures, 'pictures'), (mask_folder, masks, 'masks')):
        for path, place in _files_below(folder, root) if folder is not None else ():
            marked = path.stem.endswith(isic.MASK_SUFFIX)
            is_mask = marked or own and place.is_relative_to(of_masks)
            if is_mask != (what == 'masks'):
                continue
            image_id = isic.id_of_mask(path) if what == 'masks' else isic.id_of(path)
            if image_id in found:
                faults.append(f'{found[image_id]} and {path} have the same id')
            found.setdefault(image_id, path)
        if folder is not None and not found:
            faults.append(f'{folder}: holds no {what}' if folder.is_dir() else f'{folder}: is no folder')
    faults += [f'{path}: a name with spaces, or that is no UTF-8, cannot be listed'
               for path in pictures.values() if not isic.can_be_listed(path.name)]
    faults += [f'{path}: a crop of {isic.owner_of(image_id)} would have this name, rename it'
               for image_id, path in pictures.items() if isic.owner_of(image_id) != image_id]
    return dict(sorted(pictures.items())), masks, faults


def holds_root(folder, root):
    """Whether an experiment root (Path) lies within a folder and is not the folder itself."""
    return folder.resolve() in root.resolve().parents


def _files_below(folder, root=None):
    """[(path, the same from a folder without links)] of the pictures and masks below a folder, sorted."""
    whole, found = folder.resolve(), []   # not each path: a picture may be a link to elsewhere
    left_out = root.resolve() if root and holds_root(folder, root) else None
    for path in sorted(folder.rglob('*')) if folder.is_dir() else ():
        below = path.relative_to(folder)
        if (path.suffix.lower() in images.EXTENSIONS and not path.stem.endswith('_superpixels')
                and not any(part.startswith('.') for part in below.parts)
                and not (left_out and (whole / below).is_relative_to(left_out))):
            found.append((path, whole / below))
    return found


def inspect(image, mask, resize_masks):
    """((width, height) of a picture in px or None, faults of it and its mask); both are decoded."""
    size, faults = images.inspect_image(image)
    if mask is None:
        return size, faults
    try:
        pixels = images.read_mask(mask)
    except InputError as error:
        return size, [*faults, *error.faults]
    if size and size != pixels.shape[::-1]:
        alike = images.alike(size, pixels.shape[::-1])
        if not (alike and resize_masks):
            more = '; --RESIZE_MASKS=True brings it to that size' if alike else ''
            faults.append(extraction.size_fault(image, size, mask, pixels.shape[::-1]) + more)
    return size, faults


def groups(cases, columns, cache):
    """{image id: name of its group}: the pictures that must not be in two splits stay together.

    These are pictures with one value of a column of TOGETHER, over both columns, and those of the same
    content. columns : of the csv; cache : folder of the root's cache, for hashes
    """
    contents = Contents(cache).of_all([case.image for case in cases], 'reading pictures')
    names = [label_csv.column_of(columns, (name,)) for name in TOGETHER]
    first, leader = {}, {}   # {what is shared: the first picture that has it}, {picture: an earlier one}

    def root(image_id):
        while leader[image_id] != image_id:
            image_id = leader[image_id]
        return image_id

    for case, content in zip(cases, contents, strict=True):
        leader[case.image_id] = case.image_id
        shared = [(name, (case.row.get(name) or '').strip()) for name in filter(None, names)]
        for key in (*(pair for pair in shared if pair[1]), ('content', content)):
            leader[root(case.image_id)] = root(first.setdefault(key, case.image_id))
    return {case.image_id: root(case.image_id) for case in cases}


def share_out(cases, columns, group_of, shares, seed):
    """{image id: split}. The csv's column `split` is followed; without it, or for a validation split that it
    lacks, whole groups are shared out, so that each split has its share of every class and of its masks.

    group_of : what `groups` gives; shares : {'Validation': ..., 'Testing': ...}, of the pictures, 0 for none
    Raises InputError for unknown words and for groups that lie in two given splits.
    """
    column = label_csv.column_of(columns, (SPLIT,))
    given, faults = {}, []
    for case in cases if column else ():
        word = (case.row.get(column) or '').strip()
        given[case.image_id] = WORDS.get(word.casefold())
        if given[case.image_id] is None:
            faults.append(f'{case.image_id}: {column} is {word!r}, not one of {", ".join(WORDS)}')
    if not faults:
        faults = straddling(given, group_of)
    if faults:
        raise InputError('The given splits cannot be used', faults, 'correct the label file; pictures of one '
                         f'{" or ".join(TOGETHER)}, or of the same content, belong into one split')
    if given and (set(given.values()) - {'Training', 'Testing'} or not shares['Validation']):
        return given
    free = [case for case in cases if given.get(case.image_id, 'Training') == 'Training']
    wanted = {split: share for split, share in shares.items() if share and not (given and split == 'Testing')}
    strata = {case.image_id: ((case.label,), (case.label, case.mask is None)) for case in free}
    return given | folds.share_out({case.image_id: group_of[case.image_id] for case in free}, strata,
                                   {'Training': 1 - sum(wanted.values()), **wanted}, seed)


def straddling(split_of, group_of):
    """Lines that report groups with pictures in two splits."""
    first, faults = {}, []
    for image_id, split in split_of.items():
        other = first.setdefault(group_of[image_id], image_id)
        if split_of[other] != split:
            faults.append(f'{other} is in {split_of[other]} and {image_id} in {split}: they belong together')
    return faults
