"""The classification crops: 1 + 4 + 4 for nevi and for every test image, 1 + 7 + 7 otherwise.

The whole image, then centre crops that keep the image's proportions, then square centre crops;
all are resized to 224 x 224. Training melanomas and keratoses (the rare classes of a class table) get more of
them, which balances the classes (released code; the paper names no balancing).
"""
from dataset.classes import PAPER

SIDE = 224                                                # pixels
SCALES_9 = (0.8, 0.6, 0.4, 0.2)
SCALES_15 = (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)


def scales_of(label, training, classes=PAPER):
    """Crop scales of an image of class number `label`. classes : ClassTable"""
    return SCALES_15 if training and classes.is_rare(label) else SCALES_9


def crop_names(image_id, scales):
    """File names of an image's crops, the whole image first; see `crop_boxes` for the order."""
    count = 1 + 2 * len(scales)
    return [f'{image_id}.png', *(f'{image_id}_{count}_{k}.png' for k in range(1, count))]


def crop_boxes(width, height, scales):
    """Boxes (left, top, right, bottom) in pixels, in the order of `crop_names`.

    The whole image, then scale * (W, H) for each scale, then squares of scale * min(W, H).
    Sides are rounded to whole pixels; every box is centred and lies within the image.
    """
    side = min(width, height)
    sizes = [(round(width * s), round(height * s)) for s in scales]
    sizes += [(round(side * s), round(side * s)) for s in scales]
    boxes = [(0, 0, width, height)]
    for w, h in sizes:
        w, h = max(w, 1), max(h, 1)
        left, top = (width - w) // 2, (height - h) // 2
        boxes.append((left, top, left + w, top + h))
    return boxes
