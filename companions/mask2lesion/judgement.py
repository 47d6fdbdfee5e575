"""Do drawn pictures look like real ones, and are they new? Colours, and distances to what was seen."""
import cv2
import numpy as np

SMALL = 32   # px, side at which pictures are compared
CLOSE = 0.05   # share of real pictures that counts as unusually near


def colours(pictures, masks):
    """CIELAB colours: {'lesion' or 'skin': {kind: {'mean': [L*, a*, b*], 'deviation': [...]}}}.

    pictures : {kind: (N, S, S, 3) uint8}; masks : (N, S, S) bool. Means over the pictures of each one's mean,
    and of its standard deviation, within the part; pictures that lack the part are left out. None for a dict
    where all of them do.
    """
    found = {'lesion': {}, 'skin': {}}
    for part, chosen in (('lesion', masks), ('skin', ~masks)):
        for kind, some in pictures.items():
            inside = [cv2.cvtColor(np.float32(picture) / 255, cv2.COLOR_RGB2LAB)[mask]
                      for picture, mask in zip(some, chosen, strict=True) if mask.any()]
            found[part][kind] = {'mean': np.mean([values.mean(0) for values in inside], 0).tolist(),
                                 'deviation': np.mean([values.std(0) for values in inside], 0).tolist()
                                 } if inside else None
    return found


def copies(drawn, real, seen):
    """How near drawn pictures come to those that the generator saw, beside real ones that it did not see.

    drawn, real : (N, S, S, 3) uint8; seen : (M, S, S, 3)

    Returns (distances of the drawn (N,), numbers of their nearest (N,), {'drawn': mean distance, 'real': that
    of the real ones, 'unusually near': share of the drawn that lie nearer than 95 % of the real}). Distances
    are root mean squares of grey levels at SMALL px.
    """
    rows = [np.stack([cv2.resize(np.ascontiguousarray(picture), (SMALL, SMALL), interpolation=cv2.INTER_AREA)
                      for picture in pictures]).reshape(len(pictures), -1).astype(np.float64)
            for pictures in (drawn, real, seen)]
    squares = [(some**2).sum(1)[:, None] + (rows[2]**2).sum(1) - 2 * some @ rows[2].T for some in rows[:2]]
    far = [np.sqrt(np.maximum(found, 0) / rows[0].shape[1]) for found in squares]
    nearest, usual = far[0].min(1), far[1].min(1)
    return nearest, far[0].argmin(1), {
        'drawn': float(nearest.mean()), 'real': float(usual.mean()),
        'unusually near': float((nearest < np.quantile(usual, CLOSE)).mean())}
