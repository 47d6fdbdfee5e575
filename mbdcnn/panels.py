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


def of_prediction(prediction, opacity=figures.OPACITY):
    """Two views of a mbdcnn.predictor.Prediction, (h, w, 3) uint8: contours of the coarse mask (thick) and
    the final one (thin); the positive part of the class's activation map as heat, opacity 0 to 1."""
    picture = prediction.preview
    coarse, mask = (images.resize_mask(mask.astype(np.uint8), picture.shape[1::-1])
                    for mask in (prediction.coarse_mask, prediction.mask))
    return (figures.outlined(picture, None, mask, coarse),
            figures.warmed(picture, prediction.cam, opacity))


def segmentation(segmenter, data, device, path):
    """Panel of validation pictures: image, truth, [coarse mask,] [CAM,] lesion probability, contours."""
    chosen = spread(len(data.images), VALIDATION_IMAGES)
    picture, coarse = place(data.images, data.coarse, device, chosen)
    segmenter.network.eval()
    probability = torch.sigmoid(segmenter(picture, coarse)).cpu().numpy()
    cams = None if segmenter.classifier is None else segmenter.classifier(picture, coarse)[1].cpu().numpy()
    pictures, truths, found = data.images[chosen], data.masks[chosen], probability > 0.5
    scores = metrics.segmentation_scores(list(map(metrics.confusion, found, truths > 0)))[:, 0]
    _draw([f'{data.names[number]}\nJA {100 * score:.0f}'
           for number, score in zip(chosen, scores, strict=True)], {
        'image': pictures, 'truth': truths,
        'coarse mask': None if data.coarse is None else data.coarse[chosen],
        'CAM': None if cams is None else cams[:, 0], 'lesion probability': probability,
        'truth, prediction': map(figures.outlined, pictures, truths, found)}, path)


def classification(classifier, data, device, path):
    """Panel of validation images (whole-image crops): image, coarse mask, and over the image the map of the
    class that mask-CN decides for; errors are marked."""
    whole = np.unique(data.owners, return_index=True)[1]   # an image's first crop is the whole image
    chosen = whole[spread(len(whole), VALIDATION_IMAGES)]
    classifier.network.eval()
    probabilities, cams = (found.cpu().numpy() for found in classifier(
        *place(data.images, data.coarse, device, chosen)))
    decided, labels, names = probabilities.argmax(1), data.labels[chosen], classifier.classes.names
    captions = [f'{data.names[data.owners[number]]}\n{100 * row[found]:.0f} % {names[found]}\n'
                f'true: {names[label]}'
                for number, row, found, label in zip(chosen, probabilities, decided, labels, strict=True)]
    _draw(captions, {'image': data.images[chosen],
                     'coarse mask': None if data.coarse is None else data.coarse[chosen],
                     'map of found class': map(figures.warmed, data.images[chosen], cams[:, 0])},
          path, np.flatnonzero(decided != labels))


def evaluation_panel(segmenter, pairs, coarse_paths, side, scores, mask_paths, wanted, path):
    """Panel of an evaluation, as the paper's Fig. 4: image, truth, [coarse mask,] [CAM,] found mask.

    pairs : [(image path, mask path)]; coarse_paths : of the same pictures, or None
    side : px, the evaluation's first scale, at which mask-CN drew the map that is shown
    scores : (N, 5), the caption's JA; mask_paths : predicted masks; wanted : number of rows
    """
    chosen = spread(len(pairs), wanted)
    paths, coarse = [pairs[number][0] for number in chosen], None
    masks = [[pairs[number][1], mask_paths[number]] for number in chosen]
    if coarse_paths is not None:
        coarse = [coarse_paths[number] for number in chosen]
        masks = [[*row, path] for row, path in zip(masks, coarse, strict=True)]
    read = list(map(shown, paths, masks))
    pictures = [picture for picture, _ in read]
    truths, found, *guide = zip(*(masks for _, masks in read), strict=True)
    maps = None
    if segmenter.classifier is not None:
        maps = map(stretched, maps_of_files(segmenter.classifier, paths, coarse, side), pictures)
    captions = [f'{pairs[number][0].stem}\n{"x".join(map(str, images.image_size(pairs[number][0])))}  '
                f'JA {100 * scores[number, 0]:.0f}' for number in chosen]
    _draw(captions, {
        'image': pictures, 'truth': truths, 'coarse mask': guide[0] if guide else None, 'CAM': maps,
        'found mask': found, 'truth, found': map(figures.outlined, pictures, truths, found)}, path)


def _draw(captions, columns, path, errors=()):
    """columns : {title: a picture for each caption, or None for no such column}; errors : of figures.panel"""
    columns = {title: pictures for title, pictures in columns.items() if pictures is not None}
    rows = zip(captions, zip(*columns.values(), strict=True), strict=True)
    figures.panel(list(rows), list(columns), path, errors)


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
