"""Shared by the decoders of image files: the size limit, the orientation, and the error for unsupported files."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF and TIFF tag


class Unsupported(ValueError):
    """A valid file that is not supported; the message gives the reason and what to do."""


def check_size(height: int, width: int, nbytes: int) -> None:
    """Rejects pictures that would exhaust memory.

    The limits are Pillow's, 2 x MAX_IMAGE_PIXELS pixels, and 12 bytes per MAX_IMAGE_PIXELS (1 GiB by default). The
    second one covers pictures with many channels or wide types.

    Args:
        height: rows.
        width: columns.
        nbytes: the size of the decoded array.

    Raises:
        Image.DecompressionBombError: if the picture is larger than either limit.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is None:
        return
    if height * width > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({height * width} pixels) exceeds limit of {2 * limit} pixels, "
            "could be decompression bomb DOS attack."
        )
    if nbytes > 12 * limit:
        raise Image.DecompressionBombError(
            f"Decoded size ({nbytes} bytes) exceeds limit of {12 * limit} bytes, "
            "could be decompression bomb DOS attack."
        )


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Rotates and mirrors stored pixels (h, w, ...) into display order, for the EXIF orientations 1 to 8."""
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (3, 4):
        array = array[::-1]
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (6, 7):
        array = array[:, ::-1]
    if orientation in (7, 8):
        array = array[::-1]
    return array


def seen_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Returns height and width after `orient`."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def widen(array: np.ndarray, bits: int) -> np.ndarray:
    """Scales integers of `bits` bits to the full range of their type: the 2-bit value 3 becomes 255 in uint8."""
    top, full = 2**bits - 1, int(np.iinfo(array.dtype).max)
    if full % top == 0 or array.dtype.itemsize == 8:  # floats cannot represent all 64-bit integers
        return array * array.dtype.type(full // top)
    return np.rint(array * (full / top)).astype(array.dtype)
