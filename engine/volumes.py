"""Volumes of NIfTI files (.nii, .nii.gz). Needs nibabel, of the companions' own requirements."""
import numpy as np

from engine.errors import InputError


def opened(path):
    """A NIfTI file, not read yet. Raises InputError for what is none."""
    import nibabel
    return _or_refuse(path, lambda: nibabel.load(path))


def read(path, dtype=None):
    """The numbers of a NIfTI file, (X, Y, slices). Raises InputError for a damaged one.

    dtype : of the result; None: as scaling by the file's header gives it
    """
    image = opened(path)
    return _or_refuse(path, lambda: np.asarray(image.dataobj, dtype))


def _or_refuse(path, work):
    try:
        return work()
    except Exception as error:   # noqa: BLE001 - nibabel raises many kinds for a damaged file
        raise InputError('A volume cannot be read', [f'{path}: cannot be read: {error}']) from None
