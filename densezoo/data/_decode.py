"""Decodes image files to NumPy arrays without loss: bit depth, palette indices and channels are those of the file."""

from __future__ import annotations

import contextlib
import errno
import pathlib
import stat
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from densezoo.data import _tiff
from densezoo.data._pixels import ORIENTATION, Unsupported, check_size, orient, seen_size, widen
from densezoo.messages import is_argument, option

# For every Image.open: Pillow detects formats by content, not by suffix, and would run Ghostscript for hidden EPS.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG

_PNG16 = {"LA;16B": 2, "RGB;16B": 3, "RGBA;16B": 4}  # Pillow's names of 16-bit PNGs, and their channels
_GREY_STEPS = {"L;2": np.uint8(85), "L;4": np.uint8(17)}  # Pillow's factors for grey of 2 and 4 bits
_OUT_OF_MEMORY = ("out of memory", "MEM_ERROR", "start new thread")  # by Pillow, imagecodecs and Python

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes of the supported image files."""
MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


@contextlib.contextmanager
def _named_errors(path: pathlib.Path) -> Iterator[None]:
    """Converts all exceptions of decoders for damaged files to a ValueError that names the file."""
    try:
        yield
    except Unsupported as error:
        raise ValueError(f"{path}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path}: {error} Cut the picture into tiles, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file."
        ) from error
    except Exception as error:  # for damaged input, decoders raise anything from struct.error to IndexError
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # operating system errors, such as a missing permission, name the file and do not concern its content
        if isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY):
            raise MemoryError(f"{path}: not enough memory to decode the picture.") from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: cannot be decoded ({reason}). The file is damaged or of another format.") from error


def _is_tiff(path: pathlib.Path) -> bool:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise Unsupported("it is a pipe, socket or device: expected a regular file.")  # opening a pipe waits for ever
    with open(path, "rb") as file:
        return file.read(4) in _tiff.MAGIC


def _orientation(image: Image.Image) -> int:
    # PngImageFile.getexif decodes the whole picture to find a late chunk, which cameras do not write.
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return image.getexif().get(ORIENTATION, 1)


# --- Pillow: everything but TIFF ---


def _decode_tiles(path: pathlib.Path, rawmode: str) -> np.ndarray:
    """Decodes with a different raw mode than the one that Pillow chose."""
    with Image.open(path, formats=_FORMATS) as image:
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
        return np.asarray(image)


def _rawmode(image: ImageFile.ImageFile) -> str:
    """Returns Pillow's name for the storage format of a PNG's pixels."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0].args if tiles else ""
    return args if isinstance(args, str) else ""


def _check_size(image: ImageFile.ImageFile) -> None:
    """Applies the limit in bytes, which Pillow lacks. Pillow has already applied its limit in pixels."""
    bytes_per_pixel = 2 * _PNG16.get(_rawmode(image), 2)
    check_size(image.height, image.width, image.height * image.width * bytes_per_pixel)


def _decode_png16(path: pathlib.Path, rawmode: str, height: int, width: int) -> np.ndarray:
    """Decodes a 16-bit PNG with several channels. Pillow itself keeps only the upper 8 bits."""
    if rawmode == "LA;16B":  # four bytes per pixel, so RGBA's unpacker returns them unchanged
        return _decode_tiles(path, "RGBA").view(">u2").astype(np.uint16)
    halves = np.empty((height, width, _PNG16[rawmode], 2), np.uint8)
    for half, order in enumerate("LB" if sys.byteorder == "little" else "BL"):
        halves[..., half] = _decode_tiles(path, rawmode[:-1] + order)
    return halves.view(np.uint16)[..., 0]


def _decode_pillow(path: pathlib.Path, indices: bool) -> np.ndarray:
    with Image.open(path, formats=_FORMATS) as image:
        _check_size(image)
        orientation = _orientation(image)
        rawmode = _rawmode(image)
        if rawmode in _PNG16:
            array = _decode_png16(path, rawmode, image.height, image.width)
        elif image.mode == "1":
            array = np.asarray(image).astype(np.uint8) * np.uint8(1 if indices else 255)
        elif indices and rawmode in _GREY_STEPS:
            array = np.asarray(image) // _GREY_STEPS[rawmode]
        elif image.mode == "P":
            array = np.asarray(image if indices else image.convert("RGB"))
        elif image.mode in ("L", "LA", "RGB", "RGBA", "F"):
            array = np.asarray(image)
        elif image.mode.startswith("I"):  # 16-bit grey: "I;16", and "I" in older versions of Pillow
            array = np.asarray(image).astype(np.uint16)
        else:  # CMYK and YCbCr photographs, premultiplied alpha
            array = np.asarray(image.convert("RGBA" if image.mode in ("PA", "RGBa") else "RGB"))
    return orient(array, orientation)


# --- all formats ---


def read_size(path: pathlib.Path, limited: bool = True) -> tuple[int, int]:
    """Reads the size of the decoded picture from the first bytes of the file.

    Args:
        path: the file.
        limited: whether a TIFF file that is too large to be decoded is an error, and not only one of another format.

    Returns:
        Height and width.

    Raises:
        ValueError: if the file is damaged, in another format, or too large.
    """
    with _named_errors(path):
        if _is_tiff(path):
            return _tiff.read_size(path, limited)
        with Image.open(path, formats=_FORMATS) as image:
            _check_size(image)
            return seen_size(image.height, image.width, _orientation(image))


