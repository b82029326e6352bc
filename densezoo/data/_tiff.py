"""TIFF files to NumPy arrays, by tifffile."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from densezoo.data import _orientation
from densezoo.extras import require

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_tiff(path: pathlib.Path) -> bool:
    """Tells by the first bytes whether a file is a TIFF."""
    with open(path, "rb") as file:
        return file.read(4) in _MAGIC


def _check_pixels(height: int, width: int) -> None:
    """Applies Pillow's limit to what Pillow does not read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({height * width} pixels) exceeds limit of {2 * limit} pixels, "
            "could be decompression bomb DOS attack."
        )


def _layout(shape: tuple[int, ...], axes: str) -> tuple[int, int, int | None]:
    """Gives the positions of rows, columns and channels among a TIFF's axes.

    Files without metadata number their pages with a letter that says nothing, whichever axis it is. Then the smallest
    of the first and the last axis holds the channels.
    """
    if len(shape) == 2:
        return 0, 1, None
    if len(shape) != 3:
        raise ValueError(
            f"it holds an array of shape {shape} (axes {axes}); expected (height, width), (height, width, channels) "
            "or (channels, height, width): save one picture a file"
        )
    if axes[-1] == "S" or (axes[0] not in "SC" and shape[-1] < shape[0]):
        return 0, 1, 2
    return 1, 2, 0


def read_size(path: pathlib.Path) -> tuple[int, int]:
    """Reads height and width from the header."""
    with _open(path) as tiff:
        series = tiff.series[0]
        row, column, _ = _layout(series.shape, series.axes)
        height, width = series.shape[row], series.shape[column]
        _check_pixels(height, width)
        return _orientation.seen(height, width, _tag(tiff.pages[0], _orientation.TAG, 1))


def _open(path: pathlib.Path) -> Any:
    return require("tifffile").TiffFile(path)  # takes 0.1 s to import, and most folders hold no TIFF


def _tag(page: Any, code: int, default: int) -> int:
    tag = page.tags.get(code)
    return default if tag is None else int(tag.value)


def decode(path: pathlib.Path, indices: bool) -> np.ndarray:
    """Decodes a picture, or the numbers of classes as they are stored, to (h, w) or (h, w, channels)."""
    with _open(path) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        row, column, channel = _layout(series.shape, series.axes)
        _check_pixels(series.shape[row], series.shape[column])
        try:
            array = np.asarray(series.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode_compressed(path, math.prod(series.shape), _tag(page, 262, 1), indices, error)
        photometric = _tag(page, 262, 1)
        orientation = _tag(page, _orientation.TAG, 1)
        colours = getattr(page, "colormap", None)
    if channel is not None:
        array = array.transpose(row, column, channel)
    bilevel = array.dtype == np.bool_
    if bilevel:
        array = array.astype(np.uint8)
    if photometric == 0 and (bilevel or not indices) and array.dtype.kind == "u":  # min-is-white
        array = np.array(1 if bilevel else np.iinfo(array.dtype).max, array.dtype) - array
    if not indices:
        if bilevel:
            array = array * np.uint8(255)
        if photometric == 3 and colours is not None:
            array = (np.asarray(colours).T >> 8).astype(np.uint8)[array]
    return _orientation.orient(array.astype(array.dtype.newbyteorder("=")), orientation)


def _decode_compressed(path: pathlib.Path, size: int, white: int, indices: bool, error: ValueError) -> np.ndarray:
    """Reads LZW or JPEG compressed files through Pillow, where it can without loss.

    `size` is the number of values that the file holds, and `white` the photometric interpretation.
    """
    refusal = ValueError(f"{error}; pip install imagecodecs, or save it uncompressed or with deflate")
    try:
        image = Image.open(path, formats=("TIFF",))
    except UnidentifiedImageError:
        raise refusal from error
    with image:
        bits = max(getattr(image, "tag_v2", {}).get(258, (1,)))
        scaled = indices and image.mode == "L" and bits != 8  # as Pillow does with greys of few bits
        plain = bits <= 8 and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA") and not scaled
        # Of several pages, or of channels that are stored one after the other, Pillow reads the first alone.
        whole = image.width * image.height * len(image.getbands()) == size
        if not whole or not (plain or image.mode in ("I;16", "F")):
            raise refusal from error
        if indices and image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if indices and image.mode == "L" and white == 0:  # Pillow has inverted what are class numbers
            return np.uint8(255) - np.asarray(image)
        if image.mode in ("1", "P") and not indices:
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.asarray(image)  # Pillow has applied the orientation to a TIFF
