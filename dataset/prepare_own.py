"""Make an experiment root of your own pictures, masks and labels, stage 1 included.

Reads   IMAGES   a folder of pictures (jpg, png or bmp) and all below it, but for what is below ROOT; a file's
                 name is the picture's id
        MASKS    the same of masks, <id>.png or <id>_segmentation.png, of all, some or none of the pictures
        LABELS   a csv: image,label; or a column of 0 and 1 for each class (ISIC-2018, ISIC-2019); or
                 metadata with image_id and dx (HAM10000); perhaps lesion_id, patient_id and split
Writes  <ROOT>/dataset/data/             links to the pictures and masks in three splits, a csv of labels for
                                         each, classes.toml, which names the classes (dataset/classes.py)
        <ROOT>/split.csv                 image_id, class, split, group, mask
        <ROOT>/dataset/{seg_data,cls_data,ISIC}/   what stage 1 makes of them

    python dataset/prepare_own.py --IMAGES=mine/pictures --MASKS=mine/masks --LABELS=mine/labels.csv

Pictures of one lesion_id or patient_id, or of the same content, are never in two splits. A column `split`
with train, val and test is followed. Else each split gets its share of every class and of its masks, by SEED.

Costs   36 s of processor time and 0.4 GB of disk for 860 pictures of 200x150 px; see stage 1 for larger ones.

A later run redoes only what is missing or changed; after an interruption the same command goes on. Another
split replaces the former one, unless networks were trained on that.
"""
import csv
import io
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python dataset/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from tabulate import tabulate

from dataset import classes, extraction, isic, label_csv, own
from dataset.layout import SPLITS, Layout
from engine import cli, files, images, settings
from engine.contents import Contents, Record
from engine.errors import InputError

# --- Where
ROOT = 'own'              # the new experiment root
RECIPE = 'default'        # default, or a file of recipes/
IMAGES = ''               # folder of the pictures
MASKS = ''                # folder of the masks; '' = there are none
LABELS = ''               # csv of the labels

# --- Classes
CLASSES = ''              # names, in their order; '' = those of ROOT's classes.toml, else all that occur
SCORED = ''               # those that are scored, each against the rest; '' = likewise

# --- Splits
VALIDATION_SHARE = 0.15   # of the pictures, where the csv gives no validation split
TESTING_SHARE = 0.15      # likewise; 0 = no test split
SEED = 0                  # of the shares, 0 or more

# --- Masks
RESIZE_MASKS = False      # bring masks of another size, in the same proportions, to their pictures' (nearest)
MAX_SIDE = 1600           # px, long side of the training pictures and masks (released)

# --- Machine
NUM_WORKERS = 0           # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('MAX_SIDE', 'VALIDATION_SHARE'), check=check,
                           least={'SEED': 0, 'TESTING_SHARE': 0})
    layout, labels = Layout(cfg.ROOT), Path(cfg.LABELS)
    refuse_foreign(layout, labels)
    table = class_table(layout, labels, own_names(cfg.CLASSES), own_names(cfg.SCORED))
    cases, columns, notes = own.read(Path(cfg.IMAGES), Path(cfg.MASKS) if cfg.MASKS else None, labels, table,
                                     cfg.RESIZE_MASKS, cfg.NUM_WORKERS, layout.root)
    group_of = own.groups(cases, columns, layout.cache)
    split_of = own.share_out(cases, columns, group_of, {
        'Validation': cfg.VALIDATION_SHARE, 'Testing': cfg.TESTING_SHARE}, cfg.SEED)
    parts = {split: [case for case in cases if split_of[case.image_id] == split] for split in SPLITS}
    refuse_empty(parts, table, layout)
    record_split(layout, cases, table, split_of, group_of)

    classes.write(layout.data, table)
    for split, members in parts.items():
        place(layout, split, members, cfg)
        if members:
            label_csv.write(layout.labels(split), {case.image_id: case.label for case in members}, table)
            extraction.extract_crops(layout, split, cfg.NUM_WORKERS)
    if any(case.mask for case in parts['Training']):
        extraction.prepare_segmentation(layout, cfg.MAX_SIDE, True, cfg.NUM_WORKERS)
    extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)
    extraction.write_lists(layout, segmentation_lines, layout.segmentation_list, may_lack=True)
    summarise(layout, parts, table, notes)


