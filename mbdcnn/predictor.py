"""The trained chain on any picture: coarse-SN, mask-CN, its activation map, enhanced-SN.

    from mbdcnn.predictor import MBDCNN
    model = MBDCNN.load('models')
    result = model('picture.jpg')     # result.label, result.class_probabilities, result.mask, ...

A research tool, not a medical device.
"""
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from dataset import crops, extraction
from dataset.layout import Layout
from engine import checkpoints, files, hardware, images
from engine.errors import InputError
from mbdcnn import coarse_masks, networks
from mbdcnn.inference import draw_coarse, enlarged_sum, mask_of, place, require_finite, segment, squashed

NETWORKS = networks.NETWORKS
INPUT_SIZE = 224          # px, of networks without a config.json (the released code's weights)
NOTICE = 'A research tool, not a medical device: do not base a diagnosis on it.'
PREVIEW = 1024            # px, long side of the picture that a result keeps
BATCH_SIZE = 8            # pictures or crops at a time, each in all views
FORMATS = images.FORMATS | {'TIFF': 'tif', 'WEBP': 'webp'}   # of own pictures; data sets hold the first three
EXTENSIONS = (*images.EXTENSIONS, '.tif', '.tiff', '.webp')
DEEP_GREY = ('I;16', 'I;16B', 'I;16L', 'I;16N')   # Pillow clips these to 8 bits instead of scaling


@dataclass(frozen=True)
class Picture:
    """What the networks read of a picture; `MBDCNN.prepare` makes it.

    size : (width, height) in px, upright; preview : (h, w, 3) uint8, long side limited
    whole : (S, S, 3) uint8, the picture squashed for coarse-SN
    crops : (9, 224, 224, 3) uint8, in the order of dataset.crops.crop_boxes
    squares : tuple of (s, s, 3) uint8, the picture squashed to each of enhanced-SN's sides
    """
    size: tuple
    preview: np.ndarray
    whole: np.ndarray
    crops: np.ndarray
    squares: tuple


@dataclass(frozen=True)
class Prediction:
    """What the chain finds in a picture of W x H px.

    mask : (H, W) bool, the lesion as enhanced-SN sees it
    coarse_mask : (H, W) bool, the lesion as coarse-SN sees it
    class_probabilities : {'nevus': p, 'melanoma': p, 'keratosis': p}, or the classes of mask-CN's
        training; mean softmax of nine crops, sum 1
    cam : (s / 16, s / 16) float32, mask-CN's class activation map of `label` over the whole picture, maximum
        1; values below zero speak against the class. (The map that enhanced-SN reads is the paper's, of
        mask-CN's decision from the whole picture alone, which may be another class.)
    mask_confidence : agreement of the views with the mask, 0 to 1; see the function of that name
    preview : (h, w, 3) uint8, the picture with its long side limited to 1024 px
    logits : tuple of (s, s) float32, one a scale, summed over its views
    views : the number of views at all scales; the logits enlarged to W x H sum to `views` times their mean
    """
    mask: np.ndarray
    coarse_mask: np.ndarray
    class_probabilities: dict
    cam: np.ndarray
    mask_confidence: float
    preview: np.ndarray
    logits: tuple
    views: int

    @property
    def label(self):
        """The most probable class: 'nevus', 'melanoma', 'keratosis', or one of mask-CN's own."""
        return max(self.class_probabilities, key=self.class_probabilities.get)

    @property
    def probability(self):
        """Each pixel's lesion probability, (H, W) float32; computed anew at every access.

        Mask = where it exceeds 0.5.
        """
        return _sigmoid(enlarged_sum(self.logits, self.mask.shape[::-1]) / self.views)

    @property
    def area(self):
        """Lesion area in pixels of the picture, int."""
        return int(np.count_nonzero(self.mask))

    @property
    def area_fraction(self):
        """Lesion area as a part of the picture, 0 to 1."""
        return self.area / self.mask.size

    @property
    def bounding_box(self):
        """(left, top, right, bottom) of the mask in px, right and bottom exclusive; None when empty."""
        left, top, width, height = cv2.boundingRect(self.mask.astype(np.uint8))
        return (left, top, left + width, top + height) if width else None


