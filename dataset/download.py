"""Stage 0: fetch ISIC-2017 and lay it out as stage 1 reads it; with --EXTRA=True the extra pictures.

Reads   https://isic-challenge-data.s3.amazonaws.com/2017/, or the same zip and csv files where they
        lie already (ZIPS); then no network is needed
Writes  dataset/data/ISIC-2017_{Training,Validation,Testing}_Data/{Images,Annotation}, the label csvs,
        the zip files (unless KEEP_ZIPS=False) and downloads.json, their sizes and hashes

    python dataset/download.py
    python dataset/download.py --EXTRA=True

Costs   12 GB to fetch, 24 GB on the disk with the zip files, 12 GB without. Interrupted, it goes on
        where it stopped. Superpixels and metadata are not unpacked.

With EXTRA=True it prints how to get the paper's 1320 extra training pictures with isic-cli and, once
they lie in dataset/data/isic-cli/, joins them into ISIC-2017_Training_Add_Data/Images and its csv.
"""
import csv
import re
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))   # for `python dataset/...`
if __name__ == '__main__':
    from engine import cli
    cli.end_on_ctrl_c()   # in the imports, too, which take seconds

import filelock

from dataset import extraction, fetch, isic, label_csv
from dataset.classes import PAPER
from dataset.layout import ADDED, Layout
from engine import cli, files, settings
from engine.errors import InputError
from engine.images import EXTENSIONS

# --- Where
ROOT = '.'              # folder with dataset/data below it (released: the repository)
RECIPE = 'default'      # default, or a file of recipes/
ZIPS = ''               # folder of the zip files, there or to be fetched; empty = dataset/data
BASE_URL = 'https://isic-challenge-data.s3.amazonaws.com/2017/'   # folder of the challenge's files
EXTRA_URL = ('https://raw.githubusercontent.com/YtongXie/MB-DCNN/master/dataset/'
             'Extra_images.csv')   # ids of the 1320 extra pictures (released)

# --- What
SPLITS = 'Training,Validation,Testing'   # of the challenge, with commas between
EXTRA = False           # True: not the challenge, but the paper's extra training pictures
KEEP_ZIPS = True        # False removes each zip file of dataset/data once it is unpacked

# --- Network and machine
TIMEOUT = 30.0          # seconds without a byte after which an attempt ends
RETRIES = 5             # further attempts after one that brought nothing
NUM_WORKERS = 0         # threads that unpack; 0 = one for each core


def main():
    cfg = settings.resolve(globals(), positive=('TIMEOUT',), least={'RETRIES': 0, 'NUM_WORKERS': 0},
                           check=check)
    layout = Layout(cfg.ROOT)
    layout.data.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(layout.data / '.download.lock', timeout=0):
            if cfg.EXTRA:
                fetch_extra(layout, cfg)
            else:
                fetch_challenge(layout, cfg)
    except filelock.Timeout:
        raise InputError('Two downloads into one folder', [f'{layout.data}: another one is running'],
                         'wait for it') from None


# Below main(), where settings.resolve does not look: these are fixed, not settings.
REMOTE_NAMES = {'Training': 'Training', 'Validation': 'Validation', 'Testing': 'Test_v2'}
PICTURES = {'Training': 2000, 'Validation': 150, 'Testing': 600}   # in the official splits
FOR_EXTRA = 'dataset/download.py', '--EXTRA=True'
PH2 = """Optional: PH2, 200 pictures to test on. Its makers give it to who fills in a form:
  https://www.fc.up.pt/addi/ph2%20database.html
  Unpack it to {folder} (that folder then holds PH2_dataset.txt and 'PH2 Dataset images/').
Optional: the paper's 1320 extra training pictures: {command}"""


@dataclass(frozen=True)
class Part:
    """One file of the challenge.

    path : where the file lies or will lie; url : where it comes from
    target : folder of its content, None for a label csv; wanted : accepts names to unpack
    members : number of files in its content in the official split
    """
    path: Path
    url: str
    target: Path = None
    wanted: object = None
    members: int = 0

    def count(self):
        """Number of unpacked files of its kind in its folder."""
        return sum(self.wanted(path.name) for path in self.target.glob('*'))


def check(cfg):
    """Faults of SPLITS and ROOT, a list of lines."""
    faults = [f'SPLITS: {split!r} must be one of {", ".join(REMOTE_NAMES)}'
              for split in cfg.SPLITS.split(',') if split not in REMOTE_NAMES]
    layout = Layout(cfg.ROOT)
    if layout.drawn:
        faults.append(f'ROOT={cfg.ROOT}: {layout.data} holds drawn pictures (make_demo_data.py)')
    return faults


