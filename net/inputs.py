"""What the networks read: uint8 pictures and masks as scaled tensors."""
import torch

SCALINGS = ('unit', 'symmetric', 'whitening')


def to_input(images, scaling):
    """uint8 (B, 3, H, W) -> float32 network input, channels last, on the same device.

    scaling : 'unit' x/255 (segmentation), 'symmetric' (x/255 - 0.5)/0.5 (ImageNet Xception), or
    'whitening' zero mean and unit variance for each image (the paper's word)
    """
    x = images.contiguous(memory_format=torch.channels_last).float() / 255
    if scaling == 'symmetric':
        return x * 2 - 1
    if scaling == 'whitening':
        variance, mean = torch.var_mean(x, (1, 2, 3), keepdim=True)
        return (x - mean) / (variance.sqrt() + 1e-6)
    return x


def to_maskcn_input(images, coarse, scaling):
    """Mask-CN's input: scaled RGB, and the coarse mask {0, 1} as the last channel when it is given.

    images : (B, 3, H, W) uint8; coarse : (B, H, W) uint8 or None. Returns (B, 3 or 4, H, W) float32.
    """
    x = to_input(images, scaling)
    return x if coarse is None else torch.cat([x, coarse[:, None].to(x.dtype)], 1)


def to_pictures(drawn):
    """What the generator gives, (B, 3, S, S) in [-1, 1] -> (B, S, S, 3) uint8 on the host."""
    scaled = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()
