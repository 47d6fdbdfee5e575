"""Prepare PH2 for testing and for cross-validated fine-tuning, stage 1 included.

Reads   the unpacked download of PH2, dataset/data/PH2Dataset/ or SOURCE (dataset/ph2.py shows its
        layout), and ISIC-2017's validation split below dataset/data/
Writes  PH2/all/        an experiment root with all of PH2 as test split, for ISIC-2017's networks
        PH2/fold_<k>/   an experiment root for each fold: it is the test split, the other folds are
                        the training split, ISIC-2017's validation split is the validation split
        PH2/folds.csv   image_id, diagnosis, fold; a fold whose lists are there is complete
        dataset/cls_data/Validation_resize_crop9_cls/, where stage 1 has not made it

    python dataset/prepare_PH2.py

Pictures lie in PH2/all/, the folds link to them; crops and lists are those of stage 1. Common and
atypical nevi are one class, but each fold has its share of all three diagnoses.

Costs   90 s of processor time for 200 pictures of 768x560 px (2 minutes on two busy cores), and
        1 GB of disk.

A later run redoes only what is missing or changed; after an interruption the same command goes on.
Folds of another FOLDS or SEED replace the former ones, unless networks were trained on those.
"""
import re
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python dataset/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from dataset import extraction, folds, isic, label_csv, ph2
from dataset.layout import Layout
from engine import cli, files, images, settings
from engine.errors import InputError

# --- Where
ROOT = '.'                        # folder with dataset/data below it; the new roots go to <ROOT>/PH2
RECIPE = 'default'                # default, or a file of recipes/
SOURCE = ''                       # folder of the unpacked download; '' = <ROOT>/dataset/data/PH2Dataset

# --- Data
FOLDS = 4                         # number of folds, 2 or more (paper)
SEED = 0                          # of the folds, 0 or more
MAX_SIDE = 1600                   # px, long side of the training pictures and masks (released)

# --- Machine
NUM_WORKERS = 0                   # threads; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('MAX_SIDE',), least={'FOLDS': 2, 'SEED': 0})
    layout, home = Layout(cfg.ROOT), Path(cfg.ROOT) / 'PH2'
    cfg.SOURCE = cfg.SOURCE or str(layout.data / 'PH2Dataset')
    cases = read(cfg, layout)
    whole = Layout(home / 'all')
    parts, table = make_folds(cases, home, cfg)
    clear_other_folds(home, table)

    extraction.extract_crops(layout, 'Validation', cfg.NUM_WORKERS)
    write_pictures(whole, cases, cfg.NUM_WORKERS)
    write_labels(whole, 'Testing', cases)
    stage_1(whole, ['Testing'], cfg)
    for fold, splits in parts.items():
        make_links(layout, whole, fold, splits)
        for name, members in splits.items():
            write_labels(fold, name, members)
        stage_1(fold, splits, cfg)
    print(f'{whole.root}: test split of {in_words(cases)}')
    for fold, splits in parts.items():
        print(f'{fold.root}: test split of {in_words(splits["Testing"])}; '
              f'{len(splits["Training"])} training pictures')


def read(cfg, layout):
    """PH2's cases; raises InputError with the faults of PH2 and of ISIC-2017's validation split together."""
    cases, faults, remedies = [], [], []
    for part in (lambda: cases.extend(ph2.read(Path(cfg.SOURCE), cfg.NUM_WORKERS)),
                 lambda: isic.classification_images(layout, 'Validation'),
                 lambda: isic.segmentation_images(layout, 'Validation')):
        try:
            part()
        except InputError as error:
            faults += error.faults or [error.summary]
            remedies.append(error.remedy)
    if cases and min(count_diagnoses(cases)) < cfg.FOLDS:
        faults.append(f'FOLDS={cfg.FOLDS}: {cfg.SOURCE} holds {in_words(cases)}')
        remedies.append('a lower FOLDS, so that each fold gets every diagnosis')
    if faults:
        raise InputError('PH2, or the validation split of ISIC-2017, cannot be used',
                         dict.fromkeys(faults), '; '.join(dict.fromkeys(remedies)))
    return cases


def count_diagnoses(cases):
    """How many cases have each of ph2.DIAGNOSES, a list."""
    return [sum(case.diagnosis == number for case in cases) for number in range(len(ph2.DIAGNOSES))]


def in_words(cases):
    """The counts of `count_diagnoses` as text."""
    return ', '.join(f'{count} {name}'
                     for count, name in zip(count_diagnoses(cases), ph2.DIAGNOSES, strict=True))


