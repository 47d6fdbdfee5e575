"""Plain versions of the work, as the released code does it: one sample, pair, channel or view at a time.

Written anew from what is known of that code, for comparison only: PIL on full-size pictures, a
Python loop over all pairs of hard pixels and over all channels of a map, batches of one in
validation, float32 in PyTorch's own memory order, losses fetched after every step.
"""
import random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from companions.label_transfer.networks import ILN, AdaILN
from dataset import crops
from net import layers
from net.norms import InstanceNorm

SIDE = 224
HARD_PIXELS, MARGIN, RANK_WEIGHT = 30, 0.3, 0.05
VIEWS = ((0, None), (1, None), (2, None), (3, None), (0, -1), (0, -2))   # quarter turns, axis of a flip


# --- Pictures

def extract_crops(path, folder, scales):
    """All crops of one picture, from its full decode."""
    picture = Image.open(path).convert('RGB')
    names = crops.crop_names(path.stem, scales)
    for name, box in zip(names, crops.crop_boxes(*picture.size, scales), strict=True):
        picture.crop(box).resize((SIDE, SIDE), Image.BICUBIC).save(folder / name)


def training_sample(image_path, mask_path, size=SIDE):
    """One augmented image (3, size, size) and mask (size, size), decoded and warped at full size."""
    image, mask = Image.open(image_path).convert('RGB'), Image.open(mask_path).convert('L')
    width, height = image.size
    if random.random() < 0.5:
        margin = random.choice(range(30, 271, 30))
        box = margin, margin, width - margin, height - margin
        image, mask = image.crop(box), mask.crop(box)
    matrix = _random_matrix(*image.size)
    image = image.transform(image.size, Image.AFFINE, matrix, Image.NEAREST)
    mask = mask.transform(mask.size, Image.AFFINE, matrix, Image.NEAREST)
    for flip in (Image.FLIP_LEFT_RIGHT, Image.FLIP_TOP_BOTTOM):
        if random.random() < 0.5:
            image, mask = image.transpose(flip), mask.transpose(flip)
    image, mask = image.resize((size, size), Image.BICUBIC), mask.resize((size, size), Image.NEAREST)
    return (torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous(),
            torch.from_numpy(np.array(mask, dtype=np.float32) / 255))


class TrainingSamples(torch.utils.data.Dataset):
    """`count` training samples from (image, mask) pairs of paths, in turn."""

    def __init__(self, pairs, count):
        self.pairs, self.count = pairs, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return training_sample(*self.pairs[number % len(self.pairs)])


def _random_matrix(width, height):
    """Rotation, shear, zoom and vertical shift as Pillow's six numbers, output -> input."""
    angle, shear = np.deg2rad(random.uniform(-10, 10)), random.uniform(-0.1, 0.1)
    zoom, down = random.uniform(0.9, 1.1), random.uniform(-0.1, 0.1) * height
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    back = np.linalg.inv(zoom * turn @ np.array([[1, np.tan(shear)], [0, 1]]))
    centre = np.array([width / 2, height / 2])
    return (*(row := np.column_stack([back, centre - back @ (centre + [0, down])]))[0], *row[1])


# --- Losses and maps

def hard_pixels(probability, mask):
    """Largest errors of background and of lesion: two (B, K)."""
    p, y = probability.flatten(1), mask.flatten(1)
    return (p * (1 - y)).topk(HARD_PIXELS).values, ((1 - p) * y).topk(HARD_PIXELS).values


def pair_loss(background, lesion):
    """Mean over all pairs, one pair of columns at a time: two (B, K) -> scalar."""
    total = 0
    for i in range(HARD_PIXELS):
        for j in range(HARD_PIXELS):
            total = total + F.relu(background[:, i] - (1 - lesion[:, j]) + MARGIN).mean()
    return total / HARD_PIXELS**2


def hybrid_loss(logits, mask):
    """Dice of both classes + 0.05 * rank."""
    probability = logits.softmax(1)[:, 1]
    dice = 0
    for p, y in ((probability, mask), (1 - probability, 1 - mask)):
        dice = dice + (1 - 2 * (p * y).sum((1, 2)) / (p.sum((1, 2)) + y.sum((1, 2)) + 1e-5)).mean() / 2
    rank = pair_loss(*hard_pixels(probability, mask))
    return dice + RANK_WEIGHT * rank, dice, rank


def class_activation_maps(features, weight, logits):
    """(B, K, h, w) -> (B, 1, h, w), channel by channel on the host."""
    maps = []
    for number, label in enumerate(logits.argmax(1).tolist()):
        total = np.zeros(features.shape[2:], np.float32)
        for channel in range(features.shape[1]):
            total += weight[label, channel].item() * features[number, channel].cpu().numpy()
        maps.append(total / total.max())
    return torch.from_numpy(np.stack(maps))[:, None].to(features.device)


