"""What is in files, by hash: what a step takes for done is decided by content, not by time or place."""
import contextlib
import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path

from engine import files
from engine.errors import InputError

SETTLED = 2 * 10**9   # nanoseconds between the coarsest time stamps of a usual file system, FAT's


class Contents:
    """Fingerprints of files, each computed once for a state of the file: size, times, inode.

    folder : where they are kept between programs, in contents/, a json for each folder of files; these
        save time and nothing else, and may be deleted
    """

    def __init__(self, folder):
        self.folder = Path(folder) / 'contents'
        self._known, self._changed = {}, set()

    def of(self, path):
        """The `files.fingerprint` of a file, '' where there is none; InputError for what is no file."""
        return self._look(path, files.fingerprint)

    def of_all(self, paths, description):
        """`of` for many paths, in order; those that are not known are read on all cores, with a bar."""
        found = [self._look(path, lambda _: None) for path in paths]
        unknown = [number for number, digest in enumerate(found) if digest is None]
        for number, digest in zip(unknown, files.for_all(
                self.of, [paths[number] for number in unknown], description), strict=True):
            found[number] = digest
        self.keep()
        return found

    def keep(self):
        """Write down what was learnt since the last time, where that is possible."""
        if self._changed:
            files.remove_abandoned(self.folder)
        for folder in sorted(self._changed):
            with contextlib.suppress(OSError):
                files.write_text(self._place(folder), json.dumps(self._known[folder], sort_keys=True) + '\n')
        self._changed.clear()

    def _look(self, path, read):
        """The fingerprint that is known of a file's present state, else what `read(path)` says."""
        folder, _, name = os.fspath(path).rpartition(os.sep)
        try:
            facts = os.stat(path)
            if not stat.S_ISREG(facts.st_mode):   # a pipe would be waited for
                raise InputError('A file cannot be used', [f'{path}: is no regular file'])
            state = [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]
            known = self._known.get(folder)
            if known is None:
                known = self._known.setdefault(folder, self._load(folder))
            *before, digest = known.get(name, ('',))
            if before == state:
                return digest
            digest = read(path)
        except FileNotFoundError:
            return ''
        except OSError as error:
            raise InputError('A file cannot be used', [f'{path}: {error.strerror}']) from None
        # What was written just now may be written again within the same tick of the clock.
        if digest is not None and time.time_ns() - facts.st_ctime_ns > SETTLED:
            known[name] = [*state, digest]
            self._changed.add(folder)
        return digest

    def _place(self, folder):
        path = os.path.realpath(folder)
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return self.folder / f'{os.path.basename(path)}-{digest}.json'

    def _load(self, folder):
        entries = files.read_json(self._place(folder))
        return {name: entry for name, entry in entries.items()
                if isinstance(entry, list) and len(entry) == 5 and isinstance(entry[-1], str)}


class Record:
    """Which outputs of a folder are done: from what content each was made, and what content it has.

    path : of the record, a json object in the folder; contents : Contents; objects : keys of its dicts
    Attributes: made, {output: (fingerprint of its source, its own)}, names relative to the folder; head, what
    else the json holds; kept, False where the json says nothing of outputs, as those of earlier versions.
    What a run finishes is added to `<path>l`, a line each, until it ends: a kill costs the files in work.
    """

    def __init__(self, path, contents, objects=()):
        self.path, self.folder, self.contents = Path(path), Path(path).parent, contents
        self.head = files.read_json(self.path, 'made', *objects)
        self.kept = 'made' in self.head
        self.made = {name: tuple(entry) for name, entry in self.head.pop('made', {}).items()
                     if _is_entry(entry)}
        self._journal, self._lock = self.path.with_name(f'{self.path.name}l'), threading.Lock()
        with contextlib.suppress(OSError, ValueError, TypeError):
            for line in self._journal.read_text(encoding='utf-8').splitlines():
                name, *entry = json.loads(line)   # not of a line that a kill cut short, the last
                if _is_entry(entry):
                    self.made[name] = tuple(entry)

    def holds(self, name, source, present=None):
        """True when an output is there as it was made, from a source of this fingerprint.

        present : the fingerprint of the output now, where it is known
        """
        before, own = self.made.get(name, ('', ''))
        if not source or before != source:
            return False
        present = self.contents.of(self.folder / name) if present is None else present
        return present == own if own else bool(present)   # earlier versions recorded none of coarse masks

    def begin(self, head, keep):
        """Write the record with this head (dict) before anything is made; no other process may do so too.

        keep : whether what was made before counts as done
        """
        if not keep:
            self._journal.unlink(missing_ok=True)   # first: its lines do not say under which head they are
            self.made.clear()
        self.head, self.kept = head, True
        self._write()

    def note(self, name, source):
        """Note that an output was made from a source of this fingerprint."""
        self.made[name] = source, self.contents.of(self.folder / name)
        with self._lock, open(self._journal, 'a', encoding='utf-8') as file:
            file.write(json.dumps([name, *self.made[name]]) + '\n')

    def finish(self, head=None):
        """Fold what was noted into the json, under another head where one is given."""
        self.head = head or self.head
        self._write()
        self.contents.keep()

    def _write(self):
        text = json.dumps({**self.head, 'made': dict(sorted(self.made.items()))}) + '\n'
        files.write_changed(self.path, text)
        self._journal.unlink(missing_ok=True)


def _is_entry(entry):
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
