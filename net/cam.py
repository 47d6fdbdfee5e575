"""Class activation maps (Zhou et al. 2016): where mask-CN saw its class."""
import torch

EPSILON = 1e-6


def class_activation_map(features, weight, classes, relu=False):
    """Weighted sum of a feature map with one class's FC row, divided by its maximum (section III-C).

    features : (B, K, h, w) last feature map; weight : (C, K) of the FC layer
    classes : (B,) class numbers, mask-CN's own arg-max in the paper
    relu : set negative evidence to zero first
    Returns (B, 1, h, w) float32 with maximum 1. A map without any positive value is not divided:
    with relu it is zero everywhere, without it keeps its negative values.
    """
    with torch.autocast(features.device.type, enabled=False):
        rows = weight.float()[classes]                                   # (B, K)
        cam = torch.einsum('bkhw,bk->bhw', features.float(), rows)
        if relu:
            cam = cam.clamp(min=0)
        peak = cam.amax((1, 2), keepdim=True)
        return (cam / torch.where(peak > EPSILON, peak, 1.0)).unsqueeze(1)
