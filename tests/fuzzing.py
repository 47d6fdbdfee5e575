"""What the fuzz tests share: damaged values and bytes, and the one way in which they may be refused."""
import contextlib
import copy
import datetime
import json
import os

from hypothesis import HealthCheck, example
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine import settings
from engine.errors import InputError
from experiments.declarations import Declarations


def fuzz(examples):
    return hypothesis_settings(max_examples=examples * int(os.environ.get('FUZZ', 1)), deadline=None,
                               suppress_health_check=list(HealthCheck))


def refused(call, *names):
    """(what call() returns, None), or (None, its InputError), which names these and says what to do."""
    try:
        return call(), None
    except InputError as error:
        assert error.summary and error.remedy, error
        assert all(str(name) in str(error) for name in names), error
        return None, error


# --- What is put in

NUMBERS = st.one_of(st.integers(-2, 300), st.floats(), st.sampled_from([10**400, -10**30, 2**63, 10**9]))
TEXTS = st.one_of(st.text(max_size=9), st.sampled_from([
    '', '\0', '../x', '/', 'nan', '{', '{k}', '{x}', 'coarse', 'ß\u2028', 'a' * 300]))
JUNK = st.one_of(st.binary(max_size=300), st.sampled_from([
    b'', b'\0', b'\xff\xfe', b'\xef\xbb\xbf', b'\r', b'\n\n', b'"', b',', b'x' * 200_000, b'[' * 100_000,
    '\u2028\x85\x1c'.encode(), b'||', b'/etc/passwd 0\n', b'../../a 1\n', b'1' * 5000]))


def nests(scalars):
    return st.recursive(scalars, lambda inner: st.lists(inner, max_size=3)
                        | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5)


JSON = nests(st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS, st.just('\ud800')))
TOML = nests(st.one_of(st.booleans(), NUMBERS, TEXTS, st.just(datetime.date(1979, 5, 27)),
                       st.just(datetime.datetime(1979, 5, 27, tzinfo=datetime.UTC))))


@st.composite
def damaged(draw, good, values=JSON, root=True):
    """A copy of nested dicts and lists with parts replaced, removed or added; root : perhaps all of it."""
    tree = [copy.deepcopy(good)]
    for _ in range(draw(st.integers(1, 3))):
        holder, key = tree, 0
        while isinstance(holder[key], (dict, list)) and holder[key] and (
                holder is tree and not root or draw(st.integers(0, 5))):
            holder = holder[key]
            key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
        if holder is tree and not root:
            break   # nothing is left
        change = draw(st.sampled_from(['replace', 'replace', 'remove', 'add']))
        if change == 'remove' and holder is not tree:
            del holder[key]
        elif change == 'add' and isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(values)
        else:
            holder[key] = draw(values)
    return tree[0]


@st.composite
def damaged_bytes(draw, good):
    """Bytes that are cut short, changed in places, or have junk in between."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        # Headers are short, and most of what can go wrong stands there.
        place = draw(st.integers(0, len(data)) | st.integers(0, min(len(data), 100)))
        change = draw(st.sampled_from(['change', 'change', 'cut', 'junk']))
        if change == 'change':
            data[place:place + 1] = bytes([draw(st.integers(0, 255))])
        elif change == 'cut':
            del data[place:]
        else:
            data[place:place] = draw(JUNK)
    return bytes(data)


def json_files(good):
    """What a JSON file that only we write may hold after a disk or an interrupted copy damaged it."""
    return st.one_of(damaged_bytes(json.dumps(good).encode()), JUNK,
                     st.sampled_from([b'{}', b'[1]', b'null']))


def toml(value):
    """A value as TOML, tables inline."""
    if isinstance(value, dict):
        return '{' + ', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items()) + '}'
    if isinstance(value, list):
        return '[' + ', '.join(map(toml, value)) + ']'
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace('\x7f', '\\u007f')
    if isinstance(value, datetime.date):
        return value.isoformat()
    return str(value).lower()


def toml_file(tree):
    return ''.join(f'{toml(key)} = {toml(value)}\n' for key, value in tree.items()).encode()


# Names that a list can hold: anything but white space, within what file systems take.
NAMES = st.text(st.characters(exclude_categories=('Z', 'C'), exclude_characters='/'), min_size=1,
                max_size=40).filter(lambda name: name not in ('.', '..'))
NEWLINES, MARKS = st.sampled_from(['\n', '\r\n']), st.sampled_from(['', '\ufeff'])


# --- What several of them use

def examples(*cases):
    """Decorator: what is tried in any case, because it once went wrong."""
    def decorate(test):
        for case in cases:
            test = example(case)(test)
        return test
    return decorate


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_json(path, tree):
    write(path, json.dumps(tree).encode())


@contextlib.contextmanager
def holding(path, data):
    """While active, a file holds other bytes."""
    good = path.read_bytes()
    path.write_bytes(data)
    try:
        yield
    finally:
        path.write_bytes(good)


def declaring(tmp_path, monkeypatch):
    """Function of a file's bytes: the Declarations in it. The scripts' constants are read once."""
    known, plain = {}, settings.read_values
    monkeypatch.setattr(settings, 'read_values', lambda script: dict(
        known[script] if script in known else known.setdefault(script, plain(script))))

    def declare(data):
        (tmp_path / 'mine.toml').write_bytes(data)
        return Declarations(tmp_path / 'mine.toml', {'FOLDS': 3, 'CROSS_FIT': 3})
    return declare
