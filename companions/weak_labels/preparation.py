"""What the preparing scripts share: patches, masks and ellipses are written unit by unit, then the table.

A unit is what is read at once, such as a picture with its mask or a volume. A second run makes those alone
whose sources or settings changed, or whose files are gone.
"""
import contextlib
import hashlib
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np

from companions.weak_labels import ellipses, lesions
from dataset import extraction
from dataset.layout import SPLITS
from engine import figures, files, images
from engine.errors import InputError
from mbdcnn.panels import spread

VERSION = 1   # raise it when the same settings give other pixels than before
PANEL_ROWS = 8
SPLITTING = 'group', 'random'
NOT_PIXELS = {'ROOT', 'RECIPE', 'SOURCE', 'IMAGES', 'MASKS', 'DIAMETERS', 'DATA', 'SPLIT', 'SEED',
              'INDEX_FILES', 'NUM_WORKERS', 'SKIP_ABSENT'}   # settings without effect on what is written
NAMES = 'one mask a picture, found by its name'


@dataclass(frozen=True)
class Lesion:
    """A lesion cut out.

    name : of its files; group : what must not be in two splits; split : '' where the script draws it
    patch : (P, P, 3) uint8; ellipse : (P, P) of {0, 1}; mask : the true one, or None
    parameters : of the ellipse, in px of the patch; size : (width, height) in px of what the patch shows
    """
    name: str
    group: str
    patch: np.ndarray
    ellipse: np.ndarray
    mask: np.ndarray | None
    parameters: tuple
    size: tuple
    split: str = ''


@dataclass(frozen=True)
class LeftOut:
    """A lesion that cannot be used, by a rule."""
    name: str
    why: str


@dataclass(frozen=True)
class Unit:
    """name : of its record; sources : paths of all that is read; make() : a list of Lesion and LeftOut
    about : text of what its lesions depend on besides, such as lines of a csv; settings are known without it
    """
    name: str
    sources: list
    make: object
    about: str = ''


def from_mask(name, group, picture, mask, side, split='', of_ellipse=False):
    """A whole picture with its mask as a Lesion, squashed to side x side; LeftOut where no ellipse fits.

    picture : (h, w, 3) uint8; mask : (H, W) of {0, 1}, perhaps of another size than the picture's
    The ellipse is drawn at the mask's size; its parameters are fitted anew to the squashed mask, or with
    of_ellipse to the squashed ellipse where that can be, as the original has it for LiTS.
    """
    square = side, side
    try:
        full = ellipses.draw(ellipses.fit(mask), mask.shape[::-1])
        small, approximate = (images.resize_mask(one, square) for one in (mask, full))
        parameters = ellipses.fit(small)
        if of_ellipse:
            with contextlib.suppress(ValueError):   # it has too few corners
                parameters = ellipses.fit(approximate)
        if not approximate.any():
            raise ValueError('no pixel lies within the ellipse')
    except ValueError as error:
        return LeftOut(name, str(error))
    return Lesion(name, group, images.resize_rgb(picture, square), approximate, small, parameters,
                  mask.shape[::-1], split)


