"""A trained generator at work: from pictures to attention maps, and what else it draws."""
from pathlib import Path

import numpy as np
import torch

from companions.label_transfer import networks
from engine import checkpoints, hardware, images
from engine.errors import InputError
from net.inputs import to_input

WHICH = 'a generator of train_LabelTransfer, as models/LabelTransfer/A2B.pth'
TRAIN = '-m companions.label_transfer.train_LabelTransfer'


class Looker:
    """A network that says where pictures look diseased. side : px, of its input

    precision : see hardware.choose_precision
    """

    def __init__(self, network, side, device, precision):
        self.network = network.to(device, memory_format=torch.channels_last).eval()
        self.side, self.device = side, device
        self.precision = hardware.choose_precision(precision, device)

    def placed(self, picture):
        """A picture (H, W, 3) uint8 as the network reads it: (1, 3, side, side) in [-1, 1]."""
        square = images.resize_rgb(picture, (self.side, self.side))
        pixels = torch.from_numpy(np.ascontiguousarray(square)).permute(2, 0, 1)[None]
        return to_input(pixels.to(self.device), 'symmetric')

    @torch.no_grad()
    def look(self, picture):
        """Picture (H, W, 3) uint8 -> (map (h, w) float32 in [0, 1], logit of "diseased")."""
        with hardware.autocast(self.precision, self.device):
            attention, logits = self.attention_of(self.placed(picture))
        attention = attention[0, 0].float().cpu().numpy()
        if not np.isfinite(attention).all():
            raise FloatingPointError('The map of a picture is not finite')
        return attention, logits.mean().item()


class Translator(Looker):
    """Looks at pictures and draws them as the other class. network : networks.Generator"""

    def attention_of(self, placed):
        """(Mask (1, 1, side, side), the two class logits) of a picture (1, 3, side, side)."""
        found = self.network.look(placed)
        return found.mask, found.logits

    @torch.no_grad()
    def draw(self, picture):
        """Picture (H, W, 3) uint8 -> networks.Translated of one picture, and its input (1, 3, side, side)."""
        placed = self.placed(picture)
        with hardware.autocast(self.precision, self.device):
            return self.network(placed), placed


def load(path, device, precision):
    """The Translator of a weight file; its side stands in the config.json of the run folder.

    Raises InputError where the file is missing, or holds no such network.
    """
    path = Path(path)
    state = checkpoints.load_state(path, f'train: python {TRAIN}')
    stem = state.get('encoder.0.weight')
    if stem is None or stem.ndim != 4 or 'attend.weight' not in state:
        raise InputError('A checkpoint does not fit the network', [f'{path}: has no attention'],
                         f'use {WHICH}')
    blocks = len({name.split('.')[1] for name in state if name.startswith('encoder.') and '.first.' in name})
    settings = trained_settings(path)
    network = networks.Generator(len(stem), blocks, settings.get('ATTENTION') == 'centred')
    checkpoints.apply(checkpoints.load_parameters, network, state, path, f'use {WHICH}')
    return Translator(network, settings['INPUT_SIZE'], device, precision)


def trained_settings(path):
    """The settings of the training that weights are of: config.json of their run folder, see `run_of`."""
    return checkpoints.read_config(run_of(path) / path.name)['settings']


def run_of(path):
    """The run folder that weights, or candidates, are of.

    Raises InputError where it has no config.json: the input's side does not show in the weights.
    """
    for folder in (path.parent, path.parent.parent.parent):   # of candidates
        if 'INPUT_SIZE' in checkpoints.read_config(folder / path.name).get('settings', {}):
            return folder
    raise InputError('Weights without a record', [f'{path.parent / "config.json"}: is missing'],
                     f'use {WHICH}, in its folder')
