"""Mask2Lesion's generator and discriminator: pix2pix's U-Net and 70x70 PatchGAN (Isola et al., CVPR 2017).

Parameter names are those of junyanz/pytorch-CycleGAN-and-pix2pix, so that its checkpoints load.
"""
import re

import torch
import torch.nn.functional as F
from torch import nn

from engine import checkpoints
from engine.errors import InputError
from net.norms import InstanceNorm

NORMS = ('instance', 'batch')
GAN_LOSSES = ('vanilla', 'lsgan')
SPREAD = 0.02             # standard deviation of the first weights
MOST_CHANNELS = 8         # times the width, of the inner levels
LEAST_LEVELS = 5          # of the generator, as pix2pix's
RUNNING = '.running_mean', '.running_var', '.num_batches_tracked'
WHICH = 'a generator of pix2pix, as models/Mask2Lesion/G.pth or latest_net_G.pth'


def _norm(kind, channels):
    return nn.BatchNorm2d(channels) if kind == 'batch' else InstanceNorm()


class Level(nn.Module):
    """A level of the U-Net with all levels below it: (B, outer, H, W) -> (B, 2 outer, H, W), its own input
    first; the outermost has no such skip, and gives `channels` in [-1, 1].

    below : Level, None for the innermost; channels : of the outermost's input and output, else 0
    """

    def __init__(self, outer, inner, below, norm, dropout=0.0, channels=0):
        super().__init__()
        self.skips, bias = not channels, norm == 'instance'
        down = nn.Conv2d(channels or outer, inner, 4, 2, 1, bias=bias)
        up = nn.ConvTranspose2d(inner if below is None else 2 * inner, channels or outer, 4, 2, 1,
                                bias=bias or bool(channels))
        if channels:
            layers = [down, below, nn.ReLU(), up, nn.Tanh()]
        elif below is None:
            layers = [nn.LeakyReLU(0.2), down, nn.ReLU(), up, _norm(norm, outer)]
        else:
            layers = [nn.LeakyReLU(0.2), down, _norm(norm, inner), below, nn.ReLU(), up, _norm(norm, outer)]
            layers += [nn.Dropout(dropout)] if dropout else []
        self.model = nn.Sequential(*layers)

    def forward(self, x):
        # The original's first layer works in place: its skip is LeakyReLU(x). ReLU follows, so x does, too.
        return torch.cat([x, self.model(x)], 1) if self.skips else self.model(x)


class Generator(nn.Module):
    """Mask (B, 3, S, S) in [-1, 1], three equal channels -> picture (B, 3, S, S) in [-1, 1].

    width : channels of the outermost level (original 64); levels : halvings of the side (8), at least 5, S a
    multiple of 2 ** levels; norm : of NORMS; dropout : the only noise, in training mode
    """

    def __init__(self, width=64, levels=8, norm='instance', dropout=True):
        super().__init__()
        widths = [width * min(2**level, MOST_CHANNELS) for level in range(levels)]   # outermost first
        below = None
        for level in range(levels - 1, 0, -1):
            noisy = dropout and 3 < level < levels - 1
            below = Level(widths[level - 1], widths[level], below, norm, 0.5 * noisy)
        self.model = Level(0, width, below, norm, channels=3)

    def forward(self, masks):
        return self.model(masks)


class Discriminator(nn.Module):
    """Mask and picture (B, 6, S, S) -> logits of "real" (B, 1, S / 8 - 2, S / 8 - 2), one a 70x70 px patch.

    width : channels of the first layer (original 64); norm : of NORMS
    """

    def __init__(self, width=64, norm='instance'):
        super().__init__()
        layers, bias = [nn.Conv2d(6, width, 4, 2, 1), nn.LeakyReLU(0.2)], norm == 'instance'
        for factor, stride in ((1, 2), (2, 2), (4, 1)):
            layers += [nn.Conv2d(factor * width, 2 * factor * width, 4, stride, 1, bias=bias),
                       _norm(norm, 2 * factor * width), nn.LeakyReLU(0.2)]
        self.model = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))

    def forward(self, pairs):
        return self.model(pairs)


def initialise(network):
    """Weights from N(0, 0.02), batch norms' from N(1, 0.02), biases 0; returns the network."""
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(layer.weight, 0.0, SPREAD)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, SPREAD)
        if getattr(layer, 'bias', None) is not None:
            nn.init.zeros_(layer.bias)
    return network


def gan_loss(logits, real, kind):
    """Mean over patches of how far the discriminator is from saying `real` (bool).

    kind : 'vanilla', cross-entropy (the original's command), or 'lsgan', squared error (its figure)
    """
    wanted = torch.full_like(logits, float(real))
    if kind == 'lsgan':
        return F.mse_loss(logits, wanted)
    return F.binary_cross_entropy_with_logits(logits, wanted)


def read_generator(path, norm=''):
    """(parameters, norm) of a generator in a file, ours or junyanz's.

    path : Path; norm : that it must have, '' for any
    Raises InputError where the file holds no such network, or one of the other norm.
    """
    state = checkpoints.load_state(path, WHICH)
    if getattr(state.get('model.model.0.weight'), 'ndim', 0) != 4:
        raise InputError('A checkpoint does not fit the network', [f'{path}: has no model.model.0.weight'],
                         f'use {WHICH}')
    found = 'instance' if 'model.model.0.bias' in state else 'batch'   # batch norm makes biases idle
    if norm not in ('', found):
        raise InputError('A checkpoint is of the other normalisation', [
            f'{path}: is of a network with {found} norm, not with {norm} norm'], f'--NORM={found}')
    if found == 'instance':   # of PyTorch before 0.4, which kept statistics that nothing reads
        state = {name: tensor for name, tensor in state.items() if not name.endswith(RUNNING)}
    return state, found


def load_generator(path, norm='', dropout=True):
    """The Generator in a file, see `read_generator`; width, levels and norm show in its parameters."""
    state, norm = read_generator(path, norm)
    levels = max(len(re.findall(r'model\.[13]\b', name)) for name in state)
    network = Generator(len(state['model.model.0.weight']), max(levels, LEAST_LEVELS), norm, dropout)
    checkpoints.apply(checkpoints.load_parameters, network, state, path, f'use {WHICH}')
    return network
