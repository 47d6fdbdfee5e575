"""Works on pictures: extraction, training samples, the start of a training."""
import contextlib
import csv
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks import plain
from dataset import crops, extraction, synthetic
from dataset.layout import Layout
from engine import augment, cache, hardware, images
from engine.samples import Pictures, stream
from mbdcnn import networks

REPOSITORY = Path(__file__).resolve().parent.parent
ORIGINALS = ((3000, 2000), (4288, 2848), (6748, 4499))   # px, as the large ones of ISIC-2017
LABELS = 'ISIC-2017_Training_Part3_GroundTruth.csv'
RANGES = augment.Ranges(crop=(0.5, 1.0), crop_probability=0.5)
SIDE = 224
STEPS = 10**4   # more than any measurement takes


def draw(size, seed, label=0):
    """A drawn lesion enlarged to (width, height), with sensor noise, and its mask."""
    rng = np.random.default_rng(seed)
    picture, mask = synthetic.draw(rng, label)
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-6, 7, (64, 64, 1))
    tiled = np.tile(noise, (size[1] // 64 + 1, size[0] // 64 + 1, 1))[:size[1], :size[0]]
    return np.clip(picture + tiled, 0, 255).astype(np.uint8), images.resize_mask(mask, size)


def write_jpg(path, picture):
    """An RGB array as a jpg of quality 90."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])


def write_labels(path, names):
    """A label csv in which every image is a nevus."""
    with open(path, 'w', newline='') as file:
        csv.writer(file).writerows([('image_id', 'melanoma', 'seborrheic_keratosis'),
                                    *((name, '0.0', '0.0') for name in names)])


class Work:
    """What most works have in common."""

    versions, asked, units, elsewhere, loads = ('plain', 'ours'), '', 1, False, False

    def __init__(self, folder, device):
        self.folder, self.device = folder, device
        self.precision = hardware.choose_precision('auto', device)

    def placed(self, network):
        """A network with random weights, as the scripts place trained ones."""
        return networks.placed(network, self.device, self.precision)

    def prepare(self):
        """Nothing to prepare."""

    def floor(self):
        return None, 0


class Extraction(Work):
    """9 crops of each original (stage 1); ours on all cores, as it runs."""

    title, unit, asked, units = 'crops of originals, 3000x2000 to 6748x4499 px jpg', 'image', '4', 6

    def prepare(self):
        self.layout = Layout(self.folder)
        self.names = [f'ISIC_{number:07}' for number in range(self.units)]
        self.originals = self.layout.originals('Training') / 'Images'
        if self.originals.exists():
            return
        for number, name in enumerate(self.names):
            write_jpg(self.originals / f'{name}.jpg', draw(ORIGINALS[number % len(ORIGINALS)], number)[0])
        write_labels(self.layout.data / LABELS, self.names)

    def plain(self):
        target = self.folder / 'plain'
        target.mkdir(exist_ok=True)

        def call():
            for name in self.names:
                plain.extract_crops(self.originals / f'{name}.jpg', target, crops.SCALES_9)
        return call

    def ours(self):
        def call():
            shutil.rmtree(self.layout.crops('Training'), ignore_errors=True)
            with quiet():
                extraction.extract_crops(self.layout, 'Training')
        return call

    def floor(self):
        """Every pixel of the originals written once, and read once."""
        return 'memory', 2 * 3 * float(np.mean([width * height for width, height in ORIGINALS]))


class Samples(Work):
    """Training samples of coarse-SN on one core: image and mask augmented alike."""

    title, unit, asked, units = 'training samples, 1600-px images and masks, one core', 'sample', '100', 8
    size = (1600, 1200)

    def prepare(self):
        if hasattr(os, 'sched_setaffinity'):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.draw()

    def draw(self):
        """Write the originals, once."""
        self.folder.mkdir(exist_ok=True)
        self.pairs = [(self.folder / f'{number}.png', self.folder / f'{number}_segmentation.png')
                      for number in range(self.units)]
        for number, paths in enumerate(self.pairs):
            if not paths[1].exists():
                picture, mask = draw(self.size, number)
                images.write_png(paths[0], picture)
                images.write_mask(paths[1], mask)

    def plain(self):
        return lambda: torch.utils.data.default_collate([plain.training_sample(*pair) for pair in self.pairs])

    def ours(self):
        """From the cache that the training builds once, through the loader, a batch at a time."""
        pictures, masks = self.cached()
        batches = iter(stream(Pictures(pictures, {'mask': masks}, None, SIDE, RANGES), self.units, 0, STEPS))
        return lambda: next(batches)

    def cached(self):
        """The pictures and masks as the training keeps them, 448 px, memory-mapped."""
        photos, masks = zip(*self.pairs, strict=True)
        with quiet():
            return [cache.load(self.folder / 'cache', kind, list(paths), 448, kind, 1).pixels
                    for kind, paths in (('rgb', photos), ('mask', masks))]

    def floor(self):
        """448 px image and mask read, 224 px ones written."""
        return 'memory', 4 * (448**2 + SIDE**2)


class Start(Work):
    """From the command until train_CoarseSN.py begins its first step, from random weights."""

    title, unit = 'start of train_CoarseSN.py until its first step, 2000 cached pictures', 'start'
    asked, versions, elsewhere = '< 10 s', ('ours',), True
    batch = 16

    def prepare(self):
        if self.folder.exists():
            return
        at = f'--ROOT={self.folder}'
        for words in (('dataset/make_demo_data.py', at, '--TRAINING_IMAGES=2000', '--MAX_SIDE=256',
                       '--VALIDATION_IMAGES=150', '--TESTING_IMAGES=3', '--EXTRA_IMAGES=0'),
                      ('dataset/extractPatch_seg_train.py', at), ('dataset/list_seg.py', at)):
            subprocess.run([sys.executable, *words], cwd=REPOSITORY, check=True, capture_output=True)
        self.once()   # fills the cache

    def times(self, _version):
        return [self.once() for _ in range(3)]

    def once(self):
        """Seconds until the progress bar of the steps appears; the process is ended then."""
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, 'train_CoarseSN.py', f'--ROOT={self.folder}', f'--DEVICE={self.device.type}',
             '--RESUME=False', f'--BATCH_SIZE={self.batch}', '--PRETRAINED=none'], cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        seen = b''
        try:
            while not re.search(rb'training on .*\| 0/', seen, re.DOTALL):
                if not select.select([process.stdout], [], [], 300)[0]:
                    raise RuntimeError(f'no step within 300 s:\n{seen.decode()}')
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    raise RuntimeError(f'the training ended:\n{seen.decode()}')
                seen += block
            return time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def quiet():
    """Progress bars and reports of the measured code go nowhere."""
    with open(os.devnull, 'w') as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield

