"""Pictures decoded once into one memory-mapped uint8 file, so that an epoch costs no decoding.

A cache file is named after the contents that it was made from; when a picture or the size changes, a new one
is made and the old one is deleted.
"""
import hashlib
import json
import os
from dataclasses import dataclass

import filelock
import numpy as np

from engine import files, images
from engine.contents import Contents
from engine.errors import InputError

VERSION = 2   # raise when the way of reading changes


@dataclass(frozen=True)
class Cache:
    """pixels : (N, S, S, 3) or (N, S, S) uint8 memory map; fingerprint : hash of the pixels, text."""
    pixels: np.ndarray
    fingerprint: str


def load(folder, name, paths, size, kind, workers=0):
    """Open the cache of `paths` squashed to size x size, building it where it is missing, stale or damaged.

    folder, name : where the cache lies, and the first part of its file names
    kind : 'rgb' (bicubic, antialiased), 'mask' (nearest, values {0, 1}), or 'soft mask' (bicubic, 0 to 255)
    Returns Cache. Raises InputError naming every picture that cannot be read, or that changes meanwhile.
    """
    contents, reading = Contents(folder), f'{name}: reading'
    before = contents.of_all(paths, reading)
    stem = f'{name}-{_digest(VERSION, size, kind, *before)}'
    pixels_path, facts_path = folder / f'{stem}.npy', folder / f'{stem}.json'
    shape = (len(paths), size, size, 3) if kind == 'rgb' else (len(paths), size, size)
    folder.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / '.lock'):   # two runs of one root may start together
        files.remove_abandoned(folder, age=0)   # what lies here is of a run that was killed
        found = _open(pixels_path, facts_path, contents)
        if found is None:
            in_the_way = [f'{path}: is a folder' for path in (pixels_path, facts_path) if path.is_dir()]
            if in_the_way:
                raise InputError('A cache cannot be written', in_the_way, 'remove it')
            fingerprint = _build(pixels_path, paths, shape, kind, workers)
            changed = [f'{path}: changed while it was read' for path, old, new in zip(
                paths, before, contents.of_all(paths, reading), strict=True) if old != new]
            if changed:
                pixels_path.unlink()
                raise InputError('Pictures changed', changed, 'run the same command again')
            files.write_text(facts_path, json.dumps({
                'fingerprint': fingerprint, 'file': contents.of(pixels_path), 'images': len(paths),
                'size': size, 'kind': kind}) + '\n')
            for stale in folder.glob(f'{name}-*'):   # a run that still maps one keeps it until it ends
                if stale.stem != stem:
                    stale.unlink(missing_ok=True)
            found = _open(pixels_path, facts_path, contents)
        contents.keep()
        return found


def _open(pixels_path, facts_path, contents):
    """The Cache in two files, None where they are not as they were written."""
    facts = files.read_json(facts_path)
    fingerprint, own = facts.get('fingerprint'), facts.get('file')
    if not (fingerprint and own and pixels_path.is_file() and contents.of(pixels_path) == own):
        return None
    return Cache(np.load(pixels_path, mmap_mode='r'), fingerprint)


def _digest(*parts):
    return hashlib.sha256(' '.join(map(str, parts)).encode()).hexdigest()[:16]


def _build(target, paths, shape, kind, workers):
    """Decode all pictures into `target`; return the fingerprint of the pixels."""
    read = {'rgb': read_rgb_square, 'mask': read_mask_square, 'soft mask': read_soft_square}[kind]
    with files.replacing(target) as temporary:
        if hasattr(os, 'posix_fallocate'):   # writing to a map of a full disk would kill the process
            with open(temporary, 'rb+') as file:
                os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        pixels = np.lib.format.open_memmap(temporary, mode='w+', dtype=np.uint8, shape=shape)

        def fill(number):
            pixels[number] = read(paths[number], shape[1])

        files.for_all(fill, range(len(paths)), f'caching {target.stem.rpartition("-")[0]}', workers,
                      summary='Pictures that cannot be read',
                      remedy='bring these files back whole, then run the same command again')
        digest = hashlib.sha256()
        for picture in pixels:
            # Of masks as their files hold them, {0, 255}: a training begun when caches did so too goes on.
            digest.update((255 * picture if kind == 'mask' else picture).tobytes())
        pixels.flush()
    return digest.hexdigest()[:16]


def read_rgb_square(path, size):
    """A picture squashed to (size, size, 3) uint8, bicubic and antialiased."""
    return images.resize_rgb(images.read_rgb(path, cover=2 * size), (size, size))


def read_mask_square(path, size):
    """A mask squashed to (size, size) uint8 of {0, 1}, nearest neighbour."""
    return images.resize_mask(images.read_mask(path), (size, size))


def read_soft_square(path, size):
    """A mask squashed to (size, size) uint8, 0 to 255, bicubic: grey where an edge falls between pixels."""
    return images.resize_rgb(255 * images.read_mask(path), (size, size))
