"""BraTS cases: FLAIR volumes and their tumours as pictures."""
import re
from pathlib import Path

import numpy as np

from engine import images, volumes
from engine.errors import InputError

NAMES = re.compile(r'(?P<case>.+)_(?P<what>flair|seg)\.nii(\.gz)?$')
YEAR = re.compile(r'brats\d\d_', re.IGNORECASE)   # 2019 has cases of 2018, too: Brats18_<x>, BraTS19_<x>
LOW, HIGH = 1, 99     # percentiles of a volume's brain that become black and white


def find_cases(folder):
    """{case: {'flair': path, 'seg': path}} of a folder and all below it, sorted.

    Files are <case>_flair.nii.gz and <case>_seg.nii.gz, or without .gz. Raises InputError for a folder
    without any, and naming every volume without its partner.
    """
    cases, faults = {}, []
    for path in sorted(Path(folder).rglob('*.nii*')):
        if found := NAMES.fullmatch(path.name):
            case = cases.setdefault(found['case'], {})
            if found['what'] in case:
                faults.append(f'{path}: is there twice, see {case[found["what"]]}')
            case[found['what']] = path
    for name, case in cases.items():
        faults += [f'{folder}: {name} has no {name}_{what}.nii or .nii.gz'
                   for what in ('flair', 'seg') if what not in case]
    if not cases:
        faults = [f'{folder}: holds no <case>_flair.nii.gz']
    if faults:
        raise InputError('BraTS cases cannot be used', faults)
    return dict(sorted(cases.items()))


def patient(case):
    """What copies of a case have in common, whichever year's data they are of."""
    found = YEAR.match(case)
    return case[found.end():] if found else case


def read_case(case):
    """(FLAIR (X, Y, Z) uint8, tumour (X, Y, Z) bool) of one entry of `find_cases`.

    Grey values are scaled once for a volume, by percentiles LOW and HIGH of what is not zero: scaled for each
    slice, those without tumour would be brighter, and brightness would tell the kinds apart. What is zero
    stays 0, and nothing else becomes it. Raises InputError for damaged volumes, and for two sizes.
    """
    volume, labels = (_read(case[what]) for what in ('flair', 'seg'))
    if volume.shape != labels.shape:
        raise InputError('A case cannot be used', [
            f'{case["seg"]}: is {labels.shape}, its FLAIR {volume.shape}'])
    brain = volume > 0
    if not brain.any():
        raise InputError('A case cannot be used', [f'{case["flair"]}: is empty'])
    low, high = np.percentile(volume[brain], [LOW, HIGH])
    scaled = 1 + 254 * ((volume - low) / max(high - low, 1e-6)).clip(0, 1)
    return np.where(brain, scaled.round(), 0).astype(np.uint8), labels > 0


def _read(path):
    volume = volumes.read(path, np.float32)
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise InputError('A case cannot be used', [f'{path}: is no volume of finite numbers'])
    return volume


def picture(plane, size):
    """An axial plane (X, Y), its middle square as seen from below, at size x size: (size, size[, 3]) uint8.

    plane : uint8 grey values, which become three equal channels, or bool, which becomes {0, 1}
    """
    side = min(plane.shape)
    left, top = ((whole - side) // 2 for whole in plane.shape)
    square = np.ascontiguousarray(np.rot90(plane[left:left + side, top:top + side]))
    if plane.dtype == bool:
        return images.resize_mask(square.astype(np.uint8), (size, size))
    # Bicubic smooths over the brain's edge: black is made black again, since it says what is outside.
    shown = images.resize_mask((square > 0).astype(np.uint8), (size, size))
    grey = np.where(shown > 0, images.resize_rgb(square, (size, size)).clip(1), 0)
    return grey.astype(np.uint8)[..., None].repeat(3, 2)
