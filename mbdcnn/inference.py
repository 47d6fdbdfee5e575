"""Trained networks at work: the one path from pictures to lesion masks, localisation maps and classes.

Whoever draws a mask (stage 3, the evaluation, panels, predict.py) squashes the picture and its coarse mask to
the network's square input, sums the lesion logits of the views, enlarges and cuts at zero; here is how.
"""
import copy

import cv2
import numpy as np
import torch

from dataset.classes import PAPER
from engine import cache, hardware, images
from engine.errors import InputError
from engine.samples import to_device
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


LARGEST = 1e30   # of a logit; sums over views, enlarged, stay finite below it


class Trained:
    """A network ready to use; what Classifier and Segmenter share.

    network : nn.Module; scaling : of its RGB input; precision : 'bf16', 'fp16' or 'fp32'
    weights : path of the file that it was loaded from, None where it was not
    """

    def __init__(self, network, scaling, precision, weights=None):
        self.network, self.scaling, self.precision = network.eval(), scaling, precision
        self.weights = weights

    @property
    def device(self):
        """Where the network lies."""
        return next(self.network.parameters()).device

    def folded(self):
        """The same with a copy of the network whose batch norms are folded: faster over many pictures.

        The network itself may be trained on; a segmenter's classifier stays as it is.
        """
        other = copy.copy(self)
        other.network = for_inference(copy.deepcopy(self.network), self.precision)
        return other


class Classifier(Trained):
    """Mask-CN ready to use; `uses_masks` says whether it reads coarse masks, 4 channels, or RGB alone.

    network : Xception_dilation; cam_relu : drop the negative evidence from localisation maps
    classes : the ClassTable of its outputs
    """

    def __init__(self, network, scaling, precision, cam_relu=False, weights=None, classes=PAPER):
        super().__init__(network, scaling, precision, weights)
        self.cam_relu, self.uses_masks = cam_relu, network.conv1.in_channels == 4
        self.classes = classes

    @torch.no_grad()
    def __call__(self, images, coarse, classes=None):
        """uint8 (B, 3, S, S), coarse mask (B, S, S) of {0, 1} -> (probabilities (B, C), CAM (B, 1, h, w)).

        classes : numbers (B,) of the classes that the CAM is of, a tensor; None: those which the network
        itself decides for, as enhanced-SN reads them. Both results are float32.
        """
        features, logits = self._run(images, coarse)
        classes = logits.argmax(1) if classes is None else classes.to(logits.device)
        cam = class_activation_map(features, self.network.cls.weight, classes, self.cam_relu)
        return logits.softmax(1), cam

    @torch.no_grad()
    def probabilities(self, images, coarse):
        """As a call, without the CAM: (B, C) float32."""
        return self._run(images, coarse)[1].softmax(1)

    def _run(self, images, coarse):
        x = to_maskcn_input(images, coarse if self.uses_masks else None, self.scaling)
        with hardware.autocast(self.precision, x.device):
            features = self.network.features(x)
            return features, self.network.classify(features).float()


class Segmenter(Trained):
    """Coarse-SN, or enhanced-SN together with the mask-CN that draws its localisation maps.

    network : deeplabv3plus, or deeplabv3plus_en or _d with a classifier
    classifier : Classifier, None for a network that takes no maps
    """

    def __init__(self, network, scaling, precision, classifier=None, weights=None):
        super().__init__(network, scaling, precision, weights)
        self.classifier = classifier

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


def for_inference(network, precision):
    """Make a network fit for nothing but `precision` inference, in place; returns it."""
    return store_convolutions(fold_batch_norms(network), hardware.DTYPES[precision])


def require_finite(outputs, trained):
    """Refuse outputs of a network that are NaN, infinite or beyond LARGEST: an InputError names the weights.

    outputs : array-like, on the host; trained : Segmenter or Classifier
    """
    if not np.abs(np.asarray(outputs)).max(initial=0) < LARGEST:   # a NaN makes every comparison false
        name = type(trained.network).__name__
        raise InputError('A network gives numbers that are not finite',
                         [f'{trained.weights or "weights in memory"}: the outputs of this {name} in '
                          f'{trained.precision} are NaN, infinite or beyond {LARGEST:g}'],
                         'try --AMP=fp32 where it is fp16, or train again with a lower LEARNING_RATE')


def counts_on_device(logit, truth):
    """Pixel counts (tp, fp, fn, tn) of a batch at the networks' own resolution: (B, 4) int64.

    logit : (B, S, S); truth : (B, S, S) of {0, 1}, on the same device
    """
    prediction, truth = logit > 0, truth > 0
    tp = (prediction & truth).sum((1, 2))
    positives, actual = prediction.sum((1, 2)), truth.sum((1, 2))
    total = truth.shape[1] * truth.shape[2]
    return torch.stack([tp, positives - tp, actual - tp, total - positives - actual + tp], 1)


# --- From pictures to masks


