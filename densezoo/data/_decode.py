"""Image files to NumPy arrays, with no loss: bit depth, palette indices and channels stay as the file holds them."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from densezoo.data import _orientation, _tiff

# Given to every Image.open: Pillow goes by content and not by suffix, and EPS in disguise would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


@contextlib.contextmanager
def _named_errors(path: pathlib.Path) -> Iterator[None]:
    """Makes whatever a decoder raises on a damaged file one ValueError that names the file."""
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: {error} Cut the picture into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # decoders raise anything, from struct.error to IndexError, on damaged input
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be decoded ({reason}). The file is damaged or of another format.") from error


def _orientation_of(image: Image.Image) -> int:
    # PngImageFile.getexif decodes the whole picture to look for a late chunk; cameras write none.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return image.getexif().get(_orientation.TAG, 1)


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
        orientation = _orientation_of(image)
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
    return _orientation.orient(array, orientation)


# --- both ---


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
        if _tiff.is_tiff(path):
            return _tiff.read_size(path)
        with Image.open(path, formats=_FORMATS) as image:
            return _orientation.seen(image.height, image.width, _orientation_of(image))


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
        array = _tiff.decode(path, False) if _tiff.is_tiff(path) else _decode_pillow(path, False)
        if array.dtype == np.float64 or array.dtype == np.float16:
            array = array.astype(np.float32)
        if array.dtype.kind not in "iuf":
            raise ValueError(f"its pixels are of type {array.dtype}; expected integers or floats")
        return np.ascontiguousarray(array if array.ndim == 3 else array[:, :, None])


def decode_mask(path: pathlib.Path, *, several: bool = False) -> np.ndarray:
    """Decodes class or instance numbers: grey values, palette indices, or the bits of a 1-bit file.

    Args:
        path: the file.
        several: whether every channel holds numbers of its own.

    Returns:
        The numbers as int32, (h, w), or (h, w, channels) if there may be several.

    Raises:
        ValueError: if the file is damaged, has several channels where one is expected, or holds fractions.
    """
    with _named_errors(path):
        array = _tiff.decode(path, True) if _tiff.is_tiff(path) else _decode_pillow(path, True)
    if several and array.ndim == 2:
        array = array[:, :, None]
    elif not several and array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 + several:
        raise ValueError(
            f"{path}: a mask of {array.shape[-1]} channels; expected one channel of class numbers (grey or palette). "
            "If its colours stand for classes, pass labels={(red, green, blue): class}; if each channel is a label of "
            "its own, pass multilabel=True."
        )
    numbers = array.astype(np.int32)
    if (array.dtype.kind == "f" or array.dtype.itemsize >= 4) and not np.array_equal(numbers, array):
        raise ValueError(f"{path}: a mask of type {array.dtype} with values that are not 32-bit whole numbers.")
    return np.ascontiguousarray(numbers)


def decode_colours(path: pathlib.Path) -> np.ndarray:
    """Decodes a picture whose colours stand for classes to one number a pixel.

    Args:
        path: the file.

    Returns:
        65536 * red + 256 * green + blue as int32, (h, w).

    Raises:
        ValueError: if the file is damaged, or does not hold 8-bit grey, palette or RGB.
    """
    colours = convert_channels(decode_image(path), 3, path)
    if colours.dtype != np.uint8:
        raise ValueError(f"{path}: colours of type {colours.dtype}; expected 8 bits.")
    return colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


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
