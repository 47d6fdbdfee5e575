"""A folder of predictions: which of its files are ours, of which pictures and networks; no two share one."""
import itertools
import json
import os
import unicodedata
from pathlib import Path

from engine import files
from engine.errors import InputError

RECORD, TABLE, PAGE = 'predictions.json', 'predictions.csv', 'index.html'
LONGEST = 180   # bytes of an output's name; a file's may have 255, and a temporary one has a longer name
ANOTHER = 'name another folder (--OUT=...), or move away what lies there'


class PredictionFolder:
    """What earlier runs wrote to a folder, as its predictions.json says, and what the present one writes.

    path : of the folder; columns : of the table, which `lock` is told: before, there are no pictures
    pictures : {name: {'source': path without links, 'fingerprint': of its content, 'row': {column: text}}}
    written : {path below the folder: fingerprint of what was written there, '' while that is in work}
    made_with : what decides predictions besides the pictures, a dict as json holds it; None: there are none
    """

    def __init__(self, path):
        self.path, self.columns, self.claimed = Path(path), (), set()
        self._read()

    def _read(self):
        record = files.read_json(self.path / RECORD, 'made_with', 'pictures', 'written')
        self.made_with, self.written = record.get('made_with'), record.get('written', {})
        self.pictures = {name: entry for name, entry in record.get('pictures', {}).items()
                         if _is_entry(name, entry, self.columns)}
        if not record.get('pictures'):
            self.made_with = None
        if record:
            self.written[RECORD] = ''

    def lock(self, columns):
        """Make the folder and keep other processes out until the returned context ends.

        columns : of the table, names
        Raises InputError when one is there.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = files.lock(self.path / '.lock', InputError(
            'Two predictions into one folder', [f'{self.path}: another process writes there'],
            'wait for it, or name another folder: --OUT=...'))
        self.columns = tuple(columns)
        self._read()   # what others have written until now
        return lock

    def holds(self, path):
        """Whether a path without links (str) lies below the folder."""
        return Path(path).is_relative_to(os.path.realpath(self.path))

    def is_own(self, path):
        """Whether a path without links (str) is a file below the folder that this program wrote."""
        return os.path.relpath(path, os.path.realpath(self.path)) in self.written

    def follow(self, found):
        """Note the new paths of pictures that were moved: gone from where they were, with their content among
        `found`, [(path, wished name)]. They keep their names and outputs."""
        gone, sources = {}, set()
        for name, entry in self.pictures.items():
            sources.add(entry['source'])
            if not os.path.exists(entry['source']):
                gone.setdefault(entry['fingerprint'], []).append(name)
        new = [path for path, _ in found if gone and os.path.realpath(path) not in sources]
        for path, content in zip(new, files.for_all(content_of, new, 'comparing'), strict=True):
            if names := gone.get(content):   # of copies, the one that was called so
                name = min(names, key=lambda name: Path(self.pictures[name]['source']).name != path.name)
                names.remove(name)
                row = self.pictures[name]['row'] | {'file': shown(path)}
                self.pictures[name] |= {'source': os.path.realpath(path), 'row': row}

    def named(self, found):
        """[(path, name)] for [(path, wished name)]: an earlier run's name of the same file, else a new one.

        No two files get one name, also where the file system ignores case; nor is the folder of one the
        mask of another.
        """
        known = {entry['source']: name for name, entry in self.pictures.items()}
        taken, names = set(map(_key, self.pictures)), []
        for path, wish in found:
            source = os.path.realpath(path)
            if source not in known:
                wishes = (f'{wish}_{number}' if number > 1 else wish for number in itertools.count(1))
                known[source] = next(name for name in wishes if _key(name) not in taken)
                taken.add(_key(known[source]))
            names.append((path, known[source]))
        return names

    def require_own(self, names, made_with):
        """Refuse to mix predictions, and to replace files that this program did not write, by an InputError.

        names : of pictures to be predicted; made_with : see the attribute
        """
        if self.made_with not in (None, made_with):
            raise InputError('The folder holds predictions that were made otherwise', [
                f'{self.path / RECORD}: {name} was {self.made_with.get(name)} and is {made_with[name]}'
                for name in made_with if self.made_with.get(name) != made_with[name]],
                'name another folder (--OUT=...), or delete this one')
        targets = [RECORD, TABLE, PAGE, *itertools.chain(*map(outputs, names))]
        foreign = [f'{self.path / target}: '
                   + ('was changed since' if target in self.written else 'is not of this program')
                   for target in targets if os.path.lexists(self.path / target)
                   and self.written.get(target) not in ('', content_of(self.path / target))]
        if foreign:
            raise InputError('Predictions would replace other files', foreign, ANOTHER)

    def is_done(self, name, fingerprint):
        """Whether a picture of this content was predicted, and its outputs are as they were written."""
        return self.pictures.get(name, {}).get('fingerprint') == fingerprint and all(
            self.written.get(target) == content_of(self.path / target) for target in outputs(name))

    def claim(self, names, made_with):
        """Note which outputs will be written: after a kill they are known as ours."""
        self.made_with, self.claimed = made_with, {TABLE, PAGE, *itertools.chain(*map(outputs, names))}
        self.save()

    def begin(self, name):
        """Note that the outputs of a picture are about to change."""
        self.written |= dict.fromkeys(outputs(name), '')

    def add(self, name, path, content, row):
        """Note a picture whose outputs are written. path, content : of the picture; row : of the table"""
        self.pictures[name] = {'source': os.path.realpath(path), 'fingerprint': content, 'row': row}
        self.written |= {target: content_of(self.path / target) for target in outputs(name)}
        self.claimed -= set(outputs(name))

    def save(self, done=False, **more):
        """Write predictions.json, after all that it names. done : no claim is kept; more : entries besides"""
        self.written |= {target: content_of(self.path / target) for target in (TABLE, PAGE)}
        claimed = {} if done else dict.fromkeys(self.claimed, '')
        files.write_text(self.path / RECORD, json.dumps({
            'made_with': self.made_with, **more, 'pictures': self.pictures,
            'written': self.written | claimed}, indent=1) + '\n')


def outputs(name):
    """(mask, overlay) of a picture, as paths below the folder."""
    return f'masks/{name}.png', f'overlays/{name}.jpg'


def wished_name(path):
    """The name that outputs should have: of a relative path, without its extension, as text.

    Never more than LONGEST bytes, of the file's own name then; bytes that are no text become question marks.
    A folder that is called like an output (a.png/) gets an underscore, since a picture may be called so too.
    """
    parts = [f'{part}_' if part.lower().endswith(('.png', '.jpg')) else part for part in path.parts[:-1]]
    own = shown(path.stem if path.stem.strip('.') else path.name)
    whole = '/'.join([*map(shown, parts), own])
    return whole if len(whole.encode()) <= LONGEST else own.encode()[-LONGEST:].decode(errors='ignore')


def shown(path):
    """A path as text that every file can hold; bytes that are no text become question marks."""
    return str(path).encode(errors='replace').decode()


def content_of(path):
    """Fingerprint of a file; '' where there is none, or it cannot be read."""
    try:
        return files.fingerprint(path) if os.path.isfile(path) else ''
    except OSError:
        return ''


def _key(name):
    return unicodedata.normalize('NFC', name).casefold()


def _is_entry(name, entry, columns):
    """Whether a part of a record is a picture's: its outputs below the folder, and a row of these columns."""
    return '..' not in Path(name).parts and not Path(name).is_absolute() and isinstance(entry, dict) and all(
        isinstance(entry.get(part), kind) for part, kind in (
            ('source', str), ('fingerprint', str), ('row', dict))) and tuple(entry['row']) == columns and all(
                isinstance(value, str) for value in entry['row'].values())
