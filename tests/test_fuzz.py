"""Whatever users supply is read right or refused: an InputError that names the file and a remedy, never
another exception. FUZZ=20 pytest tests/test_fuzz.py searches twenty times as long."""
import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataset import download, isic, label_csv, ph2
from dataset.classes import PAPER
from dataset.layout import Layout
from engine import metrics, settings
from engine.images import EXTENSIONS
from experiments import line_charts, results, tables
from experiments.reproduction import Reproduction
from experiments.run_store import RunStore
from tests.fuzzing import (
    JUNK,
    MARKS,
    NAMES,
    NEWLINES,
    TEXTS,
    TOML,
    damaged,
    damaged_bytes,
    declaring,
    examples,
    fuzz,
    refused,
    toml_file,
    write,
)

pytestmark = pytest.mark.filterwarnings('ignore')   # Python warns of what is damaged


# --- Lists, label files, tables of PH2, results of evaluations

def spoiled_rows(header, rows):
    """A csv file that may be good but for one thing or another."""
    text = '\n'.join([header, *rows]) + '\n'
    return st.one_of(damaged_bytes(text.encode()), damaged_bytes(text.encode('utf-16')), st.builds(
        lambda head, words: (head + '\n' + '\n'.join(','.join(line) for line in words)).encode(),
        st.sampled_from([header, f'{header},{header}', header.upper(), f'"{header}"']),
        st.lists(st.lists(st.sampled_from([
            'a', 'b', '0', '1', '1.0', 'nan', 'inf', '1e400', '-0', '0x1', '١', '"', '"a"', '', ' ', '\0',
            '\r', '\ufeff', 'x' * 140_000])), max_size=5)))


@fuzz(60)
@given(st.sampled_from(['seg', 'cls']), st.lists(NAMES, min_size=1, max_size=4, unique=True), NEWLINES, MARKS)
def test_lists_are_read_as_written(tmp_path, kind, names, newline, mark):
    layout = Layout(tmp_path)
    folder = layout.segmentation('Training') if kind == 'seg' else layout.crops('Training')
    path = layout.segmentation_list('Training') if kind == 'seg' else layout.classification_list('Training')
    for name in names:
        write(folder / name[:200], b'')
    lines = [f'{name} {name if kind == "seg" else len(name) % 3}' for name in names]
    write(path, (mark + newline.join(lines)).encode())
    read = isic.read_segmentation_list if kind == 'seg' else isic.read_classification_list
    assert read(layout, 'Training') == [
        (folder / name, folder / name if kind == 'seg' else len(name) % 3) for name in names]


@fuzz(100)
@given(st.sampled_from(['seg', 'cls']), st.one_of(JUNK, damaged_bytes(b'a a\nb 1\nb b\n'), st.lists(st.lists(
    st.sampled_from(['a', 'b', '0', '1', '2', '1.0', '/etc/passwd', '../b', '..', '.', '\0', '\ufeffa', '١',
                     '\udcff', 'a' * 5000]), max_size=3).map(' '.join)).map(
                         lambda lines: '\r\n'.join(lines).encode(errors='surrogateescape'))))
@example('seg', b'a ' + b'x' * 5000)
def test_spoiled_lists(tmp_path, kind, data):
    layout = Layout(tmp_path)
    segmentation = kind == 'seg'
    path = layout.segmentation_list('Training') if segmentation else layout.classification_list('Training')
    for name in 'ab':
        write((layout.segmentation if segmentation else layout.crops)('Training') / name, b'')
    write(path, data)
    read = isic.read_segmentation_list if segmentation else isic.read_classification_list
    pairs, _ = refused(lambda: read(layout, 'Training'), path)
    for file, word in pairs or ():
        assert file.is_file() and (word.is_file() if segmentation else word in (0, 1, 2))
    assert pairs is None or len(pairs) == len(data.splitlines())


PLAIN = NAMES.filter(lambda name: not name.lower().endswith(EXTENSIONS))   # which an id is read without
ROWS = st.dictionaries(PLAIN, st.sampled_from([(0, 0), (1, 0), (0, 1)]), min_size=1, max_size=5).filter(
    lambda rows: len(set(map(label_csv.plain_id, rows))) == len(rows))


