"""Stage 1's shared work: cut the classification crops, limit the segmentation pictures, list both.

An output folder keeps a record of the settings and, by content, of what each output was made from. A later
run therefore redoes what is missing or was changed, what has another source, and everything when the settings
differ; a kill at any moment costs the files in work.
"""
import contextlib
import json
import os

from dataset import crops, isic
from dataset.layout import SPLITS
from engine import files, images
from engine.contents import Contents, Record
from engine.errors import InputError

VERSION = 1                # raise it when the same settings give other pixels than before

# Pixels of the short side down to which a jpg may be decoded at 1/2, 1/4 or 1/8: the smallest crop
# (0.2 of it, rounded to whole pixels) still covers 224.
CROP_COVER = int((crops.SIDE + 1) / min(crops.SCALES_9 + crops.SCALES_15))


def extract_crops(layout, split, workers=0):
    """Bring the 224 px crops of a split up to date, in `layout.crops(split)`.

    workers : int, 0 = all cores. Prints what was done. Raises InputError with every picture that
    has no label or cannot be decoded; the crops of the others are complete then.
    """
    pictures, classes = isic.classification_images(layout, split), layout.classes
    folder = layout.crops(split)

    def cut(entry):
        """Write the crops of one picture that are not up to date. Returns (written, all)."""
        image_id, source, label = entry
        scales = crops.scales_of(label, split == 'Training', classes)
        names, content = crops.crop_names(image_id, scales), record.contents.of(source)
        outdated = {name for name in names if not record.holds(name, content)}
        if outdated:
            image, (width, height), divisor = read_reduced(source, CROP_COVER)
            for name, box in zip(names, crops.crop_boxes(width, height, scales), strict=True):
                if name in outdated:
                    box = [edge / divisor for edge in box]
                    images.write_png(folder / name, images.resize_rgb(image, (crops.SIDE, crops.SIDE), box))
                    note(record, source, content, name)
        return len(outdated), len(names)

    with at_work(folder, crop_settings(), layout) as record:
        _report(f'{split} crops', folder, files.for_all(
            cut, pictures, f'{split} crops', workers, remedy='replace or remove these pictures'))


def read_reduced(path, cover):
    """Decode a picture, a large jpg to 1/2, 1/4 or 1/8 of its sides (both stay >= `cover` px).

    Returns (H, W, 3) uint8, the original's (width, height), and the divisor 1, 2, 4 or 8.
    Edges of the original, divided by it, are edges of the decoded picture: a decoder rounds the
    last partial pixel up, so the divisor is exact while the ratio of the sizes is not.
    Raises InputError for what `check_data.py` refuses.
    """
    size = images.image_size(path)
    image = images.read_rgb(path, cover=cover)
    divisor = round(max(size) / max(image.shape[:2]))
    return image, size if divisor > 1 else image.shape[1::-1], divisor


def prepare_segmentation(layout, max_side, skip_unpaired=False, workers=0):
    """Bring the training pictures and masks with a limited long side up to date.

    max_side : int, pixels. Larger pictures are resized (bicubic) to png, their masks to nearest;
    the others are copied byte for byte. Sizes are compared before anything is written.
    Raises InputError with every unpaired, unequal, damaged or non-binary file.
    """
    pairs, left_out = isic.segmentation_images(layout, 'Training', skip_unpaired)
    print_lines('left out', left_out)
    if not pairs:
        raise InputError('Training: no picture has a mask', left_out, isic.WITHOUT_MASKS)
    sizes = files.for_all(_common_size, pairs, 'Training sizes', workers,
                          'Pictures and masks cannot be used', 'replace or remove these pairs')
    folder = layout.segmentation('Training')

    def limit(entry):
        """Write one picture and its mask where they are not up to date. Returns (written, all)."""
        (_, image, mask), size = entry
        target, written = limited(size, max_side), 0
        names = prepared_names(image, mask, target != size)
        for source, name in zip((image, mask), names, strict=True):
            content = record.contents.of(source)
            if record.holds(name, content):
                continue
            # Also what is copied is decoded: damage must not pass.
            if source == mask:
                pixels, write = images.resize_mask(images.read_mask(mask), target), images.write_mask
            else:
                pixels, (width, height), divisor = read_reduced(image, min(target))
                pixels = images.resize_rgb(pixels, target, (0, 0, width / divisor, height / divisor))
                write = images.write_png
            if target == size:
                files.write_bytes(folder / name, source.read_bytes())
            else:
                write(folder / name, pixels)
            note(record, source, content, name)
            written += 1
        return written, 2

    with at_work(folder, segmentation_settings(max_side), layout) as record:
        for part in ('Images', 'Annotation'):
            files.remove_abandoned(folder / part)
            (folder / part / isic.RECORD).unlink(missing_ok=True)   # of earlier versions
        _report('Training pictures and masks', folder, files.for_all(
            limit, zip(pairs, sizes, strict=True), 'Training pictures', workers,
            remedy='replace or remove these files'))


