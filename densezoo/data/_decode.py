"""Image files to NumPy arrays, with no loss: bit depth, palette indices and channels stay as the file holds them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from densezoo.extras import require

# Given to every Image.open: Pillow goes by content and not by suffix, and EPS in disguise would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION = 0x0112
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


@contextlib.contextmanager
def _named_errors(path: pathlib.Path) -> Iterator[None]:
    """Makes whatever a decoder raises on a damaged file one ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: {error} Cut the picture into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # decoders raise anything, from struct.error to IndexError, on damaged input
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be decoded ({reason}). The file is damaged or of another format.") from error


def _is_tiff(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) in _TIFF_MAGIC


def _check_pixels(height: int, width: int) -> None:
    """Applies Pillow's limit to what Pillow does not read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > 2 * limit:
        raise Image.DecompressionBombError(
            f"Image size ({height * width} pixels) exceeds limit of {2 * limit} pixels, "
            "could be decompression bomb DOS attack."
        )


def _orientation(image: Image.Image) -> int:
    # PngImageFile.getexif decodes the whole picture to look for a late chunk; cameras write none.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return image.getexif().get(_ORIENTATION, 1)


def _orient(array: np.ndarray, orientation: int) -> np.ndarray:
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


# --- Pillow: everything but TIFF ---


def _decode_tiles(path: pathlib.Path, rawmode: str) -> np.ndarray:
    """Decodes with another unpacker than the one that Pillow chose."""
    with Image.open(path, formats=_FORMATS) as image:
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
        return np.asarray(image)


def _decode_png16(path: pathlib.Path, rawmode: str) -> np.ndarray:
    """Decodes a 16-bit PNG with several channels, of which Pillow by itself keeps the upper 8 bits only."""
    if rawmode == "LA;16B":  # four bytes a pixel, so that RGBA's unpacker hands them over as they are
        return _decode_tiles(path, "RGBA").view(">u2").astype(np.uint16)
    high, low = (_decode_tiles(path, rawmode[:-1] + order).astype(np.uint16) for order in ("B", "L"))
    return high << 8 | low


def _decode_pillow(path: pathlib.Path, indices: bool) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        orientation = _orientation(image)
        rawmode = image.tile[0].args if image.tile else None
        if rawmode in ("LA;16B", "RGB;16B", "RGBA;16B"):
            array = _decode_png16(path, rawmode)
        elif image.mode == "1":
            array = np.asarray(image).astype(np.uint8) * np.uint8(1 if indices else 255)
        elif image.mode == "P":
            array = np.asarray(image if indices else image.convert("RGB"))
        elif image.mode in ("L", "LA", "RGB", "RGBA", "F"):
            array = np.asarray(image)
        elif image.mode.startswith("I"):  # 16-bit grey: "I;16", and "I" in older versions of Pillow
            array = np.asarray(image).astype(np.uint16)
        else:  # CMYK and YCbCr photographs, premultiplied alpha
            array = np.asarray(image.convert("RGBA" if image.mode in ("PA", "RGBa") else "RGB"))
    return _orient(array, orientation)


# --- tifffile ---


def _tiff_layout(shape: tuple[int, ...], axes: str) -> tuple[int, int, int | None]:
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


def _tiff_size(path: pathlib.Path) -> tuple[int, int]:
    tifffile = require("tifffile")  # takes 0.1 s, and most folders hold no TIFF

    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        row, column, _ = _tiff_layout(series.shape, series.axes)
        height, width = series.shape[row], series.shape[column]
        _check_pixels(height, width)
        return _seen(height, width, _tiff_tag(tiff.pages[0], _ORIENTATION, 1))


def _tiff_tag(page: Any, code: int, default: int) -> int:
    tag = page.tags.get(code)
    return default if tag is None else int(tag.value)


def _decode_tiff(path: pathlib.Path, indices: bool) -> np.ndarray:
    tifffile = require("tifffile")

    with tifffile.TiffFile(path) as tiff:
        series, page = tiff.series[0], tiff.pages[0]
        row, column, channel = _tiff_layout(series.shape, series.axes)
        _check_pixels(series.shape[row], series.shape[column])
        try:
            array = np.asarray(series.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            return _decode_compressed_tiff(path, page, indices, error)
        photometric = _tiff_tag(page, 262, 1)
        orientation = _tiff_tag(page, _ORIENTATION, 1)
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
    return _orient(array.astype(array.dtype.newbyteorder("=")), orientation)


def _decode_compressed_tiff(path: pathlib.Path, page: Any, indices: bool, error: ValueError) -> np.ndarray:
    """Reads LZW or JPEG compressed files through Pillow, where it can without loss."""
    with Image.open(path, formats=("TIFF",)) as image:
        bits = getattr(image, "tag_v2", {}).get(258, (1,))
        plain = max(bits) <= 8 and image.mode in ("1", "L", "LA", "P", "RGB", "RGBA")
        if not plain and image.mode not in ("I;16", "F"):
            raise ValueError(f"{error}; pip install imagecodecs, or save it uncompressed or with deflate") from error
        if indices and image.mode == "1":
            return np.asarray(image).astype(np.uint8)
        if image.mode in ("1", "P") and not indices:
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.asarray(image)  # Pillow has applied the orientation to a TIFF


# --- both ---


def _seen(height: int, width: int, orientation: int) -> tuple[int, int]:
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def read_size(path: pathlib.Path) -> tuple[int, int]:
    """Reads the size that decoding will give, from the first bytes of the file.

    Args:
        path: the file.

    Returns:
        Height and width.

    Raises:
        ValueError: if the file is damaged, of another format, or too large.
    """
    with _named_errors(path):
        if _is_tiff(path):
            return _tiff_size(path)
        with Image.open(path, formats=_FORMATS) as image:
            return _seen(image.height, image.width, _orientation(image))


def decode_image(path: pathlib.Path) -> np.ndarray:
    """Decodes a picture to (h, w, channels), with its orientation applied.

    Args:
        path: the file.

    Returns:
        The pixels in the file's type.

    Raises:
        ValueError: if the file is damaged, of another format, or too large.
    """
    with _named_errors(path):
        array = _decode_tiff(path, False) if _is_tiff(path) else _decode_pillow(path, False)
        if array.dtype == np.float64 or array.dtype == np.float16:
            array = array.astype(np.float32)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"its pixels are of type {array.dtype}; expected integers or floats")
        return np.ascontiguousarray(array if array.ndim == 3 else array[:, :, None])


def decode_mask(path: pathlib.Path) -> np.ndarray:
    """Decodes class or instance numbers to (h, w) int32: grey values, palette indices, or the bits of a 1-bit file.

    Args:
        path: the file.

    Returns:
        The numbers.

    Raises:
        ValueError: if the file is damaged, has several channels, or holds fractions.
    """
    with _named_errors(path):
        array = _decode_tiff(path, True) if _is_tiff(path) else _decode_pillow(path, True)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim != 2:
        raise ValueError(
            f"{path}: a mask of {array.shape[-1]} channels; expected one channel of class numbers (grey or palette). "
            "If its colours stand for classes, save the classes' numbers instead."
        )
    numbers = array.astype(np.int32)
    if (array.dtype.kind == "f" or array.dtype.itemsize >= 4) and not np.array_equal(numbers, array):
        raise ValueError(f"{path}: a mask of type {array.dtype} with values that are not 32-bit whole numbers.")
    return np.ascontiguousarray(numbers)


def convert_channels(image: np.ndarray, channels: int | None, path: pathlib.Path) -> np.ndarray:
    """Converts (h, w, c) to the wanted number of channels where that has one meaning.

    Args:
        image: the pixels.
        channels: how many channels to give; None for as many as there are.
        path: the file, for the error.

    Returns:
        (h, w, channels): grey is repeated, colour becomes its luminance, alpha is dropped.

    Raises:
        ValueError: for any other pair.
    """
    present = image.shape[-1]
    if channels is None or channels == present:
        return image
    if channels == 3 and present in (1, 2):
        return np.repeat(image[:, :, :1], 3, axis=2)
    if channels == 3 and present == 4:
        return np.ascontiguousarray(image[:, :, :3])
    if channels == 1 and present == 2:
        return np.ascontiguousarray(image[:, :, :1])
    if channels == 1 and present in (3, 4):
        luminance = image[:, :, :3].astype(np.float32) @ _LUMA[:, None]
        return (np.rint(luminance) if image.dtype.kind in "iu" else luminance).astype(image.dtype)
    raise ValueError(
        f"{path}: {present} channels cannot become {channels}; the conversions are grey to 3, colour to 1, "
        f"and alpha dropped. Pass channels={present} or None, or convert the file."
    )
