"""Reading and writing pictures: RGB images, binary masks, and the faults that they can have.

A mask is {0, 1} in memory; only its png file holds {0, 255}.
"""
import os
import warnings

import cv2
import numpy as np
from PIL import Image

from engine import files
from engine.errors import InputError

FORMATS = ('JPEG', 'PNG', 'BMP')
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp')
ORIENTATION = 0x0112   # EXIF tag
LEAST_SIDE = 16        # pixels; anything smaller is not a photograph of a lesion
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, MemoryError)   # Pillow, on damaged files

# ImageOps.exif_transpose also rewrites the EXIF block, and fails where that is damaged.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}   # by EXIF orientation; 1 = upright

# `open_image` measures the size itself: warnings.catch_warnings is not safe in threads.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


def open_image(path):
    """Open a jpg, png or bmp without decoding it; InputError names the file.

    A picture with a declared size beyond Pillow's bomb limit (89 megapixels) is refused.
    """
    try:
        image = Image.open(path, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _fault(path, 'declares more than 89 megapixels') from None
    except FileNotFoundError:
        raise _fault(path, 'is missing') from None
    except UNREADABLE:
        empty = os.path.isfile(path) and os.path.getsize(path) == 0
        raise _fault(path, 'is empty' if empty else 'is not a readable jpg, png or bmp') from None
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise _fault(path, 'declares more than 89 megapixels')
    return image


def read_rgb(path, cover=0):
    """Decode a picture as the viewer sees it (EXIF orientation applied).

    cover : int   a jpg may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides
                  keep at least this many pixels (several times faster); 0 = full size
    Returns (H, W, 3) uint8. Raises InputError naming the file.
    """
    with open_image(path) as image:
        if cover:
            image.draft('RGB', (cover, cover))
        return np.array(_decoded(image, path).convert('RGB'))


def read_mask(path):
    """Decode a binary mask, {0, 255} in the file. Returns (H, W) uint8 of {0, 1}.

    Raises InputError when the file holds other values.
    """
    with open_image(path) as image:
        stored = np.array(_decoded(image, path).convert('L'))
    if cv2.countNonZero(stored) != np.count_nonzero(stored == 255):
        raise _fault(path, 'is not a binary mask: it holds values other than 0 and 255')
    return stored & 1


def _decoded(image, path):
    try:
        image.load()
    except UNREADABLE:
        raise _fault(path, 'is damaged: it cannot be decoded to its end') from None
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(TURNS[orientation])


def _orientation(image):
    """EXIF orientation 1..8; values outside mean upright, as viewers take them."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def image_size(path):
    """(width, height) in pixels from the header, EXIF orientation applied."""
    with open_image(path) as image:
        width, height = image.size
        # Asking a png for an EXIF block that does not stand in its header would decode the whole picture.
        turned = (image.format in ('JPEG', 'MPO') or 'exif' in image.info) and _orientation(image) > 4
    return (height, width) if turned else (width, height)


def inspect_image(path):
    """Decode a photograph completely and list what training must not meet.

    Returns ((width, height) as seen or None, list of faults). Checked: readable to the end,
    8-bit RGB, upright by its EXIF tag, at least 16 px on a side.
    """
    try:
        with open_image(path) as image:
            size, mode = image.size, image.mode
            least = (max(1, size[0] // 8), max(1, size[1] // 8))
            image.draft('RGB', least)   # reads every byte, but makes fewer pixels of them
            _decoded(image, path)
            orientation = _orientation(image)
    except InputError as error:
        return None, error.faults
    faults = []
    if mode != 'RGB':
        faults.append(f'{path}: colour mode is {mode}, not 8-bit RGB')
    if orientation != 1:
        faults.append(f'{path}: is rotated by its EXIF tag; store the pixels upright')
    if min(size) < LEAST_SIDE:
        faults.append(f'{path}: is {size[0]}x{size[1]} px, too small to be a photograph')
    return (size[::-1] if orientation > 4 else size), faults


def resize_rgb(image, size, box=None):
    """Bicubic, antialiased resize (Pillow), as the released code's crops.

    image : (H, W, 3) uint8; size : (width, height); box : (left, top, right, bottom) in pixels,
    floats allowed, default the whole image. Returns (height, width, 3) uint8.
    """
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box,
                                                    reducing_gap=3.0))


def resize_mask(mask, size):
    """Nearest-neighbour resize of an (H, W) mask to (width, height), pixel centres aligned."""
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def write_png(path, array):
    """Write (H, W) or (H, W, 3) RGB uint8 as png, completely or not at all."""
    if array.ndim == 3:
        array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
    done, data = cv2.imencode('.png', array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f'{path}: cannot encode an array of shape {array.shape}')
    files.write_bytes(path, data.tobytes())


def write_mask(path, mask):
    """Write a mask (H, W), bool or uint8 of {0, 1}, as png of {0, 255}, completely or not at all."""
    write_png(path, (mask > 0).astype(np.uint8) * 255)


def _fault(path, reason):
    return InputError('A picture cannot be used', [f'{path}: {reason}'],
                      'replace or remove the file')
