"""From an attention map to a mask: threshold, watershed, dense CRF, each with and without normalisation.

Widths are px of a picture of SIDE, as published; maps and pictures are brought to that side first.
"""
import cv2
import numpy as np

from engine import cli, images

VERSION = 2   # raise it when the same weights and settings give other masks than before
SIDE = 256
LOW, HIGH = 0.02, 0.99          # quantiles that normalisation takes for 0 and 1
FIRM = 0.7                      # of the largest distance to the outside: surely within a lesion
ALPHAS = range(1, 9)
MEAN_FIELD_STEPS = 10
SMOOTH = {'sxy': 3, 'compat': 3}
SIMILAR = {'sxy': 80, 'srgb': 13, 'compat': 10}
CORNER = 80                     # px, legs of the triangles that the corner prior empties
CUTS = ('threshold', 'watershed', 'crf')
METHODS = tuple(f'{first}{cut}' for cut in CUTS for first in ('', 'normalised-'))
REQUIREMENTS = 'companions/label_transfer/requirements.txt'


def named(text):
    """The methods that a setting names: all of them, or a list with commas."""
    return METHODS if text == 'all' else tuple(text.split(','))


def method_faults(text):
    """Faults of such a setting, a list of lines."""
    return [f'METHODS: {method} must be of {", ".join(METHODS)}' for method in named(text)
            if method not in METHODS]


def require(methods):
    """Raise InputError where a method needs a package that is not installed."""
    if any(method.endswith('crf') for method in methods):
        cli.require('pydensecrf', where=REQUIREMENTS)


def inside(picture, kind):
    """The pixels of a picture (H, W, 3) that show something: of a brain those that are not black."""
    return picture.any(2) if kind == 'brain' else np.ones(picture.shape[:2], bool)


def at_side(picture):
    """A picture (H, W, 3) uint8 squashed to SIDE."""
    return picture if picture.shape[:2] == (SIDE, SIDE) else images.resize_rgb(picture, (SIDE, SIDE))


def enlarged(attention, side=SIDE):
    """A map (h, w) in [0, 1] at side x side, float32."""
    return cv2.resize(np.float32(attention), (side, side), interpolation=cv2.INTER_LINEAR)


def normalised(attention, shown):
    """A map (H, W) stretched so that quantiles LOW and HIGH of its pixels `shown` are 0 and 1; others 0.

    Not in the original: training raises the whole map, since no loss bounds it, and fixed thresholds with it.
    """
    values = attention[shown]
    if not len(values):
        return np.zeros_like(attention)
    low, high = np.quantile(values, [LOW, HIGH])
    return np.where(shown, ((attention - low) / max(high - low, 1e-6)).clip(0, 1), 0).astype(np.float32)


def watershed(attention):
    """The original's watershed of a map (H, W) in [0, 1]: (H, W) bool.

    Its labels from 5 on, of a fourth lesion, kept grey values by mistake; here all are lesions.
    """
    reverse = np.round(255 * (1 - attention)).astype(np.uint8)
    _, dark = cv2.threshold(reverse, 0, 255, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    opened = cv2.morphologyEx(dark, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8), iterations=2)
    around = cv2.dilate(opened, np.ones((7, 7), np.uint8), iterations=3)
    distance = cv2.distanceTransform(opened, cv2.DIST_L1, 5)
    firm = np.uint8(255 * (distance > FIRM * distance.max()))
    markers = cv2.connectedComponents(firm)[1] + 1
    markers[(around > 0) & (firm == 0)] = 0
    return cv2.watershed(cv2.cvtColor(reverse, cv2.COLOR_GRAY2BGR), markers) > 1


class Crf:
    """A dense CRF over a picture (S, S, 3) uint8: many maps of one picture. Needs pydensecrf."""

    def __init__(self, picture):
        from pydensecrf.densecrf import DenseCRF2D  # an optional package
        self.shape = picture.shape[:2]
        self.field = DenseCRF2D(self.shape[1], self.shape[0], 2)
        self.field.addPairwiseGaussian(**SMOOTH)
        self.field.addPairwiseBilateral(**SIMILAR, rgbim=np.ascontiguousarray(picture[..., ::-1]))

    def __call__(self, attention, alpha):
        """Probability of lesion (S, S) float32. alpha : power of the rest's chance"""
        lesion = attention / (attention.max() + 1e-5)
        chances = np.stack([(1 - lesion)**alpha, lesion]).clip(1e-5, 1).reshape(2, -1)
        self.field.setUnaryEnergy(np.ascontiguousarray(-np.log(chances), np.float32))
        return np.array(self.field.inference(MEAN_FIELD_STEPS))[1].reshape(self.shape)


def without_corners(probability):
    """The same map (S, S) with its corners empty: a prior that no lesion lies there, as the original has."""
    side = len(probability)
    leg, (row, column) = CORNER * side // SIDE, np.mgrid[:side, :side]
    corner = ((row + column <= leg) | (row + column >= 2 * side - leg)
              | (side - row + column <= leg) | (side - column + row <= leg))
    return np.where(corner, 0, probability)


class Cutter:
    """Masks of one picture's map by any of METHODS.

    attention : (h, w) in [0, 1]; picture : (SIDE, SIDE, 3) uint8; kind : of data.KINDS
    empty_corners : whether the CRF's corners are emptied
    """

    def __init__(self, attention, picture, kind, empty_corners=False):
        shown, self.empty_corners = inside(picture, kind), empty_corners
        plain = np.where(shown, enlarged(attention), 0)
        self.maps = {'': plain, 'normalised-': normalised(plain, shown)}
        self.picture, self._crf = picture, None

    def mask(self, method, alpha=1):
        """(SIDE, SIDE) bool. alpha : of the CRF, a whole number of ALPHAS"""
        cut = method.rpartition('-')[2]
        attention = self.maps[method.removesuffix(cut)]
        if cut == 'threshold':
            return attention > 0.5
        if cut == 'watershed':
            return watershed(attention)
        self._crf = self._crf or Crf(self.picture)
        found = self._crf(attention, alpha)
        return (without_corners(found) if self.empty_corners else found) > 0.5


def at_size(mask, size):
    """A mask (SIDE, SIDE) bool at (width, height): (height, width) bool."""
    return images.resize_mask(mask.astype(np.uint8), size) > 0