def windowed(values, window):
    """Hounsfield units -> uint8 grey values; those of `window` span 0 to 255, the others are clipped."""
    low, high = window
    return np.clip((values.astype(np.float32) - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)


def picture_unit(name, group, picture, mask, side, split=''):
    """The Unit of a whole picture with its mask (paths), see `from_mask`."""
    return Unit(name, [picture, mask], lambda: [from_mask(
        name, group, images.read_rgb(picture), images.read_mask(mask), side, split)],
        json.dumps([group, split]))


def same_shape(picture, mask):
    """Lines that report a mask whose sides are not in the picture's proportion (paths)."""
    size, other = map(images.image_size, (picture, mask))
    if images.alike(size, other):
        return []
    return [f'{mask}: is {other[0]}x{other[1]}, its picture {picture.name} {size[0]}x{size[1]}']


def check_pairs(pairs, faults=(), remedy=NAMES):
    """Raise InputError with `faults` and pairs (picture, mask) of two shapes, or that cannot be opened."""
    def check(pair):
        if found := same_shape(*pair):
            raise InputError('Sizes differ', found)

    faults = list(faults)
    try:
        files.for_all(check, pairs, 'sizes')
    except InputError as error:
        faults += error.faults
    if faults:
        raise InputError('Pictures and masks do not fit together', faults, remedy)


def run(layout, data, cfg, units, drawn=False, truth='', index_files=''):
    """Bring a data set's prepared lesions up to date, and write the table; prints what was done.

    data : name of the folder below WeakLabels/
    cfg : the script's Settings with PATCH_SIZE and NUM_WORKERS; SPLIT and SEED where it draws the splits
    units : list of Unit; drawn : whether a program drew the pictures; truth : what the true masks are, where
        nobody drew them; index_files : see lesions.by_files, '' where splits are drawn or known
    Raises InputError with every unit that cannot be used; the others are done then. Likewise where the drawn
    splits leave nothing to train or to validate on.
    """
    folder, table = lesions.folder(layout, data), lesions.table(layout, data)
    if data in ('', '.', '..') or '/' in data:
        raise InputError(f'DATA={data!r}: must be a folder\'s name')
    settings = {'version': VERSION} | {name: value for name, value in vars(cfg).items()
                                       if name not in NOT_PIXELS}

    def work(unit):
        found, content = _held(record, unit)
        if found is None:
            table.unlink(missing_ok=True)   # until all is done
            found = _write(record, unit, content)
            return found, len(found)
        return found, 0

    with extraction.at_work(folder, settings, layout) as record:
        made = files.for_all(work, units, f'preparing {data}', cfg.NUM_WORKERS,
                             remedy='replace or remove these files')
        rows = [row for found, _ in made for row in found if 'why' not in row]
        left_out = [row for found, _ in made for row in found if 'why' in row]
        counted = Counter(row['name'] for row in rows)
        twice = sorted(name for name, count in counted.items() if count > 1)
        if twice or not rows:
            raise InputError(f'{data} cannot be prepared',
                             [f'{name}: is there twice' for name in twice] or ['no lesion is left'])
        _split(rows, cfg, index_files)
        table.unlink(missing_ok=True)
        extraction.print_lines('left out', [f'{row["name"]}: {row["why"]}' for row in left_out])
        lesions.write_facts(layout, data, {
            'side': cfg.PATCH_SIZE, 'drawn': drawn, 'truth': truth, 'settings': vars(cfg),
            'lesions': len(rows), 'left out': len(left_out)})
        lesions.write(layout, data, rows)
        panel(layout, data, rows)
    written = sum(count for _, count in made)
    counts = {split: sum(row['split'] == split for row in rows) for split in SPLITS}
    groups = {split: len({row['group'] for row in rows if row['split'] == split}) for split in SPLITS}
    print(f'{folder}: {len(rows)} lesions, {len(rows) + len(left_out) - written} were up to date; '
          + ', '.join(f'{split} {counts[split]} (of {groups[split]} groups)' for split in SPLITS))
    overlaps = [row['iou'] for row in rows if row['iou'] is not None]
    if overlaps:
        print(f'the ellipse against the true mask: IoU {np.mean(overlaps):.3f}, least {min(overlaps):.3f}')


def _outputs(row):
    parts = lesions.PARTS if row.get('iou') is not None else lesions.PARTS[:2]
    return [] if 'why' in row else [f'{part}/{row["name"]}.png' for part in parts]


def _held(record, unit):
    """(The rows of a unit that is up to date or None, the content of its sources and of `about`)."""
    contents = list(map(record.contents.of, unit.sources))
    about = hashlib.sha256(unit.about.encode()).hexdigest()[:16]
    content, name = ' '.join([*contents, about]), f'rows/{unit.name}.json'
    if not all(contents) or not record.holds(name, content):
        return None, content
    rows = files.read_json(record.folder / name).get('rows', [])
    current = all(record.holds(output, content) for row in rows for output in _outputs(row))
    return (rows if current else None), content


def _write(record, unit, content):
    rows, arrays = [], []
    for lesion in unit.make():
        if isinstance(lesion, LeftOut):
            rows.append(vars(lesion))
            continue
        iou = None if lesion.mask is None else ellipses.overlap(lesion.ellipse, lesion.mask)
        rows.append({'name': lesion.name, 'split': lesion.split, 'group': lesion.group,
                     'picture_width': lesion.size[0], 'picture_height': lesion.size[1],
                     **dict(zip(lesions.ELLIPSE, map(float, lesion.parameters), strict=True)), 'iou': iou})
        arrays.append((lesion.patch, 255 * lesion.ellipse, None if iou is None else 255 * lesion.mask))
    for row, pictures in zip((row for row in rows if 'why' not in row), arrays, strict=True):
        for output, array in zip(_outputs(row), pictures, strict=False):
            images.write_png(record.folder / output, array)
    name = f'rows/{unit.name}.json'
    files.write_text(record.folder / name, json.dumps({'rows': rows}) + '\n')
    for source, before in zip(unit.sources, content.split(' ')[:-1], strict=True):
        extraction.refuse_changed(source, before, record.contents.of(source))
    for output in (*(output for row in rows for output in _outputs(row)), name):
        record.note(output, content)
    return rows


def _split(rows, cfg, index_files):
    """Fill in the splits where the data set has none of its own."""
    if all(row['split'] for row in rows):
        return
    rows.sort(key=lambda row: row['name'])   # the original's order
    if index_files:
        splits = lesions.by_files(index_files, len(rows))
    elif cfg.SPLIT == 'random':
        splits = lesions.at_random(len(rows), cfg.SEED)
    else:
        splits = lesions.by_group([row['group'] for row in rows], cfg.SEED)
    for row, split in zip(rows, splits, strict=True):
        row['split'] = split
    empty = [split for split in SPLITS if split not in splits]
    if empty and not index_files:   # those are said by the user
        groups = len({row['group'] for row in rows})
        fault = f'SPLIT={cfg.SPLIT}: {len(rows)} lesions of {groups} groups leave none for {", ".join(empty)}'
        if empty == [SPLITS[2]]:   # a network is trained without it
            print(fault)
            return
        ways = ['prepare more']
        if cfg.SPLIT == 'group' and {*SPLITS[:2]} <= {*lesions.at_random(len(rows), cfg.SEED)}:
            ways.append('--SPLIT=random, which tears groups apart')
        if 'DIAMETERS' in vars(cfg):
            ways.append('name the splits in a column of the csv of --DIAMETERS')
        raise InputError('Too few groups to be split', [fault], ', or '.join(ways))


def panel(layout, data, rows):
    """Draw some lesions with mask and ellipse: panel.png."""
    shown, folder = [], lesions.folder(layout, data)
    for row in (rows[number] for number in spread(len(rows), PANEL_ROWS)):
        read = {output.partition('/')[0]: folder / output for output in _outputs(row)}
        patch, ellipse = images.read_rgb(read['patches']), images.read_mask(read['ellipses'])
        mask = images.read_mask(read['masks']) if 'masks' in read else np.zeros_like(ellipse)
        said = '' if row['iou'] is None else f'\nIoU {row["iou"]:.2f}'
        shown.append((f'{row["name"][-24:]}{said}',
                      [patch, mask, ellipse, figures.outlined(patch, mask, ellipse)]))
    figures.panel(shown, ['patch', 'true mask', 'ellipse', 'mask, ellipse'], folder / 'panel.png')
