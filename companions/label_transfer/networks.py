"""The consistency label transfer network (Du et al.): generators with class attention, discriminators.

Written from a description of the published program, which has no licence. Layers that it registers and never
uses are left out.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from net.norms import InstanceNorm

EPSILON = 1e-5
ADA_RHO = 0.9        # share of instance norm that AdaILN begins with; ILN begins with none
FUSIONS = 4          # steps in which both branches are mixed
GLOBAL, LOCAL = 7, 5   # convolutions of the two kinds of discriminator, their CAM apart
FACTOR = 4           # the encoder's side over that of the attention
ATTENTIONS = ('centred', 'plain')


def iln(x, rho, gamma, beta):
    """gamma (rho IN(x) + (1 - rho) LN(x)) + beta, with unbiased variances, statistics in float32.

    x : (B, C, H, W); rho : (1, C, 1, 1) in [0, 1]; gamma, beta : (B or 1, C, 1, 1)
    """
    with torch.autocast(x.device.type, enabled=False):
        count, channels = x.shape[2] * x.shape[3], x.shape[1]
        variance, mean = torch.var_mean(x.float(), (2, 3), keepdim=True)   # (B, C, 1, 1)
        middle = mean.mean(1, keepdim=True)
        # The variance over all channels, from what each channel's says: one look at x less.
        squares = (count - 1) * variance + count * (mean - middle)**2
        whole = squares.sum(1, keepdim=True) / (count * channels - 1)
        own, layer = rho * (variance + EPSILON).rsqrt(), (1 - rho) * (whole + EPSILON).rsqrt()
        scale = gamma.float() * (own + layer)
        shift = beta.float() - gamma.float() * (own * mean + layer * middle)
        return x * scale.to(x.dtype) + shift.to(x.dtype)


class ILN(nn.Module):
    """Instance and layer norm, mixed for each channel by a learnt share `rho`, which `clamp_rho` bounds."""

    def __init__(self, channels):
        super().__init__()
        shape = 1, channels, 1, 1
        self.rho, self.beta = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.gamma = nn.Parameter(torch.ones(shape))

    def forward(self, x):
        return iln(x, self.rho, self.gamma, self.beta)


class AdaILN(nn.Module):
    """ILN whose scale and shift, (B, C) each, come with the picture."""

    def __init__(self, channels):
        super().__init__()
        self.rho = nn.Parameter(torch.full((1, channels, 1, 1), ADA_RHO))

    def forward(self, x, gamma, beta):
        return iln(x, self.rho, gamma[..., None, None], beta[..., None, None])


def clamp_rho(network):
    """Bring the shares of all ILN and AdaILN of a network back into [0, 1]."""
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, (ILN, AdaILN)):
                layer.rho.clamp_(0, 1)


def _conv(inputs, outputs, kernel, stride=1):
    """Convolution without bias behind a mirrored margin."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, padding_mode='reflect')


