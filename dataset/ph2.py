"""PH2 as downloaded: dermoscopic pictures with lesion masks and diagnoses, joined by image id.

    <source>/PH2 Dataset images/IMD003/IMD003_Dermoscopic_Image/IMD003.bmp   (or directly in IMD003/)
    <source>/PH2 Dataset images/IMD003/IMD003_lesion/IMD003_lesion.bmp       (likewise)
    <source>/PH2_dataset.txt                      or PH2_dataset.xlsx, where there is no txt

In names of files and columns, case, spaces and underscores do not count. The other files and columns
(masks of colour regions, dermoscopic criteria) are ignored.
"""
import re
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from dataset import extraction
from engine import files
from engine.errors import InputError

DIAGNOSES = ('common nevus', 'atypical nevus', 'melanoma')   # index = PH2's number of the diagnosis
CLASSES = (0, 0, 1)   # class number of each diagnosis: the paper merges the nevi
IMAGES = 'PH2 Dataset images'
TABLES = ('PH2_dataset.txt', 'PH2_dataset.xlsx')
PLACES = {'picture': ('{0}_Dermoscopic_Image/{0}.bmp', '{0}.bmp'),
          'mask': ('{0}_lesion/{0}_lesion.bmp', '{0}_lesion.bmp')}   # below the picture's folder
ID = re.compile(r'IMD\d+')
MOST_CELLS = 10**6   # of an xlsx; PH2's has 200 rows and 20 columns
REMEDY = f'unpack the download anew, or correct what is listed; SOURCE is the folder that holds {IMAGES!r}'


@dataclass(frozen=True)
class Case:
    """image_id : IMD003; image, mask : paths; diagnosis : number within DIAGNOSES"""
    image_id: str
    image: Path
    mask: Path
    diagnosis: int


def read(source, workers=0):
    """All cases below `source` (Path), a list of Case sorted by id; every picture and mask is decoded.

    workers : threads, 0 = one for each core. Raises InputError with all faults at once: pictures without
    mask, diagnosis or the reverse; two diagnoses of one picture; damaged files; masks that are not
    binary, empty, or of another size than their picture.
    """
    labels, faults = scan_labels(source)
    pairs, found = scan_pictures(source)
    faults += found
    if labels and pairs:   # without either, the one fault above says it all
        faults += [f'{image_id}: has no diagnosis' for image_id in pairs if image_id not in labels]
        faults += [f'{image_id}: has a diagnosis, but no folder in {source / IMAGES}'
                   for image_id in sorted(labels.keys() - pairs.keys())]
    complete = [pair for pair in pairs.values() if None not in pair]
    faults += chain.from_iterable(files.for_all(inspect, complete, 'PH2 pictures and masks', workers))
    if faults:
        raise InputError(f'{source}: PH2 cannot be used', faults, REMEDY)
    return [Case(image_id, *pair, labels[image_id]) for image_id, pair in pairs.items()]


def scan_pictures(source):
    """({image id: (picture or None, mask or None)} sorted by id, list of faults); nothing is opened."""
    folder = _find(source, IMAGES)
    if folder is None:
        return {}, [f'{source / IMAGES}: is missing']
    pairs, faults = {}, []
    for name, path in _entries(folder).items():
        image_id = name.upper()
        if not ID.fullmatch(image_id):
            continue
        pairs[image_id] = ()
        for kind, places in PLACES.items():
            places = [place.format(image_id) for place in places]
            found = [file for file in (_find(path, place) for place in places) if file]
            pairs[image_id] += (found[0] if len(found) == 1 else None,)
            if not found:
                faults.append(f'{path / places[0]}: is missing')
            elif len(found) > 1:
                faults.append(f'{found[0]} and {found[1]}: two {kind}s of one id')
    return dict(sorted(pairs.items())), faults if pairs else [f'{folder}: holds no folders IMD...']


def _find(folder, place):
    """The file or folder at `place` (words with slashes between) below a folder; None where there is none."""
    for name in place.split('/'):
        folder = _entries(folder).get(_plain(name)) if folder else None
    return folder


def _entries(folder):
    """{plain name: path} of what lies in a folder; empty where there is no such folder."""
    return {_plain(path.name): path for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def _plain(value):
    """A name or a cell of a table as it is compared: lower case, single spaces, None as ''."""
    return ' '.join(('' if value is None else str(value)).replace('_', ' ').split()).casefold()


def inspect(pair):
    """Faults of a picture and its mask, both decoded to their ends."""
    _, lesion, faults = extraction.inspect_pair(*pair)
    return faults + ([f'{pair[1]}: shows no lesion'] if lesion == 0 else [])


# Diagnoses

def scan_labels(source):
    """({image id: number of the diagnosis}, list of faults) of the table; an unusable row has None."""
    path = next((path for path in (_find(source, name) for name in TABLES) if path), None)
    if path is None:
        return {}, [f'{source / TABLES[0]}: is missing, and so is {TABLES[1]}']
    columns, meanings = DIAGNOSES, {('x', '', ''): 0, ('', 'x', ''): 1, ('', '', 'x'): 2}
    if path.suffix.lower() == '.txt':
        columns, meanings = ('clinical diagnosis',), {('0',): 0, ('1',): 1, ('2',): 2}
    try:
        rows = _rows(path)
    except Exception as error:   # noqa: BLE001 - openpyxl raises many kinds for a damaged file
        return {}, [f'{path}: cannot be read: {error}']
    labels, faults, places = {}, [], []
    for where, cells in rows:
        cells = [_plain(cell) for cell in cells]
        image_id = next((cell.upper() for cell in cells if ID.fullmatch(cell.upper())), None)
        if not places:
            found = [next((k for k, cell in enumerate(cells) if name in cell), None) for name in columns]
            # A title or a legend may hold all the names in one cell, or stand in one.
            places = found if None not in found and len(cells) > len(set(found)) == len(columns) else []
        elif image_id:
            values = tuple(cells[k] if k < len(cells) else '' for k in places)
            if values not in meanings:
                faults.append(f'{where}: {image_id} has the diagnosis '
                              + ', '.join(f'{name} = {value!r}' for name, value in
                                          zip(columns, values, strict=True)))
            if image_id in labels:
                faults.append(f'{where}: {image_id} is listed twice')
            labels[image_id] = meanings.get(values)
    if not labels:
        return {}, [f'{path}: lists no pictures below a line with the columns {", ".join(columns)}']
    return labels, faults


def _rows(path):
    """(where, cells) of each line of the txt, cells between double bars, or of each row of the xlsx."""
    if path.suffix.lower() == '.txt':
        text = path.read_text(encoding='utf-8-sig', errors='replace')   # ids and numbers are ASCII
        return [(f'{path}, line {number}', line.split('||'))
                for number, line in enumerate(text.splitlines(), start=1)]
    try:
        import openpyxl  # for this one file; of requirements-extra.txt
    except ImportError:
        raise ValueError(f'needs openpyxl: pip install openpyxl, or put {TABLES[0]} beside it') from None
    sheet = openpyxl.load_workbook(path, data_only=True).worksheets[0]
    if sheet.max_row * sheet.max_column > MOST_CELLS:   # a single stray cell far away makes billions
        raise ValueError(f'cells lie as far as row {sheet.max_row}, column {sheet.max_column}; clear those')
    return [(f'{path}, row {number}', cells)
            for number, cells in enumerate(sheet.iter_rows(values_only=True), start=1)]
