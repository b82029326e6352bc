"""Decodes files of measurements: .npy, and the pictures that `_decode` reads, whose numbers are kept as they are."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image

from densezoo.data import _decode
from densezoo.data._pixels import check_size

SUFFIXES = (*_decode.MASK_SUFFIXES, ".npy")


def read_size(path: pathlib.Path, limited: bool = True) -> tuple[int, int]:
    """Reads height and width of a picture or an array from the start of its file.

    Raises:
        ValueError: if the file is damaged, too large, or of another format.
    """
    if path.suffix.lower() != ".npy":
        return _decode.read_size(path, limited)
    shape = _load(path).shape
    return shape[0], shape[1]


def decode(path: pathlib.Path, *, channels: int | None = None) -> np.ndarray:
    """Decodes measurements without changing their numbers.

    Args:
        path: the file.
        channels: channels of the last axis; None for one number for each pixel.

    Returns:
        (h, w), or (h, w, channels), in the type of the file.

    Raises:
        ValueError: if the file is damaged, too large, of another format, or has other channels.
    """
    array = np.array(_load(path)) if path.suffix.lower() == ".npy" else _decode.decode_image(path)
    if channels is None and array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != (2 if channels is None else 3) or (channels is not None and array.shape[-1] != channels):
        expected = "(height, width)" if channels is None else f"(height, width, {channels})"
        raise ValueError(f"{path}: numbers of shape {array.shape}; expected {expected}.")
    return array


def _load(path: pathlib.Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy parses the header as Python: damage raises anything, also a MemoryError
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: cannot be read ({reason}). Is it a damaged .npy file?") from error
    if array.ndim not in (2, 3) or 0 in array.shape or array.dtype.kind not in "biuf":
        raise ValueError(f"{path}: {array.dtype} of shape {array.shape}; expected numbers (height, width, ...).")
    try:
        check_size(array.shape[0], array.shape[1], array.nbytes)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path}: {error} Raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file.") from error
    return array
