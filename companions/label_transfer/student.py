"""A segmentation network that learns from masks which a teacher drew, and the moving average that redraws."""
import copy

import numpy as np
import torch

from companions.label_transfer import networks as own
from companions.label_transfer import translator
from engine import checkpoints
from engine.images import resize_rgb
from engine.samples import to_device
from mbdcnn import networks
from mbdcnn.inference import Segmenter, mask_of
from net.models import deeplabv3plus

STUDENTS = ('unet', 'coarse-sn')
TRAIN = '-m companions.label_transfer.train_student'
SCALING = 'unit'
COUNTER = 'num_batches_tracked'   # of batch norms


def build(cfg, images):
    """(New network, what it starts from). cfg : STUDENT, WIDTH, and those of networks.coarse_for_training

    images : (N, S, S, 3) uint8 training pictures
    """
    if cfg.STUDENT == 'unet':
        return own.UNet(cfg.WIDTH), 'random weights'
    return networks.coarse_for_training(cfg, images)


def load(path, device, precision):
    """The Segmenter of a student's weight file. Raises InputError where file and record do not fit."""
    state, settings = checkpoints.load_state(path, f'python {TRAIN}'), translator.trained_settings(path)
    network = own.UNet(settings['WIDTH']) if settings['STUDENT'] == 'unet' else deeplabv3plus(
        settings['NUM_CLASSES'], bn_eps=networks.trained_epsilon(path))
    checkpoints.apply(checkpoints.load_parameters, network, state, path, f'python {TRAIN}')
    return Segmenter(network.to(device, memory_format=torch.channels_last), SCALING, precision, weights=path)


def average_of(network):
    """A copy of a network that `follow` keeps as its moving average."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(average, network, decay):
    """Move an average towards a network, counters and all: decay of it stays.

    Less at first, by how many batches the network has seen: an average of what was learnt and of first
    weights is no network, and would redraw every mask empty.
    """
    seen = next(value for name, value in network.state_dict().items() if name.endswith(COUNTER))
    rate = 1 - ((1 + seen) / (10 + seen)).clamp(max=decay)   # a tensor: to ask a GPU at every step stalls it
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, rate)
        else:
            mean.copy_(now)


def redraw(segmenter, images, side, at_once=8):
    """The masks that a segmenter draws of training pictures: (N, S, S) uint8 {0, 1}.

    images : (N, S, S, 3) uint8; side : px, of the segmenter's input
    """
    size, drawn = images.shape[2:0:-1], []
    segmenter.network.eval()
    for start in range(0, len(images), at_once):
        some = images[start:start + at_once]
        squares = np.stack([resize_rgb(image, (side, side)) for image in some])
        logits = segmenter(to_device(squares, segmenter.device).permute(0, 3, 1, 2)).cpu().numpy()
        drawn += [mask_of([logit[None]], size).astype(np.uint8) for logit in logits]
    return np.stack(drawn)
