"""DeepLabv3+ of segmentation-models-pytorch with a head for the cluster, or as a co-segmentation network.

Also what they read, their losses, and an optimiser that clips.
"""
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from companions.weak_labels import REQUIREMENTS
from engine import checkpoints, cli, files
from engine.errors import InputError

METHODS = 'a1', 'a1l', 'acoseg', 'mask'   # mask: as a1, on true masks
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)   # of ImageNet, as smp has them
CLASS_DROPOUT = 0.2
HIDDEN = 4096   # units of the attention (released)
STRIDE = 16     # of the encoder: the sides of its input are multiples
FOLDABLE = 'resnet', 'resnext'   # encoders in which a batch norm reads the convolution before it


def build(method, encoder, clusters=0, swap=True):
    """The network of a method, with random weights.

    method : of METHODS; encoder : a name that segmentation-models-pytorch knows
    clusters : number of classes of a1l's head; swap : see CoSegmenter
    Raises InputError for an encoder that is not known.
    """
    head = {'classes': clusters, 'dropout': CLASS_DROPOUT} if method == 'a1l' else None
    try:
        network = deeplab(encoder, head)
    except (KeyError, ValueError, NotImplementedError) as error:
        why = str(error).strip('\'"').splitlines()[0][:300]
        raise InputError(f'ENCODER={encoder}: cannot be used', [why], 'resnet18, resnet101, or another of '
                         'segmentation-models-pytorch that can be dilated') from None
    return CoSegmenter(network, swap) if method == 'acoseg' else network


def require():
    """Raise InputError where segmentation-models-pytorch is not installed."""
    cli.require('segmentation_models_pytorch', where=REQUIREMENTS)


def deeplab(encoder, head):
    """DeepLabv3+ with random weights. head : options of a head for classes, or None"""
    require()
    import segmentation_models_pytorch as smp  # slow to import
    return smp.DeepLabV3Plus(encoder, encoder_weights=None, aux_params=head)


class Attention(nn.Module):
    """A weight from 0 to 1 for each channel, from the means of the channels."""

    def __init__(self, channels):
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, HIDDEN), nn.Linear(HIDDEN, channels)

    def forward(self, x):
        """(B, C, H, W) -> (B, C, 1, 1)"""
        return self.excite(self.squeeze(x.mean((2, 3))).tanh()).sigmoid()[..., None, None]


class CoSegmenter(nn.Module):
    """ACoseg: DeepLabv3+ for two pictures, with channel attention on its last and its stride-4 features.

    swap : the attention of each picture acts on the features of the other (Chen et al., ACCV 2018); else on
    its own (released), and the two have nothing to do with each other
    """

    def __init__(self, network, swap=True):
        super().__init__()
        self.encoder, self.decoder, self.head = network.encoder, network.decoder, network.segmentation_head
        self.deep, self.shallow = (Attention(network.encoder.out_channels[place]) for place in (-1, -4))
        self.swap = swap

    def forward(self, x, y):
        """Two batches (B, 3, H, W) -> their mask logits, (B, 1, H, W) each."""
        of_x, of_y = self.encoder(x), self.encoder(y)
        by_x, by_y = (self._attention(features) for features in (of_x, of_y))
        if self.swap:
            by_x, by_y = by_y, by_x
        return self._decoded(of_x, by_x), self._decoded(of_y, by_y)

    def _attention(self, features):
        return self.deep(features[-1]), self.shallow(features[-4])

    def _decoded(self, features, attention):
        seen = list(features)
        seen[-1], seen[-4] = features[-1] * attention[0], features[-4] * attention[1]
        return self.head(self.decoder(seen))


# --- First weights of the encoder

def encoder_file(encoder, where):
    """Path of an encoder's ImageNet weights, None where there are none.

    where : path of a state dict, torchvision's names; '' = torch hub's cache, where it holds one; 'none'
    """
    if where:
        return None if where == 'none' else Path(where)
    return next(iter(sorted(Path(torch.hub.get_dir(), 'checkpoints').glob(f'{encoder}-*.pth'))), None)


