"""Synthetic dermoscopy: skin, one lesion of a given class, hairs, rulers, ink, bubbles, vignette.

Everything is drawn from the generator that is passed in; no file is read or written. Lengths are
relative to the picture (`unit` = its shorter side in pixels), so that a small picture shows the
same thing as a large one. Pigment is absorption: it multiplies the light that the skin reflects,
which keeps a lesion plausible on every skin tone and under every illumination.

What tells the classes apart, and nothing else does (tone, size, place and artefacts are drawn
alike for all):
    nevus      smooth outline, soft border, one brown, regular network or globules
    melanoma   notched asymmetric outline, several colours in patches, border partly abrupt
    keratosis  sharp border with a rim, waxy yellow-grey-brown, furrows, white and dark dots
"""
import cv2
import numpy as np

VERSION = 1   # raise it when pictures change: sets drawn by another version are drawn anew
SIZES = ((640, 480), (768, 576), (512, 384), (600, 450), (720, 480))   # (width, height) in pixels
LONGEST = max(max(size) for size in SIZES)

AREA = (0.10, 0.45)   # lesion's share of the picture
OFF_CENTRE = 0.11     # of the side; the middle of the picture stays within nearly every lesion
CORNERS = 360         # of a lesion's outline
# For each class: size of the outline's slow harmonics, of its fast ones, and notches at most.
OUTLINES = ((0.07, 0.006, 0), (0.17, 0.022, 4), (0.10, 0.003, 0))

# RGB. Skin as photographed (0..255); pigments as the share of light that is left (0..1).
SKINS = ((238, 205, 190), (228, 184, 158), (216, 166, 128), (236, 172, 128), (206, 204, 212),
         (224, 176, 176), (178, 130, 100))
BROWNS = ((0.72, 0.52, 0.38), (0.56, 0.40, 0.30), (0.66, 0.42, 0.34), (0.44, 0.30, 0.24))
MELANOMA_COLOURS = ((0.34, 0.21, 0.16), (0.15, 0.12, 0.13), (0.46, 0.52, 0.62),
                    (0.80, 0.40, 0.38), (0.68, 0.48, 0.32), (0.80, 0.64, 0.62))
WAXES = ((0.84, 0.70, 0.44), (0.62, 0.56, 0.44), (0.68, 0.54, 0.36), (0.56, 0.50, 0.46))
HAIRS = ((0.18, 0.14, 0.12), (0.35, 0.24, 0.16), (0.62, 0.48, 0.30))
INK = (0.45, 0.40, 0.75)
FRECKLE = (0.82, 0.66, 0.52)
REDNESS = (1.0, 0.74, 0.74)
BLACK = (0.12, 0.11, 0.11)
CREAM = (250, 240, 214)
WHITE = (255, 255, 255)


def draw(rng, label, max_side=LONGEST):
    """Draw one photograph of a lesion and its mask.

    rng : numpy Generator    the only source of variation
    label : int              class number: 0 nevus, 1 melanoma, 2 keratosis
    max_side : int, pixels   long side of the largest of the sizes; the others shrink with it
    Returns (H, W, 3) uint8 RGB and (H, W) uint8 of {0, 1}.
    """
    width, height = picture_size(rng, max_side)
    shape, unit = (height, width), min(width, height)
    mask, radius = _lesion_mask(rng, shape, label)
    # Signed distance to the border in mean radii, positive inside: (H, W) float32.
    inside, outside = (cv2.distanceTransform(side, cv2.DIST_L2, 3) for side in (mask, 1 - mask))
    depth = (inside - outside) / np.float32(radius)
    picture = _skin(rng, shape)
    if rng.random() < 0.3:
        _absorb(picture, np.exp(-8 * np.abs(depth)) * rng.uniform(0.3, 0.9), REDNESS)
    if rng.random() < 0.4:
        freckles = np.clip(_noise(rng, shape, 0.13 * unit) - rng.uniform(0.9, 1.5), 0, 1)
        _absorb(picture, freckles * _opacity(-depth - 0.12, 0.03), FRECKLE)
    (_paint_nevus, _paint_melanoma, _paint_keratosis)[label](rng, picture, depth, unit)
    picture *= (1 + 0.018 * _noise(rng, shape, 0.006 * unit))[..., None]
    for share, add in ((0.5, _hairs), (0.3, _ruler), (0.15, _ink), (0.25, _bubbles),
                       (0.4, _vignette)):
        if rng.random() < share:
            add(rng, picture, unit)
    picture += rng.uniform(1, 3) * rng.standard_normal((*shape, 1), dtype=np.float32)
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def picture_size(rng, max_side):
    """(width, height) in pixels of the picture that `draw` makes of the same generator."""
    return tuple(round(side * max_side / LONGEST) for side in SIZES[rng.integers(len(SIZES))])