# --- Training and evaluation

def with_usual_layers(network):
    """A network of ours with PyTorch's own convolutions and dropout, which have the same parameters."""
    for layer in network.modules():
        for ours, usual in ((layers.Conv2d, torch.nn.Conv2d), (layers.Dropout, torch.nn.Dropout)):
            if type(layer) is ours:
                layer.__class__ = usual   # all that ours adds is how it computes
    return network


class Training:
    """A training of coarse-SN: float32, Adam, every loss fetched at once."""

    def __init__(self, network, learning_rate, total):
        self.network, self.rate, self.total, self.count = network.train(), learning_rate, total, 0
        self.optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)

    def step(self, images, masks):
        """images : (B, 3, S, S) float32; masks : (B, S, S) float32"""
        for group in self.optimizer.param_groups:
            group['lr'] = self.rate * (1 - self.count / self.total) ** 0.9
        self.optimizer.zero_grad()
        logits = self.network(images)
        loss, *parts = self.losses(logits, masks)
        loss.backward()
        self.optimizer.step()
        self.count += 1
        return [value.detach().cpu().numpy() for value in (loss, *parts, logits.argmax(1), masks)]

    def losses(self, logits, masks):
        """The loss and its parts."""
        return hybrid_loss(logits, masks)


class MaskTraining(Training):
    """The same of mask-CN: images (B, 4, S, S), and labels (B,) in place of masks."""

    def losses(self, logits, labels):
        return F.cross_entropy(logits, labels),


class UsualNorm(torch.nn.Module):
    """What torch.nn.InstanceNorm2d does without parameters."""

    def forward(self, x):
        return F.instance_norm(x)


def with_usual_norms(network):
    """A network of Mask2Lesion with PyTorch's instance norms in place of ours, in training mode."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, InstanceNorm):
                setattr(parent, name, UsualNorm())
    return network.train()


class GanTraining:
    """A training of Mask2Lesion as pix2pix has it: float32, Adam, every loss fetched at once."""

    def __init__(self, generator, discriminator):
        self.networks = [with_usual_norms(network) for network in (generator, discriminator)]
        self.optimizers = [torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
                           for network in self.networks]

    def step(self, mask, real):
        """mask, real : (B, 3, S, S) float32 in [-1, 1]"""
        generator, discriminator = self.networks
        fake = generator(mask)
        discriminator.requires_grad_(True)
        self.optimizers[1].zero_grad()
        d_fake = _gan_loss(discriminator(torch.cat([mask, fake.detach()], 1)), 0)
        d_real = _gan_loss(discriminator(torch.cat([mask, real], 1)), 1)
        ((d_fake + d_real) / 2).backward()
        self.optimizers[1].step()
        discriminator.requires_grad_(False)
        self.optimizers[0].zero_grad()
        fooled = _gan_loss(discriminator(torch.cat([mask, fake], 1)), 1)
        distance = F.l1_loss(fake, real)
        (fooled + 100 * distance).backward()
        self.optimizers[0].step()
        return [value.item() for value in (fooled, distance, d_real, d_fake)]


class WeakTraining:
    """A training of A1+L as the original has it: float32, Adam, the losses fetched at once."""

    def __init__(self, network):
        self.network = network.train()
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    def step(self, images, masks, labels):
        """images : (B, 3, H, W) float32; masks : (B, H, W) float32; labels : (B,)"""
        self.optimizer.zero_grad()
        logits, classes = self.network(images)
        mask = F.binary_cross_entropy_with_logits(logits[:, 0], masks)
        label = F.cross_entropy(classes, labels)
        (50 * mask + label).backward()
        self.optimizer.step()
        return [mask.item(), label.item()]


class UsualMixedNorm(torch.nn.Module):
    """Label transfer's ILN or AdaILN as one writes it down: both norms, then their mixture."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, gamma=None, beta=None):
        def normed(axes):
            variance, mean = torch.var_mean(x, axes, keepdim=True)
            return (x - mean) / torch.sqrt(variance + 1e-5)

        mixed = self.layer.rho * normed((2, 3)) + (1 - self.layer.rho) * normed((1, 2, 3))
        if gamma is None:
            return mixed * self.layer.gamma + self.layer.beta
        return mixed * gamma[..., None, None] + beta[..., None, None]