def squashed(arrays, sides):
    """Pictures (H, W, 3) or masks (H, W) as square inputs: a list of (B, s, s, 3) or (B, s, s), one a side.

    arrays : an iterable of uint8 arrays of any sizes, which need not be in memory together
    """
    rows = [[(images.resize_rgb if array.ndim == 3 else images.resize_mask)(array, (side, side))
             for side in sides] for array in arrays]
    return [np.stack(column) for column in zip(*rows, strict=True)]


def place(pictures, coarse, device, batch=slice(None)):
    """Some of the pictures (N, S, S, 3) and coarse masks (N, S, S), or None, as the networks take them.

    batch : which of them. Returns uint8 tensors (B, 3, S, S) and (B, S, S), or None, on the device.
    """
    pictures = to_device(pictures[batch], device).permute(0, 3, 1, 2)
    return pictures, None if coarse is None else to_device(coarse[batch], device)


def segment(segmenter, squares, coarse=None, tta=True):
    """Lesion logits of a batch of pictures: a list of (views, B, s, s) float32 on the host, one a scale.

    squares, coarse : what `squashed` makes of the pictures and of their coarse masks (or None)
    tta : six views, turned back, at every scale; else the identity at the first scale
    Raises InputError, which names the weights, where logits are not finite.
    """
    found = []
    for number, pictures in enumerate(squares if tta else squares[:1]):
        placed = place(pictures, coarse and coarse[number], segmenter.device)
        logits = (segmenter.views(*placed) if tta else segmenter(*placed)[None]).cpu().numpy()
        if not np.abs(logits).max() < LARGEST and segmenter.classifier is not None:   # whose fault is it?
            require_finite(segmenter.classifier(*placed)[1].cpu(), segmenter.classifier)
        require_finite(logits, segmenter)
        found.append(logits)
    return found


def enlarged_sum(logits, size):
    """Sum of square logit maps (s, s), each resized bicubically to (width, height): (H, W) float32."""
    return sum(cv2.resize(logit, size, interpolation=cv2.INTER_CUBIC) for logit in logits)


def mask_of(views, size):
    """Lesion mask of one picture of (width, height) px: (H, W) bool.

    views : list of its logits (views, s, s), one a scale; lesion is where their enlarged sum exceeds 0
    """
    # Logits, not probabilities: a view that is certain counts for more than one that wavers. Summed before
    # they are enlarged, which is the same (both are linear) and costs one full-size map a scale, not six.
    return enlarged_sum([scale.sum(0) for scale in views], size) > 0


def draw_coarse(segmenter, squares, tta=True):
    """Coarse-SN's masks of pictures (B, S, S, 3), at its own resolution: (B, S, S) uint8 of {0, 1}.

    Later networks see them enlarged by nearest neighbour: `images.resize_mask`.
    """
    return (segment(segmenter, [squares], tta=tta)[0].sum(0) > 0).astype(np.uint8)


def segment_files(segmenter, paths, coarse_paths, scales, batch_size, tta=True):
    """Segment pictures at their full size; a generator over them, in order.

    paths : of the pictures; coarse_paths : their coarse masks, or None
    scales : input sides; the first one is also used alone, without views ("plain")
    Yields {'plain': (H, W) bool, 'tta': (H, W) bool}; 'tta' sums the logits of six views at every
    scale, resized bicubically to full size. Pictures share batches, full-size maps do not pile up.
    """
    used = scales if tta else scales[:1]
    for start in range(0, len(paths), batch_size):
        batch = slice(start, start + batch_size)
        # A jpg is decoded at a fraction of its size, yet twice the largest input: squashing hides the rest.
        pictures = (images.read_rgb(path, cover=2 * max(scales)) for path in paths[batch])
        coarse = None if coarse_paths is None else squashed(map(images.read_mask, coarse_paths[batch]), used)
        logits = segment(segmenter, squashed(pictures, used), coarse, tta)
        for number, path in enumerate(paths[batch]):
            size = images.image_size(path)
            found = {'plain': mask_of([logits[0][:1, number]], size)}   # the first view is the identity
            if tta:
                found['tta'] = mask_of([scale[:, number] for scale in logits], size)
            yield found


def maps_of_files(classifier, paths, coarse_paths, side, batch_size=16):
    """Mask-CN's localisation map of each picture squashed to `side` px: a list of (h, w) float32.

    coarse_paths : the pictures' coarse masks; None where mask-CN sees RGB alone
    """
    found = []
    for start in range(0, len(paths), batch_size):
        batch = slice(start, start + batch_size)
        pictures = np.stack([cache.read_rgb_square(path, side) for path in paths[batch]])
        masks = None if coarse_paths is None else np.stack(
            [cache.read_mask_square(path, side) for path in coarse_paths[batch]])
        maps = classifier(*place(pictures, masks, classifier.device))[1][:, 0].cpu().numpy()
        require_finite(maps, classifier)
        found += list(maps)
    return found