@fuzz(60)
@given(ROWS, st.permutations(label_csv.COLUMNS), NEWLINES, MARKS, st.booleans(),
       st.sampled_from([int, float]))
def test_labels_are_read_as_written(tmp_path, rows, columns, newline, mark, quoted, kind):
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, 'age'], lineterminator=newline,
                            quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writeheader()
    for name, flags in rows.items():
        row = dict(zip(label_csv.COLUMNS, (name, *map(kind, flags)), strict=True))
        writer.writerow(row | {'age': '"45"'})
    path = tmp_path / 'labels.csv'
    path.write_bytes((mark + text.getvalue()).encode())
    assert label_csv.read(path) == {label_csv.plain_id(name): flags[0] + 2 * flags[1]
                                    for name, flags in rows.items()}


@fuzz(150)
@given(spoiled_rows(','.join(label_csv.COLUMNS), ['a,0,0', 'b,1.0,0', 'c,0,1']) | JUNK)
@example(b'image_id,melanoma,melanoma,seborrheic_keratosis\na,0,1,0\n')
@example(b'image_id,melanoma,seborrheic_keratosis\na,0,0,"\nb,1,0\n')
@example(b'image_id,melanoma,seborrheic_keratosis\n\n\na,0,9\n')
def test_spoiled_labels(tmp_path, data):
    path = tmp_path / 'labels.csv'
    path.write_bytes(data)
    labels, error = refused(lambda: label_csv.read(path), path)
    if error is None:
        header, *lines = data.decode('utf-8-sig').splitlines()
        assert set(labels.values()) <= {0, 1, 2} and all(map(header.count, label_csv.COLUMNS))
        assert len(labels) >= data.count(b'\n') - data.count(b'\n\n') - 1 or b'"' not in data
        assert max(map(header.split(',').count, label_csv.COLUMNS)) <= 1
    elif b'\n\n\na,0,9' in data:
        assert 'line 4' in str(error)


PH2_IDS = st.integers(0, 999).map('IMD{:03}'.format)
PH2_ROWS = st.dictionaries(PH2_IDS, st.integers(0, 2), min_size=1, max_size=4)
PH2_HEAD = '|| Name || Histological Diagnosis || Clinical Diagnosis || Asymmetry ||'


@fuzz(40)
@given(PH2_ROWS, NEWLINES, MARKS, st.booleans())
def test_ph2_tables_are_read_as_written(tmp_path, rows, newline, mark, sheet):
    text, book = tmp_path / 'PH2_dataset.txt', tmp_path / 'PH2_Dataset.XLSX'
    lines = [f'|| {name} || || {number} || 0 ||' for name, number in rows.items()]
    lines = [PH2_HEAD, *lines, 'Legend: 0 - x']
    text.write_bytes((mark + newline.join(lines)).encode())
    if sheet:
        text.unlink()
        write_book(book, rows)
    assert ph2.scan_labels(tmp_path) == (rows, [])


def write_book(path, rows):
    openpyxl = pytest.importorskip('openpyxl')
    book = openpyxl.Workbook()
    book.active.append(['PH2'])
    book.active.append(['Image Name', 'Common Nevus', 'Atypical Nevus', 'Melanoma'])
    for name, number in rows.items():
        book.active.append([name, *('X' if column == number else None for column in range(3))])
    book.save(path)


@fuzz(60)
@given(damaged_bytes('\n'.join([PH2_HEAD, '|| IMD003 || || 0 ||', '|| IMD009 || || 2 ||']).encode()) | JUNK)
def test_spoiled_ph2_tables(tmp_path, data):
    (tmp_path / 'PH2_dataset.txt').write_bytes(data)
    labels, faults = ph2.scan_labels(tmp_path)
    assert set(labels.values()) <= {None, 0, 1, 2} and (labels or faults)
    assert all(str(tmp_path) in fault for fault in faults)
    refused(lambda: ph2.read(tmp_path), tmp_path)


