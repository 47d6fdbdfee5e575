"""Files that are either complete or absent, and work on many files at once."""
import contextlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tqdm import tqdm

from dataset.errors import InputError


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; what is written there becomes `path` on success.

    A kill or a full disk at any moment leaves the previous `path` untouched (os.replace is
    atomic within one folder); on an exception the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.stem}-', suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        with open(temporary, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask():
    """The process's file mode mask; mkstemp ignores it and would leave files private."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path, text):
    """Write `text` (str) to `path` as UTF-8, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding='utf-8', newline='\n')


def write_bytes(path, data):
    """Write `data` (bytes) to `path`, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def for_all(work, items, description, workers=0, summary='', remedy=''):
    """Call `work(item)` for every item on all cores; return the results in the items' order.

    Threads suffice: Pillow, OpenCV and NumPy release the interpreter lock while they work.
    Every item is tried; the InputErrors of all bad ones are raised together as one.
    workers : int, 0 = one for each core.
    """
    items = list(items)
    results, faults = [None] * len(items), {}
    pool = ThreadPoolExecutor(workers or os.cpu_count())
    try:
        futures = {pool.submit(work, item): number for number, item in enumerate(items)}
        for future in tqdm(as_completed(futures), total=len(futures), desc=description,
                           unit='file', disable=not items):
            number = futures[future]
            try:
                results[number] = future.result()
            except InputError as error:
                faults[number] = error.faults or [error.summary]
    finally:
        pool.shutdown(cancel_futures=True)
    if faults:
        listed = [fault for number in sorted(faults) for fault in faults[number]]
        raise InputError(summary or f'{description}: {len(listed)} faults', listed, remedy)
    return results