def parts_of(layout, cfg, split):
    """The three files of a split: pictures, masks, labels."""
    def part(ending, folder=layout.data, *content):
        name = f'ISIC-2017_{REMOTE_NAMES[split]}_{ending}'
        return Part(folder / name, f'{cfg.BASE_URL.rstrip("/")}/{name}', *content)

    zips, target = Path(cfg.ZIPS or layout.data), layout.originals(split)
    return (part('Data.zip', zips, target / 'Images', is_picture, PICTURES[split]),
            part('Part1_GroundTruth.zip', zips, target / 'Annotation', is_mask, PICTURES[split]),
            part('Part3_GroundTruth.csv'))


def is_picture(name):
    """True for a photograph's file name; not for superpixels, metadata and hidden files."""
    path = Path(name)
    return (path.suffix.lower() in EXTENSIONS and not name.startswith('.')
            and not path.stem.endswith(('_superpixels', isic.MASK_SUFFIX)))


def is_mask(name):
    """True for a part 1 mask's file name."""
    return name.lower().endswith(f'{isic.MASK_SUFFIX}.png') and not name.startswith('.')


def fetch_challenge(layout, cfg):
    """Fetch, check and unpack everything of cfg.SPLITS that is not there."""
    record = fetch.Record(layout.data)
    parts = {split: parts_of(layout, cfg, split) for split in cfg.SPLITS.split(',')}
    for *_, labels in parts.values():
        beside_zips = Path(cfg.ZIPS) / labels.path.name
        if cfg.ZIPS and beside_zips.is_file() and not labels.path.exists():
            files.write_bytes(labels.path, beside_zips.read_bytes())
    to_do = [part for split_parts in parts.values() for part in split_parts
             if part.path.exists() or part.target is None   # a zip file whose content is there may be gone
             or part.count() < record.entries.get(part.path.name, {}).get('members', part.members)]
    plan(to_do, cfg)
    for part in to_do:
        # Some servers answer with a page instead of the labels.
        found = fetch.download(part.url, part.path, cfg.TIMEOUT, cfg.RETRIES, record.sha256(part.path),
                               None if part.target else label_csv.read)
        if part.target:
            members = fetch.unpack(part.path, part.wanted, part.target, cfg.NUM_WORKERS)
            record.note(part.path, part.url, found, members=members)
            if not (cfg.KEEP_ZIPS or cfg.ZIPS):
                part.path.unlink()
        else:
            record.note(part.path, part.url, found)
    for split, (pictures, masks, labels) in parts.items():
        found = len(label_csv.read(labels.path))
        print(f'{split}: {pictures.count()} pictures, {masks.count()} masks, {found} labels '
              f'(the challenge has {PICTURES[split]}) in {layout.originals(split)}')
    print(PH2.format(folder=layout.data / 'PH2Dataset', command=layout.command(*FOR_EXTRA)))
    print(f'next: {layout.command("dataset/check_data.py")}')


def plan(parts, cfg):
    """Print what will be fetched and what will be on the disk; InputError when there is no room."""
    fetched, content = [], 0
    for part in parts:
        there = fetch.file_size(part.path)
        have = there or fetch.file_size(part.path.with_name(part.path.name + '.part'))
        size = there or fetch.remote_size(part.url, cfg.TIMEOUT)
        print(f'  {part.path.name:44}{fetch.readable(size):>9}  {fetch.readable(have)} are there')
        fetched.append(max(0, size - have))
        if part.target:   # pictures do not shrink in an archive; some may be unpacked already
            content += max(0, size - sum(map(fetch.file_size, part.target.glob('*'))))
    print(f'{fetch.readable(sum(fetched))} to fetch, about {fetch.readable(content)} to unpack')
    zips = sum(fetched) if cfg.KEEP_ZIPS or cfg.ZIPS else max(fetched)
    fetch.require_space(parts[0].path.parent, zips, 'the downloads')
    fetch.require_space(parts[-1].path.parent, content + (0 if cfg.ZIPS else zips), 'all of it')


# --- The extra pictures

ISIC_ID = re.compile(r'ISIC_\d{7}')
IDS_IN_A_SEARCH = 50      # the server takes addresses of about 4000 characters
PAPER_EXTRA = 'nevus 822, melanoma 466, keratosis 32'
EXTRA_COMMANDS = """Get pictures and metadata with isic-cli (of requirements-extra.txt), {searches} searches:

  n=0; while read -r search; do n=$((n+1)); \\
  isic image download --search "$search" {folder}/$n </dev/null; \\
  done <{list}

Each writes metadata.csv beside its pictures. Where the pictures are there already, put them into
{folder} and get the metadata alone:

  n=0; while read -r search; do n=$((n+1)); \\
  isic metadata download --search "$search" --outfile {folder}/$n.csv </dev/null; \\
  done <{list}

Then run this command again: {command}"""


