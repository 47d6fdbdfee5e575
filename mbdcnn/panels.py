"""Panels of pictures that show what the networks see and find."""
import cv2
import numpy as np
import torch

from engine import figures, images, metrics
from mbdcnn.inference import maps_of_files, place

VALIDATION_IMAGES = 8   # rows of the panels that training draws
SIDE = 224              # px, long side of the pictures in the panel of an evaluation


def spread(count, wanted):
    """Up to `wanted` whole numbers below `count`, evenly spread: (n,) int array."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(int)


def segmentation(segmenter, data, device, path):
    """Panel of validation pictures: image, truth, [coarse mask,] [CAM,] lesion probability, contours."""
    chosen = spread(len(data.images), VALIDATION_IMAGES)
    picture, coarse = place(data.images, data.coarse, device, chosen)
    segmenter.network.eval()
    probability = torch.sigmoid(segmenter(picture, coarse)).cpu().numpy()
    cams = None if segmenter.classifier is None else segmenter.classifier(picture, coarse)[1].cpu().numpy()
    rows = []
    for row, number in enumerate(chosen):
        image, truth = data.images[number], data.masks[number]
        guides = [] if data.coarse is None else [data.coarse[number]]
        guides += [] if cams is None else [cams[row, 0]]
        found = probability[row] > 0.5
        score = metrics.segmentation_scores(metrics.confusion(found, truth > 0))[0, 0]
        rows.append((f'{data.names[number]}\nJA {100 * score:.0f}',
                     [image, truth, *guides, probability[row], figures.outlined(image, truth, found)]))
    figures.panel(rows, ['image', 'truth', *_guides(data.coarse, segmenter), 'lesion probability',
                         'truth, prediction'], path)


def _guides(coarse, segmenter):
    """Titles of what guides a segmentation network: the coarse mask and mask-CN's map, where used."""
    return ([] if coarse is None else ['coarse mask']) + ([] if segmenter.classifier is None else ['CAM'])


def classification(classifier, data, device, path):
    """Panel of validation images (whole-image crops): image, coarse mask, CAM, with the probabilities."""
    whole = np.unique(data.owners, return_index=True)[1]   # an image's first crop is the whole image
    chosen = whole[spread(len(whole), VALIDATION_IMAGES)]
    picture, coarse = place(data.images, data.coarse, device, chosen)
    classifier.network.eval()
    probabilities, cams = (result.cpu().numpy() for result in classifier(picture, coarse))
    rows = []
    for row, number in enumerate(chosen):
        p = ' '.join(f'{100 * value:.0f}' for value in probabilities[row])
        masks = [] if data.coarse is None else [data.coarse[number]]
        rows.append((f'{data.names[data.owners[number]]}\nclass {data.labels[number]}, p {p} %',
                     [data.images[number], *masks, cams[row, 0]]))
    masks = [] if data.coarse is None else ['coarse mask']
    figures.panel(rows, ['image', *masks, 'CAM of its class'], path)


def evaluation_panel(segmenter, pairs, coarse_paths, side, scores, mask_paths, wanted, path):
    """Panel of an evaluation, as the paper's Fig. 4: image, truth, [coarse mask,] [CAM,] found mask.

    pairs : [(image path, mask path)]; coarse_paths : of the same pictures, or None
    side : px, the evaluation's first scale, at which mask-CN drew the map that is shown
    scores : (N, 5), the caption's JA; mask_paths : predicted masks; wanted : number of rows
    """
    rows, chosen = [], spread(len(pairs), wanted)
    coarse = None if coarse_paths is None else [coarse_paths[number] for number in chosen]
    maps = None if segmenter.classifier is None else maps_of_files(
        segmenter.classifier, [pairs[number][0] for number in chosen], coarse, side)
    for row, number in enumerate(chosen):
        (image_path, truth_path), (width, height) = pairs[number], images.image_size(pairs[number][0])
        masks = truth_path, *([] if coarse is None else [coarse[row]]), mask_paths[number]
        image, (truth, *guides, found) = shown(image_path, masks)
        guides += [] if maps is None else [stretched(maps[row], image)]
        rows.append((f'{image_path.stem}\n{width}x{height}  JA {100 * scores[number, 0]:.0f}',
                     [image, truth, *guides, found, figures.outlined(image, truth, found)]))
    figures.panel(rows, ['image', 'truth', *_guides(coarse_paths, segmenter), 'found mask', 'truth, found'],
                  path)


def shown(image_path, mask_paths, side=SIDE):
    """A picture, its long side `side` px: (h, w, 3) uint8, and its masks: [(h, w)] of {0, 1}."""
    image = images.read_rgb(image_path, cover=2 * side)
    scale = side / max(image.shape[:2])
    size = tuple(max(1, round(scale * edge)) for edge in image.shape[1::-1])
    return images.resize_rgb(image, size), [images.resize_mask(images.read_mask(path), size)
                                            for path in mask_paths]


def stretched(cam, image):
    """A localisation map (h, w) of the squashed picture, in cells over the picture's shape: (H, W)."""
    return cv2.resize(cam, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