def make_folds(cases, home, cfg):
    """({Layout of a fold: {split: its cases}}, text of folds.csv); each diagnosis is spread evenly."""
    number_of = folds.assign([case.image_id for case in cases], cfg.FOLDS, cfg.SEED,
                             {case.image_id: case.diagnosis for case in cases})
    parts = {Layout(home / f'fold_{number}'): {
        'Training': [case for case in cases if number_of[case.image_id] != number],
        'Testing': [case for case in cases if number_of[case.image_id] == number]}
        for number in range(1, cfg.FOLDS + 1)}
    rows = [f'{case.image_id},{ph2.DIAGNOSES[case.diagnosis]},{number_of[case.image_id]}' for case in cases]
    return parts, '\n'.join(['image_id,diagnosis,fold', *rows]) + '\n'


def picture_paths(layout, split, image_id):
    """Paths of a picture and of its mask."""
    folder = layout.originals(split)
    return folder / 'Images' / f'{image_id}.png', folder / 'Annotation' / f'{image_id}{isic.MASK_SUFFIX}.png'


def clear_other_folds(home, table):
    """Remove folds that are not those of `table` (text of the coming folds.csv), and write it.

    Raises InputError where files of others would be lost, or where a network was trained: it would be
    tested on pictures that it was trained on.
    """
    path = home / 'folds.csv'
    same = path.is_file() and path.read_bytes() == table.encode()
    roots = sorted(path for path in home.glob('fold_*') if re.fullmatch(r'fold_\d+', path.name))
    faults = [f'{file}: is no link of this script' for root in roots for file in Layout(root).data.rglob('*')
              if file.is_file() and not file.is_symlink()
              and file.suffix != '.csv' and not file.name.startswith('.')]
    if not same:
        faults += [f'{file}: was trained with other folds' for root in roots
                   for file in sorted(Layout(root).models.glob('*/*.pth'))]
    if faults:
        raise InputError(f'{home} holds what would be lost', faults,
                         'move it away, or take the former FOLDS and SEED')
    if not same:
        path.unlink(missing_ok=True)   # a run that is killed now begins here again
        for root in roots:
            shutil.rmtree(root / 'dataset', ignore_errors=True)
            if not any(root.iterdir()):
                root.rmdir()
        files.write_text(path, table)


def write_pictures(whole, cases, workers):
    """Bring the png copies of all pictures and masks up to date."""
    def bring(entry):
        source, target, read, write = entry
        name, content = target.relative_to(folder).as_posix(), files.fingerprint(source)
        if record.holds(name, content):
            return False
        write(target, read(source))
        extraction.refuse_changed(source, content, files.fingerprint(source))
        record.note(name, content)
        return True

    folder, entries = whole.originals('Testing'), []
    for case in cases:
        image, mask = picture_paths(whole, 'Testing', case.image_id)
        entries += [(case.image, image, images.read_rgb, images.write_png),
                    (case.mask, mask, images.read_mask, images.write_mask)]
    with extraction.at_work(folder, {'version': extraction.VERSION}, whole) as record:
        written = sum(files.for_all(bring, entries, 'PH2 png copies', workers))
    for path in {*folder.glob('*/IMD*.png')} - {target for _, target, _, _ in entries}:
        path.unlink()
    print(f'PH2 pictures and masks: {len(entries) - written} of {len(entries)} were up to date, '
          f'{written} written to {folder}')


def write_labels(layout, split, cases):
    """Write the split's label csv, where it differs."""
    label_csv.write(layout.labels(split), {case.image_id: ph2.CLASSES[case.diagnosis] for case in cases})


def make_links(layout, whole, fold, splits):
    """Link a fold's pictures and masks to those of `whole`, its validation split to ISIC-2017's."""
    links = {fold.originals('Validation'): layout.originals('Validation'),
             fold.data / layout.labels('Validation').name: layout.labels('Validation'),
             fold.crops('Validation'): layout.crops('Validation')}
    for split, members in splits.items():
        for case in members:
            links.update(zip(picture_paths(fold, split, case.image_id),
                             picture_paths(whole, 'Testing', case.image_id), strict=True))
    for path, target in links.items():
        extraction.link(path, target)


def stage_1(layout, splits, cfg):
    """Crops, prepared training pictures and lists of a root."""
    for split in splits:
        extraction.extract_crops(layout, split, cfg.NUM_WORKERS)
    if 'Training' in splits:
        extraction.prepare_segmentation(layout, cfg.MAX_SIDE, workers=cfg.NUM_WORKERS)
    extraction.write_lists(layout, extraction.classification_lines, layout.classification_list)
    extraction.write_lists(layout, extraction.segmentation_lines, layout.segmentation_list)


if __name__ == '__main__':
    cli.launch(main)