def load_encoder(network, encoder, where):
    """Load ImageNet weights into a network's encoder: (what it starts from, in words; fingerprint or '').

    encoder, where : see `encoder_file`
    """
    path = encoder_file(encoder, where)
    if path is None:
        return 'random weights', ''
    state = checkpoints.load_state(path, '--ENCODER_WEIGHTS=none starts from random weights')
    checkpoints.apply(checkpoints.load_parameters, network.encoder, state, path,
                      f'it must be of {encoder}, under torchvision\'s names', ignored=('fc.',))
    found = files.fingerprint(path)
    return f'encoder of {path.name}, sha256 {found}...', found


# --- What the networks read

def frame(side, size):
    """(rows, columns) of a patch of `side` px that fill (height, width) by mirror reflection (101)."""
    found = []
    for length in size:
        before = (length - side) // 2
        found.append(np.pad(np.arange(side), (before, length - side - before), 'reflect'))
    return tuple(found)


def padded(pictures, size):
    """Pictures or masks (..., P, P), P in the middle of (height, width), the rest their reflections."""
    rows, columns = (torch.from_numpy(places).to(pictures.device)
                     for places in frame(pictures.shape[-1], size))
    return pictures.index_select(-2, rows).index_select(-1, columns)


def cropped(maps, side):
    """The middle (..., P, P) of maps (..., height, width)."""
    top, left = ((length - side) // 2 for length in maps.shape[-2:])
    return maps[..., top:top + side, left:left + side]


def to_input(patches, size, bgr=False):
    """uint8 patches (B, 3, P, P) -> network input (B, 3, height, width) float32, channels last.

    bgr : the channels in OpenCV's order under the statistics of RGB (released)
    """
    x = padded(patches.flip(1) if bgr else patches, size).contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values, device=x.device)[:, None, None] for values in (MEAN, STD))
    return (x.float() / 255 - mean) / std


# --- Losses

def mask_loss(logits, target):
    """Binary cross-entropy, mean over all pixels: logits (B, 1, H, W), target (B, H, W) of {0, 1}."""
    return F.binary_cross_entropy_with_logits(logits[:, 0].float(), target.float())


def weighted_loss(output, target, labels, mask_weight, class_weight):
    """(Total, parts) of A1 or A1+L: mask_weight * mask + class_weight * class.

    output : mask logits (B, 1, H, W), or (these, class logits (B, k)); target : (B, H, W)
    labels : (B,), None without class logits
    """
    logits, classes = output if isinstance(output, tuple) else (output, None)
    mask = mask_loss(logits, target)
    if classes is None:
        return mask_weight * mask, {'mask': mask}
    label = F.cross_entropy(classes.float(), labels)
    accuracy = (classes.argmax(1) == labels).float().mean()
    parts = {'mask': mask, 'class': label, 'class accuracy': accuracy}
    return mask_weight * mask + class_weight * label, parts


class ClippedAdam(torch.optim.Adam):
    """Adam whose gradients are scaled to a global norm of at most `clip`.

    keep_gradients : they are never zeroed (released): each step adds to their clipped sum, which is then
    clipped itself, much like momentum
    """

    def __init__(self, parameters, lr, clip, keep_gradients=False):
        super().__init__(parameters, lr=lr, fused=False)   # a fused step would scale fp16's gradients later
        self.clip, self.sums = clip, None
        if keep_gradients:
            self.sums = [torch.zeros_like(value) for value in self._parameters()]

    def _parameters(self):
        return [value for group in self.param_groups for value in group['params']]

    @torch.no_grad()
    def step(self, closure=None):
        if self.sums is not None:
            for number, value in enumerate(self._parameters()):
                self.sums[number] = self.sums[number].to(value.device)
                if value.grad is not None:
                    value.grad.copy_(self.sums[number].add_(value.grad))
        nn.utils.clip_grad_norm_(self._parameters(), self.clip)
        if self.sums is not None:
            for total, value in zip(self.sums, self._parameters(), strict=True):
                if value.grad is not None:
                    total.copy_(value.grad)
        return super().step(closure)

    def state_dict(self):
        return super().state_dict() | ({} if self.sums is None else {'sums': list(self.sums)})

    def load_state_dict(self, state):
        state = dict(state)
        sums = state.pop('sums', None)
        if (sums is None) != (self.sums is None) or any(
                there.shape != own.shape for there, own in zip(sums or (), self.sums or (), strict=True)):
            raise ValueError('the sums of the gradients do not fit the network')
        self.sums = sums
        super().load_state_dict(state)
