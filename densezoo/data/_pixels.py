"""What the decoders of image files share: the size limit, the orientation, and the error for what is not read."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # the EXIF and TIFF tag


class Unsupported(ValueError):
    """A file that may be sound but is not read; the message says why and what to do."""


def check_size(height: int, width: int, nbytes: int) -> None:
    """Refuses pictures that would fill the memory.

    The limits are Pillow's, 2 x MAX_IMAGE_PIXELS pixels, and 12 bytes per MAX_IMAGE_PIXELS (1 GiB by default) for
    pictures with many channels or wide types, which a limit in pixels lets through.

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
    """Turns (h, w, ...) pixels as stored into pixels as seen, for the EXIF orientations 1 to 8."""
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
    """Gives height and width after `orient`."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def widen(array: np.ndarray, bits: int) -> np.ndarray:
    """Scales integers of `bits` bits to the full range of their type: 3 of 2 bits becomes 255 in uint8."""
    top, full = 2**bits - 1, int(np.iinfo(array.dtype).max)
    if full % top == 0 or array.dtype.itemsize == 8:  # floats do not hold all integers of 64 bits
        return array * array.dtype.type(full // top)
    return np.rint(array * (full / top)).astype(array.dtype)
