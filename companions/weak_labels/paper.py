"""What the paper prints, to stand beside scores of the same data set and the same split alone."""
from companions.weak_labels import lesions

# Lesions that the original's preparation leaves; its splits are those of SPLIT=random, of INDEX_FILES, and
# of DeepLesion itself.
LESIONS = {'HAM10000': 10_012, 'LiTS': 16_462, 'DeepLesion': 32_727}
SIDE = 120   # px, of the patches in which errors and distances are counted
PRINTED = 'IoU', 'Dice', 'VS', 'centre error', 'edge error', 'Hausdorff'   # by what its code computes
MEANS = {
    ('DeepLesion', 'a1'): (63.02, 75.36, 80.65, 3.19, 9.21, 7.37),
    ('DeepLesion', 'acoseg'): (62.75, 74.38, 80.58, 5.56, 8.43, 11.84),
    ('DeepLesion', 'a1l'): (65.53, 77.43, 83.31, 3.09, 7.79, 6.92),
    ('LiTS', 'a1'): (71.44, 82.68, 89.07, 2.00, 9.58, 9.25),
    ('LiTS', 'acoseg'): (71.86, 82.92, 88.81, 1.90, 8.99, 8.90),
    ('LiTS', 'a1l'): (72.76, 83.62, 89.94, 1.96, 8.27, 9.05),
    ('HAM10000', 'a1'): (82.65, 90.01, 91.84, 2.57, 9.20, 10.23),
    ('HAM10000', 'acoseg'): (83.19, 90.42, 92.10, 2.42, 9.77, 9.61),
    ('HAM10000', 'a1l'): (83.51, 90.54, 92.82, 2.52, 8.87, 9.73)}


def row(layout, data, split, method):
    """{column: printed mean} of a method, percent and pixels; {} where data, split or side are others."""
    facts = lesions.facts(layout, data)
    settings = facts.get('settings', {})
    same_split = {'HAM10000': (settings.get('SPLIT'), settings.get('SEED')) == ('random', 1),
                  'LiTS': bool(settings.get('INDEX_FILES')), 'DeepLesion': True}.get(data, False)
    known = facts.get('side') == SIDE and facts.get('lesions') == LESIONS.get(data) and not facts.get('drawn')
    if split != 'Testing' or not same_split or not known:
        return {}
    return dict(zip(PRINTED, MEANS.get((data, method), ()), strict=False))
