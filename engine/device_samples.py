"""Training pictures in a device's own memory as uint8, cut out and augmented there in batches.

A batch is that of engine.samples.stream: the same pictures under the same geometries, which are
drawn on the host (some 50 bytes a sample travel) and applied on the device. Pixels differ by the
rounding of the interpolation, never by more than one grey level with OpenCV 5. Nothing waits for
the device. A CPU warps faster one by one with OpenCV.
"""
import numpy as np
import torch
import torch.nn.functional as F

from engine import augment, samples

PICTURES_AT_ONCE = 256    # while moving: so much of the set exists twice on the host
SHARE_OF_FREE = 0.5       # of a GPU's free memory that the pictures may take; the network needs the rest


class Resident:
    """engine.samples.Pictures on a device. pictures : samples.Pictures; device : torch.device."""

    def __init__(self, pictures, device):
        self.pictures, self.device = pictures, device
        self.images = _moved(pictures.images, device)
        self.masks = {name: _moved(masks, device) for name, masks in pictures.masks.items()}
        self.labels = None if pictures.labels is None else torch.as_tensor(pictures.labels, device=device)

    def stream(self, batch_size, first_step, last_step, rank=0, world=1):
        """Batches of steps first_step .. last_step - 1, as samples.stream gives them, on the device."""
        for positions in samples.shares(batch_size, first_step, last_step, rank, world):
            yield self.batch(positions)

    def batch(self, positions):
        """Samples of these positions of the stream as one batch of tensors, see samples.Pictures."""
        own = self.pictures
        numbers = [own.index_at(position) for position in positions]
        theta = np.stack([augment.draw(augment.generator(own.seed, position), own.ranges)
                          for position in positions])
        index = samples.to_device(np.array(numbers), self.device)
        theta = samples.to_device(theta.astype(np.float32), self.device)
        grid = F.affine_grid(theta, (len(numbers), 1, own.size, own.size), align_corners=False)
        batch = {'image': _warped(self.images[index].permute(0, 3, 1, 2), grid, own.interpolation),
                 'index': index}
        for name, masks in self.masks.items():
            batch[name] = _warped(masks[index][:, None], grid, 'nearest')[:, 0]
        if self.labels is not None:
            batch['label'] = self.labels[index]
        return batch


def fits(pictures, device):
    """True when the pictures of a samples.Pictures take at most half of a GPU's free memory."""
    arrays = [pictures.images, *pictures.masks.values()]
    needed = sum(int(np.prod(array.shape)) for array in arrays)
    return needed <= SHARE_OF_FREE * torch.cuda.mem_get_info(device)[0]


def _moved(pictures, device):
    """uint8 (N, ...) array, memory-mapped perhaps -> tensor on the device."""
    whole = torch.empty(pictures.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(pictures), PICTURES_AT_ONCE):
        numbers = range(start, min(start + PICTURES_AT_ONCE, len(pictures)))
        whole[start:numbers.stop] = torch.from_numpy(np.stack([pictures[number] for number in numbers]))
    return whole


def _warped(pictures, grid, interpolation):
    """uint8 (B, C, H, W) under a grid (B, S, S, 2) -> uint8 (B, C, S, S); outside is 0."""
    warped = F.grid_sample(pictures.float(), grid, interpolation, 'zeros', align_corners=False)
    return warped.round().to(torch.uint8)
