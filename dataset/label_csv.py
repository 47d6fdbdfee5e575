"""Label files: the class of each picture, in the forms that data sets come in, recognised by the header.

    image_id,melanoma,seborrheic_keratosis   ISIC-2017: 0 or 1, a nevus is neither; the paper's classes alone
    image,label                              a class's name; HAM10000's metadata call these image_id and dx
    image,MEL,NV,BCC,...                     ISIC-2018 and 2019: 1 in the column of the class, 0 elsewhere

Other columns are ignored, unless they say that a row is of another class, or of one that the table does not
know.
"""
import csv
import unicodedata

from dataset.classes import PAPER, plain
from engine import files
from engine.errors import InputError
from engine.images import EXTENSIONS

COLUMNS = ('image_id', 'melanoma', 'seborrheic_keratosis')   # of ISIC-2017
IDS = ('image', 'image_id', 'isic_id', 'image_name', 'filename', 'file', 'id')   # the first one that is there
NAMED = ('label', 'class', 'dx', 'diagnosis')   # one of them may hold the class's name
WEIGHTS = '_weight'   # ISIC-2019's test labels have columns of this ending, which are no classes
FLAGS = {'0': 0, '0.0': 0, '1': 1, '1.0': 1}
NUMBERS = {(0, 0): 0, (1, 0): 1, (0, 1): 2}   # class number by ISIC-2017's two flags
NEVUS = 'nevus', 'nv'        # columns that say what no flag says; other columns of flags are of other classes
# Of the archive's old and new metadata, and of HAM10000's.
DIAGNOSES = 'diagnosis', *(f'diagnosis_{level}' for level in range(1, 6)), 'dx'


def read(path, classes=PAPER):
    """{image id: class number} of a label csv. classes : ClassTable

    Raises InputError with every missing column, unreadable value, contradiction and duplicate, and with every
    row of a class that the table does not know.
    """
    labels, faults = scan(path, classes)
    if faults:
        raise InputError('A label file cannot be used', faults,
                         f'the file (README, stage 0) needs the columns {", ".join(COLUMNS)}, with 0 or 1 in '
                         'the last two, or image and label, or image and one of 0 and 1 for each class; '
                         f'the classes are {", ".join(classes.names)}; rows of other classes, and columns of '
                         '0 and 1 that are no classes, have to go')
    return labels


def scan(path, classes=PAPER):
    """({image id: class number}, list of faults) of a label csv; an unusable row has None."""
    columns, rows, faults = read_rows(path)
    if faults:
        return {}, faults
    if classes.names == PAPER.names and not set(COLUMNS) - set(columns):
        id_column, of_row, named = COLUMNS[0], _of_isic_2017(columns, rows), COLUMNS
    else:
        id_column, of_row, named = form_of(columns, rows, classes)
    if of_row is None:
        return {}, [f'{path}: {fault}' for fault in named]
    twice = [f'{path}: has several columns {name}' for name in named if columns.count(name) > 1]
    if twice:
        return {}, twice
    labels = {}
    for number, row in rows:
        image_id, where = id_of(row, id_column), f'{path}, line {number}'
        label, fault = of_row(row, image_id)
        if image_id in labels:
            faults.append(f'{where}: {image_id} is listed twice')
        elif not image_id:
            faults.append(f'{where}: {_as_text(row, named)}')
        elif fault:
            faults.append(f'{where}: {fault}')
        if image_id:
            labels[image_id] = label
    return labels, faults


