"""Training samples as a function of their position in an endless stream.

Sample `position` is picture permutation(epoch)[position mod n] under a geometry drawn from
(seed, position). Nothing depends on workers, on the process that draws it or on what was drawn
before: a resumed run, and a run on several devices, see exactly what an uninterrupted run on one
device sees.
"""
import signal
import sys

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from engine import augment, cli

ORDER = 2**63   # keeps the shuffling's random streams apart from the geometries'


class Pictures(Dataset):
    """Augmented training samples from uint8 arrays in memory or memory-mapped.

    images : (N, S, S, 3); planes : dict name -> (N, S', S') uint8 class numbers (a mask's are 0 and 1),
        warped like the image; labels : (N,) class numbers, or None
    size : side of the samples; ranges : augment.Ranges or Window; interpolation : of the images
    outside : dict name -> class number outside the picture (255, to be ignored, say), 0 where not named
    An item is a dict: 'image' (3, size, size) uint8, each plane (size, size) uint8, 'label' int,
    'index' int (which picture).
    """

    def __init__(self, images, planes, labels, size, ranges, interpolation='bilinear', seed=0, outside=None):
        self.images, self.planes, self.labels = images, planes, labels
        self.size, self.ranges, self.interpolation, self.seed = size, ranges, interpolation, seed
        self.outside = dict.fromkeys(planes, 0) | (outside or {})
        self._order = (-1, None)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, position):
        index = self.index_at(position)
        matrix = augment.draw(augment.generator(self.seed, position), self.ranges)
        image = augment.warp(self.images[index], matrix, self.size, self.interpolation)
        item = {'image': torch.from_numpy(image).permute(2, 0, 1), 'index': index}
        for name, planes in self.planes.items():
            plane = augment.warp(planes[index], matrix, self.size, 'nearest', self.outside[name])
            item[name] = torch.from_numpy(plane)
        if self.labels is not None:
            item['label'] = int(self.labels[index])
        return item

    def index_at(self, position):
        """Which picture stands at `position` of the stream; each epoch is a permutation of all."""
        epoch, place = divmod(position, len(self))
        if self._order[0] != epoch:
            rng = augment.generator(self.seed, ORDER + epoch)
            self._order = (epoch, rng.permutation(len(self)))
        return int(self._order[1][place])


def stream(dataset, batch_size, first_step, last_step, rank=0, world=1, workers=0):
    """Batches of steps first_step .. last_step - 1 for one of `world` processes: a DataLoader, good for once.

    batch_size : over all processes together, a multiple of `world`; process `rank` gets its share
    of every batch.
    """
    return DataLoader(dataset, batch_sampler=shares(batch_size, first_step, last_step, rank, world),
                      pin_memory=torch.cuda.is_available(), prefetch_factor=4 if workers else None,
                      **loaders(workers))


def unpaired(**streams):
    """Streams of several sets as one: their batches side by side, the parts named '<set>_<part>'.

    Each set needs a seed of its own: sets of one size under one seed would come in the same order.
    """
    for batches in zip(*streams.values(), strict=True):
        yield {f'{name}_{part}': tensor for name, batch in zip(streams, batches, strict=True)
               for part, tensor in batch.items()}


def shares(batch_size, first_step, last_step, rank=0, world=1):
    """Positions of the batches of steps first_step .. last_step - 1 that process `rank` of `world` gets."""
    share = batch_size // world
    for step in range(first_step, last_step):
        first = step * batch_size + rank * share
        yield range(first, first + share)


def to_device(array, device):
    """A NumPy array as a tensor on the device; on its way to a GPU the host does not wait for it."""
    tensor = torch.from_numpy(array)
    if device.type != 'cuda':
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def loaders(number):
    """The options by which a DataLoader gets a number of loader processes.

    On Linux they are forked, as by default up to Python 3.13, and share the pictures' memory; a later default
    would copy all of them to each process, also those of a memory map.
    """
    return {'num_workers': number, 'worker_init_fn': start_worker,
            'multiprocessing_context': 'fork' if number and sys.platform == 'linux' else None}


def start_worker(_number):
    """Begin a loader process: one thread; Ctrl-C, SIGTERM and hang-ups are left to the main process.

    They often reach the whole process group; the main process finishes its step first. `cli.launch` ends
    what is left of these processes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(cli.HANG_UP, signal.SIG_IGN)
    cv2.setNumThreads(0)