def check(cfg):
    """Faults of the settings together, a list of lines."""
    faults = [f'{name} is missing: name a {what}' for name, what in (
        ('IMAGES', 'folder of pictures'), ('LABELS', 'csv of labels')) if not getattr(cfg, name)]
    if cfg.VALIDATION_SHARE + cfg.TESTING_SHARE >= 1:
        faults.append(f'VALIDATION_SHARE={cfg.VALIDATION_SHARE} and TESTING_SHARE={cfg.TESTING_SHARE}: '
                      'together they must leave a share for training')
    layout = Layout(cfg.ROOT)
    for name, folder in (('IMAGES', Path(cfg.IMAGES)), ('MASKS', Path(cfg.MASKS))):
        mixed = layout.data.resolve().is_relative_to(folder.resolve())
        if getattr(cfg, name) and mixed and not own.holds_root(folder, layout.root):
            faults.append(f'{name}={folder}: a second run would find there what the first one puts below '
                          f'ROOT={cfg.ROOT}; choose a new folder, --ROOT=...')
    return faults


def own_names(text):
    """('nv', 'mel') of 'nv, mel'."""
    return tuple(filter(None, (name.strip() for name in text.split(','))))


def class_table(layout, labels, names, scored):
    """The ClassTable of the root's classes.toml where it has one and none is named, else one that is made.

    labels : path of the csv; names, scored : of the command line, tuples. Raises InputError.
    """
    path = layout.data / classes.FILE
    if names or not path.is_file():
        return own.make_table(labels, names, scored)
    table = layout.classes
    if odd := [f'SCORED: {name!r} is no class of {path}' for name in scored if name not in table.names]:
        raise InputError('Classes cannot be scored', odd, f'its classes are {", ".join(table.names)}')
    return replace(table, scored=scored or table.scored)


def segmentation_lines(layout, split):
    """As extraction's; pictures without a mask are left out, which is no news here."""
    pairs, _ = isic.segmentation_images(layout, split, skip_unpaired=True)
    return extraction.lines_of_pairs(layout, split, pairs)


def places(layout, split, case):
    """Paths of a picture and of its mask below the root."""
    folder = layout.originals(split)
    return (folder / 'Images' / f'{case.image_id}{case.image.suffix.lower()}',
            folder / 'Annotation' / f'{case.image_id}{isic.MASK_SUFFIX}.png')


def refuse_foreign(layout, labels):
    """Raise InputError where what is below a root is not of this script: ISIC-2017, say. labels : path"""
    path, faults = layout.root / SPLIT_FILE, []
    text = path.read_text(encoding='utf-8-sig', errors='replace') if path.is_file() else ''
    ours = text.partition('\n')[0] == ','.join(COLUMNS)   # any file may have this name
    if path.is_file() and labels.is_file() and path.samefile(labels):
        faults.append(f'{path}: is the label file itself, and would be replaced')
    elif path.is_file() and not ours:
        faults.append(f'{path}: its first line is not {",".join(COLUMNS)}')
    for split in SPLITS:
        there = foreign_pictures(layout, split) if ours else (layout.originals(split), layout.labels(split))
        faults += [f'{path}: is there' for path in there if path.exists()]
    if faults:
        raise InputError(f'{layout.root} holds what this script did not put there', faults,
                         'choose a new folder, --ROOT=..., or move these files away')


def foreign_pictures(layout, split):
    """Pictures and masks of a split (paths) that are neither links nor masks that `place` has written."""
    folder = layout.originals(split)
    made = Record(folder / isic.RECORD, Contents(layout.cache)).made
    return [path for part in ('Images', 'Annotation') for path in sorted((folder / part).glob('[!.]*'))
            if path.suffix.lower() in images.EXTENSIONS and not path.is_symlink()
            and path.relative_to(folder).as_posix() not in made]


SPLIT_FILE = 'split.csv'
COLUMNS = 'image_id', 'class', 'split', 'group', 'mask'


def refuse_empty(parts, table, layout):
    """Raise InputError where a split that is trained or validated on lacks a scored class, or all classes."""
    faults = [f'{split}: no picture of {name}' for split in ('Training', 'Validation') for name, number in
              table.tasks.items() if not any(case.label == number for case in parts[split])]
    if faults:
        raise InputError('A class that is scored needs pictures to train and to validate on', faults,
                         'each lesion or patient lies in one split, so that a class needs three of them; '
                         f'leave the class out of --SCORED (or of scored in {layout.data / classes.FILE})')


