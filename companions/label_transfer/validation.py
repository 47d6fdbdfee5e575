"""How good a map is on pictures with masks: what chooses checkpoints, and the CRF's alpha."""
import numpy as np

from companions.label_transfer import maps, scores

BEST = 'best-threshold'   # the one threshold for all pictures that their masks like best
SELECTIONS = BEST, *maps.METHODS


def scores_of(looker, held_out, healthy, kind, select_by):
    """{'JA': of select_by, 'AUC', 'best-threshold JA', 'JA at 0.5', 'CAM accuracy'} of held-out pictures.

    looker : has look(picture) -> (map, logit of "diseased"); kind, select_by : of data.KINDS, SELECTIONS
    held_out : data.Set with masks, or None; healthy : Set of pictures that are of the other class
    'CAM accuracy' : mean of the two classes' shares that the looker's own classifier is right about
    """
    right = {False: [looker.look(picture)[1] < 0 for picture in healthy.images]}
    if held_out is None:
        return {'CAM accuracy': float(np.mean(right[False]))}
    found, cut, raw, truths = [], [], [], held_out.masks > 0
    right[True] = []
    for picture in held_out.images:
        attention, logit = looker.look(picture)
        right[True].append(logit > 0)
        cutter = maps.Cutter(attention, maps.at_side(picture), kind)
        found.append(cutter.maps[''])
        if select_by != BEST:
            cut.append(cutter.mask(select_by))
        raw.append(cutter.mask('threshold'))
    best = scores.best_threshold(np.array(found), truths)[0]
    return {'JA': float((scores.overlap(cut, truths)[:, 0] if cut else best).mean()),
            'AUC': float(np.nanmean(scores.areas(found, truths))), 'best-threshold JA': float(best.mean()),
            'JA at 0.5': float(scores.overlap(raw, truths)[:, 0].mean()),
            'CAM accuracy': float(np.mean([np.mean(part) for part in right.values()]))}


def chosen_alphas(look, held_out, kind, methods, empty_corners=False):
    """{method: (alpha, its mean JA)} of those methods that are CRFs, by held-out masks.

    look : function of a picture (H, W, 3) -> (map, logit); held_out : data.Set with masks
    """
    found = {method: [] for method in methods if method.endswith('crf')}
    for picture, truth in zip(held_out.images, held_out.masks > 0, strict=True) if found else ():
        cutter = maps.Cutter(look(picture)[0], maps.at_side(picture), kind, empty_corners)
        for method, rows in found.items():
            rows.append(scores.overlap([cutter.mask(method, alpha) for alpha in maps.ALPHAS],
                                       [truth] * len(maps.ALPHAS))[:, 0])
    means = {method: np.mean(rows, 0) for method, rows in found.items()}
    return {method: (maps.ALPHAS[int(row.argmax())], float(row.max())) for method, row in means.items()}


def chosen_threshold(look, held_out, kind):
    """(threshold, its mean JA) of a map, by held-out masks; arguments as of `chosen_alphas`."""
    found = [maps.Cutter(look(picture)[0], maps.at_side(picture), kind).maps['']
             for picture in held_out.images]
    rows, threshold = scores.best_threshold(np.array(found), held_out.masks > 0)
    return threshold, float(rows.mean())
