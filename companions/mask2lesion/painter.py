"""A trained generator at work: from masks to pictures."""
from pathlib import Path

import numpy as np
import torch

from companions.mask2lesion import networks, pairs
from engine import checkpoints, hardware, metrics
from net.inputs import to_input, to_pictures

SIDE = 256   # px, of weights without a record, as those of the original


def mask_input(masks):
    """Masks (B, S, S) uint8, 0 to 255 -> what the generator reads: (B, 3, S, S) float32 in [-1, 1]."""
    return to_input(masks[:, None].expand(-1, 3, -1, -1), 'symmetric')


class Painter:
    """Draws a picture for a mask.

    network : networks.Generator; side : px, of its input; mask_filter : of pairs.MASK_FILTERS
    noise : whether its dropout stays on, as the original's does when it is tested; precision : see hardware
    """

    def __init__(self, network, side, mask_filter, noise, device, precision):
        self.network = network.to(device, memory_format=torch.channels_last).train(noise)
        self.side, self.mask_filter = side, mask_filter
        self.device, self.precision = device, hardware.choose_precision(precision, device)

    @torch.no_grad()
    def __call__(self, mask, seed=0, number=0):
        """Mask (H, W) uint8 of 0 to 255 -> picture (side, side, 3) uint8.

        seed, number : what the noise is a function of
        """
        # One at a time, so that neither noise nor batch norms depend on what else is drawn.
        hardware.seed_step(seed, number, 0)
        squashed = torch.from_numpy(np.array(pairs.squash_mask(mask, self.side, self.mask_filter)))
        with hardware.autocast(self.precision, self.device):
            drawn = self.network(mask_input(squashed[None].to(self.device)))
        return to_pictures(drawn)[0]


def load(path, noise, device, precision):
    """The Painter of a weight file, ours or latest_net_G.pth. Raises InputError, see networks.read_generator.

    A config.json beside it says side, filter and norm; without one they are the original's.
    """
    trained = checkpoints.read_config(Path(path)).get('settings', {})
    network = networks.load_generator(Path(path), trained.get('NORM', ''), trained.get('DROPOUT', True))
    return Painter(network, trained.get('INPUT_SIZE', SIDE), trained.get('MASK_FILTER', 'bicubic'), noise,
                   device, precision)


def overlap(found, given):
    """(JA, DI) of masks (H, W) bool, found in a picture and given to the generator."""
    return tuple(metrics.segmentation_scores(metrics.confusion(found, given))[0, :2].tolist())