def _common_size(entry):
    """(width, height) in pixels of a picture and its mask; InputError when they differ."""
    _, image, mask = entry
    size, mask_size = images.image_size(image), images.image_size(mask)
    if size != mask_size:
        raise InputError('Sizes differ', [size_fault(image, size, mask, mask_size)])
    return size


def size_fault(image, size, mask, mask_size):
    """The line that reports a mask of another size than its picture."""
    return (f'{mask}: is {mask_size[0]}x{mask_size[1]} px, '
            f'its picture {image.name} is {size[0]}x{size[1]} px')


def inspect_pair(image, mask, grey_above=0):
    """Decode a picture and its mask (paths, either may be None) to their ends and compare them.

    grey_above : see images.read_mask
    Returns (width, height) of the picture or None, share of the mask that is lesion or None, list of faults.
    """
    size, faults = images.inspect_image(image) if image else (None, [])
    try:
        pixels = images.read_mask(mask, grey_above) if mask else None
    except InputError as error:
        return size, None, [*faults, *error.faults]
    if size and mask and size != pixels.shape[::-1]:
        faults.append(size_fault(image, size, mask, pixels.shape[::-1]))
    return size, pixels.mean() if mask else None, faults


def limited(size, max_side):
    """(width, height) with the long side at most `max_side` px, proportions kept."""
    factor = min(1, max_side / max(size))
    return tuple(max(1, round(side * factor)) for side in size)


def prepared_names(image, mask, resized):
    """Paths of a prepared picture and its mask relative to `layout.segmentation('Training')`.

    What is copied keeps its file name, what is resized becomes png.
    """
    if resized:
        return f'Images/{image.stem}.png', f'Annotation/{mask.stem}.png'
    return f'Images/{image.name}', f'Annotation/{mask.name}'


def link(path, target):
    """Make `path` a relative link to a file or folder, so that what holds both may be moved."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Resolved, since a folder on the way may be a link itself.
    leads_to = os.path.relpath(target.resolve(), path.parent.resolve())
    if not path.is_symlink() or os.readlink(path) != leads_to:
        path.unlink(missing_ok=True)
        path.symlink_to(leads_to)


# Up to date or not

def crop_settings():
    """What the pixels of a crop folder depend on, besides the pictures."""
    return {'version': VERSION, 'side': crops.SIDE, 'cover': CROP_COVER,
            'scales_9': list(crops.SCALES_9), 'scales_15': list(crops.SCALES_15)}


def segmentation_settings(max_side):
    """What the pixels of the prepared segmentation pictures depend on, besides the originals."""
    return {'version': VERSION, 'max_side': max_side}


@contextlib.contextmanager
def at_work(folder, settings, layout):
    """The Record of an output folder while this process alone writes there.

    settings : dict; what was made under others is redone
    Raises InputError while another process writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with files.lock(folder / '.lock', InputError('Two programs at work in one folder', [
            f'{folder}: another process writes there'], 'wait for it, then run the same command again')):
        files.remove_abandoned(folder, age=0)
        record = Record(folder / isic.RECORD, Contents(layout.cache))
        settings = json.loads(json.dumps(settings))   # tuples as the record has them
        record.begin(settings, record.head == settings)
        try:
            yield record
        finally:
            record.finish()


def note(record, source, content, name):
    """Note an output in a record. Raises InputError for a source whose content is no longer what it was."""
    refuse_changed(source, content, record.contents.of(source))
    record.note(name, content)


def refuse_changed(source, before, after):
    """Raise InputError for a picture whose fingerprints before and after it was read differ."""
    if before != after:
        raise InputError('A picture changed', [f'{source}: changed while it was read'],
                         'run the same command again')


def _report(what, folder, counts):
    total = sum(count for _, count in counts)
    written = sum(count for count, _ in counts)
    print(f'{what}: {total - written} of {total} were up to date, {written} written to {folder}')


def print_lines(title, lines):
    """Print lines below a title with their number; nothing when there are none."""
    if lines:
        text = '\n'.join([f'{title} ({len(lines)}):', *(f'  {line}' for line in lines)])
        print(text.encode(errors='replace').decode())   # names that are no UTF-8 get question marks


# Lists