def fetch_extra(layout, cfg):
    """Fetch the id list, print the commands of isic-cli, and join what they have brought."""
    listed = layout.data / 'Extra_images.csv'
    record = fetch.Record(layout.data)
    record.note(listed, cfg.EXTRA_URL, fetch.download(
        cfg.EXTRA_URL, listed, cfg.TIMEOUT, cfg.RETRIES, record.sha256(listed), read_ids))
    ids = read_ids(listed)
    folder, searches_path = layout.data / 'isic-cli', layout.data / 'Extra_searches.txt'
    pictures = {path.stem: path for path in sorted(folder.rglob('*'))
                if path.suffix.lower() in EXTENSIONS and path.stem in ids}
    rows = found_metadata(folder, ids)
    if pictures and rows:
        join_extra(layout, ids, pictures, rows)
        return
    searches = [' OR '.join(f'isic_id:{image_id}' for image_id in ids[start:start + IDS_IN_A_SEARCH])
                for start in range(0, len(ids), IDS_IN_A_SEARCH)]
    files.write_text(searches_path, '\n'.join(searches) + '\n')
    print(f'{len(ids)} extra pictures are named in {listed}; {len(pictures)} pictures and {len(rows)} '
          f'rows of metadata lie in {folder}')
    print(EXTRA_COMMANDS.format(searches=len(searches), folder=shlex.quote(str(folder)),
                                list=shlex.quote(str(searches_path)), command=layout.command(*FOR_EXTRA)))


def read_ids(path):
    """Sorted ids of a one-column csv without header; file name endings are tolerated."""
    text = path.read_text(encoding='utf-8-sig', errors='replace')
    lines = [line.strip().strip('",;') for line in text.splitlines() if line.strip()]
    names = [re.sub(r'\.\w+$', '', line) for line in lines]
    faults = [f'{path}: {name[:80]!r} is no image id' for name in names if not ISIC_ID.fullmatch(name)]
    if faults or not names:
        raise InputError('The list of extra pictures cannot be used', faults[:20] or [f'{path}: is empty'],
                         'remove it and run the same command again')
    return sorted(set(names))


def found_metadata(folder, ids):
    """{image id: row (dict)} of the listed ids in any csv of isic-cli below a folder.

    Raises InputError naming every csv that cannot be read.
    """
    rows, wanted, faults = {}, set(ids), []
    for path in sorted(folder.rglob('*.csv')):
        try:
            with open(path, encoding='utf-8-sig', newline='', errors='replace') as file:
                rows |= {row['isic_id']: row for row in csv.DictReader(file)
                         if row.get('isic_id') in wanted}
        except (csv.Error, OSError) as error:
            faults.append(f'{path}: cannot be read: {error}')
    if faults:
        raise InputError('Metadata of extra pictures cannot be used', faults, 'fetch them anew with isic-cli')
    return rows


def join_extra(layout, ids, pictures, rows):
    """Copy the pictures whose class is known and write their label csv; list what is left out."""
    target, labels, left_out = layout.originals(ADDED) / 'Images', {}, []
    for image_id in ids:
        row = rows.get(image_id, {})
        name = label_csv.class_of(row)
        if image_id not in pictures:
            left_out.append(f'{image_id}: no picture below {layout.data / "isic-cli"}')
        elif not row:
            left_out.append(f'{image_id}: no metadata')
        elif name is None:
            left_out.append(f'{image_id}: its diagnosis is none of {", ".join(PAPER.names)}: '
                            + ' / '.join(row.get(column) or '-' for column in label_csv.DIAGNOSES))
        else:
            labels[image_id] = name
    if not labels:
        raise InputError('None of the extra pictures can be used', left_out, 'fetch them anew with isic-cli')
    copies = [(pictures[i], target / f'{i}{pictures[i].suffix.lower()}') for i in labels]
    files.for_all(lambda pair: files.write_bytes(pair[1], pair[0].read_bytes()),
                  [pair for pair in copies if fetch.file_size(pair[0]) != fetch.file_size(pair[1])],
                  'extra pictures')
    label_csv.write(layout.labels(ADDED), {i: PAPER.names.index(name) for i, name in labels.items()})
    extraction.print_lines('left out', left_out)
    counts = Counter(labels.values())
    print(f'{len(labels)} of {len(ids)} joined in {target.parent}: '
          + ', '.join(f'{name} {counts[name]}' for name in PAPER.names) + f' (the paper: {PAPER_EXTRA})')


if __name__ == '__main__':
    cli.launch(main)