@pytest.fixture(scope='module')
def book(tmp_path_factory):
    """Bytes of a good xlsx, and of one with a single cell in the farthest corner."""
    path = tmp_path_factory.mktemp('book') / 'PH2_dataset.xlsx'
    write_book(path, {'IMD003': 0, 'IMD009': 2})
    far = pytest.importorskip('openpyxl').load_workbook(path)
    far.active['XFD1048576'] = 'x'
    far.save(path.with_name('far.xlsx'))
    return path.read_bytes(), path.with_name('far.xlsx').read_bytes()


@fuzz(40)
@given(st.data())
def test_spoiled_ph2_workbooks(tmp_path, book, data):
    good, far = book
    content = data.draw(damaged_bytes(good) | JUNK | st.just(far))
    (tmp_path / 'PH2_dataset.xlsx').write_bytes(content)
    labels, faults = ph2.scan_labels(tmp_path)
    assert set(labels.values()) <= {None, 0, 1, 2} and (labels or faults)
    assert all(str(tmp_path) in fault for fault in faults)


@fuzz(40)
@given(st.dictionaries(NAMES, st.tuples(*[st.floats(0, 1)] * 5), min_size=1, max_size=4), NEWLINES, MARKS)
def test_results_are_read_as_written(tmp_path, rows, newline, mark):
    path, text = tmp_path / 'r.csv', io.StringIO()
    csv.writer(text, lineterminator=newline).writerows(
        [('image_id', *metrics.SEGMENTATION), *((name, *values) for name, values in rows.items())])
    path.write_bytes((mark + text.getvalue()).encode())
    part = results.read([path]).parts[0]
    assert part.names == tuple(rows) and np.array_equal(part.values, list(rows.values()))


@fuzz(100)
@given(spoiled_rows(','.join(['image_id', *PAPER.names]), ['a,0.1,0.2,0.7', 'b,1,0,0']) | JUNK)
@example(b'image_id,nevus,melanoma,keratosis\na,1,0,0\nb,1,0,"0\n')
def test_spoiled_results(tmp_path, data):
    path = tmp_path / 'r.csv'
    path.write_bytes(data)
    result, _ = refused(lambda: results.read([path], {'a': 0, 'b': 1, 'c': 2}), path)
    if result is not None:
        assert ((result.parts[0].values >= 0) & (result.parts[0].values <= 1)).all()
        assert set(result.parts[0].names) <= set('abc') and result.kind == 'classification'
        results.interval(result, 'mean AUC')


@fuzz(60)
@given(damaged_bytes(b'isic_id,diagnosis\nISIC_0000001,nevus\n') | JUNK)
@example(b'isic_id,diagnosis\n' + b'x' * 200_000)
def test_spoiled_metadata_of_extra_pictures(tmp_path, data):
    path = tmp_path / 'metadata.csv'
    path.write_bytes(data)
    ids, _ = refused(lambda: download.read_ids(path), path)
    assert ids is None or all(map(download.ISIC_ID.fullmatch, ids))
    rows, _ = refused(lambda: download.found_metadata(tmp_path, ['ISIC_0000001']), path)
    assert not rows or label_csv.class_of(rows['ISIC_0000001']) in (None, *PAPER.names)


# --- Recipes and the command line

VALUES = {'ROOT': '.', 'RECIPE': 'default', 'WHOLE': 1, 'RATE': 1.0, 'SCALES': (224, 256),
          'SHIFT': (0.0, 0.1), 'FLIP': True, 'NAMES': ('a', 'b')}
WORDS = st.one_of(TEXTS, st.text(st.characters()), st.sampled_from([
    '1', '1.5', '1e400', 'nan', '-inf', '0x' + 'f' * 5000, '9' * 5000, '1' + '0' * 400, 'True', 'None', '...',
    "b'1'", '{1}', '{}', '[]', '()', '1,', '1,2', '[1,[2]]', '(' * 500, '[' * 500, '-' * 5000 + '1', '{()}',
    '1' + '+1j' * 5000, '1\n2', '"', "'a'", '__import__("os").mkdir("was_run")', 'lambda: 0', '\\', '1_000']))