def record_split(layout, cases, table, split_of, group_of):
    """Write split.csv. Raises InputError where networks were trained and a picture changes its split or goes
    (to come back by another name, say): they would be tested on what they were trained on."""
    path, text = layout.root / SPLIT_FILE, files.csv_text([
        COLUMNS,
        *((case.image_id, table.names[case.label], split_of[case.image_id], group_of[case.image_id],
           'yes' if case.mask else 'no') for case in cases)])
    before = path.read_text(encoding='utf-8-sig', errors='replace') if path.is_file() else ''
    trained = sorted(layout.models.glob('*/*.pth'))
    earlier = {label_csv.plain_id(row.get('image_id') or ''): row.get('split')
               for row in csv.DictReader(io.StringIO(before))}
    moved = [f'{name}: would move from {split} to {split_of[name]}' if name in split_of else
             f'{name}: is no longer among the pictures' for name, split in earlier.items()
             if split_of.get(name) != split]
    if '' in earlier or None in earlier.values():
        moved = [f'{path}: does not say an image_id and a split in each of its lines']
    if moved and trained:
        raise InputError(f'{path} would change', [
            *moved[:5], *([f'and {len(moved) - 5} more'] if len(moved) > 5 else []),
            *(f'{weights}: was trained with it' for weights in trained)],
            'give the splits of split.csv in a column of the labels, choose another --ROOT, or move the '
            'networks away')
    files.write_changed(path, text)


def place(layout, split, members, cfg):
    """Link a split's pictures and masks, and write the masks that are resized; remove what is gone."""
    folder, resized = layout.originals(split), []
    if not members:
        clear(folder, set())
        layout.labels(split).unlink(missing_ok=True)
        return
    wanted = set()
    for case in members:
        image, mask = places(layout, split, case)
        wanted |= {image, *([mask] if case.mask else [])}
        extraction.link(image, case.image)
        if case.mask and images.image_size(case.mask) == case.size and case.mask.suffix.lower() == '.png':
            extraction.link(mask, case.mask)
        elif case.mask:
            resized.append((case, mask))

    def bring(entry):
        case, mask = entry
        name, content = mask.relative_to(folder).as_posix(), record.contents.of(case.mask)
        if record.holds(name, content) and not mask.is_symlink():
            return False
        mask.unlink(missing_ok=True)
        record.note(name, '')   # a kill before it is noted whole leaves no file that seems another's
        images.write_mask(mask, images.resize_mask(images.read_mask(case.mask), case.size))
        extraction.note(record, case.mask, content, name)
        return True

    with extraction.at_work(folder, {'version': extraction.VERSION}, layout) as record:
        clear(folder, wanted)
        written = sum(files.for_all(bring, resized, f'{split} masks', cfg.NUM_WORKERS))
    if resized:
        print(f'{split} masks: {len(resized) - written} of {len(resized)} were up to date, {written} brought '
              'to the size of their pictures')


def clear(folder, wanted):
    """Remove the links and masks of a split that are not among `wanted` (paths), and a folder left empty."""
    for path in [*folder.glob('Images/*'), *folder.glob(f'Annotation/*{isic.MASK_SUFFIX}.png')]:
        if path not in wanted and (path.is_symlink() or path.parent.name == 'Annotation'):
            path.unlink()
    if not wanted and folder.is_dir():
        for path in (folder / isic.RECORD, folder / '.lock'):
            path.unlink(missing_ok=True)
        for part in (folder / 'Images', folder / 'Annotation', folder):
            if part.is_dir() and not any(part.iterdir()):
                part.rmdir()


def summarise(layout, parts, table, notes):
    """Print the splits by class, notes, and what can be done now."""
    rows = []
    for split, members in parts.items():
        counts = Counter(case.label for case in members)
        rows.append((split, len(members), sum(case.mask is not None for case in members),
                     *(counts[number] for number in range(len(table)))))
    print(tabulate(rows, ('', 'pictures', 'masks', *table.names), 'plain'))
    print(f'{layout.data / classes.FILE}: scored are {", ".join(table.scored)}; 15 training crops of '
          f'{", ".join(table.rare) or "no class"}, 9 of the others')
    lacking = [name for name, number in table.tasks.items()
               if parts['Testing'] and not any(case.label == number for case in parts['Testing'])]
    notes += [f'Testing: no picture of {name}, its AUC is not defined there' for name in lacking]
    notes += [f'{split}: no picture has a mask; {isic.WITHOUT_MASKS}' for split in ('Training', 'Validation')
              if not any(case.mask for case in parts[split])][:1]
    extraction.print_lines('notes', notes)


if __name__ == '__main__':
    cli.launch(main)