class Residual(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))), 3x3; norm : class of a layer, called with the channels

    style : further arguments of AdaILN.
    """

    def __init__(self, channels, norm):
        super().__init__()
        self.first, self.first_norm = _conv(channels, channels, 3), norm(channels)
        self.second, self.second_norm = _conv(channels, channels, 3), norm(channels)

    def forward(self, x, *style):
        y = F.relu(self.first_norm(self.first(x), *style))
        return x + self.second_norm(self.second(y), *style)


def _instance_norm(_channels):
    return InstanceNorm()


def encoder(width, blocks):
    """Picture (B, 3, S, S) -> features (B, 4 width, S / 4, S / 4)."""
    layers = [_conv(3, width, 7), InstanceNorm(), nn.ReLU()]
    for factor in (1, 2):
        layers += [_conv(factor * width, 2 * factor * width, 3, 2), InstanceNorm(), nn.ReLU()]
    return nn.Sequential(*layers, *(Residual(4 * width, _instance_norm) for _ in range(blocks)))


def decoder(width, last):
    """Features (B, 4 width, S / 4, S / 4) -> picture (B, 3, S, S) before its tanh; last : side of a kernel"""
    layers = []
    for factor in (4, 2):
        layers += [nn.Upsample(scale_factor=2), _conv(factor * width, factor * width // 2, 3),
                   ILN(factor * width // 2), nn.ReLU()]
    return nn.Sequential(*layers, _conv(width, 3, last))


@dataclass
class Attended:
    """What a generator sees before it draws, for B pictures.

    encoded, seen : (B, C, S / 4, S / 4) features and those that belong to the class
    logits : (B, 2) of "is of my input's class"; attention : (B, 1, S / 4, S / 4) in (0, 1); both float32
    """
    encoded: torch.Tensor
    seen: torch.Tensor
    logits: torch.Tensor
    attention: torch.Tensor

    @property
    def mask(self):
        """The attention at the picture's size: (B, 1, S, S) float32."""
        mask = self.attention
        for _ in range(2):
            mask = F.interpolate(mask, scale_factor=2, mode='bilinear', align_corners=True)
        return mask

    @property
    def heat(self):
        """Sum of the features that belong to the class: (B, S / 4, S / 4) float32."""
        return self.seen.float().sum(1)


@dataclass
class Translated(Attended):
    """fake : (B, 3, S, S) in [-1, 1], the picture as one of the other class; recon : the input drawn again"""
    fake: torch.Tensor
    recon: torch.Tensor


def composite(picture, fake, mask):
    """`fake` where the mask is 1, else the picture itself."""
    return fake * mask + picture * (1 - mask)


class Generator(nn.Module):
    """Translates pictures (B, 3, S, S) in [-1, 1] of one class into the other, S a multiple of 4.

    width : channels of the first layer (released: 54); blocks : residual blocks of the encoder
    centred : the attention's logits lose their mean over the picture. Else all losses that want less to be
        changed push the whole map down, through weights without a bias, and what has the strongest features,
        the lesion, goes lowest: the map turns upside down.
    """

    def __init__(self, width=54, blocks=4, centred=False):
        super().__init__()
        channels, self.centred = 4 * width, centred
        self.encoder = encoder(width, blocks)
        self.split = nn.Sequential(*(layer for _ in range(2) for layer in (
            nn.Conv2d(channels, channels, 1, bias=False), ILN(channels), nn.ReLU())))
        self.gap, self.gmp = (nn.Linear(channels, 1, bias=False) for _ in range(2))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.attend = _conv(channels, 1, 3)
        if centred:   # and begins as high where the features of the class are strong
            self.attend.weight.data.abs_()
        self.style = nn.Sequential(*(layer for _ in range(2) for layer in (
            nn.Linear(channels, channels, bias=False), nn.ReLU())))
        self.gamma, self.beta = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.kept = nn.ModuleList(Residual(channels, ILN) for _ in range(FUSIONS))
        self.changed = nn.ModuleList(Residual(channels, AdaILN) for _ in range(FUSIONS))
        self.to_fake, self.to_recon = decoder(width, 3), decoder(width, 7)

    def look(self, pictures):
        """Pictures -> Attended, without drawing."""
        encoded = self.encoder(pictures)
        logits, seen = class_features(self.split(encoded), self.gap, self.gmp, self.gap.weight,
                                      self.gmp.weight)
        seen = F.relu(self.merge(seen))
        attention = self.attend(seen).float()
        if self.centred:
            attention = attention - attention.mean((2, 3), keepdim=True)
        return Attended(encoded, seen, logits, torch.sigmoid(attention))

    def forward(self, pictures):
        """Pictures -> Translated."""
        found = self.look(pictures)
        style = self.style(found.seen.mean((2, 3)))
        gamma, beta = self.gamma(style), self.beta(style)
        kept, mixed, attention = found.encoded, found.seen, found.attention.to(found.seen.dtype)
        for keep, change in zip(self.kept, self.changed, strict=True):
            kept = keep(kept)
            mixed = attention * change(mixed, gamma, beta) + (1 - attention) * kept
        # From float32 on, or low precision would round the pictures' grey values to seven bits.
        drawn = (torch.tanh(draw(features).float()) for draw, features in (
            (self.to_fake, mixed), (self.to_recon, kept)))
        return Translated(**vars(found), **dict(zip(('fake', 'recon'), drawn, strict=True)))


