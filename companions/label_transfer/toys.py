"""Drawn pictures on which the method can be watched: a brain with a bright blob, skin with a dark one."""
import cv2
import numpy as np

VERSION = 1   # raise it when the same numbers give other pixels than before
SIDE = 96
BRAIN = 90.0, 14.0               # grey of the brain, mean and deviation
BLOB = 80.0                      # that a tumour is brighter
SKIN, MOLE = (215, 170, 155), (105, 70, 55)
RADII = {'brain': (0.08, 0.14), 'skin': (0.16, 0.32)}   # of the lesion, shares of the side


def draw(rng, kind, diseased, side=SIDE):
    """(picture (side, side, 3) uint8, mask of {0, 1}, empty where healthy). kind : of RADII"""
    place = np.stack(np.mgrid[:side, :side], -1) / side
    radius = rng.uniform(*RADII[kind])
    if kind == 'brain':
        half = rng.uniform(0.32, 0.44, 2)
        brain = _ellipse(place, rng.uniform(0.47, 0.53, 2), half, rng.uniform(0, np.pi))
        centre = 0.5 + rng.uniform(-0.5, 0.5, 2) * half
        mask = _ellipse(place, centre, radius * rng.uniform(0.8, 1.2, 2), rng.uniform(0, np.pi)) & brain
        grey = BRAIN[0] + BRAIN[1] * _texture(rng, side) + diseased * BLOB * _soft(mask)
        picture = np.where(brain, grey, 0)[..., None].repeat(3, 2)
    else:
        centre = rng.uniform(0.5 - 0.12, 0.5 + 0.12, 2)
        mask = _ellipse(place, centre, radius * rng.uniform(0.8, 1.2, 2), rng.uniform(0, np.pi))
        share = (diseased * _soft(mask))[..., None]
        picture = (1 - share) * SKIN + share * MOLE + rng.normal(0, 12) + 6 * _texture(rng, side)[..., None]
        picture = picture + rng.normal(0, 6, (side, side, 1))
    return picture.clip(0, 255).astype(np.uint8), (mask & diseased).astype(np.uint8)


def _ellipse(place, centre, half, turn):
    turned = (place - centre) @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return ((turned / half)**2).sum(-1) < 1


def _soft(mask):
    return cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 1.0)


def _texture(rng, side):
    """Smooth noise (side, side) of deviation 1."""
    noise = cv2.GaussianBlur(rng.normal(0, 1, (side, side)), (0, 0), 2.0)
    return noise / noise.std()