@pytest.fixture
def resolve(tmp_path, monkeypatch):
    """Function of a recipe's bytes (None: no recipe) and words: the settings of a small script."""
    (tmp_path / 'demo.py').write_text(''.join(f'{name} = {value!r}\n' for name, value in VALUES.items()))
    monkeypatch.setattr(settings, 'RECIPES', tmp_path)
    monkeypatch.chdir(tmp_path)

    def call(recipe, *words):
        if recipe is not None:
            (tmp_path / 'mine.toml').write_bytes(recipe)
            words = ('--RECIPE=mine', *words)
        namespace = VALUES | {'__file__': str(tmp_path / 'demo.py'), '__doc__': None}
        return settings.resolve(namespace, list(words), {'FLIP': (True, False)}, ('RATE',))
    return call


def assert_same_types(cfg):
    for name, default in VALUES.items():
        value = getattr(cfg, name)
        assert type(value) is type(default), name
        if isinstance(default, tuple):
            assert value and {type(item) for item in value} == {type(default[0])}
    assert np.isfinite([cfg.RATE, *cfg.SHIFT]).all() and '\0' not in cfg.ROOT
    assert json.loads(json.dumps(vars(cfg)))


@fuzz(200)
@given(st.lists(st.one_of(
    st.builds('--{}={}'.format, st.sampled_from([*VALUES, 'RATES', '', 'ﬂip', '--x']), WORDS),
    st.sampled_from(['--', '-', '--=', '--=x', '---', '=', '--RATE', '-h=']), WORDS),
    max_size=3).filter(lambda words: not {'-h', '--help'} & set(words)))
@examples(['--RATE=1' + '0' * 400], ['--WHOLE=0x' + 'f' * 5000], ['--ROOT=\udcff', '--\udcff=1', '\udcff'])
def test_spoiled_command_lines(resolve, words):
    cfg, error = refused(lambda: resolve(None, *words), 'demo.py')
    assert_same_types(cfg) if cfg else None
    assert not Path('was_run').exists()
    assert error is None or len(error.faults) >= 1


@fuzz(60)
@given(st.fixed_dictionaries({
    'WHOLE': st.integers(-9, 2**63 - 1), 'RATE': st.floats(1e-300, 1e300), 'FLIP': st.booleans(),
    'SCALES': st.lists(st.integers(-9, 9), min_size=1).map(tuple),
    'SHIFT': st.tuples(*[st.floats(-1e300, 1e300)] * 2),
    'ROOT': st.text(st.characters(exclude_characters='\0', codec='utf-8'))}))
def test_settings_are_read_as_written(resolve, given):
    words = [f'--{name}={",".join(map(repr, value)) if isinstance(value, tuple) else value}'
             for name, value in given.items()]
    recipe = toml_file({'demo': {name: list(value) if isinstance(value, tuple) else value
                                 for name, value in given.items()}})
    for cfg in (resolve(None, *words), resolve(recipe)):
        assert {name: getattr(cfg, name) for name in given} == given


RECIPE = {'demo': {'WHOLE': 2, 'RATE': 0.5, 'SCALES': [1], 'FLIP': False}, 'other': {'X': 1}}


@fuzz(150)
@given(st.one_of(damaged(RECIPE, TOML, root=False).map(toml_file), damaged_bytes(toml_file(RECIPE)), JUNK))
@examples(b'[demo]\nWHOLE = ' + b'1' * 5000, b'[demo]\nWHOLE = 0x' + b'f' * 5000,
          b'[demo]\nRATE = 1' + b'0' * 400, b'[demo]\nWHOLE = ' + b'[' * 5000,
          b'[demo]\nWHOLE' + b'.a' * 5000 + b' = 1', b'\xef\xbb\xbf[demo]\nWHOLE = 2',
          b'[demo]\nROOT = "a\\u0000"')
def test_spoiled_recipes(resolve, recipe):
    cfg, _ = refused(lambda: resolve(recipe), 'mine')
    assert_same_types(cfg) if cfg else None


