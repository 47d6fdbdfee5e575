"""The paper's networks, the three of the release under its names.

deeplabv3plus       coarse-SN    (section III-A)
Xception_dilation   mask-CN      (section III-B)
deeplabv3plus_en    enhanced-SN  (section III-C)
deeplabv3plus_d     D-Net, the decoder alone on mask-CN's maps (Table VII)
"""
import torch
import torch.nn.functional as F
from torch import nn

from net.layers import Conv2d, Dropout
from net.xception import AlignedXception65, Block, SeparableConv

STRIDE = 16   # input sides must be multiples of this; also the stride of mask-CN's feature map
EPSILON = 1e-5   # added to the variances by batch norms: PyTorch's and the release's; Keras adds 1e-3


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, 3x3 at rates 6, 12, 18, image pooling -> 256 channels."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.branch1 = _conv_bn_relu(inputs, outputs, 1)
        self.branch2 = _conv_bn_relu(inputs, outputs, 3, dilation=6)
        self.branch3 = _conv_bn_relu(inputs, outputs, 3, dilation=12)
        self.branch4 = _conv_bn_relu(inputs, outputs, 3, dilation=18)
        self.branch5_conv = Conv2d(inputs, outputs, 1)
        self.branch5_bn = nn.BatchNorm2d(outputs)
        self.conv_cat = _conv_bn_relu(5 * outputs, outputs, 1)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True)
        pooled = F.relu(self.branch5_bn(self.branch5_conv(pooled)))
        branches = [self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x),
                    pooled.expand(-1, -1, x.shape[2], x.shape[3])]
        return self.conv_cat(torch.cat(branches, 1))


class deeplabv3plus(nn.Module):   # the released code's name
    """Coarse-SN: DeepLabv3+ with an aligned Xception-65 encoder at output stride 16.

    num_classes : 2 (released: background and lesion, softmax) or 1 (paper: lesion, sigmoid)
    dropout : False turns the three dropout layers off (for exact comparisons between runs)
    bn_eps : epsilon of all batch norms; it belongs to the weights as much as they do
    small_start : False starts the last convolution by He's rule, too (released)
    """

    def __init__(self, num_classes=2, dropout=True, bn_eps=EPSILON, small_start=True):
        super().__init__()
        self.backbone = AlignedXception65()
        self.aspp = ASPP(2048, 256)
        self.dropout1 = Dropout(0.5 * dropout)
        self.shortcut_conv = _conv_bn_relu(256, 48, 1)
        self.cat_conv = _fusion(304, dropout)
        self.cls_conv = Conv2d(256, num_classes, 1)
        _initialise(self, bn_eps)
        if small_start:
            _start_small(self.cls_conv)

    def forward(self, x):
        """(B, 3, H, W) in [0, 1] -> logits (B, num_classes, H, W); H, W multiples of 16."""
        features, low_level = self.backbone(x)
        return self.decode(self.dropout1(self.aspp(features)), low_level)

    def decode(self, pyramid, low_level):
        """(B, 256, H/16, W/16), (B, 256, H/4, W/4) -> logits (B, num_classes, H, W)."""
        x = torch.cat([_upsample4(pyramid), self.shortcut_conv(low_level)], 1)   # 256 + 48
        return _upsample4(self.cls_conv(self.cat_conv(x)))


class deeplabv3plus_en(deeplabv3plus):   # the released code's name
    """Enhanced-SN: coarse-SN with an E-layer that joins mask-CN's localisation map to the pyramid."""

    def __init__(self, num_classes=2, dropout=True, bn_eps=EPSILON):
        super().__init__(num_classes, dropout, bn_eps)
        self.cam_conv = _conv_bn_relu(257, 256, 1)   # the E-layer
        _initialise(self.cam_conv, bn_eps)

    def forward(self, x, cam):
        """(B, 3, H, W) in [0, 1], CAM (B, 1, H/16, W/16) -> logits (B, num_classes, H, W)."""
        features, low_level = self.backbone(x)
        pyramid = self.dropout1(self.aspp(features))
        pyramid = self.cam_conv(torch.cat([pyramid, cam.to(pyramid.dtype)], 1))
        return self.decode(pyramid, low_level)


