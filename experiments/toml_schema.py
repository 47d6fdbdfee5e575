"""What the keys of experiments.toml are, and what values they take."""
import math
import re

from dataset.layout import SPLITS
from experiments.results import COLUMNS

MOST = 1000   # experiments of a loop, folds of a row
NAME = re.compile(r'[\w+-][\w.+ -]{0,79}', re.ASCII)   # becomes part of file names
WEAK_TRAINING, WEAK_EVALUATION = (f'companions/weak_labels/{name}_WeakSN.py' for name in ('train', 'eval'))
SCORED = {'train_CoarseSN.py': 'CoarseSN', 'train_MaskCN.py': 'MaskCN', 'train_EnhancedSN.py': 'EnhancedSN',
          WEAK_TRAINING: 'WeakSN'}
# What scores a network, where not eval_EnhancedSN.py; what needs no network is scored as it is declared.
SCORERS = {'train_MaskCN.py': 'eval_MaskCN.py', WEAK_TRAINING: WEAK_EVALUATION,
           WEAK_EVALUATION: WEAK_EVALUATION}
KINDS = {'train_MaskCN.py': 'classification', WEAK_TRAINING: 'weak', WEAK_EVALUATION: 'weak'}   # of results
NETWORKS = SCORED | {'companions/mask2lesion/train_Mask2Lesion.py': 'Mask2Lesion'}
# Scripts of companions that train nothing: the folder that each writes, and the record in it.
DRAWERS = {'companions/mask2lesion/draw_masks.py': ('Mask2Lesion/masks', 'masks.json'),
           'companions/mask2lesion/draw_lesions.py': ('Mask2Lesion/lesions', 'lesions.json')}
PICTURES = {'image': None, 'truth': None, 'contours': None,   # column of a panel: script that it is of
            'coarse mask': 'generate_Coarse_mask.py', 'CAM without mask': 'train_MaskCN.py',
            'CAM with mask': 'train_MaskCN.py', 'enhanced mask': 'train_EnhancedSN.py'}


def faults_of(where, table, kind):
    """Lines about keys that are unknown or missing, and about values that are not of their kind.

    where : of the table, in words; kind : a key of KEYS. Tables within the table are looked at, too.
    """
    known, faults = KEYS[kind], []
    for key, value in table.items():
        if key in known:
            faults += _faults_of_value(where, key, value, known[key])
        elif not (kind == 'experiment' and key.isupper()):
            faults.append(f'{where}: {key} is not known here')
    return faults + [f'{where}: needs {key}' for key in NEEDED.get(kind, ()) if key not in table]


def _faults_of_value(where, key, value, kind):
    words, fits = kind
    if not fits(value):
        return [f'{where}: {key} must be {words}']
    faults = []
    for number, part in enumerate(value if key in PARTS else (), start=1):
        if PARTS[key] not in KEYS:
            faults += _faults_of_value(where, f'{key.removesuffix("s")} {part}', part, PARTS[key])
        elif isinstance(part, dict):   # a row, panel or line goes by its label or else by its number
            label = part.get('label', part.get('axis'))
            label = repr(label) if isinstance(label, str) else number
            faults += faults_of(f'{where}, {PARTS[key]} {label}', part, PARTS[key])
        else:
            faults.append(f'{where}, {PARTS[key]} {number}: must be a table')
    return faults


def _is_text(value):
    return isinstance(value, str)


def _is_number(value):
    """NaN is a number here, infinity is not."""
    return type(value) in (int, float) and not abs(value) > 1e15


def _is_count(value):
    return type(value) is int and 1 <= value <= MOST


def _is_list(value, of):
    return isinstance(value, list) and all(map(of, value))


def _is_table(value, of):
    return isinstance(value, dict) and all(map(of, value.values()))


def _is_loop(value):
    return _is_count(value) or _is_list(value, lambda one: isinstance(one, (str, bool)) or _is_number(one))


def _stands_for_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _one_of(values):
    values = tuple(values)
    return f'one of {", ".join(values)}', values.__contains__


# Kinds of values: how a message says them, and what is true of them.
FLAG = 'true or false', lambda value: isinstance(value, bool)
TEXT = 'text', _is_text
COUNT = f'a whole number from 1 to {MOST}', _is_count
TEXTS = 'a list of texts', lambda value: _is_list(value, _is_text)
PAIRS = 'a list of pairs of texts', lambda value: _is_list(
    value, lambda pair: _is_list(pair, _is_text) and len(pair) == 2)
NUMBERS = 'a list of numbers', lambda value: _is_list(value, _is_number)
TABLES = 'a list of tables', lambda value: isinstance(value, list)   # each of them is looked at by itself
NAMED_TEXTS = 'a table of texts', lambda value: _is_table(value, _is_text)
NAMED_NUMBERS = ('a table of numbers such as { 30 = 80.0 }',
                 lambda value: _is_table(value, _is_number) and all(map(_stands_for_number, value)))
LOOPS = (f'a table of lists of values, or of whole numbers from 1 to {MOST}',
         lambda value: _is_table(value, _is_loop))
SPLIT, COLUMN = _one_of(SPLITS[1:]), _one_of(column for columns in COLUMNS.values() for column in columns)

KEYS = {'experiment': {'script': _one_of((*NETWORKS, *DRAWERS, 'generate_Coarse_mask.py',
                                            WEAK_EVALUATION)), 'needs': TEXTS,
                       'start': TEXT, 'data': TEXT, 'for': LOOPS},
        'table': {'title': TEXT, 'split': SPLIT, 'columns': TEXTS, 'rows': TABLES, 'compare': PAIRS,
                  'notes': TEXTS},
        'row': {'label': TEXT, 'of': TEXT, 'masks': TEXT, 'paper': NUMBERS, 'split': SPLIT, 'with': TEXT,
                'folds': COUNT, 'source': TEXT},
        'figure': {'title': TEXT, 'split': SPLIT, 'score': COLUMN, 'panels': TABLES, 'pictures': TEXTS,
                   'choose': _one_of(('spread', 'maps differ')), 'of': NAMED_TEXTS},
        'panel': {'axis': TEXT, 'log': FLAG, 'x': NUMBERS, 'lines': TABLES},
        'line': {'label': TEXT, 'of': TEXT, 'paper': NAMED_NUMBERS}}
NEEDED = {'experiment': ('script',), 'table': ('columns', 'rows'), 'row': ('label',),
          'panel': ('axis', 'x', 'lines'), 'line': ('label', 'of')}
PARTS = {'rows': 'row', 'panels': 'panel', 'lines': 'line',   # keys of lists: the kind of what is in them
         'columns': COLUMN, 'pictures': _one_of(PICTURES)}
