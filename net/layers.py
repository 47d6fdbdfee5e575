"""Convolutions and dropout with PyTorch's own results, whose training steps a CPU takes faster."""
import torch
import torch.nn.functional as F
from torch import nn


class Conv2d(nn.Conv2d):
    """nn.Conv2d; on a CPU the gradients that PyTorch is slow to find are found in other ways.

    Two kinds of the convolutions in these networks, strided depthwise and dilated ones, depthwise or not, are
    far from what the machine can do (oneDNN, bf16, channels last), though their outputs are not: see
    `_Gradients`. All others, other devices and whatever is not trained go the plain way.
    """

    def _conv_forward(self, x, weight, bias):
        trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        if x.device.type != 'cpu' or not trained or torch.compiler.is_compiling() or not self._slow():
            return super()._conv_forward(x, weight, bias)
        if torch.is_autocast_enabled('cpu'):   # which a Function's two halves do not see alike
            kind = torch.get_autocast_dtype('cpu')
            x, weight, bias = x.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
        return _Gradients.apply(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _slow(self):
        depthwise = _is_depthwise(self.weight, self.groups)
        return (depthwise and self.stride != (1, 1)) or (
            (depthwise or self.groups == 1) and _is_dilated(self.stride, self.padding, self.dilation))


def _is_depthwise(weight, groups):
    return groups == len(weight) > 1 == weight.shape[1]


def _is_dilated(stride, padding, dilation):
    return stride == (1, 1) and padding == dilation != (1, 1)   # 3x3 that keep the side


class _Gradients(torch.autograd.Function):
    """F.conv2d whose backward pass takes a way of its own where that is faster.

    x : (B, C, H, W); weight, bias : of the same type; the rest as nn.Conv2d has it
    """

    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding, dilation, groups):
        ctx.save_for_backward(x, weight)
        ctx.place = stride, padding, dilation, groups
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.place
        of_x, of_weight, of_bias = ctx.needs_input_grad[:3]
        found = [None, None, gradient.sum((0, 2, 3)) if of_bias else None]
        depthwise = _is_depthwise(weight, groups)
        if of_x and depthwise:
            found[0], of_x = _spread(gradient, x, weight, stride, padding, dilation), False
        if of_weight and groups == 1:
            # A product for each tap over the places where it meets the picture: at rate 18 and a side of 14
            # the taps around the middle one never do.
            found[1], of_weight = _by_taps(gradient, x, weight, padding, dilation), False
        elif of_weight and _is_dilated(stride, padding, dilation):
            gradient, x = (_lattices(maps, dilation) for maps in (gradient, x))
            stride = padding = dilation = 1, 1
        if of_x or of_weight:
            rest = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, stride, padding, dilation, False, (0, 0), groups,
                (of_x, of_weight, False))
            found = [own if own is not None else other for own, other in zip(found, rest, strict=True)]
        return *found, None, None, None, None


def _spread(gradient, x, weight, stride, padding, dilation):
    """Gradient of a depthwise convolution's input (B, C, H, W).

    That of the convolution without stride, whose gradient is zero at the places between: a convolution, too.
    """
    if stride != (1, 1):
        full = x.new_zeros(*x.shape[:2], *(
            side + 2 * edge - rate * (taps - 1)
            for side, edge, rate, taps in zip(x.shape[2:], padding, dilation, weight.shape[2:], strict=True)
        )).contiguous(memory_format=torch.channels_last)
        full[:, :, ::stride[0], ::stride[1]] = gradient
        gradient = full
    back = [rate * (taps - 1) - edge
            for rate, taps, edge in zip(dilation, weight.shape[2:], padding, strict=True)]
    return F.conv2d(gradient, weight.flip(2, 3), None, 1, back, dilation, len(weight))


def _by_taps(gradient, x, weight, padding, dilation):
    """Gradient of the weight (O, C, k, k) of a convolution that keeps the side, a matrix product a tap."""
    found = torch.zeros_like(weight)
    height, width = x.shape[2:]
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            down, right = row * dilation[0] - padding[0], column * dilation[1] - padding[1]
            if abs(down) < height and abs(right) < width:
                met = gradient[:, :, max(-down, 0):height - max(down, 0),
                               max(-right, 0):width - max(right, 0)]
                seen = x[:, :, max(down, 0):height + min(down, 0), max(right, 0):width + min(right, 0)]
                found[:, :, row, column] = _rows(met).t() @ _rows(seen)
    return found


def _lattices(maps, dilation):
    """Places d apart as pictures of their own, zeros at the end: (B, C, H, W) -> (d d B, C, H / d, W / d).

    On each of them a convolution of rate d has rate 1.
    """
    (down, right), (height, width) = dilation, maps.shape[2:]
    maps = F.pad(maps, (0, -width % right, 0, -height % down)).permute(0, 2, 3, 1)
    maps = maps.unflatten(2, (-1, right)).unflatten(1, (-1, down))      # B, H / d, d, W / d, d, C
    return maps.permute(2, 4, 0, 1, 3, 5).flatten(0, 2).permute(0, 3, 1, 2)


def _rows(maps):
    """(B, C, H, W) -> (B H W, C), a view where the memory is channels last."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU a decision takes 16 random bits, four of them one draw, not one draw each.

    The share that is dropped is p to within 1/131072, the scale that of the share.
    """

    def forward(self, x):
        if not (self.training and x.device.type == 'cpu' and 0 < self.p < 1):
            return super().forward(x)
        dropped = round(self.p * 2**16)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-2**63, None).view(torch.int16)
        kept = (words[:x.numel()] >= dropped - 2**15).to(x.dtype) * (2**16 / (2**16 - dropped))
        return x * kept.as_strided(x.shape, torch.empty_like(x).stride())   # in the order of x's memory
