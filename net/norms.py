"""Normalisation over one picture at a time."""
import torch.nn.functional as F
from torch import nn


class InstanceNorm(nn.Module):
    """nn.InstanceNorm2d without parameters or running statistics."""

    def forward(self, x):
        if len(x) == 1:   # the same then, and five times faster: it knows channels-last pictures
            return F.batch_norm(x, None, None, training=True)
        return F.instance_norm(x)