class TransferTraining:
    """A training of label transfer as published: float32, one picture and one network after the other, fakes
    drawn once for the discriminators and again for the generators, every loss fetched at once."""

    def __init__(self, networks):
        self.networks = {name: _with_usual_mixed_norms(with_usual_norms(network))
                         for name, network in networks.items()}
        self.groups = [torch.nn.ModuleList(self.networks[name] for name in names)
                       for names in (('GA', 'GB', 'LA', 'LB'), ('A2B', 'B2A'))]
        self.optimizers = [torch.optim.Adam(group.parameters(), lr=1e-4, betas=(0.5, 0.999),
                                            weight_decay=2e-5) for group in self.groups]

    def judged(self, side, picture, wanted):
        return sum(F.mse_loss(logits, torch.full_like(logits, wanted))
                   for kind in 'GL' for logits in self.networks[kind + side](picture))

    def step(self, a, b):
        """a, b : (1, 3, S, S) float32 in [-1, 1], diseased and healthy"""
        a2b, b2a = self.networks['A2B'], self.networks['B2A']
        with torch.no_grad():
            fakes = {'A': b2a(b).fake, 'B': a2b(a).fake}
        of_d = [self.judged(side, real, 1.0) + self.judged(side, fakes[side], 0.0)
                for side, real in (('A', a), ('B', b))]
        self.optimizers[0].zero_grad()
        sum(of_d).backward()
        self.optimizers[0].step()
        from_a, from_b = a2b(a), b2a(b)
        same_a, same_b = b2a(a), a2b(b)
        adv = 0.0
        for side, picture, found in (('A', b, from_b), ('B', a, from_a)):
            mixed = found.fake * found.mask + picture * (1 - found.mask)
            adv = adv + self.judged(side, found.fake, 1.0) + self.judged(side, mixed, 1.0)
        parts = [adv, F.l1_loss(b2a(from_a.fake).fake, a) + F.l1_loss(a2b(from_b.fake).fake, b),
                 F.l1_loss(same_a.fake, a) + F.l1_loss(same_b.fake, b),
                 F.l1_loss(from_a.recon, a) + F.l1_loss(from_b.recon, b),
                 sum(F.binary_cross_entropy_with_logits(found.logits, torch.full_like(found.logits, wanted))
                     for found, wanted in ((from_a, 1.0), (from_b, 1.0), (same_a, 0.0), (same_b, 0.0)))]
        self.optimizers[1].zero_grad()
        sum(weight * part for weight, part in zip((1, 10, 10, 10, 1000), parts, strict=True)).backward()
        self.optimizers[1].step()
        with torch.no_grad():
            for layer in self.groups[1].modules():
                if isinstance(layer, UsualMixedNorm):
                    layer.layer.rho.clamp_(0, 1)
        return [value.item() for value in (*of_d, *parts)]


def _with_usual_mixed_norms(network):
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, (ILN, AdaILN)):
                setattr(parent, name, UsualMixedNorm(layer))
    return network


def _gan_loss(logits, wanted):
    return F.binary_cross_entropy(logits.sigmoid(), torch.full_like(logits, wanted))


@torch.no_grad()
def classify(network, image, coarse, device):
    """One picture: PIL image and mask (H, W) of {0, 1} -> (features, logits)."""
    rgb = torch.from_numpy(np.array(image, dtype=np.float32) / 255).permute(2, 0, 1)
    x = torch.cat([rgb * 2 - 1, torch.from_numpy(coarse.astype(np.float32))[None]])[None].to(device)
    features = network.features(x)
    return features, network.classify(features)


@torch.no_grad()
def segment_at_full_size(enhanced, mask_cn, image_path, coarse_path, scales, device):
    """(H, W) bool: every view of every scale alone, its logits enlarged and summed on the device."""
    picture, coarse = Image.open(image_path).convert('RGB'), Image.open(coarse_path)
    total = 0
    for scale in scales:
        small = np.array(picture.resize((scale, scale), Image.BICUBIC))
        guide = (np.array(coarse.resize((scale, scale), Image.NEAREST)) > 0).astype(np.uint8)
        for turns, axis in VIEWS:
            seen, seen_guide = np.rot90(small, turns), np.rot90(guide, turns)
            if axis is not None:
                seen, seen_guide = np.flip(seen, axis + 2), np.flip(seen_guide, axis + 2)
            features, logits = classify(mask_cn, Image.fromarray(np.ascontiguousarray(seen)),
                                        np.ascontiguousarray(seen_guide), device)
            cam = class_activation_maps(features, mask_cn.cls.weight, logits)
            x = torch.from_numpy(seen.astype(np.float32) / 255).permute(2, 0, 1)[None].contiguous().to(device)
            found = enhanced(x, cam)
            if axis is not None:
                found = found.flip(axis)
            found = found.rot90(-turns, (-2, -1))
            total = total + F.interpolate(found, picture.size[::-1], mode='bicubic', align_corners=False)
    return (total.argmax(1)[0] > 0).cpu().numpy()


def scores(prediction, truth):
    """JA, DI, pixel-AC, pixel-SE, pixel-SP of two (H, W) bool masks, each from the masks themselves."""
    both = np.sum(prediction & truth)
    return (both / np.sum(prediction | truth), 2 * both / (np.sum(prediction) + np.sum(truth)),
            np.mean(prediction == truth), both / np.sum(truth),
            np.sum(~prediction & ~truth) / np.sum(~truth))
