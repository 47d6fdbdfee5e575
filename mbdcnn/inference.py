"""Trained networks at work: views for test-time augmentation, lesion logits, CAMs, probabilities."""
import copy

import torch

from engine import hardware
from net.cam import class_activation_map
from net.fold import fold_batch_norms, store_convolutions
from net.inputs import to_input, to_maskcn_input
from net.loss import lesion_logit

# Identity, three rotations by 90 degrees, two flips: (what is done, what undoes it).
VIEWS = (
    (lambda x: x, lambda x: x),
    (lambda x: x.rot90(1, (-2, -1)), lambda x: x.rot90(-1, (-2, -1))),
    (lambda x: x.rot90(2, (-2, -1)), lambda x: x.rot90(2, (-2, -1))),
    (lambda x: x.rot90(3, (-2, -1)), lambda x: x.rot90(-3, (-2, -1))),
    (lambda x: x.flip(-1), lambda x: x.flip(-1)),
    (lambda x: x.flip(-2), lambda x: x.flip(-2)),
)


class Classifier:
    """Mask-CN ready to use; `uses_masks` says whether it reads coarse masks, 4 channels, or RGB alone.

    network : Xception_dilation; scaling : of its RGB input; precision : 'bf16', 'fp16' or 'fp32'
    cam_relu : drop the negative evidence from localisation maps
    """

    def __init__(self, network, scaling, precision, cam_relu=False):
        self.network = network.eval()
        self.scaling, self.precision, self.cam_relu = scaling, precision, cam_relu
        self.uses_masks = network.conv1.in_channels == 4

    def folded(self):
        """The same with a copy of the network whose batch norms are folded: faster over many pictures."""
        return Classifier(_folded(self.network, self.precision), self.scaling, self.precision, self.cam_relu)

    @torch.no_grad()
    def __call__(self, images, coarse):
        """uint8 (B, 3, S, S), coarse mask (B, S, S) of {0, 1} -> (probabilities (B, 3), CAM (B, 1, h, w)).

        The CAM is that of the class which the network itself decides for. Both are float32.
        """
        features, logits = self._run(images, coarse)
        cam = class_activation_map(features, self.network.cls.weight, logits.argmax(1), self.cam_relu)
        return logits.softmax(1), cam

    @torch.no_grad()
    def probabilities(self, images, coarse):
        """As a call, without the CAM: (B, 3) float32."""
        return self._run(images, coarse)[1].softmax(1)

    def _run(self, images, coarse):
        x = to_maskcn_input(images, coarse if self.uses_masks else None, self.scaling)
        with hardware.autocast(self.precision, x.device):
            features = self.network.features(x)
            return features, self.network.classify(features).float()


class Segmenter:
    """Coarse-SN, or enhanced-SN together with the mask-CN that draws its localisation maps.

    network : deeplabv3plus, or deeplabv3plus_en or _d with a classifier; scaling : of its input
    precision : see Classifier; classifier : Classifier, None for a network that takes no maps
    """

    def __init__(self, network, scaling, precision, classifier=None):
        self.network = network.eval()
        self.scaling, self.precision, self.classifier = scaling, precision, classifier

    def folded(self):
        """See Classifier.folded; the classifier stays as it is."""
        return Segmenter(_folded(self.network, self.precision), self.scaling, self.precision, self.classifier)

    @torch.no_grad()
    def __call__(self, images, coarse=None):
        """uint8 (B, 3, S, S), coarse mask (B, S, S) of {0, 1} -> lesion logit (B, S, S) float32."""
        x = to_input(images, self.scaling)
        extra = () if self.classifier is None else (self.classifier(images, coarse)[1],)
        with hardware.autocast(self.precision, x.device):
            logits = self.network(x, *extra)
        return lesion_logit(logits.float())

    def views(self, images, coarse=None):
        """The logit under each of the six views, turned back: (6, B, S, S); one batch of 6 B."""
        seen = torch.cat([forward(images) for forward, _ in VIEWS])
        masks = None if coarse is None else torch.cat([forward(coarse) for forward, _ in VIEWS])
        logits = self(seen, masks).unflatten(0, (len(VIEWS), len(images)))
        return torch.stack([back(logit) for (_, back), logit in zip(VIEWS, logits, strict=True)])


def _folded(network, precision):
    """An evaluation copy; the network itself may be trained on."""
    return for_inference(copy.deepcopy(network), precision)


def for_inference(network, precision):
    """Make a network fit for nothing but `precision` inference, in place; returns it."""
    return store_convolutions(fold_batch_norms(network), hardware.DTYPES[precision])


def counts_on_device(logit, truth):
    """Pixel counts (tp, fp, fn, tn) of a batch at the networks' own resolution: (B, 4) int64.

    logit : (B, S, S); truth : (B, S, S) of {0, 1}, on the same device
    """
    prediction, truth = logit > 0, truth > 0
    tp = (prediction & truth).sum((1, 2))
    positives, actual = prediction.sum((1, 2)), truth.sum((1, 2))
    total = truth.shape[1] * truth.shape[2]
    return torch.stack([tp, positives - tp, actual - tp, total - positives - actual + tp], 1)