class MBDCNN:
    """The three trained networks. Make one with `MBDCNN.load`.

    coarse, enhanced : mbdcnn.inference.Segmenter; device : torch.device
    classifier : mbdcnn.inference.Classifier; default: the one that draws enhanced-SN's maps
    sides : {'CoarseSN': px, 'MaskCN': px, 'EnhancedSN': px}, input sides; coarse-SN's is that of stage 3
    coarse_tta : stage 3 drew its masks from six views
    warning : what a reader must know of the weights: that they have seen drawn pictures; '' for nothing
    weights : {'CoarseSN': {'file': path, 'fingerprint': hash, 'recipe': its training's}, ...}
    """

    def __init__(self, coarse, enhanced, sides, device, coarse_tta=True, classifier=None, warning='',
                 weights=None):
        self.coarse_tta, self.warning, self.weights = coarse_tta, warning, weights or {}
        self.coarse, self.enhanced, self.classifier = coarse, enhanced, classifier or enhanced.classifier
        self.sides, self.device = sides, device
        self.scales = networks.scales_of(sides['EnhancedSN'])

    @property
    def classes(self):
        """The ClassTable that mask-CN was trained with."""
        return self.classifier.classes

    @classmethod
    def load(cls, folder='models', device='auto', precision='auto'):
        """Load the networks from a models folder (CoarseSN/, MaskCN/ and EnhancedSN/ within it).

        Where none of the three lies in the folder, those of models/isic2017/ are taken, and a line says so.
        device : 'auto', 'cuda', 'mps' or 'cpu'; precision : 'auto', 'bf16', 'fp16' or 'fp32'
        Raises InputError for weights that are missing (it says which scripts make them), damaged, or
        of networks that were not trained on each other. What does not come out finite of these weights is an
        InputError of every prediction.
        """
        for name, value, known in (('device', device, hardware.DEVICES),
                                   ('precision', precision, hardware.PRECISIONS)):
            if value not in known:
                raise InputError(f'{name}={value!r} must be one of {", ".join(known)}')
        layout = Layout(Path(folder).parent)
        layout.models = Path(folder)
        if layout.models.is_dir() or folder == 'models':   # another that is not there was mistyped
            layout = networks.or_published(layout)
        _require_weights(layout)
        trained = {name: networks.trained_settings(layout.weights(name)) for name in NETWORKS}
        sides = {name: settings.get('INPUT_SIZE', INPUT_SIZE) for name, settings in trained.items()}
        # Before loading: a training that still runs may replace a file in between.
        weights = {name: {'file': str(layout.weights(name)), 'recipe': trained[name].get('RECIPE', 'unknown'),
                          'fingerprint': files.fingerprint(layout.weights(name))} for name in NETWORKS}
        made = _drawing(layout)
        sides['CoarseSN'] = made.get('input_size', sides['CoarseSN'])
        device = hardware.choose_device(device)
        coarse, enhanced = (networks.load_segmenter(layout, name, device, precision)
                            for name in ('CoarseSN', 'EnhancedSN'))
        # An enhanced-SN that takes no maps (TRANSFER mdc, none) comes without the classifier.
        classifier = enhanced.classifier or networks.load_classifier(layout, device, precision)
        return cls(coarse, enhanced, sides, device, made.get('views') != 1, classifier,
                   networks.of_drawn_pictures({name: checkpoints.read_config(layout.weights(name))
                                               for name in NETWORKS}), weights)

    def __call__(self, image, tta=True):
        """Prediction for one picture; see `prepare` for what it may be, and `predict` for tta."""
        return next(self.predict([self.prepare(image)], tta))

    def batch(self, pictures, tta=True, batch_size=BATCH_SIZE):
        """List of Predictions for several pictures, in order; all their masks are in memory."""
        found = []
        for start in range(0, len(pictures), batch_size):
            prepared = [self.prepare(picture) for picture in pictures[start:start + batch_size]]
            found += self.predict(prepared, tta, batch_size)
        return found

    def prepare(self, image, preview=PREVIEW):
        """Read a picture and cut what the networks need of it, as stage 1 of the README does.

        image : path of a jpg, png, bmp, tif or webp (EXIF orientation applied), PIL image, or RGB as an array
            (H, W, 3) of uint8
        preview : px, long side of the picture that the result keeps
        Returns Picture. Raises InputError for what is no picture of at least 16 x 16 px.
        """
        cover = max(extraction.CROP_COVER, 2 * max(*self.scales, *self.sides.values()))
        pixels, size, divisor = _read(image, cover)
        boxes = crops.crop_boxes(*size, crops.SCALES_9)
        cut = [images.resize_rgb(pixels, (crops.SIDE, crops.SIDE), [edge / divisor for edge in box])
               for box in boxes]
        return Picture(size, images.resize_rgb(pixels, extraction.limited(pixels.shape[1::-1], preview)),
                       images.resize_rgb(pixels, (self.sides['CoarseSN'],) * 2), np.stack(cut),
                       tuple(images.resize_rgb(pixels, (scale, scale)) for scale in self.scales))

    def predict(self, pictures, tta=True, batch_size=BATCH_SIZE):
        """Run the chain on prepared pictures; a generator of Predictions, in order.

        The pictures go through the networks together, on a CPU each core with one of its own; full-size maps
        are made one at a time.
        tta : six views for each mask and three scales for the final one; False is about six times
        faster. The nine crops of the classification are always used.
        """
        together = 1 if self.device.type == 'cpu' else max(1, len(pictures))
        parts = [pictures[start:start + together] for start in range(0, len(pictures), together)]
        found = hardware.on_each_core(lambda part: self._run(part, tta, batch_size), parts, self.device)
        for part, (wholes, probabilities, logits, cams) in zip(parts, found, strict=True):
            for number, picture in enumerate(part):
                views = [scale[:, number] for scale in logits]   # one (views, s, s) a scale
                yield Prediction(
                    mask=mask_of(views, picture.size),
                    coarse_mask=images.resize_mask(wholes[number], picture.size) > 0,
                    class_probabilities=dict(zip(self.classes.names, probabilities[number].tolist(),
                                                 strict=True)),
                    cam=cams[number, 0], mask_confidence=mask_confidence(views), preview=picture.preview,
                    logits=tuple(scale.sum(0) for scale in views), views=sum(map(len, views)))

    def _run(self, pictures, tta, batch_size):
        """The networks on pictures together: coarse masks (B, S, S), class probabilities (B, C), and what
        `_segment` returns."""
        wholes = self._draw_coarse(np.stack([picture.whole for picture in pictures]), tta, batch_size)
        probabilities = self._classify(np.concatenate([picture.crops for picture in pictures]), tta,
                                       batch_size).reshape(len(pictures), -1, len(self.classes)).mean(1)
        return wholes, probabilities, *self._segment(pictures, wholes, tta, probabilities.argmax(1))

    def _draw_coarse(self, squares, tta, batch_size):
        """Coarse masks of (N, S, S, 3) uint8, at coarse-SN's own resolution: (N, S, S) of {0, 1}."""
        return np.concatenate([
            draw_coarse(self.coarse, squares[start:start + batch_size], tta and self.coarse_tta)
            for start in range(0, len(squares), batch_size)])

    def _classify(self, cut, tta, batch_size):
        """Class probabilities of crops (N, 224, 224, 3), each with the coarse mask drawn from the crop
        itself, which stage 3 stores at the crop's size: (N, C) float64."""
        side, coarse, rows = self.sides['MaskCN'], None, []
        if self.classifier.uses_masks:
            seen, = squashed(cut, [self.sides['CoarseSN']])
            stored, = squashed(self._draw_coarse(seen, tta, batch_size), [crops.SIDE])
            coarse, = squashed(stored, [side])
        cut, = squashed(cut, [side])
        for start in range(0, len(cut), batch_size):
            batch = slice(start, start + batch_size)
            rows += self.classifier.probabilities(*place(cut, coarse, self.device, batch)).tolist()
        require_finite(rows, self.classifier)
        return np.array(rows)

    def _segment(self, pictures, wholes, tta, classes):
        """Enhanced-SN on pictures with their coarse masks (B, S, S), enlarged to full size as on disk.

        Returns a list of logits (views, B, s, s), one a scale, and the activation maps (B, 1, h, w) of the
        classes (B,) at the first scale.
        """
        full = (images.resize_mask(whole, picture.size)
                for picture, whole in zip(pictures, wholes, strict=True))
        coarse = squashed(full, self.scales)
        squares = [np.stack(scale) for scale in zip(*(picture.squares for picture in pictures), strict=True)]
        logits = segment(self.enhanced, squares, coarse, tta)
        _, cams = self.classifier(*place(squares[0], coarse[0], self.device), torch.from_numpy(classes))
        require_finite(cams.cpu(), self.classifier)
        return logits, cams.cpu().numpy()


