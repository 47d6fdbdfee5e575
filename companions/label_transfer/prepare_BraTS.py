"""Label transfer: cut FLAIR slices with and without tumour from BraTS cases.

Reads   IN, a folder of cases: <case>_flair.nii.gz and <case>_seg.nii.gz, in folders or not
Writes  LabelTransfer/BraTS/ below ROOT, or OUT, in the published layout: trainA/ (with tumour), trainB/
        (without), val/ and testA/ with images/ and labels/, valB/ and testB/ (without)

    python -m companions.label_transfer.prepare_BraTS --IN=BraTS2019
    python -m companions.label_transfer.train_LabelTransfer --DATA=LabelTransfer/BraTS --KIND=brain

Cases, not slices, are parted into training, validation and test, and two years' copies of one, Brats18_<x>
and BraTS19_<x>, stay together; valB/ shows during training how often the class is right. Grey values are
scaled once for each volume, between the 1st and 99th percentile of its brain; the middle square becomes SIZE
px. All cases that cannot be used are named. Needs nibabel (companions/label_transfer/requirements.txt). Cost:
about 2 s a case.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

from companions.label_transfer import maps, volumes
from companions.label_transfer.making import making
from dataset.isic import MASK_SUFFIX
from dataset.layout import Layout
from engine import augment, cli, files, images, settings
from engine.errors import InputError

# --- Experiment
ROOT = '.'                # folder that holds LabelTransfer/
RECIPE = 'default'        # default (this file), or of recipes/: paper, cpu, cpu_few, demo
SEED = 0                  # of which cases are held out

# --- Data
IN = ''                   # folder of BraTS cases
OUT = ''                  # folder; '' = ROOT/LabelTransfer/BraTS
SLICES = 90, 95, 100, 105, 110, 115, 120   # axial planes, from 0 (released file names)
SIZE = 256                # px, side of the pictures (released)
LEAST_TUMOUR = 0.005      # share of the picture; planes with less, but some, are left out
LEAST_BRAIN = 0.1         # share of the picture, of planes without tumour
VALIDATION_SHARE = 0.12   # of the cases (released: 90 of 743 slices)
TESTING_SHARE = 0.12      # of the cases


def parts_of(names, cfg):
    """{case: part}, 'train', 'val' or 'test'. Raises InputError where one of them would be empty.

    Copies of a case, of two years, are in one part.
    """
    cases = list(dict.fromkeys(map(volumes.patient, names)))
    order = augment.generator(cfg.SEED, 0).permutation(len(cases))
    held = [round(share * len(cases)) for share in (cfg.VALIDATION_SHARE, cfg.TESTING_SHARE)]
    if min(held) < 1 or sum(held) >= len(cases):
        raise InputError('There are too few cases', [f'{len(cases)} cases, of which {held[0]} would be for '
                         f'validation and {held[1]} for the test'])
    words = ['val'] * held[0] + ['test'] * held[1] + ['train'] * (len(cases) - sum(held))
    part_of = {cases[number]: word for number, word in zip(order, words, strict=True)}
    return {name: part_of[volumes.patient(name)] for name in names}


def cut(name, case, part, cfg, maker):
    """Write the planes of one case; (with tumour, without)."""
    source = ' '.join(maker.record.contents.of(path) for path in case.values())
    volume, tumour = volumes.read_case(case)
    faults = [f'{case["flair"]}: has no plane {number}' for number in cfg.SLICES if number >= volume.shape[2]]
    if faults:
        raise InputError('A case cannot be used', faults)
    counts = [0, 0]
    for number in cfg.SLICES:
        picture, mask = (volumes.picture(one[:, :, number], cfg.SIZE) for one in (volume, tumour))
        stem = f'{name}_flair_{number}'
        if mask.mean() >= cfg.LEAST_TUMOUR:
            folder = FOLDERS[part][0]
            if part == 'train':
                maker.put(f'{folder}/{stem}.png', source, images.write_png, picture)
            else:
                maker.put(f'{folder}/images/{stem}.png', source, images.write_png, picture)
                maker.put(f'{folder}/labels/{stem}{MASK_SUFFIX}.png', source, images.write_mask, mask)
            counts[0] += 1
        elif not mask.any() and picture.any(2).mean() >= cfg.LEAST_BRAIN:
            maker.put(f'{FOLDERS[part][1]}/{stem}.png', source, images.write_png, picture)
            counts[1] += 1
    return counts


# Below the first function, where settings do not look: with tumour, without.
FOLDERS = {'train': ('trainA', 'trainB'), 'val': ('val', 'valB'), 'test': ('testA', 'testB')}
VERSION = 1   # raise it when the same settings cut other pictures than before


def main():
    cfg = settings.resolve(globals(), positive=('SIZE',), least={
        'SEED': 0, 'LEAST_TUMOUR': 0, 'LEAST_BRAIN': 0, 'VALIDATION_SHARE': 0, 'TESTING_SHARE': 0})
    cli.require('nibabel', where=maps.REQUIREMENTS)
    if not cfg.IN:
        raise InputError('IN must name a folder of BraTS cases', remedy='--IN=folder')
    layout = Layout(cfg.ROOT)
    cases, out = volumes.find_cases(cfg.IN), Path(cfg.OUT or layout.root / 'LabelTransfer' / 'BraTS')
    parts = parts_of(list(cases), cfg)
    cut_as = {'version': VERSION, 'kind': 'brain', **{
        name: value for name, value in vars(cfg).items() if name not in ('ROOT', 'RECIPE', 'IN', 'OUT')}}
    with making(out, cut_as, layout) as maker:
        found = files.for_all(lambda name: cut(name, cases[name], parts[name], cfg, maker), cases,
                              'cutting slices', summary='BraTS cases cannot be used')
        for part in FOLDERS:
            sums = [sum(counts[kind] for name, counts in zip(cases, found, strict=True)
                        if parts[name] == part) for kind in (0, 1)]
            print(f'{out}, {part}: {list(parts.values()).count(part)} cases, {sums[0]} slices with tumour, '
                  f'{sums[1]} without')


if __name__ == '__main__':
    cli.launch(main)