class deeplabv3plus_d(nn.Module):
    """D-Net: enhanced-SN's decoder that sees mask-CN's localisation map and no encoder features."""

    def __init__(self, num_classes=2, dropout=True, bn_eps=EPSILON):
        super().__init__()
        self.cam_conv = _conv_bn_relu(1, 256, 1)
        self.cat_conv = _fusion(256, dropout)
        self.cls_conv = Conv2d(256, num_classes, 1)
        _initialise(self, bn_eps)
        _start_small(self.cls_conv)
        # By fan-in, which is 1: by fan-out the outputs would have a thousandth of the variance that the
        # batch norm behind them assumes, and its running statistics would take 100 steps to get there.
        nn.init.kaiming_normal_(self.cam_conv[0].weight, nonlinearity='relu')

    def forward(self, x, cam):
        """CAM (B, 1, H/16, W/16) -> logits (B, num_classes, H, W); x is there to call it as enhanced-SN."""
        return _upsample4(self.cls_conv(self.cat_conv(_upsample4(self.cam_conv(cam)))))


class Xception_dilation(nn.Module):   # the released code's name
    """Mask-CN: Xception without its last pooling, the last two separable convolutions dilated by 2.

    input_channel : 4 (RGB and coarse mask) or 3 (RGB alone, the ablation of Table V)
    relu_skip : the released code's skip paths, see net.xception.Block
    bn_eps : see deeplabv3plus
    """

    def __init__(self, input_channel=4, num_classes=3, relu_skip=False, bn_eps=EPSILON):
        super().__init__()
        self.conv1 = Conv2d(input_channel, 32, 3, 2, 0, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = Conv2d(32, 64, 3, 1, 0, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.block1 = Block(64, 128, 2, 2, leading_relu=False, relu_skip=relu_skip)
        self.block2 = Block(128, 256, 2, 2, relu_skip=relu_skip)
        self.block3 = Block(256, 728, 2, 2, relu_skip=relu_skip)
        for number in range(4, 12):
            setattr(self, f'block{number}', Block(728, 728, 3, relu_skip=relu_skip))
        self.residual = nn.Sequential(Conv2d(728, 1024, 1, bias=False), nn.BatchNorm2d(1024))
        self.SepConv1 = nn.Sequential(nn.ReLU(), SeparableConv(728, 728), nn.BatchNorm2d(728))
        self.SepConv2 = nn.Sequential(nn.ReLU(inplace=True), SeparableConv(728, 1024), nn.BatchNorm2d(1024))
        self.SepConv3 = nn.Sequential(SeparableConv(1024, 1536, dilation=2), nn.BatchNorm2d(1536),
                                      nn.ReLU(inplace=True))
        self.SepConv4 = nn.Sequential(SeparableConv(1536, 2048, dilation=2), nn.BatchNorm2d(2048),
                                      nn.ReLU(inplace=True))
        self.cls = nn.Linear(2048, num_classes)
        _initialise(self, bn_eps)

    def features(self, x):
        """(B, input_channel, H, W) -> (B, 2048, H/16, W/16), the map that CAMs are made of."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        for number in range(1, 12):
            x = getattr(self, f'block{number}')(x)
        x = self.SepConv2(self.SepConv1(x)) + self.residual(x)
        return self.SepConv4(self.SepConv3(x))

    def classify(self, features):
        """(B, 2048, h, w) -> logits (B, num_classes): global average pooling and one FC layer."""
        return self.cls(features.mean((2, 3)))

    def forward(self, x):
        """RGB in [-1, 1] and mask in {0, 1}: (B, input_channel, H, W) -> logits (B, num_classes)."""
        return self.classify(self.features(x))


def _conv_bn_relu(inputs, outputs, kernel, dilation=1):
    padding = dilation if kernel == 3 else 0
    return nn.Sequential(Conv2d(inputs, outputs, kernel, 1, padding, dilation),
                         nn.BatchNorm2d(outputs), nn.ReLU())


def _fusion(inputs, dropout):
    """The decoder's two 3x3 convolutions at stride 4, to 256 channels."""
    return nn.Sequential(*_conv_bn_relu(inputs, 256, 3), Dropout(0.5 * dropout),
                         *_conv_bn_relu(256, 256, 3), Dropout(0.1 * dropout))


def _upsample4(x):
    return F.interpolate(x, scale_factor=4, mode='bilinear', align_corners=True)


def _initialise(module, bn_eps):
    """He initialisation of the convolutions; batch norms start as the identity (PyTorch's default)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.eps = bn_eps


def _start_small(cls_conv):
    """He's rule by fan-out (std 1) would start the two outputs with logits of tens: a saturated softmax."""
    nn.init.normal_(cls_conv.weight, std=0.01)
