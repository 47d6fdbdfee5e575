"""Panels of pictures that show what the networks see and find."""
import numpy as np
import torch

from engine import cache, figures, images, metrics
from mbdcnn import evaluation

VALIDATION_IMAGES = 8   # rows of the panels that training draws
SIDE = 224              # px, of the pictures in the panel of an evaluation


def spread(count, wanted):
    """Up to `wanted` whole numbers below `count`, evenly spread: (n,) int array."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(int)


def segmentation(segmenter, data, device, path):
    """Panel of validation pictures: image, truth, [coarse mask,] [CAM,] lesion probability, contours."""
    chosen = spread(len(data.images), VALIDATION_IMAGES)
    picture, coarse = evaluation.place(data.images[chosen], evaluation.at(data.coarse, chosen), device)
    segmenter.network.eval()
    probability = torch.sigmoid(segmenter(picture, coarse)).cpu().numpy()
    cams = None if segmenter.classifier is None else segmenter.classifier(picture, coarse)[1].cpu().numpy()
    rows = []
    for place, number in enumerate(chosen):
        image, truth = data.images[number], data.masks[number]
        guides = [] if data.coarse is None else [data.coarse[number]]
        guides += [] if cams is None else [cams[place, 0]]
        found = probability[place] > 0.5
        score = metrics.segmentation_scores(metrics.confusion(found, truth > 0))[0, 0]
        rows.append((f'{data.names[number]}\nJA {100 * score:.0f}',
                     [image, truth, *guides, probability[place], figures.outlined(image, truth, found)]))
    figures.panel(rows, ['image', 'truth', *_guides(data.coarse, segmenter), 'lesion probability',
                         'truth, prediction'], path)


def _guides(coarse, segmenter):
    """Titles of what guides a segmentation network: the coarse mask and mask-CN's map, where used."""
    return ([] if coarse is None else ['coarse mask']) + ([] if segmenter.classifier is None else ['CAM'])


def classification(classifier, data, device, path):
    """Panel of validation images (whole-image crops): image, coarse mask, CAM, with the probabilities."""
    whole = np.unique(data.owners, return_index=True)[1]   # an image's first crop is the whole image
    chosen = whole[spread(len(whole), VALIDATION_IMAGES)]
    picture, coarse = evaluation.place(data.images[chosen], evaluation.at(data.coarse, chosen), device)
    classifier.network.eval()
    probabilities, cams = (result.cpu().numpy() for result in classifier(picture, coarse))
    rows = []
    for place, number in enumerate(chosen):
        p = ' '.join(f'{100 * value:.0f}' for value in probabilities[place])
        masks = [] if data.coarse is None else [data.coarse[number]]
        rows.append((f'{data.names[data.owners[number]]}\nclass {data.labels[number]}, p {p} %',
                     [data.images[number], *masks, cams[place, 0]]))
    masks = [] if data.coarse is None else ['coarse mask']
    figures.panel(rows, ['image', *masks, 'CAM of its class'], path)


def evaluation_panel(segmenter, pairs, coarse_paths, scores, mask_paths, wanted, device, path):
    """Panel of an evaluation, as the paper's Fig. 4: image, truth, [coarse mask,] [CAM,] found mask.

    pairs : [(image path, mask path)]; coarse_paths : of the same pictures, or None
    scores : (N, 5), the caption's JA; mask_paths : predicted masks; wanted : number of rows
    """
    rows = []
    for number in spread(len(pairs), wanted):
        image = cache.read_rgb_square(pairs[number][0], SIDE)
        truth, found = (cache.read_mask_square(mask, SIDE) for mask in (pairs[number][1], mask_paths[number]))
        guides, coarse = [], None
        if coarse_paths is not None:
            coarse = cache.read_mask_square(coarse_paths[number], SIDE)[None]
            guides.append(coarse[0])
        if segmenter.classifier is not None:
            guides.append(segmenter.classifier(*evaluation.place(image[None], coarse, device))[1][0, 0]
                          .cpu().numpy())
        width, height = images.image_size(pairs[number][0])
        rows.append((f'{pairs[number][0].stem}\n{width}x{height}  JA {100 * scores[number, 0]:.0f}',
                     [image, truth, *guides, found, figures.outlined(image, truth, found)]))
    guides = _guides(coarse_paths, segmenter)
    figures.panel(rows, ['image', 'truth', *guides, 'found mask', 'truth, found'], path)
