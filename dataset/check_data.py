"""Check the downloaded data before training: every file, mask and label, all faults at once.

Reads   everything below dataset/data (superpixel files and metadata csv files are ignored).
Writes  nothing; prints a table of the splits, notes that need no action, and every fault.
        Exit code 0 without faults, 2 with faults.

    python dataset/check_data.py

Costs   2 s for 2150 pairs of 256 px and 25 ms for each pair of 3008x2000 px on two cores.
"""
import math
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python dataset/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import extraction, fetch, isic, label_csv
from dataset.layout import ADDED, SPLITS, Layout
from engine import cli, files, settings
from engine.errors import InputError

# --- Where
ROOT = '.'              # folder with dataset/data below it (released: the repository)
RECIPE = 'default'      # default, or a file of recipes/

# --- Data
SKIP_UNPAIRED = False   # pictures without a mask and masks without a picture are notes, not faults

# --- Machine
NUM_WORKERS = 0         # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals())
    layout = Layout(cfg.ROOT)
    faults, notes = [], []
    parts = {}
    for part in (*SPLITS, ADDED):
        if layout.originals(part).is_dir():
            parts[part] = survey(layout, part, cfg.SKIP_UNPAIRED, faults, notes)
        elif part == 'Training':
            faults.append(f'{layout.originals(part)}: is missing')
        else:
            notes.append(f'{part}: {layout.originals(part)} is absent')
    if not parts:
        raise InputError('There are no data to check', faults, (
            f'{layout.command("dataset/download.py")} fetches ISIC-2017 (12 GB); `make demo` goes through '
            'all stages with pictures that it draws, python dataset/make_demo_data.py draws them alone'))
    owners = {}
    for content in parts.values():
        for image_id, path in content.images.items():
            if owners.setdefault(image_id, path) != path:   # leaks training images into a test
                faults.append(f'{image_id}: is in two splits, {owners[image_id]} and {path}')
    items = [(content, image_id) for content in parts.values()
             for image_id in sorted(content.images.keys() | content.masks.keys())]
    results = files.for_all(lambda item: inspect(*item), items, 'pictures and masks', cfg.NUM_WORKERS)
    for found, note in results:
        faults += found
        notes += note
    notes += identical_pictures(parts)
    print('\n'.join(table(parts, layout.classes.names)))
    extraction.print_lines('notes', notes)
    if faults:
        raise InputError(f'{len(faults)} faults in {layout.data}', faults,
                         'replace, correct or remove what is listed')
    print('no faults')


def survey(layout, part, skip_unpaired, faults, notes):
    """List one split's files and labels without opening pictures.

    Appends to `faults` and `notes` (lists of str). Returns a namespace: images, masks
    {image id: path}, labels {image id: class number or None}, inspected (empty dict).
    """
    folder = layout.originals(part)
    pictures, found = isic.scan_folder(folder / 'Images', 'pictures')
    labels, label_faults = label_csv.scan(layout.labels(part), layout.classes)
    faults += found + label_faults
    masks = {}
    if part != ADDED:   # the extra images serve classification alone
        masks, found = isic.scan_folder(folder / 'Annotation', 'masks')
        (notes if skip_unpaired and not masks else faults).extend(found)
        if pictures and masks:
            (notes if skip_unpaired else faults).extend(isic.unpaired(folder, pictures, masks))
    faults += [f'{path}: a name with spaces, or that is no UTF-8, cannot be listed'
               for path in (*pictures.values(), *masks.values())
               if not isic.can_be_listed(path.name)]
    if labels:
        faults += [isic.unlabelled(image_id, pictures[image_id], layout.labels(part))
                   for image_id in pictures if image_id not in labels]
    unused = len(labels.keys() - pictures.keys())
    if unused:
        notes.append(f'{part}: {unused} labels have no picture')
    return SimpleNamespace(images=pictures, masks=masks, labels=labels, inspected={})


def inspect(content, image_id):
    """Decode a picture and its mask and compare them; returns their faults and notes (lists of str).

    Notes the size and the digest of a readable picture in `content.inspected`.
    """
    image, mask = content.images.get(image_id), content.masks.get(image_id)
    size, lesion, faults = extraction.inspect_pair(image, mask)
    if size:
        content.inspected[image_id] = size, fetch.sha256_of(image)
    return faults, [f'{mask}: the mask is {"full" if lesion else "empty"}'] if lesion in (0, 1) else []


def identical_pictures(parts):
    """Notes: pictures with the same bytes under different ids (the official split has some)."""
    groups = {}
    for part, content in parts.items():
        for image_id, (_, digest) in sorted(content.inspected.items()):
            groups.setdefault(digest, []).append((image_id, part))
    return ['identical pictures: ' + ' = '.join(f'{image_id} ({part})' for image_id, part in group)
            for group in groups.values() if len({image_id for image_id, _ in group}) > 1]


def table(parts, names):
    """Lines of the summary: counts by split and class, smallest and largest picture in pixels."""
    rows = [('', 'pictures', 'masks', *names, 'smallest', 'largest')]
    for part, content in parts.items():
        classes = [content.labels.get(image_id) for image_id in content.images]
        sizes = sorted((size for size, _ in content.inspected.values()), key=math.prod)
        ends = [f'{size[0]}x{size[1]}' for size in (sizes[0], sizes[-1])] if sizes else ['-', '-']
        rows.append((part, len(content.images), len(content.masks),
                     *(classes.count(number) for number in range(len(names))), *ends))
    width = max(12, *(len(name) + 2 for name in names))
    return [''.join(f'{cell!s:>{width}}' for cell in row) for row in rows]


if __name__ == '__main__':
    cli.launch(main)