def mask_confidence(views):
    """How far a mask overlaps, in Dice, with what the views on the picture see: 0 to 1.

    views : list of (views, s, s) lesion logits, one a scale, turned back
    With m the mask of the mean logit and p the views' mean lesion probability, 2 sum(p m) / (sum(p) +
    sum(m)): the overlap to expect with the truth if p is right. It is 1 where all views are certain and
    agree, falls where they waver or contradict each other, and is 0 for an empty mask. From a single
    view (tta=False) it is far too high.
    """
    side = max(scale.shape[1] for scale in views)
    count = sum(map(len, views))
    mask = mask_of(views, (side, side))
    p = enlarged_sum([_sigmoid(scale).sum(0) / count for scale in views], (side, side)).clip(0, 1)
    total = float(p.sum() + mask.sum())
    return 2 * float(p[mask].sum()) / total if total else 0.0


def _sigmoid(logit):
    return torch.from_numpy(logit).sigmoid().numpy()


# --- Weights


def _require_weights(layout):
    missing = [f'{layout.weights(name)}: is missing; made by {layout.command(f"train_{name}.py")}'
               for name in NETWORKS if not layout.weights(name).is_file()]
    if missing:
        raise InputError(f'{layout.models} does not hold the three trained networks', missing,
                         'run these scripts (stages 2 to 5 of the README), or point at the models of '
                         "another root, for instance the demo's: --MODELS=demo/models on the command "
                         "line, MBDCNN.load('demo/models') in Python")


