"""Folds of the training pictures: a network that never saw a picture draws its mask (cross-fitting)."""
import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np

from engine.errors import InputError

STREAM = 1   # keeps the folds' random numbers apart from those that choose TRAIN_IMAGES


def check(k, count=None):
    """Raise InputError when CROSS_FIT=`k` is no number of folds, or more than the `count` of pictures."""
    if k < 0 or k == 1:
        raise InputError('A setting that cannot be used', [f'CROSS_FIT={k}: must be 0 (off) or at least 2'])
    if count is not None and k > count:
        raise InputError('There are more folds than training pictures',
                         [f'CROSS_FIT={k}: there are {count} pictures'])


def assign(ids, k, seed, strata=None):
    """{id: fold number 1..k}, a function of the set of ids, of k and of seed; sizes differ by one at most.

    strata : {id: stratum}, any sortable values; each stratum is spread evenly too. None: one stratum.
    """
    groups, rng = {}, np.random.default_rng([seed, STREAM])
    for image_id in sorted(set(ids)):
        groups.setdefault(strata[image_id] if strata else None, []).append(image_id)
    groups = [groups[stratum] for stratum in (sorted(groups) if strata else groups)]
    dealt = [group[place] for group in groups for place in rng.permutation(len(group))]
    return {image_id: 1 + place % k for place, image_id in enumerate(dealt)}



def share_out(group_of, strata_of, shares, seed):
    """{id: part}: every part gets its share of each stratum, as nearly as whole groups allow.

    group_of : {id: group}, whose members stay together; strata_of : {id: its strata, a tuple each}
    shares : {part: share}, sum 1. Rare strata are dealt first, each group to the part that lacks most of what
    is in it; a stratum of as many groups as there are parts is therefore in all of them. The result is a
    function of the arguments.
    """
    members, rng = {}, np.random.default_rng([seed, STREAM])
    for image_id in sorted(group_of):
        members.setdefault(group_of[image_id], []).append(image_id)
    total = Counter(stratum for strata in strata_of.values() for stratum in strata)
    had, part_of = Counter(), {}
    within = {group: [stratum for image_id in ids for stratum in strata_of[image_id]]
              for group, ids in members.items()}

    def lacks(part, group):
        return sum(1 - had[part, stratum] / (shares[part] * total[stratum]) for stratum in within[group])

    shuffled = [sorted(members)[place] for place in rng.permutation(len(members))]
    order = sorted(shuffled, key=lambda group: (min(map(total.get, within[group])), -len(members[group])))
    for group in order:
        part = max(shares, key=lambda part: lacks(part, group))   # the first of equals
        had.update((part, stratum) for stratum in within[group])
        part_of |= dict.fromkeys(members[group], part)
    return part_of


class Rows:
    """Chosen rows of an array, without a copy: len, shape and [place]; a list of places copies those rows.

    array : (N, ...), perhaps memory-mapped; numbers : of the rows, in the order wanted
    """

    def __init__(self, array, numbers):
        self.array, self.numbers = array, np.asarray(numbers, int)
        self.shape, self.dtype = (len(self.numbers), *array.shape[1:]), array.dtype

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, places):
        return self.array[self.numbers[places]]


def without(data, k, number, seed):
    """A dataset.splits.Segmentation without the pictures of fold `number` of `k`; its pixels stay in place.

    The fingerprint names the fold and changes with the ids that are left out.
    """
    fold = assign(data.names, k, seed)
    kept = [place for place, name in enumerate(data.names) if fold[name] != number]
    left_out = '\n'.join(sorted(name for name in fold if fold[name] == number))
    digest = hashlib.sha256(left_out.encode()).hexdigest()[:16]
    return replace(data, images=Rows(data.images, kept), masks=Rows(data.masks, kept),
                   coarse=None if data.coarse is None else Rows(data.coarse, kept),
                   names=[data.names[place] for place in kept],
                   fingerprint=f'{data.fingerprint}-without_fold{number}of{k}-{digest}')
