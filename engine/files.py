"""Files that are either complete or absent, and work on many files at once."""
import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import re
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
from tqdm import tqdm

from engine.errors import InputError

ABANDONED_AFTER = 600   # seconds; no file rests that long while it is written
TEMPORARY = re.compile(r'\..*-[0-9a-f]{12}(\.[^.]*)?')   # names that `replacing` gives, and nobody else
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)   # disk full, quota used up, larger than a file may be


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; what is written there becomes `path` on success.

    A kill or a full disk at any moment leaves the previous `path` untouched (os.replace is
    atomic within one folder); on an exception the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{path.stem}-{secrets.token_hex(6)}{path.suffix}')
    try:
        # Not by tempfile, which makes files that only their owner may read.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)   # a full disk is reported without a name or a temporary one
        raise
    finally:
        temporary.unlink(missing_ok=True)


def lock(path, refusal):
    """Take a lock file until the returned context ends. Raises `refusal` when another process has it."""
    try:
        return filelock.FileLock(path).acquire(timeout=0)
    except filelock.Timeout:
        raise refusal from None


def remove_abandoned(folder, age=None):
    """Remove temporary files that killed runs left in `folder`; a present run's are younger.

    age : seconds, default ABANDONED_AFTER; 0 where a lock says that nobody else writes in the folder
    """
    oldest = time.time() - (ABANDONED_AFTER if age is None else age)
    for path in Path(folder).glob('.*-*'):
        with contextlib.suppress(OSError):   # gone meanwhile, or a folder
            if TEMPORARY.fullmatch(path.name) and (age == 0 or path.stat().st_ctime < oldest):
                path.unlink()


def fingerprint(*paths, progress=''):
    """First 16 hex digits of the sha256 of the contents of files, in order. progress : says a bar, if any."""
    digest = hashlib.sha256()
    for path in tqdm(paths, progress, unit='file', leave=False, disable=not progress):
        with open(path, 'rb') as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def json_object(text, *parts):
    """The JSON object in a text as a dict. Raises ValueError where the text holds anything else.

    parts : keys whose values, where they are there, must be objects too
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError('is nested too deeply') from None
    if not isinstance(content, dict):
        raise ValueError('holds no JSON object')
    for name in parts:
        if not isinstance(content.get(name, {}), dict):
            raise ValueError(f'{name!r} is no JSON object')
    return content


def read_json(path, *parts):
    """The `json_object` in a file; {} where there is none or it cannot be read."""
    try:
        return json_object(path.read_text(encoding='utf-8'), *parts)
    except (OSError, ValueError):
        return {}


def write_text(path, text):
    """Write `text` (str) to `path` as UTF-8, completely or not at all; what is no text is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace', newline='\n')


def write_csv(path, rows):
    """Write rows (the first one the header) as a csv file, completely or not at all."""
    write_text(path, csv_text(rows))


def csv_text(rows):
    """Rows (the first one the header) as the text of a csv file."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows(rows)
    return text.getvalue()


def write_changed(path, text):
    """`write_text`, but not where the file holds the text already: its time would tell of a change."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)


def write_bytes(path, data):
    """Write `data` (bytes) to `path`, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def for_all(work, items, description, workers=0, summary='', remedy=''):
    """Call `work(item)` for every item on all cores; return the results in the items' order.

    Threads suffice: Pillow, OpenCV and NumPy release the interpreter lock while they work.
    Every item is tried; the InputErrors of all bad ones are raised together as one.
    workers : int, 0 or less = one for each core.
    """
    def attempt(item):
        try:
            return work(item), []
        except InputError as error:
            return None, error.faults or [error.summary]

    items = list(items)
    pool = ThreadPoolExecutor(workers if workers > 0 else os.cpu_count())
    try:
        outcomes = list(tqdm(pool.map(attempt, items), total=len(items), desc=description,
                             unit='file', disable=not items))
    finally:
        pool.shutdown(cancel_futures=True)
    faults = [fault for _, found in outcomes for fault in found]
    if faults:
        raise InputError(summary or f'{description}: {len(faults)} faults', faults, remedy)
    return [result for result, _ in outcomes]
