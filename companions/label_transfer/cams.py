"""The plain classifier's class activation maps: the weakly supervised floor."""
import torch

from companions.label_transfer import networks, translator
from engine import checkpoints
from net.cam import class_activation_map

TRAIN = '-m companions.label_transfer.train_CAM'


class Cam(translator.Looker):
    """Class activation maps of pictures. network : networks.Classifier; side : px, of its input"""

    def attention_of(self, placed):
        """(Map (1, 1, h, w) in [0, 1], logits (1,)) of a picture (1, 3, side, side)."""
        features, logits = self.network(placed)
        zero = torch.zeros(len(placed), dtype=torch.long, device=placed.device)
        return class_activation_map(features, self.network.cls.weight, zero, relu=True), logits


def load(path, device, precision):
    """The Cam of a weight file. Raises InputError where it does not fit, or has no record beside it."""
    state = checkpoints.load_state(path, f'train: python {TRAIN}')
    settings = translator.trained_settings(path)
    network = networks.Classifier(settings['WIDTH'], settings['BLOCKS'])
    checkpoints.apply(checkpoints.load_parameters, network, state, path, f'train: python {TRAIN}')
    return Cam(network, settings['INPUT_SIZE'], device, precision)
