"""A network of this companion at work: from patches to masks."""
import copy
from types import SimpleNamespace

import numpy as np
import torch

from companions.weak_labels import networks
from engine import checkpoints, hardware
from engine.errors import InputError
from engine.samples import to_device
from mbdcnn.inference import Trained, for_inference, require_finite, store_convolutions


class Predictor(Trained):
    """A trained network. cfg : METHOD, ENCODER, INPUT_SIZE and BGR of its training; the others: see Trained

    A co-segmentation network sees each picture beside the next one of its set, the last beside the first.
    """

    def __init__(self, network, cfg, precision, weights=None):
        super().__init__(network, None, precision, weights)
        self.cfg = cfg

    def folded(self):
        """The same with a copy of the network that is made for inference: faster over many pictures."""
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)
        fold = for_inference if self.cfg.ENCODER.startswith(networks.FOLDABLE) else (
            lambda network, precision: store_convolutions(network.eval(), hardware.DTYPES[precision]))
        other.network = fold(other.network, self.precision)
        return other

    @torch.no_grad()
    def frames(self, pictures, numbers):
        """Mask logits over the whole padded frame (B, H, W) float32, and class logits (B, k) or None.

        pictures : (N, P, P, 3) uint8, all of a set; numbers : which of them, a list
        """
        def read(some):
            patches = to_device(np.ascontiguousarray(pictures[some]), self.device).permute(0, 3, 1, 2)
            return networks.to_input(patches, self.cfg.INPUT_SIZE, self.cfg.BGR)

        with hardware.autocast(self.precision, self.device):
            if self.cfg.METHOD == 'acoseg':
                beside = [(number + 1) % len(pictures) for number in numbers]
                found = self.network(read(numbers), read(beside))[0]
            else:
                found = self.network(read(numbers))
        logits, classes = found if isinstance(found, tuple) else (found, None)
        return logits[:, 0].float(), None if classes is None else classes.float()

    def logits(self, pictures, numbers):
        """Mask logits of patches: (B, P, P) float32 on the host. InputError where they are not finite."""
        found = networks.cropped(self.frames(pictures, numbers)[0], pictures.shape[1]).cpu().numpy()
        require_finite(found, self)
        return found


def load(layout, method, device, precision, weights=None):
    """(The Predictor of a root's trained network, what its config.json says). weights : of another file

    Raises InputError where there is none, or where it is not of the method.
    """
    train = layout.command('-m companions.weak_labels.train_WeakSN', f'--METHOD={method}')
    path = weights or layout.weights(f'WeakSN_{method}')
    state = checkpoints.load_state(path, train)
    config = checkpoints.read_config(path)
    trained = config.get('settings', {})
    if not trained:
        raise InputError('A run folder is damaged', [
            f'{path.parent / "config.json"}: is missing, which says the encoder and the input'], train)
    if trained.get('METHOD') != method:
        raise InputError('Weights are of another method', [f'{path}: are of METHOD={trained.get("METHOD")}'],
                         f'--METHOD={trained.get("METHOD")}')
    cfg = used(trained)
    network = networks.build(method, cfg.ENCODER, cfg.CLUSTERS, cfg.SWAP_ATTENTION)
    checkpoints.apply(checkpoints.load_parameters, network, state, path, train)
    precision = hardware.choose_precision(precision, device)
    network.to(device, memory_format=torch.channels_last)
    return Predictor(network, cfg, precision, path).folded(), config


def used(trained):
    """The settings of a training that its network is used under. trained : dict, of its config.json"""
    names = 'METHOD', 'ENCODER', 'CLUSTERS', 'BGR', 'SWAP_ATTENTION'
    return SimpleNamespace(INPUT_SIZE=tuple(trained['INPUT_SIZE']), **{name: trained[name] for name in names})
