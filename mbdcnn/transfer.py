"""From mask-CN's localisation maps to the segmentation network (section III-C, Table VII)."""
import hashlib

import numpy as np
import torch
from tqdm import tqdm

from dataset import splits
from engine import hardware
from mbdcnn import coarse_masks, networks
from mbdcnn.inference import place


def require(layout, transfer, folders, names=('MaskCN',)):
    """Check what a network with this TRANSFER reads of earlier stages; {} where it reads no maps.

    folders : of the coarse masks; they are left alone when mask-CN sees RGB alone (Table VI, B)
    names : of the networks that must belong together, see coarse_masks.require_chain
    Returns how they were made: {'coarse_masks': dict, 'mask_cn': fingerprint}, the first where used.
    """
    if transfer == 'none':
        return {}
    inputs, made = {}, None
    if networks.maskcn_reads_masks(layout):
        made = inputs['coarse_masks'] = coarse_masks.require(layout, folders)
    return inputs | {'mask_cn': coarse_masks.require_chain(layout, names, made)}


def with_proxies(train, layout, cfg, inputs, process):
    """MDC: `train` and after it the training images without a pixel mask, under proxy masks.

    train : dataset.splits.Segmentation; inputs : what `require` returned. Prints their number and area.
    """
    with hardware.main_first(process):
        unmasked = splits.unmasked(layout, train.names, cfg.INPUT_SIZE, cfg.CACHE_SIZE,
                                   'coarse_masks' in inputs)
    classifier = networks.load_classifier(layout, process.device, cfg.AMP, cfg.CAM_RELU)
    masks = proxy_masks(classifier, unmasked, cfg.CACHE_SIZE, cfg.PROXY_THRESHOLD, cfg.BATCH_SIZE, process)
    if process.main:
        print(f'{len(masks)} proxy masks beside {len(train.masks)} real ones; mean area '
              f'{100 * np.mean([mask.mean() for mask in masks]):.1f} % (real '
              f'{100 * np.mean([mask.mean() for mask in train.masks]):.1f} %)')
    # Of what the proxies are made from: pixels differ by rounding between devices, and a run could not go on.
    made = f'{inputs["mask_cn"]} {cfg.CAM_RELU} {cfg.PROXY_THRESHOLD}'
    fingerprint = f'{unmasked.fingerprint}-{hashlib.sha256(made.encode()).hexdigest()[:16]}'
    return splits.Segmentation(
        splits.Joined(train.images, unmasked.pictures), splits.Joined(train.masks, masks), None,
        train.names + unmasked.names, f'{train.fingerprint}-{fingerprint}')


def proxy_masks(classifier, unmasked, size, threshold, batch_size, process):
    """Where mask-CN's map of its own class reaches `threshold` of its maximum, enlarged bilinearly.

    unmasked : dataset.splits.Unmasked. Returns (N, size, size) uint8 {0, 1}; a map without any
    positive value gives an empty mask.
    """
    masks = np.empty((len(unmasked.names), size, size), np.uint8)
    for start in tqdm(range(0, len(masks), batch_size), desc='proxy masks', unit='batch',
                      disable=not process.main):
        batch = list(range(start, min(start + batch_size, len(masks))))
        cam = classifier(*place(unmasked.crops, unmasked.coarse, process.device, batch))[1]
        cam = torch.nn.functional.interpolate(cam, (size, size), mode='bilinear')[:, 0]
        peak = cam.amax((1, 2), keepdim=True)
        masks[batch] = ((cam >= threshold * peak) & (peak > 0)).to(torch.uint8).cpu().numpy()
    return masks