def classification_lines(layout, split):
    """Lines "crop class" of a split, sorted by id. Raises InputError for crops not up to date."""
    folder, training = layout.crops(split), split == 'Training'
    command = layout.command('dataset/extractPatch_cls_train.py') if training else layout.command(
        'dataset/extractPatch_cls_val_test.py', f'--SPLIT={split}')
    pictures, classes = isic.classification_images(layout, split), layout.classes
    record = Record(folder / isic.RECORD, Contents(layout.cache))
    if record.head != crop_settings():
        raise InputError(f'{split}: no crops', [f'{folder}: holds no crops of these settings'],
                         command)
    lines, faults = [], []
    record.contents.of_all([source for _, source, _ in pictures], f'{split}: reading')
    for image_id, source, label in pictures:
        names = crops.crop_names(image_id, crops.scales_of(label, training, classes))
        faults += _not_current(source, record, names)
        lines += [f'{name} {label}' for name in names]
    record.contents.keep()
    if faults:
        raise InputError(f'{split}: crops are not up to date', faults, command)
    return lines


def segmentation_lines(layout, split, skip_unpaired=False):
    """Lines "Images/x Annotation/y" of a split, sorted by id, relative to `layout.segmentation`.

    Raises InputError for unpaired files and for prepared training pictures not up to date.
    """
    pairs, left_out = isic.segmentation_images(layout, split, skip_unpaired)
    print_lines(f'{split}, left out', left_out)
    return lines_of_pairs(layout, split, pairs)


def lines_of_pairs(layout, split, pairs):
    """`segmentation_lines` of pairs (image id, picture, mask)."""
    if not pairs:
        return []
    if split != 'Training':
        return [f'Images/{image.name} Annotation/{mask.name}' for _, image, mask in pairs]
    folder, command = layout.segmentation(split), layout.command('dataset/extractPatch_seg_train.py')
    record = Record(folder / isic.RECORD, Contents(layout.cache))
    max_side = record.head.get('max_side')
    if record.head != segmentation_settings(max_side):
        raise InputError(f'{split}: no pictures', [f'{folder}: holds no prepared pictures'],
                         command)
    sizes = files.for_all(_common_size, pairs, 'Training sizes')
    lines, faults = [], []
    for (_, image, mask), size in zip(pairs, sizes, strict=True):
        names = prepared_names(image, mask, limited(size, max_side) != size)
        faults += _not_current(image, record, names[:1]) + _not_current(mask, record, names[1:])
        lines.append(' '.join(names))
    record.contents.keep()
    if faults:
        raise InputError(f'{split}: prepared pictures are not up to date', faults, command)
    return lines


def _not_current(source, record, names):
    """One line for a picture with missing or outdated outputs, else none."""
    content = record.contents.of(source)
    outdated = [name for name in names if not record.holds(name, content)]
    if not outdated:
        return []
    more = f' and {len(outdated) - 1} more' if len(outdated) > 1 else ''
    return [f'{record.folder / outdated[0]}{more}: missing, or not made from the present {source}']


def write_lists(layout, lines_of, path_of, may_lack=False):
    """Rewrite the list of every split on disk, or none when one has faults; drop those of absent splits.

    lines_of : function of (layout, split) -> list of str; path_of : of the split -> path of the list
    may_lack : a split without anything to list is no fault, and has no list
    Raises one InputError with the faults of all splits.
    """
    texts, absent, faults, remedies = {}, [], [], []
    for split in SPLITS:
        if not layout.originals(split).is_dir():
            print(f'{split}: {layout.originals(split)} is absent, no list is written')
            absent.append(split)
            continue
        try:
            lines = texts[path_of(split)] = lines_of(layout, split)
        except InputError as error:
            faults += error.faults or [error.summary]
            remedies.append(error.remedy)
            continue
        odd = [f'{split}: {line!r}: names with spaces, or that are no UTF-8, cannot be listed'
               for line in lines if line.count(' ') != 1 or not all(map(isic.can_be_listed, line.split(' ')))]
        faults += odd
        remedies += ['rename these files'] if odd else []
        if not lines and may_lack:
            print(f'{split}: no picture has a mask, no list is written')
            del texts[path_of(split)]
            absent.append(split)
        elif not lines:
            faults.append(f'{split}: no picture is left to list')
    if faults:
        raise InputError('No list was written', faults,
                         '; '.join(dict.fromkeys(filter(None, remedies))))
    if len(absent) == len(SPLITS):
        isic.find_images(layout.originals('Training') / 'Images')   # says what is missing
    for split in absent:
        path_of(split).unlink(missing_ok=True)
    for path, lines in texts.items():
        files.remove_abandoned(path.parent)
        files.write_changed(path, '\n'.join(lines) + '\n')
        print(f'{path}: {len(lines)} lines')
