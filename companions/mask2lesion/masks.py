"""Masks to draw lesions for: simple shapes, deformed real masks, and samples of a model of real shapes."""
import cv2
import numpy as np
import torch
from sklearn.decomposition import PCA

from engine.errors import InputError

CORNERS = {'circle': 0, 'ellipse': 0, 'triangle': 3, 'square': 4, 'pentagon': 5, 'hexagon': 6, 'octagon': 8,
           'star': 10}
RADIUS = (0.15, 0.38)      # of a shape, as a share of the side
WAIST = (0.4, 0.6)         # of a star's inner corners, and
FLATNESS = (0.4, 0.8)      # of an ellipse's short axis, as shares of its radius
ROUND = 72                 # corners of a circle
MODEL_SIDE = 128           # px, of the distance maps that shapes are learnt from
AREA = (0.01, 0.85)        # share of the picture that a mask may take; others are drawn again
TRIES = 100


def shape(rng, name, side):
    """A shape of CORNERS of random size and turn, at a random place within side x side px: {0, 1} uint8."""
    radius = side * rng.uniform(*RADIUS)
    count = CORNERS[name] or ROUND
    angles = 2 * np.pi * np.arange(count) / count
    points = radius * np.stack([np.cos(angles), np.sin(angles)], 1)
    if name == 'star':
        points[1::2] *= rng.uniform(*WAIST)
    if name == 'ellipse':
        points[:, 1] *= rng.uniform(*FLATNESS)
    turn = rng.uniform(0, 2 * np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points += rng.uniform(radius, side - radius, 2)
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask


def elastic(rng, masks, alpha, sigma):
    """A random one of masks, N of (H, W) of {0, 1}, under torchvision's elastic transform.

    alpha : strength, sigma : smoothness of the displacement in px
    Returns (its largest part, number of the mask). Where that is too small or large, another is taken.
    """
    try:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import ElasticTransform
    except ImportError:
        raise InputError('Elastic masks need torchvision',
                         remedy='pip install torchvision, or -r requirements-extra.txt') from None
    deform, tried = ElasticTransform(float(alpha), float(sigma), InterpolationMode.NEAREST), []

    def draw():
        tried.append(int(rng.integers(len(masks))))
        torch.manual_seed(int(rng.integers(2**63)))
        return deform(torch.from_numpy(masks[tried[-1]])[None])[0].numpy()

    with torch.random.fork_rng(devices=()):
        return _usable(draw), tried[-1]


class ShapeModel:
    """Principal components of the signed distance maps of masks, each moved to the middle first.

    masks : (N, S, S) of {0, 1}, N at least 2; components : at most N - 1 are found
    """

    def __init__(self, masks, components):
        if len(masks) < 2:
            raise InputError('A shape model needs at least two masks', [f'there are {len(masks)}'])
        self.side = masks.shape[1]
        self.offsets = np.array([_offset(mask) for mask in masks])   # (N, 2), in sides of the picture
        middled = map(moved, masks, -self.offsets)
        maps = np.stack([signed_distance(mask).ravel() for mask in middled])
        self.pca = PCA(min(components, len(masks) - 1), svd_solver='randomized', random_state=0).fit(maps)
        self.scores = self.pca.transform(maps)   # (N, components) of the masks themselves

    def mask(self, scores, side):
        """Mask (side, side) of {0, 1} in the middle of the picture, at `scores` (components,)."""
        found = self.pca.inverse_transform(np.asarray(scores)[None])[0].reshape(self.side, self.side)
        return (cv2.resize(found.astype(np.float32), (side, side)) > 0).astype(np.uint8)

    def sample(self, rng, side):
        """A random mask; its largest part. Each score, and the place, is that of some mask of the model: the
        scores are far from normal, there being no lesion smaller than none."""
        def draw():
            chosen = rng.integers(len(self.scores), size=self.scores.shape[1])
            place = self.offsets[rng.integers(len(self.offsets))]
            return moved(self.mask(self.scores[chosen, range(len(chosen))], side), place)

        return _usable(draw)

    def walk(self, component, steps, share, side):
        """Masks along a component (from 1), from + to - through the mean: [(score in deviations, mask)].

        share : of the model's masks that have scores within the walk
        """
        if not 1 <= component <= self.scores.shape[1]:
            raise InputError(f'The shape model has no component {component}',
                             [f'it has {self.scores.shape[1]}'], 'raise COMPONENTS, or give more masks')
        along = self.scores[:, component - 1]
        low, high = np.quantile(along, [(1 - share) / 2, (1 + share) / 2])
        places = np.interp(np.linspace(1, -1, steps), [-1, 0, 1], [low, 0, high])
        axis = np.eye(self.scores.shape[1])[component - 1]
        return [(float(place / along.std()), self.mask(place * axis, side)) for place in places]


def _offset(mask):
    """How far the middle of a mask lies from that of the picture: (right, down) in sides, (0, 0) if empty."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return np.zeros(2)
    return (np.array([columns.mean(), rows.mean()]) + 0.5) / len(mask) - 0.5


def moved(mask, offset):
    """A mask (H, W) of {0, 1} moved by (right, down) in sides of the picture, to whole pixels."""
    shift = np.column_stack([np.eye(2), np.round(np.asarray(offset) * len(mask))])
    return cv2.warpAffine(mask, shift, mask.shape[::-1], flags=cv2.INTER_NEAREST)


def signed_distance(mask):
    """Distance to the outline in sides of the picture, positive inside: (H, W) float32 of (H, W) {0, 1}."""
    # A border of skin: else the distance within a mask that fills the picture would not be defined.
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, 5) for side in (framed, 1 - framed))
    return (inside - outside)[1:-1, 1:-1] / np.float32(len(mask))


def largest_part(mask):
    """The largest connected part of a mask (H, W) of {0, 1}; an empty one stays empty."""
    count, labels, facts, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return mask
    return (labels == 1 + facts[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)


def _usable(draw):
    """The first mask that `draw` gives of which a lesion can be drawn."""
    for _ in range(TRIES):
        mask = largest_part(draw())
        if AREA[0] <= mask.mean() <= AREA[1]:
            return mask
    raise InputError('No usable mask can be drawn', [f'{TRIES} in a row took less than {AREA[0]:.0%} or more '
                                                     f'than {AREA[1]:.0%} of the picture'],
                     'give other real masks, --MASKS=folder')