def class_features(features, gap, gmp, gap_weight, gmp_weight):
    """Logits (B, 2) from average and maximum, float32, and features (B, 2 C, h, w) scaled by both weights.

    gap, gmp : layers from C channels to one logit; their weights : (1, C)
    """
    with torch.autocast(features.device.type, enabled=False):
        whole = features.float()
        logits = torch.cat([gap(whole.mean((2, 3))), gmp(whole.amax((2, 3)))], 1)
    scaled = [features * weight[..., None, None].to(features.dtype) for weight in (gap_weight, gmp_weight)]
    return logits, torch.cat(scaled, 1)


class Discriminator(nn.Module):
    """Pictures (B, 3, S, S) -> logits of "real": of patches (B, 1, h, w), and of the whole (B, 2), float32.

    width : channels of the first layer (released: 54); layers : GLOBAL or LOCAL (released); see `least_side`
    """

    def __init__(self, width=54, layers=GLOBAL):
        super().__init__()
        parts, channels = [], 3
        for number in range(layers - 1):
            stride, outputs = 2 if number < layers - 2 else 1, width * 2**number
            parts += [_normed(channels, outputs, stride), nn.LeakyReLU(0.2)]
            channels = outputs
        self.features = nn.Sequential(*parts)
        self.gap, self.gmp = (spectral_norm(nn.Linear(channels, 1, bias=False)) for _ in range(2))
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.patches = _normed(channels, 1, 1, bias=False)

    def forward(self, pictures):
        logits, seen = class_features(self.features(pictures), self.gap, self.gmp, *(
            layer.parametrizations.weight.original for layer in (self.gap, self.gmp)))
        return self.patches(F.leaky_relu(self.merge(seen), 0.2)).float(), logits


def _normed(inputs, outputs, stride, bias=True):
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, 1, bias=bias, padding_mode='reflect'))


def least_side(layers):
    """px, of the smallest pictures that a discriminator of so many convolutions can read."""
    return 3 * 2**(layers - 2)


class Classifier(nn.Module):
    """The generator's encoder with an average and one logit: diseased or healthy. Its CAM is the baseline."""

    def __init__(self, width=54, blocks=4):
        super().__init__()
        self.encoder, self.cls = encoder(width, blocks), nn.Linear(4 * width, 1)

    def forward(self, pictures):
        """Pictures (B, 3, S, S) in [-1, 1] -> (features (B, C, S / 4, S / 4), logits (B,) float32)."""
        features = self.encoder(pictures)
        with torch.autocast(features.device.type, enabled=False):
            return features, self.cls(features.float().mean((2, 3)))[:, 0]


class UNet(nn.Module):
    """A small student: pictures (B, 3, S, S) in [0, 1] -> logits (B, 2, S, S); S a multiple of 16."""

    def __init__(self, width=16, levels=4):
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(_double(*pair) for pair in zip([3, *widths], widths, strict=False))
        self.up = nn.ModuleList(_double(low + high, low) for low, high in zip(
            widths[-2::-1], widths[:0:-1], strict=True))
        self.cls_conv = nn.Conv2d(width, 2, 1)

    def forward(self, x):
        skips = []
        for level in self.down:
            x = level(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for level, skip in zip(self.up, skips[-2::-1], strict=True):
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1))
        return self.cls_conv(x)


def _double(inputs, outputs):
    layers = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
