"""Healthy skin: squares from the corners of dermoscopy pictures in which nothing but skin is seen."""
import cv2
import numpy as np

from engine import images

LOOKED_AT = 128     # px, side at which a patch is judged
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))   # bottom and right or not
# What is no skin, by grey values of 0 to 255 and CIELAB; found on ISIC-2017's training pictures.
BORDER = 70         # grey of a spot of an eighth of the side below which it is border or shadow
EDGE = 0.06         # of the short side, squares in which border is looked for
SHADE = 0.80        # of the darkest such spot to the brightest: below, a vignette or pigment
HAIR = 12, 0.004    # grey levels that thin dark things differ from what is around, and their most pixels
MARKS = 18, 0.004   # the same of thin bright things: scales of rulers, bubbles, reflections
COLOUR = 0, -6, 0.004   # a* and b* below which a pixel is no skin (ink, stickers), and their most pixels
THIN = 11           # px, wider than a hair at LOOKED_AT


def corner_box(size, corner, share):
    """(left, top, right, bottom) px of the square in a corner. share : of the short side; size : (w, h)"""
    side = max(1, round(share * min(size)))
    top, left = (there * (whole - side) for there, whole in zip(corner, size[::-1], strict=True))
    return left, top, left + side, top + side


def without_border(picture):
    """Whether no corner of a picture (H, W, 3) uint8 is border or shadow."""
    spots = [picture[top:bottom, left:right].mean() for left, top, right, bottom in (
        corner_box(picture.shape[1::-1], corner, EDGE) for corner in CORNERS)]
    return min(spots) >= BORDER


def refusal(patch):
    """Why a patch (H, W, 3) uint8 is not all skin: 'border', 'shade', 'hair', 'marks', 'colour', or ''."""
    small = images.resize_rgb(patch, (LOOKED_AT, LOOKED_AT))
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    spots = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA).astype(float)
    if spots.min() < BORDER:
        return 'border'
    if spots.min() < SHADE * spots.max():
        return 'shade'
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (THIN, THIN))
    for name, operation, (levels, most) in (('hair', cv2.MORPH_BLACKHAT, HAIR),
                                            ('marks', cv2.MORPH_TOPHAT, MARKS)):
        if (cv2.morphologyEx(grey, operation, kernel) > levels).mean() > most:
            return name
    lab = cv2.cvtColor(np.float32(small) / 255, cv2.COLOR_RGB2LAB)
    return 'colour' if (lab[..., 1:] < COLOUR[:2]).any(2).mean() > COLOUR[2] else ''
