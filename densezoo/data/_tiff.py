"""Decodes TIFF files to NumPy arrays with tifffile. Most compressions need imagecodecs."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import pathlib
import struct
import threading
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from densezoo.data._pixels import ORIENTATION, Unsupported, check_size, orient, seen_size, widen

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_PAGES = 10_000
_MIN_IS_WHITE, GREY, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
_COLOUR_SPACES = {
    5: "CMYK",
    6: "YCbCr",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
JPEG = (6, 7)
"""Compressions whose decoder converts YCbCr to RGB."""


_reading = threading.local()
"""Its `left` is the number of messages that are still logged about the file that this thread reads."""


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """Logs at most one of tifffile's messages about a file: a damaged one causes dozens, and raises an error anyway."""
    logging.getLogger("tifffile").addFilter(_is_first)
    before, _reading.left = getattr(_reading, "left", None), 1
    try:
        yield
    finally:
        _reading.left = before


def _is_first(record: logging.LogRecord) -> bool:
    left = getattr(_reading, "left", None)
    if left:
        _reading.left = left - 1
    return left != 0


def check_pages(file: BinaryIO) -> None:
    """Rejects pages that link in a loop, which tifffile would follow forever, and files with too many pages."""
    header = file.read(16)
    order = "<" if header[:2] == b"II" else ">"
    big = header[2:4] in (b"+\0", b"\0+")
    count, entry_size, link = (order + "Q", 20, order + "Q") if big else (order + "H", 12, order + "I")
    seen: set[int] = set()
    try:
        (offset,) = struct.unpack_from(link, header, 8 if big else 4)
        while offset:
            if offset in seen:
                raise ValueError("its pages link in a loop")
            if len(seen) == _MAX_PAGES:
                raise Unsupported(f"it contains more than {_MAX_PAGES} pages: save one picture per file.")
            seen.add(offset)
            file.seek(offset)
            (entries,) = struct.unpack(count, file.read(struct.calcsize(count)))
            file.seek(offset + struct.calcsize(count) + entries * entry_size)
            (offset,) = struct.unpack(link, file.read(struct.calcsize(link)))
    except (struct.error, OSError, OverflowError):
        return  # the chain is truncated, and tifffile stops here too


def _layout(shape: tuple[int, ...], axes: str) -> tuple[int, int, int | None]:
    """Returns the positions of rows, columns and channels among the axes.

    By default, tifffile writes (height, width, channels) as one page per row, and then labels the first axis Q. In that
    case, the shorter one of the first and the last axis is the channel axis.
    """
    if len(shape) not in (2, 3) or "Y" not in axes or "X" not in axes:
        raise Unsupported(
            f"it contains an array of shape {shape} (axes {axes}); expected (height, width), (height, width, channels) "
            "or (channels, height, width): save one picture per file."
        )
    if axes == "QYX" and shape[2] < shape[0]:
        return 0, 1, 2
    row, column = axes.index("Y"), axes.index("X")
    return row, column, None if len(shape) == 2 else 3 - row - column


@contextlib.contextmanager
def _first_series(path: pathlib.Path, limited: bool = True) -> Iterator[tuple[Any, Any, tuple[int, int, int | None]]]:
    """Opens the first picture. Returns its pages (a tifffile series), the first page, and the layout.

    `limited` rejects pictures that are too large to be decoded.
    """
    try:
        import tifffile  # takes 0.1 s, and most folders contain no TIFF
    except ImportError:
        raise Unsupported("TIFF files need two packages: pip install tifffile imagecodecs") from None

    with open(path, "rb") as file:
        check_pages(file)
    with one_message(), tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        page = series.keyframe
        if page.dtype is None:
            raise Unsupported(
                f"its samples have {page.bitspersample} bits (sample format {int(page.sampleformat)}), "
                "which no array type can hold: save it with 8, 16 or 32 bits."
            )
        if series.dtype.kind not in "biuf":
            raise Unsupported(f"its pixels are of type {series.dtype}; expected integers or floats.")
        if 0 in series.shape:
            raise ValueError(f"its shape is {series.shape}")
        row, column, channel = _layout(series.shape, series.axes)
        samples = math.prod(series.shape)
        if page.photometric == PALETTE:
            samples *= 3
        # A tile is always decoded whole, even if the picture covers only a part of it.
        samples = max(samples, math.prod(page.tile or ()) * page.samplesperpixel)
        if limited:
            check_size(series.shape[row], series.shape[column], samples * series.dtype.itemsize)
        yield series, page, (row, column, channel)