# --- experiments.toml

DECLARED = {
    'experiment': {
        'coarse': {'script': 'train_CoarseSN.py'},
        'masks': {'script': 'generate_Coarse_mask.py', 'needs': ['coarse'], 'TTA': False},
        'cn': {'script': 'train_MaskCN.py', 'needs': ['masks'], 'STEPS': 40, 'SHIFT': [0.0, 0.2]},
        'k{k}': {'for': {'k': [10, 30]}, 'script': 'train_EnhancedSN.py', 'needs': ['cn'],
                 'HARD_PIXELS': '{k}'},
        'tuned {fold}': {'for': {'fold': '{FOLDS}'}, 'script': 'train_CoarseSN.py', 'start': 'coarse',
                         'data': 'PH2/fold_{fold}'}},
    'table': {'1': {'title': 'T', 'split': 'Testing', 'columns': ['JA', 'DI'], 'rows': [
        {'label': 'ten', 'of': 'k10', 'paper': [80, float('nan')], 'with': 'masks'},
        {'label': 'tuned', 'of': 'tuned {fold}', 'folds': '{FOLDS}', 'split': 'Validation'},
        {'label': 'theirs', 'paper': [76.5], 'source': 'a leaderboard'}], 'compare': [['ten', 'tuned']]}},
    'figure': {'4': {'pictures': ['coarse mask'], 'choose': 'spread', 'of': {'coarse mask': 'masks'}},
               '5': {'title': 'F', 'score': 'JA', 'panels': [{'axis': 'K', 'x': [10, 30], 'lines': [
                   {'label': 'ours', 'of': 'k{x}', 'paper': {'30': 80.0}}]}]}}}


@pytest.fixture
def declare(tmp_path, monkeypatch):
    return declaring(tmp_path, monkeypatch)


def use_all(declared, root):
    """Everything that reproduce_tables.py does with declarations before a run and, without any, after it."""
    drawn = []
    store = RunStore(root)
    reproduction = Reproduction(declared, store, (0, 1), {})
    for name, table in declared.tables.items():
        made = reproduction.table(name)
        drawn += [declared.jobs_of(table, (0, 1)), tables.to_text(made)]
        tables.write(made, root, f'table_{name}')
    for name, figure in declared.figures.items():
        if 'pictures' in figure:
            reproduction.panel(name, root)
        else:
            drawn += [figure, reproduction.chart(name, root)]
        drawn.append(declared.jobs_of(figure, (0, 1)))
    for job in [job for jobs in drawn if isinstance(jobs, list) for job in jobs]:
        assert store.command(job) and not store.finished(job)
    return drawn


def test_declarations_are_read_as_written(declare, tmp_path):
    declared = declare(toml_file(DECLARED))
    assert ' '.join(declared.experiments) == 'coarse masks cn k10 k30 tuned 1 tuned 2 tuned 3'
    assert declared.job('k10').overrides == (('HARD_PIXELS', 10),) and declared.job('k30').overrides == ()
    assert dict(declared.job('cn').overrides) == {'STEPS': 40, 'SHIFT': (0.0, 0.2)}
    assert declared.job('tuned 2').start == declared.job('coarse')
    assert declared.tables['1']['rows'][1]['folds'] == 3
    assert len(use_all(declared, tmp_path)) == 6


DEEP = '\n'.join(f"[experiment.{kind}{n}]\nscript = 'train_EnhancedSN.py'\n"
                 + (f"needs = ['a{n - 1}', 'b{n - 1}']" if n else '') for n in range(40) for kind in 'ab')
LONG = '\n'.join(f"[experiment.a{n}]\nscript = 'train_EnhancedSN.py'\n"
                 + (f"needs = ['a{n - 1}']" if n else '') for n in range(900))


