"""Ellipses from masks and from two diameters, and masks from ellipses.

An ellipse is (x, y, short, long, angle): its centre, its two diameters, all in pixels, and the direction of
the short one in degrees, 0 to 180, from +x towards +y. That is what cv2.fitEllipse gives.
"""
import cv2
import numpy as np

LEAST_POINTS = 5   # of a hull, to fit an ellipse to


def fit(mask):
    """The ellipse of a mask's convex hull: five floats.

    mask : (H, W), lesion where not 0. Raises ValueError, which says why, for a mask that has none.
    """
    points = cv2.findNonZero((mask > 0).astype(np.uint8))
    if points is None:
        raise ValueError('the mask is empty')
    if len(points) == mask.size:
        raise ValueError('the mask fills the picture')
    hull = cv2.convexHull(points)
    if len(hull) < LEAST_POINTS:
        raise ValueError(f'the convex hull of the mask has {len(hull)} corners, an ellipse needs '
                         f'{LEAST_POINTS}')
    (x, y), (short, long), angle = cv2.fitEllipse(hull)
    if not (np.isfinite([x, y, short, long]).all() and min(short, long) > 0):
        raise ValueError('no ellipse fits the convex hull of the mask')
    return x, y, short, long, angle % 180


def from_diameters(long_axis, short_axis):
    """The ellipse of a RECIST measurement; its centre is where the two lines meet.

    long_axis, short_axis : (x1, y1, x2, y2), the ends in pixels
    Raises ValueError where one has no length or the two are parallel.
    """
    ends = np.array([long_axis, short_axis], dtype=float).reshape(2, 2, 2)
    (along, across), (start, other) = ends[:, 1] - ends[:, 0], ends[:, 0]
    long, short = np.hypot(*along), np.hypot(*across)
    turn = along[0] * across[1] - along[1] * across[0]
    if not abs(turn) > 1e-3 * long * short:   # of equal directions, also where a length is 0 or not a number
        raise ValueError('its diameters are parallel, or one has no length')
    between = other - start
    x, y = start + along * (between[0] * across[1] - between[1] * across[0]) / turn
    return float(x), float(y), float(short), float(long), float(np.degrees(np.arctan2(*across[::-1])) % 180)


def draw(ellipse, size, stroke=0):
    """A filled ellipse as a mask, (height, width) uint8 of {0, 1}: the pixels whose middle lies in it.

    size : (width, height); stroke : px, width of an outline that is painted around it as well
    """
    x, y, short, long, angle = ellipse
    turn = np.radians(angle)
    down, right = np.ogrid[:size[1], :size[0]]
    right, down = right - x, down - y
    across = (right * np.cos(turn) + down * np.sin(turn)) / (short + stroke)
    along = (down * np.cos(turn) - right * np.sin(turn)) / (long + stroke)
    return (across**2 + along**2 <= 0.25).astype(np.uint8)


def overlap(first, second):
    """Intersection over union of two masks; NaN where both are empty."""
    first, second = first > 0, second > 0
    union = np.count_nonzero(first | second)
    return np.count_nonzero(first & second) / union if union else float('nan')