def decode_image(path: pathlib.Path, channels: int | None = None, bits: int | None = None) -> np.ndarray:
    """Decodes a picture to (h, w, channels), with its orientation applied.

    Args:
        path: the file.
        channels: as in `convert_channels`.
        bits: as in `scale_bits`.

    Returns:
        The pixels in the file's type.

    Raises:
        ValueError: if the file is damaged, in another format, or too large, or does not fit `channels` or `bits`.
        MemoryError: if memory is insufficient.
    """
    with _named_errors(path):
        array = _tiff.decode(path, False) if _is_tiff(path) else _decode_pillow(path, False)
        if array.dtype == np.float64 or array.dtype == np.float16:
            array = array.astype(np.float32)
        array = np.ascontiguousarray(array if array.ndim == 3 else array[:, :, None])
    return convert_channels(scale_bits(array, bits, path), channels, path)


def decode_mask(path: pathlib.Path, *, several: bool = False) -> np.ndarray:
    """Decodes class or instance numbers: grey values, palette indices, or the bits of a 1-bit file.

    Args:
        path: the file.
        several: whether every channel contains numbers of its own.

    Returns:
        The numbers as int32, (h, w), or (h, w, channels) if `several`.

    Raises:
        ValueError: if the file is damaged, has several channels where one is expected, or contains fractions.
    """
    with _named_errors(path):
        array = _tiff.decode(path, True) if _is_tiff(path) else _decode_pillow(path, True)
    if several and array.ndim == 2:
        array = array[:, :, None]
    elif not several and array.ndim == 3 and array.shape[-1] == 1:
        array = array[:, :, 0]
    if array.ndim != 2 + several:
        colours = option("labels", "{(red, green, blue): class}", typed="RED,GREEN,BLUE:CLASS ...")
        raise ValueError(
            f"{path}: a mask of {array.shape[-1]} channels; expected one channel of class numbers (grey or palette). "
            f"If its colours stand for classes, pass {colours}; if each channel is a label of its own, pass "
            f"{option('multilabel', True)}."
        )
    return whole_numbers(array, path)


def whole_numbers(array: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Converts the numbers of a mask to int32.

    Raises:
        ValueError: if they are not 32-bit whole numbers.
    """
    with np.errstate(invalid="ignore"):  # values that do not fit raise an error below
        numbers = array.astype(np.int32)
    if (array.dtype.kind == "f" or array.dtype.itemsize >= 4) and not np.array_equal(numbers, array):
        raise ValueError(f"{path}: a mask of type {array.dtype} with values that are not 32-bit whole numbers.")
    return np.ascontiguousarray(numbers)


def decode_colours(path: pathlib.Path) -> np.ndarray:
    """Decodes a picture whose colours represent classes to one number per pixel.

    Args:
        path: the file.

    Returns:
        65536 * red + 256 * green + blue as int32, (h, w).

    Raises:
        ValueError: if the file is damaged, or does not contain 8-bit grey, palette or RGB.
    """
    return colour_numbers(decode_image(path, 3), path)


def colour_numbers(colours: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Converts colours (h, w, 3) to one number per pixel.

    Raises:
        ValueError: if they have other than 8 bits.
    """
    if colours.dtype != np.uint8:
        raise ValueError(f"{path}: colours of type {colours.dtype}; expected 8 bits.")
    return colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def convert_channels(image: np.ndarray, channels: int | None, path: pathlib.Path) -> np.ndarray:
    """Converts (h, w, c) to the given number of channels if the conversion is unambiguous.

    Args:
        image: the pixels.
        channels: the number of channels to return; None keeps all.
        path: the file, for the error.

    Returns:
        (h, w, channels): grey is repeated, colour becomes its luminance, alpha is dropped.

    Raises:
        ValueError: for any other conversion.
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
    if is_argument("channels"):
        advice = f"Pass {option('channels', present)} or None, or convert the file."
    else:  # the model has them
        advice = f"Convert the file, or use a model of {present} channels."
    raise ValueError(
        f"{path}: {present} channels cannot become {channels}; the conversions are grey to 3, colour to 1, "
        f"and alpha dropped. {advice}"
    )


def scale_bits(image: np.ndarray, bits: int | None, path: pathlib.Path) -> np.ndarray:
    """Scales integers that use fewer bits than their type to the type's full range.

    Args:
        image: the pixels.
        bits: the number of bits that they use; None keeps them unchanged.
        path: the file, for the error.

    Returns:
        The same shape and type.

    Raises:
        ValueError: if the pixels are floats or use more bits.
    """
    if bits is None:
        return image
    if image.dtype.kind != "u" or bits > 8 * image.dtype.itemsize:
        raise ValueError(f"{path}: {option('bits', bits)} does not fit pixels of type {image.dtype}.")
    if image.max() >= 2**bits:
        raise ValueError(f"{path}: the largest pixel is {image.max()}, which needs more than {option('bits', bits)}.")
    return widen(image, bits)


def largest(image: np.ndarray) -> int:
    """Returns the largest pixel of unsigned integers. Returns 0 for other types, which have no fixed maximum."""
    return int(image.max()) if image.dtype.kind == "u" else 0


def describe_range(largest: Mapping[np.dtype, int]) -> str | None:
    """Describes the range of a folder's pictures, if they never use the upper half of a type of 16 bits or more.

    Args:
        largest: the largest pixel of each type.

    Returns:
        A sentence with the range and a suggestion, or None.
    """
    for dtype, value in largest.items():
        if dtype.itemsize > 1 and 0 < value < 2 ** (8 * dtype.itemsize - 1):
            bits = value.bit_length()
            return (
                f"the largest pixel of the {dtype} images is {value}, which fits {bits} bits. to_float divides by "
                f"{np.iinfo(dtype).max}, so they come out as 0 to {value / np.iinfo(dtype).max:.2g}. If white is "
                f"{2**bits - 1}, pass {option('bits', bits)}."
            )
    return None
