"""ISIC-2017 as downloaded: which images, masks and labels a split has, joined by image id."""
import os
from pathlib import Path

from dataset import label_csv
from dataset.layout import ADDED, Layout
from engine.contents import Contents, Record
from engine.errors import InputError
from engine.images import EXTENSIONS
from engine.scoring import SUFFIX as MASK_SUFFIX

RECORD = 'extraction.json'   # beside what stage 1 makes of pictures: a Record
WITHOUT_MASKS = (
    'stages 2 and 5 and their scores need masks. Mask-CN does not: train_MaskCN.py and eval_MaskCN.py run '
    'with coarse masks that a coarse-SN of another root draws (copy its models/CoarseSN/ here, then '
    'generate_Coarse_mask.py), or on the pictures alone (train_MaskCN.py --INPUT_CHANNEL=3)')


def find_images(folder, kind='pictures'):
    """{image id: path} of a folder's pictures or masks, as `scan_folder` finds them.

    Raises InputError when the folder is missing or empty, when one id has two files, and for every id that
    a crop's file could have.
    """
    found, faults = scan_folder(folder, kind)
    if faults:
        raise InputError(f'{folder} cannot be used', faults,
                         'one file for each id; stage 0 of the README says where the data go')
    return found


def scan_folder(folder, kind):
    """({image id: path} sorted by id, list of faults) of a folder.

    kind : 'pictures' (superpixel files are ignored) or 'masks' (`<id>_segmentation.png`)
    """
    if not folder.is_dir():
        return {}, [f'{folder}: is missing']
    found, faults = {}, []
    for path in sorted(folder.iterdir()):
        fits = (path.stem.endswith(MASK_SUFFIX) if kind == 'masks' else
                not path.stem.endswith('_superpixels'))
        if path.suffix.lower() not in EXTENSIONS or path.name.startswith('.') or not fits:
            continue
        image_id = id_of_mask(path) if kind == 'masks' else id_of(path)
        if image_id in found:
            faults.append(f'{found[image_id]} and {path.name} have the same id')
            continue
        found[image_id] = path
        if kind == 'pictures' and owner_of(image_id) != image_id:
            faults.append(f'{path}: a crop of {owner_of(image_id)} would have this name, rename it')
    if not found:
        faults.append(f'{folder}: holds no {kind}')
    return dict(sorted(found.items())), faults


def classification_images(layout, split):
    """Pictures and classes of a split, joined by id: sorted list of (image id, path, class number).

    The extra training images join when their folder exists. Raises InputError for every picture
    without a label and every id that both training folders hold; labels without picture are fine.
    """
    pairs, faults = {}, []
    for part in (split, ADDED) if split == 'Training' and layout.originals(ADDED).is_dir() else (split,):
        labels = label_csv.read(layout.labels(part), layout.classes)
        for image_id, path in find_images(layout.originals(part) / 'Images').items():
            if image_id in pairs:
                faults.append(f'{image_id}: in {pairs[image_id][0].parent} and in {path.parent}')
            elif image_id not in labels:
                faults.append(unlabelled(image_id, path, layout.labels(part)))
            else:
                pairs[image_id] = (path, labels[image_id])
    if faults:
        raise InputError(f'{split}: pictures and labels do not fit together', faults,
                         'complete the label file, or move the pictures away')
    return [(image_id, *pairs[image_id]) for image_id in sorted(pairs)]


def unlabelled(image_id, path, labels):
    """The line that reports a picture without a label."""
    return f'{path}: {image_id} has no row in {labels}'


def segmentation_images(layout, split, skip_unpaired=False):
    """Pictures and masks of a split: (sorted list of (image id, image path, mask path), left out).

    A picture without a mask, or a mask without a picture, is an InputError that lists all of
    them; with skip_unpaired they are left out and returned as the second value (lines of text).
    """
    folder = layout.originals(split)
    images = find_images(folder / 'Images')
    masks = (scan_folder(folder / 'Annotation', 'masks')[0] if skip_unpaired and not has_masks(layout, split)
             else find_images(folder / 'Annotation', 'masks'))
    left_out = unpaired(folder, images, masks)
    if left_out and not skip_unpaired:
        raise InputError(f'{split}: pictures and masks do not pair up', left_out,
                         'add what is missing, or leave these out with --SKIP_UNPAIRED=True')
    return [(image_id, images[image_id], masks[image_id])
            for image_id in images if image_id in masks], left_out


def has_masks(layout, split):
    """Whether there is a mask of any picture of a split."""
    return bool(scan_folder(layout.originals(split) / 'Annotation', 'masks')[0])


def unpaired(folder, images, masks):
    """Lines that report pictures without a mask and masks without a picture ({id: path} each)."""
    lines = [f'{path}: has no mask {image_id}{MASK_SUFFIX}.png in {folder / "Annotation"}'
             for image_id, path in images.items() if image_id not in masks]
    return lines + [f'{path}: has no picture {image_id}.* in {folder / "Images"}'
                    for image_id, path in masks.items() if image_id not in images]


def can_be_listed(name):
    """Whether a list of stage 1 can hold a file's name: a single word that is UTF-8."""
    return len(name.split()) == 1 and name.encode(errors='replace').decode() == name


