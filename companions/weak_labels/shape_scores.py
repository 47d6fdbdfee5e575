"""How well found masks fit true ones: overlap, and errors of place and outline in pixels of the patch."""
import numpy as np
from scipy import ndimage

FRACTIONS = 'IoU', 'Dice', 'VS'
DISTANCES = 'centre error', 'Hausdorff', 'average Hausdorff'   # not defined for an empty mask
OUTLINES = 'edge error', 'perimeter error'
COLUMNS = (*FRACTIONS, 'centre error', 'edge error', 'perimeter error', 'Hausdorff', 'average Hausdorff')
PIXELS = tuple(name for name in COLUMNS if name not in FRACTIONS)
MEANING = {
    'VS': 'volumetric similarity', 'centre error': 'between the middles of the bounding boxes',
    'edge error': 'half the difference of the numbers of Canny\'s edge pixels',
    'perimeter error': 'difference of the perimeters',
    'Hausdorff': 'largest distance between the outlines, which the original calls average',
    'average Hausdorff': 'mean of the two mean distances between the outlines'}


def score(found, truth):
    """The scores of one mask, a dict by COLUMNS; DISTANCES are NaN where a mask is empty. Where both are,
    nothing was missed: the overlap is 1.

    found, truth : (H, W) bool
    """
    both, first, second = (np.count_nonzero(part) for part in (found & truth, found, truth))
    union, total = first + second - both, first + second
    edges, lengths = zip(*map(outline, (found, truth)), strict=True)
    distances = dict.fromkeys(DISTANCES, np.nan)
    if first and second:
        far = surface_distances(found, truth), surface_distances(truth, found)
        distances = {'centre error': float(np.hypot(*(middle(found) - middle(truth)))),
                     'Hausdorff': float(max(map(np.max, far))),
                     'average Hausdorff': float(np.mean([part.mean() for part in far]))}
    return {'IoU': both / union if union else 1.0, 'Dice': 2 * both / total if total else 1.0,
            'VS': 1 - abs(second - first) / total if total else 1.0,
            'edge error': abs(edges[0] - edges[1]) / 2, 'perimeter error': abs(lengths[0] - lengths[1]),
            **distances}


def table(found, truths):
    """Scores of masks (N, H, W) bool: (N, len(COLUMNS)) float64, see `filled`."""
    rows = [[row[name] for name in COLUMNS] for row in map(score, found, truths)]
    return filled(np.array(rows), truths[0].shape)


def filled(rows, shape):
    """Scores in which the distances of empty masks are the largest among the others, as the original has it,
    and 0 where both masks are empty.

    rows : (N, len(COLUMNS)); shape : (height, width), whose diagonal stands where all masks are empty
    """
    rows, alike = rows.copy(), rows[:, COLUMNS.index('IoU')] == 1
    for name in DISTANCES:
        column = rows[:, COLUMNS.index(name)]
        known = column[np.isfinite(column)]
        farthest = known.max() if len(known) else np.hypot(*shape)
        column[:] = np.where(np.isfinite(column), column, np.where(alike, 0, farthest))
    return rows


def middle(mask):
    """(x, y) of the middle of a mask's bounding box."""
    y, x = np.nonzero(mask)
    return np.array([x.min() + x.max(), y.min() + y.max()]) / 2


def outline(mask):
    """(Number of Canny's edge pixels of the mask as the original counts them, its perimeter in pixels)."""
    from skimage import feature, measure  # slow to import
    edges = feature.canny(mask.astype(np.uint8), sigma=1, low_threshold=1, high_threshold=1)
    return np.count_nonzero(edges), measure.perimeter(mask)


def surface_distances(mask, other):
    """From each pixel of a mask's border the distance to the other's border, in pixels: (n,)."""
    borders = [one & ~ndimage.binary_erosion(one) for one in (mask, other)]
    return ndimage.distance_transform_edt(~borders[1])[borders[0]]