def superpixels(size, count=1000):
    """A picture such as the downloads' `*_superpixels.png`: a number for each of `count` cells.

    size : (width, height) in pixels. Returns (H, W, 3) uint8; number = R + 256 * G.
    """
    width, height = size
    columns = max(round((count * width / height) ** 0.5), 1)
    rows = max(round(count / columns), 1)
    cells = (np.arange(height)[:, None] * rows // height * columns
             + np.arange(width)[None] * columns // width)
    return np.dstack([cells % 256, cells // 256, np.zeros_like(cells)]).astype(np.uint8)


# ---- building blocks

def _noise(rng, shape, cell):
    """Smooth isotropic noise, (H, W) float32, near standard normal; features of `cell` pixels."""
    step = max(cell / 4, 1)   # white noise is blurred on a coarse grid, then enlarged: it is fast
    grid = [int(np.ceil(side / step)) + 1 for side in shape]
    sigma = max(cell / step / 2, 0.5)
    noise = cv2.GaussianBlur(rng.standard_normal(grid, dtype=np.float32), (0, 0), sigma)
    noise *= 2 * np.pi ** 0.5 * sigma
    return cv2.resize(noise, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _absorb(picture, density, transmittance):
    """Darken `picture` in place by a pigment.

    picture : (H, W, 3) float32; density : (H, W), 0 = none, 1 = transmittance as given;
    transmittance : 3 numbers or (H, W, 3), share of light that is left.
    """
    absorption = np.log(np.maximum(np.asarray(transmittance, np.float32), 0.01))
    picture *= cv2.exp(np.float32(density)[..., None] * absorption)


def _cover(picture, coverage, colour):
    """Paint an opaque colour (RGB, 0..255) over `picture` in place; coverage (H, W) in 0..1."""
    picture += np.float32(coverage)[..., None] * (np.float32(colour) - picture)


def _mixture(rng, colours):
    """A random colour between two of `colours`, (3,) float32."""
    first, second = rng.choice(len(colours), 2, replace=False)
    share = rng.random()
    return np.float32(colours[first]) * share + np.float32(colours[second]) * (1 - share)


def _lines(shape, curves, thickness):
    """Coverage in 0..1 of smooth polylines, (H, W) float32; curves in pixels (x, y)."""
    layer = np.zeros(shape, np.uint8)
    points = [np.round(np.asarray(curve) * 16).astype(np.int32) for curve in curves]
    cv2.polylines(layer, points, False, 255, max(round(thickness), 1), cv2.LINE_AA, 4)
    return np.float32(layer) / 255


def _dots(rng, depth, count, radius):
    """Coverage in 0..1 of `count` round dots in the lesion, (H, W) float32; radius in pixels."""
    layer = np.zeros(depth.shape, np.uint8)
    places = np.flatnonzero(depth > 0.08)
    for place in rng.choice(places, count) if len(places) else ():
        y, x = divmod(int(place), depth.shape[1])
        size = max(radius * rng.uniform(0.4, 1.6), 0.7)
        cv2.circle(layer, (x * 16, y * 16), round(size * 16), 255, -1, cv2.LINE_AA, 4)
    return cv2.GaussianBlur(np.float32(layer) / 255, (0, 0), max(radius / 4, 0.3))


# ---- skin and the lesion's shape

def _skin(rng, shape):
    """Healthy skin: a tone, uneven light, blotches and fine furrows. (H, W, 3) float32."""
    unit = min(shape)
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    slope = rng.uniform(-0.10, 0.10, 2).astype(np.float32)
    light = 1 + slope[0] * x + slope[1] * y + 0.05 * _noise(rng, shape, 0.6 * unit)
    furrows = np.abs(_noise(rng, shape, 0.025 * unit))
    light *= 1 - rng.uniform(0.01, 0.04) * np.exp(-8 * furrows * furrows)
    picture = light[..., None] * (_mixture(rng, SKINS) * np.float32(rng.uniform(0.8, 1.05)))
    blotches = np.maximum(_noise(rng, shape, 0.2 * unit), 0)
    _absorb(picture, rng.uniform(0.05, 0.22) * blotches, REDNESS)
    return picture


def _lesion_mask(rng, shape, label):
    """One closed outline, filled: (H, W) uint8 of {0, 1}, and its mean radius in pixels."""
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    radii = np.exp(_radius_harmonics(rng, angle, *OUTLINES[label]))
    radii /= np.sqrt(np.mean(radii ** 2))   # the outline's area is now pi
    outline = radii[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    size = np.float64(shape[::-1])
    radius = np.sqrt(np.exp(rng.uniform(*np.log(AREA))) * size.prod() / np.pi)
    extent = np.ptp(outline, axis=0)
    radius = min(radius, *(0.95 * size / extent))
    middle = (outline.max(axis=0) + outline.min(axis=0)) / 2
    slack = np.minimum(0.97 * size - radius * extent, 2 * OFF_CENTRE * size) / 2
    outline = size / 2 + radius * (outline - middle) + rng.uniform(-1, 1, 2) * slack
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(outline * 16).astype(np.int32)], 1, cv2.LINE_8, 4)
    return mask, float(radius)


def _radius_harmonics(rng, angle, slow, fast, notches):
    """Logarithm of an outline's radius at each angle in radians."""
    wide = rng.uniform(-0.04, 0.16)   # mostly along the picture's longer side
    log = wide * np.cos(2 * (angle + rng.normal(0, 0.4)))
    for order in range(2, 40):
        size = slow * rng.normal() / (order - 1) ** 1.2 + fast * rng.normal() / order ** 0.4
        log += size * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    if notches:
        for _ in range(rng.integers(2, notches + 1)):
            turn = np.angle(np.exp(1j * (angle - rng.uniform(0, 2 * np.pi))))
            log -= rng.uniform(0.2, 0.5) * np.exp(-(turn / rng.uniform(0.12, 0.35)) ** 2)
    return log


def _opacity(depth, softness):
    """0 outside to 1 inside over `softness` (radii, number or (H, W)); 0.5 at the border."""
    return 1 / (1 + cv2.exp(-np.clip(depth / np.float32(softness), -30, 30)))


# ---- the three lesions, painted in place

def _paint_nevus(rng, picture, depth, unit):
    shape = depth.shape
    density = rng.uniform(0.7, 1.2) + rng.uniform(-0.2, 0.35) * np.clip(depth, 0, 1)
    pattern = rng.choice(('network', 'globules', 'plain'))
    if pattern == 'network':
        mesh = _noise(rng, shape, rng.uniform(0.020, 0.032) * unit)
        density += rng.uniform(0.25, 0.5) * (np.exp(-2.5 * mesh * mesh) - 0.6)
    elif pattern == 'globules':
        globules = _noise(rng, shape, rng.uniform(0.022, 0.035) * unit)
        density += rng.uniform(0.15, 0.35) * np.clip(globules, -0.6, 1.2)
    density += 0.06 * _noise(rng, shape, 0.15 * unit)
    _absorb(picture, density * _opacity(depth, rng.uniform(0.03, 0.08)), _mixture(rng, BROWNS))


def _paint_melanoma(rng, picture, depth, unit):
    shape = depth.shape
    coarse = tuple(-(-side // 4) for side in shape)   # patches are smooth: 1/16 of the pixels do
    chosen = rng.choice(len(MELANOMA_COLOURS), rng.integers(3, 6), replace=False)
    if 0 not in chosen and 1 not in chosen:
        chosen[0] = rng.integers(2)   # some part is always dark
    fields = np.stack([_noise(rng, coarse, rng.uniform(0.2, 0.35) * unit / 4)
                       + 0.3 * _noise(rng, coarse, 0.05 * unit / 4) for _ in chosen])
    weights = np.exp(rng.uniform(2.5, 6) * (fields - fields.max(axis=0)))
    weights /= weights.sum(axis=0)
    colours = np.tensordot(weights, np.float32(MELANOMA_COLOURS)[chosen], (0, 0))
    colours = cv2.resize(np.float32(colours), shape[::-1], interpolation=cv2.INTER_LINEAR)
    density = 1 + 0.15 * _noise(rng, shape, 0.05 * unit) + 0.10 * _noise(rng, shape, 0.02 * unit)
    softness = np.clip(0.05 + 0.04 * _noise(rng, shape, 0.3 * unit), 0.008, 0.15)
    _absorb(picture, density * _opacity(depth, softness) * rng.uniform(0.8, 1.1), colours)
    dots = _dots(rng, depth, rng.integers(0, 12), 0.008 * unit)
    _absorb(picture, 0.4 * dots, BLACK)


def _paint_keratosis(rng, picture, depth, unit):
    shape = depth.shape
    opacity = _opacity(depth, rng.uniform(0.006, 0.015))
    density = rng.uniform(0.7, 1.15) + 0.10 * _noise(rng, shape, 0.12 * unit)
    folds = _noise(rng, shape, rng.uniform(0.05, 0.09) * unit)
    density += rng.uniform(0.2, 0.8) * (np.exp(-12 * folds * folds) - 0.25)
    density += rng.uniform(0.2, 0.6) * np.exp(-((depth - 0.05) / 0.04) ** 2)   # raised rim
    patches = np.clip(0.5 + 0.5 * _noise(rng, shape, 0.25 * unit), 0, 1) * opacity
    _absorb(picture, density * (opacity - patches), _mixture(rng, WAXES))
    _absorb(picture, density * patches, _mixture(rng, WAXES))
    shadow = np.exp(-np.maximum(-depth, 0) / 0.04) * (1 - opacity)
    _absorb(picture, rng.uniform(0.1, 0.35) * shadow, BLACK)
    few, many = rng.integers(5, 15), rng.integers(15, 35)
    white, dark = (many, few) if rng.random() < 0.5 else (few, many)
    _absorb(picture, 0.75 * _dots(rng, depth, dark, 0.011 * unit), BROWNS[-1])
    _cover(picture, 0.7 * _dots(rng, depth, white, 0.010 * unit), CREAM)


# ---- what lies over the skin, drawn in place

def _hairs(rng, picture, unit):
    height, width = picture.shape[:2]
    curves = []
    direction = rng.uniform(0, 2 * np.pi)
    along = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(3, 14)):
        turn = direction + rng.normal(0, 0.5)
        reach = rng.uniform(0.3, 1.2) * unit * np.array([np.cos(turn), np.sin(turn)])
        start = rng.uniform(0, 1, 2) * (width, height) - reach / 2
        bend = reach[::-1] * (-1, 1) * rng.normal(0, 0.25)
        curves.append(start + along * reach + 4 * along * (1 - along) * bend)
    coverage = _lines((height, width), curves, rng.uniform(0.002, 0.006) * unit)
    _absorb(picture, coverage * rng.uniform(0.6, 1), HAIRS[rng.integers(len(HAIRS))])


def _ruler(rng, picture, unit):
    """Tick marks along one edge; every fifth is longer."""
    height, width = picture.shape[:2]
    side, pitch = rng.integers(4), rng.uniform(0.03, 0.06) * unit
    length, gap = rng.uniform(0.02, 0.035) * unit, rng.uniform(0, 0.03) * unit
    run, across = (width, height) if side < 2 else (height, width)
    curves = []
    for number, along in enumerate(np.arange(pitch / 2, run, pitch)):
        tip = gap + length * (1.8 if number % 5 == 0 else 1)
        ends = [(along, gap), (along, tip)]
        if side % 2:
            ends = [(a, across - b) for a, b in ends]
        curves.append(ends if side < 2 else [(b, a) for a, b in ends])
    _absorb(picture, _lines((height, width), curves, 0.005 * unit), BLACK)


def _ink(rng, picture, unit):
    """A surgeon's violet pen: a scribble near the left or the right edge."""
    height, width = picture.shape[:2]
    centre = np.array([rng.choice((0.05, 0.95)) * width, rng.uniform(0.1, 0.9) * height])
    scribble = centre + np.cumsum(rng.normal(0, 0.04, (30, 2)), axis=0) * unit * (0.35, 1)
    coverage = _lines((height, width), [scribble], rng.uniform(0.01, 0.02) * unit)
    grain = np.clip(0.8 + 0.4 * _noise(rng, (height, width), 0.01 * unit), 0, 1.3)
    _absorb(picture, coverage * grain, INK)


def _bubbles(rng, picture, unit):
    """Gel bubbles: a bright ring and a glint."""
    height, width = picture.shape[:2]
    circle = np.linspace(0, 2 * np.pi, 40)
    ring = np.stack([np.cos(circle), np.sin(circle)], axis=1)
    curves = []
    for _ in range(rng.integers(1, 7)):
        centre, radius = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.01, 0.035) * unit
        curves += [centre + radius * ring, centre + radius * (0.55 * ring[22:28])]
    coverage = _lines((height, width), curves, 0.004 * unit)
    _cover(picture, rng.uniform(0.3, 0.7) * coverage, WHITE)


def _vignette(rng, picture, unit):
    """The dermoscope's round field: dark corners, sharp or fading."""
    height, width = picture.shape[:2]
    y = np.arange(height, dtype=np.float32)[:, None] - height * rng.uniform(0.46, 0.54)
    x = np.arange(width, dtype=np.float32)[None] - width * rng.uniform(0.47, 0.53)
    radius = rng.uniform(0.40, 0.49) * np.hypot(height, width)
    edge = (cv2.sqrt(x * x + y * y) - radius) / (rng.uniform(0.008, 0.06) * unit)
    picture *= (1 - rng.uniform(0.8, 0.97) * _opacity(edge, 1.0))[..., None]