def read_list(path, folder, second=str):
    """Read a list file of stage 1: [(path, second value)], paths below `folder`.

    second : function of a line's second word -> value; a ValueError says what is wrong with the word
    Raises InputError for a missing or empty list and for each malformed line or missing file.
    """
    script = 'dataset/list_seg.py' if path.stem.endswith('_seg') else 'dataset/list_cls.py'
    root = Layout(path.absolute().parents[2])   # lists lie in <root>/dataset/ISIC/
    here = root.root == Path.cwd()
    remedy = f'make the list anew: {(Layout(".") if here else root).command(script)}'
    if not path.is_file():
        raise InputError('A list of stage 1 is missing', [f'{path}: is missing'], remedy)
    entries, faults = [], []
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        try:
            if len(words) != 2:
                raise ValueError(f'{line[:80]!r} is not "file label"')
            if not os.path.isfile(folder / words[0]):   # Path.is_file raises on overlong names
                raise ValueError(f'{folder / words[0]} is missing')
            entries.append((folder / words[0], second(words[1])))
        except ValueError as error:
            faults.append(f'{path}, line {number}: {error}')
    if not entries and not faults:
        faults.append(f'{path}: is empty')
    if faults:
        raise InputError('A list of stage 1 cannot be used', faults, remedy)
    return entries


def read_segmentation_list(layout, split):
    """[(image path, mask path)] of a split's segmentation list; both are checked to exist.

    Raises InputError also for prepared pictures that were not made from the originals that are there now.
    """
    folder = layout.segmentation(split)

    def mask(name):
        if not os.path.isfile(folder / name):
            raise ValueError(f'{folder / name} is missing')
        return folder / name

    path = layout.segmentation_list(split)
    classified = layout.classification_list(split).is_file()
    if not path.is_file() and classified and not has_masks(layout, split):
        raise InputError(f'{split}: no picture has a mask',
                         [f'{layout.originals(split) / "Annotation"}: holds no masks'], WITHOUT_MASKS)
    pairs = read_list(path, folder, mask)
    if split == 'Training':   # of the others, the originals themselves are read
        originals = layout.originals(split)
        images, _ = scan_folder(originals / 'Images', 'pictures')
        masks, _ = scan_folder(originals / 'Annotation', 'masks')
        _refuse_outdated(layout, folder, [
            (source, path) for image, mask in pairs
            for source, path in ((images.get(id_of(image)), image), (masks.get(id_of_mask(mask)), mask))],
            ('dataset/extractPatch_seg_train.py',), 'dataset/list_seg.py')
    return pairs


def read_classification_list(layout, split):
    """[(crop path, class number)] of a split's classification list.

    Raises InputError also for classes that are not those of the label file or of the class table, and for
    crops that were not made from the originals, as these are now, where they are there.
    """
    def number(label):
        if label not in numbers:
            raise ValueError(f'the class {label!r} must be from 0 to {len(classes) - 1}')
        return int(label)

    classes = layout.classes
    numbers = set(map(str, range(len(classes))))
    folder, labels, sources = layout.crops(split), {}, {}
    entries = read_list(layout.classification_list(split), folder, number)
    for part in (split, ADDED) if split == 'Training' else (split,):
        sources |= scan_folder(layout.originals(part) / 'Images', 'pictures')[0]
        if layout.labels(part).is_file():
            labels |= label_csv.scan(layout.labels(part), classes)[0]
    faults = {}
    for path, label in entries:
        image_id = image_id_of(path)
        if labels.get(image_id) not in (None, label):
            faults[image_id] = (f'{layout.classification_list(split)}: {image_id} is listed as '
                                f'{classes.names[label]}, its label says {classes.names[labels[image_id]]}')
    script = ('dataset/extractPatch_cls_train.py',) if split == 'Training' else (
        'dataset/extractPatch_cls_val_test.py', f'--SPLIT={split}')
    _refuse_outdated(layout, folder, [(sources.get(image_id_of(path)), path) for path, _ in entries],
                     script, 'dataset/list_cls.py', list(faults.values()))
    return entries


def _refuse_outdated(layout, folder, made, script, lister, faults=()):
    """Raise InputError where prepared files are not those of the present originals, or for other `faults`.

    made : [(original or None, prepared file in `folder`)]; only what a record speaks of can be known
    script : words of the command that prepares; lister : the script that lists
    """
    record, faults = Record(folder / RECORD, Contents(layout.cache)), list(faults)
    if record.kept:
        sources = list(dict.fromkeys(source for source, _ in made if source))
        found = record.contents.of_all(sources, f'{folder.name}: originals')
        content, outdated = dict(zip(sources, found, strict=True)), {}
        for source, path in made:
            name = path.as_posix().removeprefix(f'{folder.as_posix()}/')
            if source and record.made.get(name, ('',))[0] != content[source]:
                outdated.setdefault(source, path)
        faults += [f'{path}: was not made from the present {source}' for source, path in outdated.items()]
    if faults:
        raise InputError('Stage 1 is not up to date', faults,
                         f'{layout.command(*script)}, then {layout.command(lister)}')


def id_of(picture):
    """Image id of a picture's path."""
    return label_csv.plain_id(picture.stem)


def id_of_mask(mask):
    """Image id of the path of a mask, <id>_segmentation.png or <id>.png."""
    return id_of(mask).removesuffix(MASK_SUFFIX)


def image_id_of(crop):
    """Image id of a crop's path: `ISIC_0000001_15_3.png` and `ISIC_0000001.png` -> ISIC_0000001."""
    return owner_of(id_of(crop))


def owner_of(stem):
    """`image_id_of` of a name without its suffix; an image id is its own."""
    head, _, number = stem.rpartition('_')
    base, _, count = head.rpartition('_')
    return base if base and number.isdigit() and count in ('9', '15') else stem