def _orientation(page: Any) -> int:
    tag = page.tags.get(ORIENTATION)
    return 1 if tag is None else int(tag.value)


def read_size(path: pathlib.Path, limited: bool = True) -> tuple[int, int]:
    """Reads the height and width of the decoded picture."""
    with _first_series(path, limited) as (series, page, (row, column, _)):
        return seen_size(series.shape[row], series.shape[column], _orientation(page))


def _read(series: Any, page: Any) -> np.ndarray:
    # JPEG decoders fill the missing part of a truncated file with grey; without compression, tifffile checks lengths,
    # after it has allocated them.
    for part in filter(None, series.pages):
        listed, needed = len(part.dataoffsets), 1 if page.is_contiguous else math.prod(page.chunked)
        if listed < needed:  # tifffile would make up the others, one by one, of which a small file can claim millions
            raise ValueError(f"image file is truncated: it lists {listed} of {needed} strips or tiles")
        starts = part.dataoffsets if page.compression != 1 else [0] * len(part.databytecounts)
        ends = (start + length for start, length in zip(starts, part.databytecounts, strict=False))
        if max(ends, default=0) > part.parent.filehandle.size:
            raise ValueError("image file is truncated")
    try:
        array = np.asarray(series.asarray())
    except Exception as error:
        # Without imagecodecs, tifffile raises various errors: KeyError, ModuleNotFoundError, NotImplementedError.
        if importlib.util.find_spec("imagecodecs") or not (isinstance(error, ImportError) or "codecs" in str(error)):
            raise
        compression = getattr(page.compression, "name", page.compression)
        raise Unsupported(
            f"reading it (compression {compression}, {page.bitspersample} bits per sample) needs another package: "
            "pip install imagecodecs"
        ) from error
    if array.shape != series.shape:
        raise ValueError(f"it contains {array.shape} pixels instead of {series.shape}")
    return array


def decode(path: pathlib.Path, indices: bool) -> np.ndarray:
    """Decodes to (h, w) or (h, w, channels): the numbers of a mask if `indices`, else the pixels of a picture.

    A picture's palette is applied, and samples of less than 8 bits are scaled to 0..255. Values of 8 bits or less are
    inverted where 0 is white, as in Pillow. Wider values are not: tifffile, Pillow and GDAL all return them as stored.
    A mask keeps its numbers, except for the bits of a 1-bit file in which 0 is white.
    """
    with _first_series(path) as (series, page, (row, column, channel)):
        space = _COLOUR_SPACES.get(int(page.photometric or 0))
        if space and not (page.photometric == YCBCR and page.compression in JPEG):
            raise Unsupported(f"its colours are {space}: save it as RGB or grey.")
        coloured, interleaved = page.photometric in (RGB, YCBCR), page.planarconfig == 1
        if page.compression in JPEG and page.samplesperpixel > 2 and coloured != interleaved:
            # tifffile misinterprets the colours of such JPEGs
            raise Unsupported("its JPEG compression of several channels is not supported: save it with another one.")
        array = _read(series, page)
        if channel is not None:
            array = array.transpose(row, column, channel)
        bits = page.bitspersample
        if array.dtype == np.bool_:
            array, bits = array.astype(np.uint8), 1
        if page.photometric == _MIN_IS_WHITE and array.dtype == np.uint8 and (bits == 1 or not indices):
            array = array.copy()  # the series' own array may be read-only
            grey = array[:, :, :1] if page.samplesperpixel > 1 else array  # without alpha and other bands
            np.subtract(np.uint8(2**bits - 1), grey, out=grey)
        if not indices and page.photometric == PALETTE:
            if array.ndim == 3:
                raise Unsupported(f"it has a palette and {array.shape[2]} channels: save it as RGB.")
            array = (np.asarray(page.colormap).T >> 8).astype(np.uint8)[array]
        elif not indices and array.dtype.kind == "u" and isinstance(bits, int) and bits < 8:
            array = widen(array, bits)
        return orient(array.astype(array.dtype.newbyteorder("="), copy=False), _orientation(page))