def _drawing(layout):
    """How the coarse masks were drawn that the later networks were trained on, see coarse_masks.require.

    {} where no network has a record (the released code's weights). Raises InputError when it was with
    another coarse-SN than the present one, or when the networks otherwise do not belong together.
    """
    records = [coarse_masks.read_config(layout.weights(name)).get('inputs', {}).get('coarse_masks')
               for name in NETWORKS[1:]]
    made = next(filter(None, records), {})
    coarse_masks.require_chain(layout, NETWORKS[1:], made)
    weights = layout.weights('CoarseSN')
    present = files.fingerprint(weights)
    if made.get('coarse_sn', present) != present:
        raise InputError('The networks do not belong together',
                         [f'{layout.weights("MaskCN")}: was trained on masks of another coarse-SN '
                          f'({made["coarse_sn"]}) than {weights} ({present})'],
                         f'{layout.command(coarse_masks.SCRIPT)}, then '
                         f'{layout.command("train_MaskCN.py", "--RESUME=False")} and enhanced-SN likewise')
    return made


# --- Pictures


def _read(image, cover):
    """Pixels (h, w, 3) uint8 of a path, PIL image or array; full (width, height); the divisor 1, 2, 4
    or 8 between both. Only jpg files are reduced, and keep at least `cover` px on both sides."""
    if isinstance(image, (str, os.PathLike)):
        name = Path(image)
        pixels, size, divisor = _read_file(name, cover)
    else:
        name, divisor = f'a {type(image).__name__}', 1
        pixels = _from_memory(image, name) if isinstance(image, Image.Image) else np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise InputError(f'A picture must be an array (H, W, 3) of uint8, a PIL image or a path, not '
                             f'{name} of shape {pixels.shape} and type {pixels.dtype}')
        size = pixels.shape[1::-1]
    if min(size) < images.LEAST_SIDE:
        raise _unusable(name, f'is {size[0]}x{size[1]} px, too small to be a photograph')
    return pixels, size, divisor


def _read_file(path, cover):
    with images.open_image(path, FORMATS) as image:
        size = image.size
        image.draft('RGB', (cover, cover))
        pixels = _upright_rgb(image, path)
        divisor = round(max(size) / max(pixels.shape[:2]))
        if divisor == 1:
            return pixels, pixels.shape[1::-1], 1
        return pixels, size[::-1] if images.orientation(image) > 4 else size, divisor


def _from_memory(image, name):
    try:
        return _upright_rgb(image, name)
    except InputError:
        raise
    except Exception as error:   # noqa: BLE001 - Pillow raises many kinds
        raise _unusable(name, f'cannot be decoded ({type(error).__name__}: {error})') from None


def _upright_rgb(image, name):
    """A PIL image as the viewer sees it: (H, W, 3) uint8, 16-bit grey scaled to 8."""
    image = images.upright(image)
    if image.mode in DEEP_GREY:
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.stack([grey] * 3, 2)
    if image.mode in ('I', 'F'):
        raise _unusable(name, f'colour mode {image.mode} has no defined white')
    return np.array(image.convert('RGB'))


def _unusable(name, reason):
    return InputError('A picture cannot be used', [f'{name}: {reason}'], 'replace or remove it')
