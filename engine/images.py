"""Reading and writing pictures: RGB images, binary masks, and the faults that they can have.

A mask is {0, 1} in memory; only its png file holds {0, 255}.
"""
import contextlib
import errno
import os
import stat
import warnings

import cv2
import numpy as np
from PIL import Image

from engine import files
from engine.errors import InputError

FORMATS = {'JPEG': 'jpg', 'PNG': 'png', 'BMP': 'bmp'}   # of data sets: Pillow's name, ours
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp')
ORIENTATION = 0x0112   # EXIF tag
LEAST_SIDE = 16        # pixels; anything smaller is not a photograph of a lesion
ROUNDED = 0.02         # by which proportions may differ

# ImageOps.exif_transpose also rewrites the EXIF block, and fails where that is damaged.
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
         4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}   # by EXIF orientation; 1 = upright

# `open_image` measures the size itself: warnings.catch_warnings is not safe in threads.
warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


@contextlib.contextmanager
def open_image(path, formats=None):
    """Open a picture without decoding it: a context. What fails within it is a fault of the file.

    formats : dict like FORMATS, the default
    Raises InputError that names the file, also where it declares a size beyond Pillow's bomb limit
    (89 megapixels), and is no file at all: reading a pipe or a device would wait for ever.
    """
    formats = formats or FORMATS
    with _opened(path) as file:
        try:
            image = Image.open(file, formats=tuple(formats))
            bomb = image.width * image.height > Image.MAX_IMAGE_PIXELS
        except Image.DecompressionBombError:
            bomb = True
        except Exception:   # noqa: BLE001 - Pillow raises many kinds for a damaged file
            *words, last = formats.values()
            raise _fault(path, f'is not a readable {", ".join(words)} or {last}') from None
        if bomb:
            raise _fault(path, 'declares more than 89 megapixels')
        try:
            yield image
        except InputError:
            raise
        except Exception as error:   # noqa: BLE001
            reason = f'is damaged: it cannot be decoded ({type(error).__name__}: {error})'
            raise _fault(path, reason) from None


def _opened(path):
    """A picture's file, opened to be read; InputError where there is none to read."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise _fault(path, 'is no file but a folder, a pipe or a device')
        if not found.st_size:
            raise _fault(path, 'is empty')
        return open(path, 'rb')
    except FileNotFoundError:
        raise _fault(path, 'is missing') from None
    except (OSError, ValueError) as error:   # ValueError: a NUL in its name
        if getattr(error, 'errno', None) in (errno.EMFILE, errno.ENFILE):
            raise   # too many files are open, which is no fault of this one
        raise _fault(path, f'cannot be read: {getattr(error, "strerror", error)}') from None


def read_rgb(path, cover=0):
    """Decode a photograph as data sets hold them: 8-bit RGB, upright, of 16 px a side or more.

    cover : int   a jpg may be decoded at 1/2, 1/4 or 1/8 of its size as long as both sides
                  keep at least this many pixels (several times faster); 0 = full size
    Returns (H, W, 3) uint8. Raises InputError naming the file and every fault that `inspect_image` finds.
    """
    with open_image(path) as image:
        size, mode = image.size, image.mode
        if cover:
            image.draft('RGB', (cover, cover))
        image.load()
        faults = _photograph_faults(path, size, mode, orientation(image))
        if faults:
            raise InputError('A picture cannot be used', faults, 'replace or remove the file')
        return np.array(image)


def read_mask(path, grey_above=0):
    """Decode a binary mask, {0, 255} in the file or, with 16 bits, {0, 65535}.

    grey_above : 8-bit files with other values are taken, too: lesion is what lies above; 0 refuses them
    Returns (H, W) uint8 of {0, 1}. Raises InputError when the file holds other values.
    """
    with open_image(path) as image:
        if grey_above:
            return (np.asarray(upright(image).convert('L')) > grey_above).astype(np.uint8)
        seen = upright(image)
        deep = seen.mode.startswith('I')   # Pillow would clip 16 bits to 8 instead of scaling them
        stored = np.array(seen).astype(np.int32) if deep else np.array(seen.convert('L'))
    white = 65535 if deep and stored.max() > 255 else 255
    if cv2.countNonZero(stored) != np.count_nonzero(stored == white):
        raise _fault(path, f'is not a binary mask: it holds values other than 0 and {white}')
    return (stored & 1).astype(np.uint8)


def upright(image):
    """A PIL image as the viewer sees it: decoded, and turned by its EXIF tag."""
    image.load()
    value = orientation(image)
    return image if value == 1 else image.transpose(TURNS[value])


def orientation(image):
    """EXIF orientation 1..8 of a PIL image; values outside mean upright, as viewers take them."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def image_size(path):
    """(width, height) in pixels from the header, EXIF orientation applied."""
    with open_image(path) as image:
        width, height = image.size
        # Asking a png for an EXIF block that does not stand in its header would decode the whole picture.
        turned = (image.format in ('JPEG', 'MPO') or 'exif' in image.info) and orientation(image) > 4
    return (height, width) if turned else (width, height)


def inspect_image(path):
    """Decode a photograph completely and list what training must not meet.

    Returns ((width, height) as seen or None, list of faults). Checked: readable to the end,
    8-bit RGB, upright by its EXIF tag, at least 16 px on a side.
    """
    try:
        with open_image(path) as image:
            size, mode = image.size, image.mode
            # Reads every byte, but makes fewer pixels of them.
            image.draft('RGB', (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
            value = orientation(image)
    except InputError as error:
        return None, error.faults
    return size[::-1] if value > 4 else size, _photograph_faults(path, size, mode, value)


def require_photographs(paths):
    """Decode photographs (paths) on all cores; InputError with all faults that `inspect_image` finds."""
    def check(path):
        _, faults = inspect_image(path)
        if faults:
            raise InputError('A picture cannot be used', faults)

    files.for_all(check, paths, 'looking at pictures', summary='Pictures that cannot be used',
                  remedy='replace these files (stage 1 writes its own anew), then run this again')


def _photograph_faults(path, size, mode, orientation):
    faults = []
    if mode != 'RGB':
        faults.append(f'{path}: colour mode is {mode}, not 8-bit RGB')
    if orientation != 1:
        faults.append(f'{path}: is rotated by its EXIF tag; store the pixels upright')
    if min(size) < LEAST_SIDE:
        faults.append(f'{path}: is {size[0]}x{size[1]} px, too small to be a photograph')
    return faults


def alike(size, other):
    """Whether two sizes (width, height) have the same proportions, but for rounding to whole pixels."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= ROUNDED


def resize_rgb(image, size, box=None):
    """Bicubic, antialiased resize (Pillow), as the released code's crops.

    image : (H, W, 3) or (H, W) uint8; size : (width, height); box : (left, top, right, bottom) in pixels,
    floats allowed, default the whole image. Returns (height, width, 3) uint8.
    """
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box,
                                                    reducing_gap=3.0))


def resize_mask(mask, size):
    """Nearest-neighbour resize of an (H, W) mask to (width, height), pixel centres aligned."""
    return cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def otsu_mask(image, bright=False, inside=None):
    """What Otsu's threshold of the grey values takes for the lesion, by default what is darker: (H, W) bool.

    image : (H, W, 3) uint8; bright : the lesion is brighter; inside : (H, W) bool, the pixels that count
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    inside = np.ones(grey.shape, bool) if inside is None else inside
    if not inside.any():
        return inside
    level, _ = cv2.threshold(grey[inside][None], 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return inside & ((grey > level) if bright else (grey <= level))


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
