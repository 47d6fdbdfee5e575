"""Clusters of ellipses: the classes that A1+L's second head predicts."""
import numpy as np

from engine import figures
from engine.errors import InputError
from mbdcnn.panels import spread

ANGLES = 'wrapped', 'degrees'
FROM = 'Training', 'all'
USUAL = {'HAM10000': 45, 'LiTS': 40, 'DeepLesion': 190}   # clusters of the paper's data sets
ROWS, COLUMNS = 8, 8   # of the figure
YELLOW = (255, 220, 0)


def features(parameters, angle):
    """What is clustered: (N, 5) ellipses (x, y, short, long, angle) -> (N, 5 or 6), in pixels.

    angle : 'degrees' leaves them as they are (released), so that 0 and 180 are far apart and the angle
    outweighs all; 'wrapped' has (long - short) times the cosine and the sine of twice the angle in its place:
    turned by 180 degrees an ellipse is the same, and a circle has no angle
    """
    parameters = np.asarray(parameters, dtype=np.float64)
    if angle == 'degrees':
        return parameters
    short, long, turn = parameters[:, 2], parameters[:, 3], 2 * np.radians(parameters[:, 4])
    return np.column_stack([parameters[:, :4], (long - short) * np.cos(turn), (long - short) * np.sin(turn)])


def fit(parameters, count, angle):
    """k-means of ellipses (N, 5): scikit-learn's, with the original's settings. Its labels are in [0, count).

    Raises InputError where there are fewer lesions than clusters.
    """
    if count > len(parameters):
        raise InputError(f'CLUSTERS={count}: there are only {len(parameters)} lesions to cluster',
                         remedy='lower CLUSTERS')
    from sklearn.cluster import KMeans  # slow to import
    return KMeans(count, n_init=10, random_state=0).fit(features(parameters, angle))


def labels(training, validation, others, count, angle, where):
    """Cluster numbers of training and validation lesions: ((N,), (M,)) int64.

    training, validation, others : ellipses (., 5), others those of the test split
    where : 'Training' fits the clusters to the training lesions alone; 'all' to all of them (released)
    """
    seen = training if where == 'Training' else np.concatenate([training, validation, others])
    fitted = fit(seen, count, angle)
    return tuple(fitted.predict(features(some, angle)).astype(np.int64) for some in (training, validation))


def draw(data, found, path):
    """Some lesions of some clusters with their ellipses, as the paper's figure: a png.

    data : lesions.Lesions; found : (N,) their clusters
    """
    present, sizes = np.unique(found, return_counts=True)
    rows, blank = [], np.full_like(data.images[0], 255)
    for place in spread(len(present), ROWS):
        members = np.flatnonzero(found == present[place])
        chosen = members[spread(len(members), COLUMNS)]
        shown = [outlined(np.array(data.images[number]), data.ellipses[number]) for number in chosen]
        shown += [blank] * (COLUMNS - len(shown))
        rows.append((f'cluster {present[place]}\nn = {sizes[place]}', shown))
    figures.panel(rows, [''] * COLUMNS, path)


def outlined(picture, ellipse):
    """A picture (P, P, 3) with the edge of an ellipse (P, P) of {0, 1} in yellow."""
    inner = np.pad(ellipse, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:] & ellipse
    picture[(ellipse > 0) & (inner == 0)] = YELLOW
    return picture
