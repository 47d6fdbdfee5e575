"""Pictures decoded once into one memory-mapped uint8 file, so that an epoch costs no decoding.

A cache file is named after a fingerprint of what it was made from; when a picture or the size
changes, a new one is made and the old one is deleted.
"""
import hashlib
import json
import os
from dataclasses import dataclass

import filelock
import numpy as np

from engine import files, images

VERSION = 2   # raise when the way of reading changes


@dataclass(frozen=True)
class Cache:
    """pixels : (N, S, S, 3) or (N, S, S) uint8 memory map; fingerprint : hash of the pixels, text."""
    pixels: np.ndarray
    fingerprint: str


def load(folder, name, paths, size, kind, workers=0):
    """Open the cache of `paths` squashed to size x size, building it where it is missing or stale.

    folder, name : where the cache lies, and the first part of its file names
    kind : 'rgb' (bicubic, antialiased) or 'mask' (nearest, values {0, 1})
    Returns Cache. Raises InputError naming every picture that cannot be read.
    """
    stem = f'{name}-{files.stamp(paths, f"{VERSION} {size} {kind}")}'
    pixels_path, facts_path = folder / f'{stem}.npy', folder / f'{stem}.json'
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / '.lock'):   # two runs of one root may start together
        files.remove_abandoned(folder, age=0)   # what lies here is of a run that was killed
        if not (pixels_path.exists() and facts_path.exists()):
            fingerprint = _build(pixels_path, paths, size, kind, workers)
            files.write_text(facts_path, json.dumps({'fingerprint': fingerprint, 'images': len(paths),
                                                     'size': size, 'kind': kind}) + '\n')
            for stale in folder.glob(f'{name}-*'):   # a run that still maps one keeps it until it ends
                if stale.stem != stem:
                    stale.unlink(missing_ok=True)
        facts = json.loads(facts_path.read_text(encoding='utf-8'))
        return Cache(np.load(pixels_path, mmap_mode='r'), facts['fingerprint'])


def _build(target, paths, size, kind, workers):
    """Decode all pictures into `target`; return the fingerprint of the pixels."""
    shape = (len(paths), size, size, 3) if kind == 'rgb' else (len(paths), size, size)
    read = read_rgb_square if kind == 'rgb' else read_mask_square
    with files.replacing(target) as temporary:
        if hasattr(os, 'posix_fallocate'):   # writing to a map of a full disk would kill the process
            with open(temporary, 'rb+') as file:
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        pixels = np.lib.format.open_memmap(temporary, mode='w+', dtype=np.uint8, shape=shape)

        def fill(number):
            pixels[number] = read(paths[number], size)

        files.for_all(fill, range(len(paths)), f'caching {target.stem.rpartition("-")[0]}', workers,
                      summary='Pictures that cannot be read', remedy='python dataset/check_data.py')
        digest = hashlib.sha256()
        for picture in pixels:
            # Of masks as their files hold them, {0, 255}: a training begun when caches did so too goes on.
            digest.update((picture if kind == 'rgb' else 255 * picture).tobytes())
        pixels.flush()
    return digest.hexdigest()[:16]


def read_rgb_square(path, size):
    """A picture squashed to (size, size, 3) uint8, bicubic and antialiased."""
    return images.resize_rgb(images.read_rgb(path, cover=2 * size), (size, size))


def read_mask_square(path, size):
    """A mask squashed to (size, size) uint8 of {0, 1}, nearest neighbour."""
    return images.resize_mask(images.read_mask(path), (size, size))