WRONG = [b"[experiment.a]\nscript = 'train_CoarseSN.py'\n" + lines for lines in (   # kinds of values
    b'needs = 3', b'start = {}', b"start = ''", b'data = 1.5', b"for.k = 'x'", b'for = 3', b'for.k = true',
    b'for.k = 1000000000', b'for.k = [[1]]', b'for.k = [1, 2]', b'EPOCH = 1979-05-27', b"ROOT = '/'",
    b'odd = 1', b'EPOCH = 0x' + b'f' * 5000, b'[experiment]\nb = 1', b"[experiment.'']", b'[figure]\n1 = []',
    b"[experiment.'../b']\nscript = 'train_CoarseSN.py'",
    b"[experiment.'{k}']\nfor.k = [[1], 2]\nscript = 'train_CoarseSN.py'",
    b'[table.1]\nrows = {}', b"[table.1]\ncolumns = 'JA'\nrows = [1]", b'[table.1]\nrows = [{}]',
    b"[table.1]\ncolumns = ['JA']\nrows = [{ label = 'r', of = 'a', folds = 'many' }]",
    b"[table.1]\ncolumns = ['JA']\nrows = [{ label = 'r', of = 'a', folds = 0 }]",
    b"[table.1]\ncolumns = ['JA']\nrows = [{ label = 'r', of = 'a', split = 'Training' }]",
    b"[table.1]\ncolumns = ['JA']\nrows = [{ label = 1, paper = 'a' }]\ncompare = [1]",
    b"[figure.1]\nscore = 'JA'\npanels = [1]", b'[figure.1]\nscore = []\npanels = { x = 1 }',
    b"[figure.1]\nscore = 'JA'\npanels = [{ axis = 'K', x = ['a'], lines = [{ label = 'l', of = 'a' }] }]",
    b"[figure.1]\nscore = 'JA'\npanels = [{ axis = 'K', x = [1], lines = [{ label = 'l', paper.a = 1 }] }]",
    b'[figure.1]\npictures = 3', b"[figure.1]\npictures = ['image']\nchoose = 'spread'",
    b'[table.1' + b'.b' * 700 + b']')]


@pytest.mark.parametrize('data', WRONG)
def test_wrong_kinds_of_values_are_named(declare, data):
    assert refused(lambda: declare(data), 'mine.toml')[1]


def test_all_wrong_kinds_are_named_at_once(declare):
    _, error = refused(lambda: declare(b"""
experiment.a = 1
experiment.b = { needs = 3, for = 3, odd = 1 }
figure = []
[table.x]
rows = [{ label = 1 }, 2, { label = 'r', paper = 'x', folds = 'many' }]
columns = 3
[experiment.'../c']
script = 'train_CoarseSN.py'
"""))
    assert [fault.split(':')[0] for fault in error.faults] == [
        'experiment.a', *['experiment.b'] * 3, 'figure', 'experiment.../c', 'table.x, row 1',
        'table.x, row 2', *["table.x, row 'r'"] * 2, 'table.x']


STEP = "[experiment.{}]\nscript = 'train_EnhancedSN.py'\nneeds = {}\n"
DEEP = ''.join(STEP.format(f'{kind}{n}', [f'a{n - 1}', f'b{n - 1}'] if n else [])
               for n in range(40) for kind in 'ab')   # 2**40 ways from the first to the last
LONG = ''.join(STEP.format(f'a{n}', [f'a{n - 1}'] if n else []) for n in range(900))
DOLLARS = {'figure': {'1': {'score': 'JA', 'title': '$\\frac$', 'panels': [
    {'axis': '$\\', 'x': [10], 'lines': [{'label': '$^^$', 'of': 'k{x}'}]}]}}}


@fuzz(150)
@given(st.one_of(damaged(DECLARED, TOML, root=False).map(toml_file),
                 damaged_bytes(toml_file(DECLARED)), JUNK))
@examples(toml_file(DECLARED | DOLLARS), DEEP.encode(), LONG.encode(), b'\xef\xbb\xbf' + toml_file(DECLARED))
def test_spoiled_declarations(declare, tmp_path, monkeypatch, data):
    declared, error = refused(lambda: declare(data), 'mine.toml')
    assert error is None or error.faults
    if declared:
        if b'$' not in data:   # a figure takes half a second
            monkeypatch.setattr(line_charts, 'draw', lambda *_: None)
        use_all(declared, tmp_path)
