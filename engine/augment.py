"""Random geometry, drawn once and applied alike to an image and to everything that belongs to it.

A geometry is a 2x3 matrix that takes normalised output coordinates to normalised input
coordinates, both in [-1, 1] with pixel edges at the ends. It is independent of resolution: the
same matrix warps a 448 px image, its 448 px mask and its 224 px coarse mask, and it is the theta
of `torch.nn.functional.affine_grid(align_corners=False)`.
"""
from dataclasses import dataclass

import cv2
import numpy as np

INTERPOLATIONS = {'bilinear': cv2.INTER_LINEAR, 'nearest': cv2.INTER_NEAREST}


@dataclass(frozen=True)
class Ranges:
    """What the draw may do (paper section IV-B). Angles in degrees and radians as the paper has them."""
    rotation: float = 10.0          # degrees, either way
    shear: float = 0.1              # radians, either way, along x
    shift: tuple = (0.0, 0.1)       # fraction of width, of height, either way
    zoom: tuple = (0.9, 1.1)        # factor on the picture's size
    flips: bool = True              # horizontal and vertical, each with probability 1/2
    crop: tuple = (1.0, 1.0)        # side of a centre crop as a fraction of the picture's side
    crop_probability: float = 0.0


@dataclass(frozen=True)
class Window:
    """A window at a random whole pixel, mirrored in half of the samples: no pixel is interpolated."""
    picture: int           # px, side of the picture
    side: int              # px, side of the window
    mirror: bool = True    # left to right
    turn: bool = False     # top to bottom, too
    last: bool = False     # whether a window may end at the last pixel; pix2pix never reads it


def generator(seed, position):
    """A NumPy generator that is a function of (seed, position in the training stream) only."""
    # Without the type, numbers on both sides of 2**63 would meet as floats and lose their last digits.
    key = np.array([seed % 2**64, position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def draw(rng, ranges):
    """Draw one geometry: (2, 3) float64, output -> input, normalised coordinates.

    The picture is first cropped (with crop_probability), then zoomed, sheared and rotated about
    its centre, shifted, and flipped. rng : numpy Generator; ranges : Ranges, or a Window
    """
    if isinstance(ranges, Window):
        return _draw_window(rng, ranges)
    # Every number is drawn on every call, so that a switched-off range shifts no other draw.
    angle, shear, right, down = rng.uniform(-1, 1, 4)
    zoom, crop, whether = rng.uniform(0, 1, 3)
    flip_x, flip_y = rng.integers(0, 2, 2)

    angle, shear = np.deg2rad(angle * ranges.rotation), shear * ranges.shear
    zoom = ranges.zoom[0] + zoom * (ranges.zoom[1] - ranges.zoom[0])
    cos, sin = np.cos(angle), np.sin(angle)
    forward = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, np.tan(shear)], [0, 1]])
    if ranges.flips:
        forward = np.diag([1.0 - 2 * flip_x, 1.0 - 2 * flip_y]) @ forward
    side = 1.0
    if whether < ranges.crop_probability:
        side = ranges.crop[0] + crop * (ranges.crop[1] - ranges.crop[0])
    shift = 2 * np.array([right * ranges.shift[0], down * ranges.shift[1]])   # [-1, 1] spans 2

    backward = side * np.linalg.inv(forward)
    return np.column_stack([backward, -backward @ shift])


def _draw_window(rng, window):
    # pix2pix: offsets 0 to 29 of 286 px for 256.
    offsets, scale = max(1, window.picture - window.side + window.last), window.side / window.picture
    offset = rng.integers(0, offsets, 2)
    mirrored, turned = rng.integers(0, 2, 2) * (window.mirror, window.turn)
    middle = (2 * offset + window.side) / window.picture - 1
    return np.column_stack([np.diag([scale * (1 - 2 * mirrored), scale * (1 - 2 * turned)]), middle])


def warp(array, matrix, size, interpolation, outside=0):
    """Apply a geometry and resize in one step.

    array : (H, W) or (H, W, C) uint8; matrix : (2, 3) from `draw`; size : side of the output
    interpolation : 'bilinear' or 'nearest'; outside : value of what lies outside the picture
    Returns (size, size[, C]) uint8.
    """
    height, width = array.shape[:2]
    pixels = _pixel_matrix(matrix, size, width, height)
    options = {'flags': INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
               'borderMode': cv2.BORDER_CONSTANT, 'borderValue': (outside,) * 4}
    if interpolation == 'bilinear' and array.shape[2:] == (3,):
        # OpenCV warps four channels twice as fast as three, to the same values.
        warped = cv2.warpAffine(cv2.cvtColor(array, cv2.COLOR_RGB2RGBA), pixels, (size, size), **options)
        return cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB)
    return cv2.warpAffine(array, pixels, (size, size), **options)


def _pixel_matrix(matrix, size, width, height):
    """The matrix in pixel indices: output (x, y) -> input (x, y), pixel centres at whole numbers."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    half = np.array([width / 2, height / 2])
    corner = linear.sum(1) * (1 / size - 1) + shift + 1   # where output pixel (0, 0) lies, 0 at the left edge
    return np.column_stack([linear * (2 / size) * half[:, None], corner * half - 0.5])