def read_rows(path):
    """(names of the columns, [(line, {column: text})], list of faults) of a csv; nothing is interpreted."""
    try:
        with open(path, encoding='utf-8-sig', newline='') as file:
            # Strict: a quote that is never closed would swallow the rows behind it.
            reader = csv.DictReader(file, skipinitialspace=True, strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        return [], [], [f'{path}: is missing']
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        return [], [], [f'{path}: cannot be read: {error}']
    if not rows:
        return [], [], [f'{path}: has no rows']
    return [name or '' for name in reader.fieldnames], rows, []


def id_of(row, column):
    """A row's image id: without the ending that the name of a picture file has, in the form of `plain_id`."""
    text = plain_id((row.get(column) or '').strip())
    return next((text[:-len(ending)] for ending in EXTENSIONS if text.lower().endswith(ending)), text)


def plain_id(text):
    """An image id as it is joined: in Unicode's NFC; file names from a Mac may spell ö as o and two dots."""
    return unicodedata.normalize('NFC', text)


def column_of(columns, known):
    """The first of some known names (lower case) that a csv has as a column, '' where there is none."""
    there = {name.strip().casefold(): name for name in reversed(columns)}
    return next((there[name] for name in known if name in there), '')


def _of_isic_2017(columns, rows):
    """What `scan` asks of a row: function of (row, image id) -> (class number or None, fault)."""
    flagged = sorted((name for name in _flag_columns(columns, rows) if name not in COLUMNS),
                     key=lambda name: name.lower() in NEVUS)

    def of_row(row, image_id):
        flags = tuple(FLAGS.get((row[name] or '').strip()) for name in COLUMNS[1:])
        number = NUMBERS.get(flags)
        if flags == (1, 1):
            return None, f'{image_id} is melanoma and seborrheic keratosis at once'
        if None in flags:
            return None, _as_text(row, COLUMNS)
        other = _other_class(row, flagged, number)
        return number, other and f'{image_id} would be {PAPER.names[number]}, but {other}'
    return of_row


def form_of(columns, rows, classes):
    """(column of the id, function as `_of_isic_2017`'s, the columns that it reads) of the other two forms.

    The function is None, and the third a list of faults, where a csv has neither.
    """
    id_column = column_of(columns, IDS)
    named = [name for name in columns if name.strip().casefold() in NAMED]
    flagged = _flag_columns(columns, rows)
    own = [name for name in flagged if classes.number_of(name) is not None]
    if not id_column or len(set(named)) > 1 or not named and len(own) < 2:
        return '', None, _why_no_form(columns, id_column, named, classes)
    if named:
        return (id_column, lambda row, image_id: _of_name(row, image_id, named[0], classes),
                (id_column, named[0]))
    return (id_column, lambda row, image_id: _of_flags(row, image_id, flagged, classes),
            (id_column, *flagged))


def _why_no_form(columns, id_column, named, classes):
    if classes.names == PAPER.names and set(COLUMNS) & set(columns):
        return [f'has no column {name}' for name in COLUMNS if name not in columns]
    if not id_column:
        return [f'has no column {" or ".join(IDS)}']
    if named:
        return [f'has several columns that name a class: {", ".join(named)}']
    return [f'has no column {" or ".join(NAMED)}, and no columns of 0 and 1 for {", ".join(classes.names)}']


def _flag_columns(columns, rows):
    """The columns that hold nothing but flags, in their order; those of weights are left out."""
    values = {name: {(row.get(name) or '').strip() for _, row in rows} - {''} for name in columns if name}
    return [name for name, found in values.items() if found and found <= FLAGS.keys()
            and not name.lower().endswith(WEIGHTS)]


def _of_name(row, image_id, column, classes):
    word = (row[column] or '').strip()
    number = classes.number_of(word)
    said = f'{word}{UNKNOWN}' if word else 'of no class'
    return number, '' if number is not None else f'{image_id} is {said}'


def _of_flags(row, image_id, columns, classes):
    flags = {name: FLAGS.get((row[name] or '').strip()) for name in columns}
    odd, said = ([name for name in columns if flags[name] == flag] for flag in (None, 1))
    if odd:
        return None, f'{image_id}: {_as_text(row, odd)}'
    if len(said) != 1:
        return None, f'{image_id} is ' + (' and '.join(said) + ' at once' if said else 'of no class')
    number = classes.number_of(said[0])
    return number, '' if number is not None else f'{image_id} is {said[0]}{UNKNOWN}'


UNKNOWN = ', which the class table does not know'


def _as_text(row, columns):
    return ', '.join(f'{name} {row[name]!r}' for name in columns)


def classes_in(columns, rows):
    """(names of the classes in the rows of a csv, list of faults), for a class table that is to be made.

    Of names in alphabetical order, of flags in the order of the columns; what no row has is none. A csv in
    ISIC-2017's form has the paper's.
    """
    if set(COLUMNS) <= set(columns):
        return PAPER.names, []
    named = [name for name in columns if name.strip().casefold() in NAMED]
    if len(set(named)) > 1:
        return (), [f'has several columns that name a class: {", ".join(named)}']
    if named:
        words = {}
        for _, row in rows:
            word = (row[named[0]] or '').strip()
            words.setdefault(plain(word), word)
        return tuple(sorted(filter(None, words.values()), key=str.casefold)), []
    flagged = [name for name in _flag_columns(columns, rows)
               if any(FLAGS.get((row[name] or '').strip()) for _, row in rows)]
    return tuple(flagged), [] if flagged else [f'has no column {" or ".join(NAMED)}, and none of 0 and 1']


def _other_class(row, flagged, number):
    """What other columns of an ISIC-2017 csv say against a row's class number; '' for nothing.

    flagged : names of the columns that hold nothing but flags, those of nevi last
    """
    for name in flagged:
        flag = (row[name] or '').strip()
        if FLAGS.get(flag, 0) != (name.lower() in NEVUS and number == 0):
            return f'{name} is {flag or "empty"}'
    said = {name: text for name, text in row.items()
            if name and name.lower() in DIAGNOSES and isinstance(text, str) and text.strip()}
    if said and class_of({name.lower(): text for name, text in said.items()}) != PAPER.names[number]:
        return ', '.join(f'{name} is {text.strip()}' for name, text in said.items())
    return ''


def class_of(row):
    """Class name of a row of metadata by its columns DIAGNOSES; None for what is none of the paper's three.

    Malignant melanocytic proliferations are melanomas; blue, Spitz and other named nevi stand
    below 'Nevus' in the archive's tree of diagnoses.
    """
    texts = [(row.get(column) or '').strip().lower().replace('_', ' ') for column in DIAGNOSES]
    names = {'melanoma': any(text == 'mel' or text.startswith('melanoma') or text.endswith('(melanoma)')
                             for text in texts),
             'keratosis': any(text.startswith('seborrheic keratosis') for text in texts),
             'nevus': any(text in NEVUS for text in texts)}
    fitting = [name for name, fits in names.items() if fits]
    return fitting[0] if len(fitting) == 1 else None


def write(path, labels, classes=PAPER):
    """Write {image id: class number} as a label csv, where it differs from the file that is there."""
    if classes.names == PAPER.names:
        rows = [COLUMNS, *((name, float(label == 1), float(label == 2)) for name, label in labels.items())]
    else:
        rows = [('image', 'label'), *((name, classes.names[label]) for name, label in labels.items())]
    files.write_changed(path, files.csv_text(rows))
