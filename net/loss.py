"""The segmentation losses: Dice, rank loss over hard pixels, and their sum.

All take raw logits (B, C, H, W) of a 1-channel (sigmoid) or 2-channel (softmax) head and masks
(B, H, W) of {0, 1}, and compute in float32 whatever autocast is active outside.
"""
import torch
import torch.nn.functional as F

EPSILON = 1e-5
GROUP = 64   # pixels; it divides the square of every side, and leaves few groups and few candidates


def lesion_logit(logits):
    """(B, C, H, W), C = 1 or 2 -> (B, H, W) whose sigmoid is the lesion probability.

    A softmax over two channels is the sigmoid of their difference.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    if logits.shape[1] == 2:
        return logits[:, 1] - logits[:, 0]
    raise ValueError(f'a segmentation head has 1 or 2 channels, not {logits.shape[1]}')


def lesion_probability(logits):
    """(B, C, H, W) logits, C = 1 or 2 -> (B, H, W) float32 probability of lesion."""
    return torch.sigmoid(lesion_logit(logits.float()))


def dice_loss(probability, mask, classes='both'):
    """1 - Dice coefficient, for each image, then the mean (paper section III-A).

    probability, mask : (B, H, W) float32
    classes : 'lesion' (paper) or 'both' (released: mean of lesion and background)
    """
    if classes not in ('lesion', 'both'):
        raise ValueError(f"classes must be 'lesion' or 'both', not {classes!r}")
    loss = _dice(probability, mask)
    if classes == 'both':
        loss = (loss + _dice(1 - probability, 1 - mask)) / 2
    return loss.mean()


def _dice(p, y):
    overlap = (p * y).sum((1, 2))
    return 1 - 2 * overlap / (p.sum((1, 2)) + y.sum((1, 2)) + EPSILON)


def rank_loss(probability, mask, k=30, margin=0.3, padded=False):
    """Mean of max(0, H0_i - H1_j + margin) over all pairs of hard pixels (paper section III-A).

    H0: the k background pixels with the largest lesion probability; H1: the k lesion pixels with
    the smallest. An image with fewer than k of either takes what it has; with none, it adds 0.
    probability, mask : (B, H, W) float32
    padded : as the released code, which ranks p(1-y) and (1-p)y over the whole image and so fills
        a too short list with entries of zero error
    """
    p, y = probability.flatten(1), mask.flatten(1)   # (B, H*W)
    k = min(k, p.shape[1])
    if padded:
        background, lesion = _hardest(p * (1 - y), k), _hardest((1 - p) * y, k)
        hard_background = p.gather(1, background) * (1 - y.gather(1, background))
        hard_lesion = 1 - (1 - p.gather(1, lesion)) * y.gather(1, lesion)
        return mean_over_pairs(hard_background, hard_lesion, margin).mean()
    background, lesion = _hardest(p.masked_fill(y > 0.5, -1), k), _hardest((-p).masked_fill(y <= 0.5, -2), k)
    exist = (y.gather(1, background) <= 0.5)[:, :, None] & (y.gather(1, lesion) > 0.5)[:, None, :]
    return mean_over_pairs(p.gather(1, background), p.gather(1, lesion), margin, exist).mean()


def mean_over_pairs(hard_background, hard_lesion, margin=0.3, exist=None):
    """Mean of max(0, H0_i - H1_j + margin) over each image's pairs; 0 for an image without any.

    hard_background, hard_lesion : (B, K) probabilities H0, H1; exist : (B, K, K) bool, which pairs
    there are, None for all. Returns (B,).
    """
    pairs = F.relu(hard_background[:, :, None] - hard_lesion[:, None, :] + margin)
    if exist is None:
        return pairs.mean((1, 2))
    return (pairs * exist).sum((1, 2)) / exist.sum((1, 2)).clamp(min=1)


@torch.no_grad()
def _hardest(error, k):
    """Places of the k largest errors in each row: (B, N) -> (B, k) int64.

    They lie in the k groups whose maxima are the largest, so that only those are sorted.
    """
    if error.shape[1] % GROUP or error.shape[1] < GROUP * k:
        return error.topk(k).indices
    groups = error.unflatten(1, (-1, GROUP))                                       # (B, N / GROUP, GROUP)
    chosen = groups.amax(2).topk(k).indices                                        # (B, k)
    places = groups.gather(1, chosen[:, :, None].expand(-1, -1, GROUP)).flatten(1).topk(k).indices
    return chosen.gather(1, places // GROUP) * GROUP + places % GROUP


def hybrid_loss(logits, mask, rank_weight=0.05, k=30, margin=0.3, classes='both', padded=False):
    """Dice + rank_weight * rank (the paper's hybrid loss, lambda = rank_weight).

    logits : (B, C, H, W), C = 1 or 2; mask : (B, H, W) of {0, 1}, any dtype
    Returns (total, dice, rank), float32 scalars; dice and rank are detached, for the log.
    """
    with torch.autocast(logits.device.type, enabled=False):
        probability, mask = lesion_probability(logits), mask.float()
        dice = dice_loss(probability, mask, classes)
        if rank_weight == 0:
            return dice, dice.detach(), torch.zeros_like(dice)
        rank = rank_loss(probability, mask, k, margin, padded)
        return dice + rank_weight * rank, dice.detach(), rank.detach()
