"""The two Xceptions: the aligned 65-layer encoder of DeepLabv3+, and the blocks of mask-CN.

Parameter names are those of the released code, so that its checkpoints and the public
pretrained files load.
"""
import torch.nn.functional as F
from torch import nn

from net.layers import Conv2d


class AlignedSeparableConv(nn.Module):
    """Depthwise 3x3 - bn - pointwise 1x1 - bn, with ReLU before (blocks) or within (exit flow)."""

    def __init__(self, inputs, outputs, stride=1, relu_first=True):
        super().__init__()
        self.relu_first = relu_first
        self.depthwise = Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.pointwise = Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x):
        if self.relu_first:
            return self.convolve(F.relu(x))
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))

    def convolve(self, x):
        """All but the leading ReLU."""
        return self.bn2(self.pointwise(self.bn1(self.depthwise(x))))


class AlignedBlock(nn.Module):
    """Three separable convolutions beside a skip path.

    A block that keeps channels and resolution has no skip convolution, and its skip carries
    relu(input): the public weights were trained with an in-place ReLU, which made it so.
    """

    def __init__(self, inputs, outputs, stride=1, hidden=0):
        super().__init__()
        hidden = hidden or outputs
        self.sepconv1 = AlignedSeparableConv(inputs, hidden)
        self.sepconv2 = AlignedSeparableConv(hidden, outputs)
        self.sepconv3 = AlignedSeparableConv(outputs, outputs, stride)
        self.skip = None
        if inputs != outputs or stride != 1:
            self.skip = Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        """Returns (block output, the second separable convolution's output)."""
        rectified = F.relu(x)
        middle = self.sepconv2(self.sepconv1.convolve(rectified))
        skip = rectified if self.skip is None else self.skipbn(self.skip(x))
        return self.sepconv3(middle) + skip, middle


class AlignedXception65(nn.Module):
    """Encoder of DeepLabv3+ at output stride 16 (Chen et al. 2018, as in the paper's section III-A)."""

    def __init__(self):
        super().__init__()
        self.conv1 = Conv2d(3, 32, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = Conv2d(32, 64, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = AlignedBlock(64, 128, 2)
        self.block2 = AlignedBlock(128, 256, 2)
        self.block3 = AlignedBlock(256, 728, 2)
        for number in range(4, 20):
            setattr(self, f'block{number}', AlignedBlock(728, 728))
        self.block20 = AlignedBlock(728, 1024, hidden=728)
        self.conv3 = AlignedSeparableConv(1024, 1536, relu_first=False)
        self.conv4 = AlignedSeparableConv(1536, 1536, relu_first=False)
        self.conv5 = AlignedSeparableConv(1536, 2048, relu_first=False)

    def forward(self, x):
        """(B, 3, H, W) -> features (B, 2048, H/16, W/16), low-level features (B, 256, H/4, W/4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x, _ = self.block1(x)
        x, low_level = self.block2(x)
        for number in range(3, 21):
            x, _ = getattr(self, f'block{number}')(x)
        return self.conv5(self.conv4(self.conv3(x))), low_level


class SeparableConv(nn.Module):
    """Depthwise 3x3 directly followed by pointwise 1x1 (Chollet 2017)."""

    def __init__(self, inputs, outputs, dilation=1):
        super().__init__()
        self.conv1 = Conv2d(inputs, inputs, 3, 1, dilation, dilation, groups=inputs, bias=False)
        self.pointwise = Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.conv1(x))


class Block(nn.Module):
    """Xception block: (ReLU, separable convolution, bn) x n, optional max-pooling, beside a skip.

    relu_skip: the released code's leading ReLU works in place before the skip is computed, so
    that its skip sees relu(input), save in the exit flow; the ImageNet weights expect the raw
    input (False).
    """

    def __init__(self, inputs, outputs, convolutions, stride=1, leading_relu=True, relu_skip=False):
        super().__init__()
        self.relu_skip = relu_skip and leading_relu
        layers = []
        for number in range(convolutions):
            channels = inputs if number == 0 else outputs
            if number > 0 or leading_relu:
                layers.append(nn.ReLU(inplace=number > 0))   # the block's input is also the skip's
            layers += [SeparableConv(channels, outputs), nn.BatchNorm2d(outputs)]
        if stride != 1:
            layers.append(nn.MaxPool2d(3, stride, 1))
        self.rep = nn.Sequential(*layers)
        self.skip = None
        if inputs != outputs or stride != 1:
            self.skip = Conv2d(inputs, outputs, 1, stride, bias=False)
            self.skipbn = nn.BatchNorm2d(outputs)

    def forward(self, x):
        skip = F.relu(x) if self.relu_skip else x
        if self.skip is not None:
            skip = self.skipbn(self.skip(skip))
        return self.rep(x) + skip
