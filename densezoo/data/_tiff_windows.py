"""Windows of large TIFF files, read and written without the rest of the picture."""

import collections
import errno
import os
import pathlib
import threading
from typing import Any

import numpy as np
from PIL import Image

from densezoo.data._decode import convert_channels, scale_bits
from densezoo.data._pixels import ORIENTATION, Unsupported, check_size
from densezoo.data._tiff import GREY, JPEG, PALETTE, RGB, YCBCR, check_pages, one_message

_GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)
"""Tags of GeoTIFF: pixel scale, tie points, transformation, and the coordinate system's keys, numbers and texts."""
_KEPT = 1 << 28
"""Bytes of decoded strips and tiles that are kept, because neighbouring windows read them again."""


class TiffWindows:
    """The pixels of a TIFF file, (height, width, channels), as an array that reads what is sliced. See `open_tiff`.

    `picture[rows, columns]` takes two slices. Several threads may read. As a context manager, it closes the file.

    Attributes:
        path: path of the file.
        shape: (height, width, channels).
        dtype: of the pixels.
    """

    def __init__(
        self, path: pathlib.Path, channels: int | None = None, bits: int | None = None, *, indices: bool = False
    ):
        try:
            import tifffile
        except ImportError:
            raise Unsupported(f"{path}: TIFF files need two packages: pip install tifffile imagecodecs") from None
        self.path, self._channels, self._bits, self._file = path, channels, bits, None
        self._lock = threading.Lock()
        self._blocks: collections.OrderedDict[int, np.ndarray] = collections.OrderedDict()
        self._kept = 0  # bytes
        self._mapped: np.ndarray | None = None
        try:
            with open(path, "rb") as file:
                check_pages(file)
            with one_message():
                self._file: Any = tifffile.TiffFile(path)
                page: Any = self._file.pages[0]
                reason = _unsupported(self._file, page, indices)
                if reason is None:
                    self._open(page)
        except OSError:
            self.close()
            raise
        except Exception as error:  # damage raises all kinds of errors
            self.close()
            raise self._damaged(error) from error
        if reason is not None:
            self.close()
            raise Unsupported(f"{path}: {reason}, which cannot be read by windows")
        try:
            one = convert_channels(np.zeros((1, 1, page.samplesperpixel), self._stored), channels, path)
        except ValueError:
            self.close()
            raise
        except TypeError as error:  # a number of channels that is not whole
            self.close()
            raise self._damaged(error) from error
        self.shape, self.dtype = (page.imagelength, page.imagewidth, one.shape[2]), one.dtype

    def _open(self, page: Any) -> None:
        self._page = page
        self._stored = np.dtype(np.float32) if page.dtype in (np.float16, np.float64) else page.dtype  # as `read_image`
        self._block = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        if not all(isinstance(side, int) and side > 0 for side in (*self._block, *page.shape)):
            raise ValueError(f"it is of shape {page.shape}, in strips or tiles of {self._block}")
        if page.is_memmappable and page.dataoffsets[0] + page.nbytes <= page.parent.filehandle.size:
            # Without compression, nothing but the window is read, even from a file of one strip.
            dtype = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
            self._mapped = np.memmap(self.path, dtype, "r", page.dataoffsets[0], page.shaped)
            return
        # A strip or tile is decoded whole.
        height, width = min(self._block[0], page.imagelength), self._block[1]
        check_size(height, width, height * width * page.samplesperpixel * page.dtype.itemsize)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        if not isinstance(index, tuple) or len(index) != 2 or not all(isinstance(part, slice) for part in index):
            raise IndexError(f"expected two slices, such as picture[:512, 1024:2048], got {index}")
        rows, columns = (range(n)[part] for n, part in zip(self.shape, index, strict=False))
        if rows.step != 1 or columns.step != 1:
            raise IndexError("windows have steps of 1")
        planes = self._page.samplesperpixel if self._page.planarconfig == 2 else 1
        result = np.zeros((len(rows), len(columns), self._page.samplesperpixel), self._stored)
        if result.size:
            for plane in range(planes):
                part = result[..., plane : plane + 1] if planes > 1 else result
                if self._mapped is not None:
                    part[...] = self._mapped[plane, 0, rows.start : rows.stop, columns.start : columns.stop]
                else:
                    self._fill(part, plane, rows, columns)
            result = scale_bits(result, self._bits, self.path)
        return convert_channels(result, self._channels, self.path)

    def _fill(self, result: np.ndarray, plane: int, rows: range, columns: range) -> None:
        """Copies a window from the strips or tiles that it overlaps."""
        height, width = self._block
        across, down = -(-self.shape[1] // width), -(-self.shape[0] // height)
        for block_row in range(rows.start // height, (rows.stop - 1) // height + 1):
            for block_column in range(columns.start // width, (columns.stop - 1) // width + 1):
                block = self._read((plane * down + block_row) * across + block_column)
                top, left = block_row * height, block_column * width
                # The part of the block within the window.
                first_row, first_column = max(rows.start, top), max(columns.start, left)
                end_row = min(rows.stop, top + block.shape[0])
                end_column = min(columns.stop, left + block.shape[1])
                part = block[first_row - top : end_row - top, first_column - left : end_column - left]
                result[
                    first_row - rows.start : end_row - rows.start,
                    first_column - columns.start : end_column - columns.start,
                ] = part

    def _read(self, number: int) -> np.ndarray:
        """A strip or tile of the file, (height, width, channels)."""
        page, file = self._page, self._file.filehandle
        try:
            with self._lock:
                if number in self._blocks:
                    self._blocks.move_to_end(number)
                    return self._blocks[number]
                size = page.databytecounts[number]
                if page.dataoffsets[number] + size > file.size:  # before as much memory is allocated
                    raise ValueError("it is truncated")
                file.seek(page.dataoffsets[number])
                data = file.read(size)
            if size:
                block = page.decode(data, number, jpegtables=page.jpegtables)[0][0]
            else:  # of a sparse file: GDAL writes no block without data
                channels = 1 if page.planarconfig == 2 else page.samplesperpixel
                block = np.broadcast_to(np.asarray(page.nodata, page.dtype), (*self._block, channels))
        except MemoryError:
            raise
        except Exception as error:
            raise self._damaged(error) from error
        with self._lock:
            if number not in self._blocks:  # no other thread has read it meanwhile
                self._blocks[number] = block
                self._kept += block.nbytes
            while len(self._blocks) > 1 and self._kept > _KEPT:
                self._kept -= self._blocks.popitem(last=False)[1].nbytes
        return block

    def _damaged(self, error: Exception) -> ValueError:
        if isinstance(error, Image.DecompressionBombError):
            return ValueError(f"{self.path}: a strip or tile of it is too large: {error}")
        return ValueError(f"{self.path}: cannot be read ({error}). Is it a damaged TIFF file?")

    def create_like(self, path: str | pathlib.Path, dtype: Any, *, palette: np.ndarray | None = None) -> np.ndarray:
        """Creates a TIFF file of one channel with this picture's size and georeference, as an array on disk.

        The file is not compressed. The space for it is reserved, so that a full disk is an error at once.

        Args:
            path: path of the file.
            dtype: of its pixels, such as uint8.
            palette: a colour for each number, (n, 3) uint8, in which viewers and GIS show them. The numbers are stored
                as without it. Only for uint8.

        Returns:
            A memory map (height, width), whose values are those of the file after `flush`.

        Raises:
            ValueError: if a palette has more than 256 colours, or `dtype` is another than uint8.
            OSError: if the disk is full.
        """
        import tifffile

        colours: dict[str, Any] = {"photometric": "minisblack"}
        if palette is not None:
            if np.dtype(dtype) != np.uint8 or np.shape(palette)[1:] != (3,) or len(palette) > 256:
                raise ValueError(
                    f"a palette of shape {np.shape(palette)} for pixels of type {np.dtype(dtype)}; expected (n, 3) with"
                    " up to 256 colours for uint8"
                )
            colormap = np.zeros((3, 256), np.uint16)
            colormap[:, : len(palette)] = 257 * np.asarray(palette, np.uint16).T  # 255 becomes 65535
            colours = {"photometric": "palette", "colormap": colormap}
        tags = [self._page.tags[code] for code in _GEOREFERENCE if code in self._page.tags]
        extra = [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags]
        array = tifffile.memmap(
            path, shape=self.shape[:2], dtype=np.dtype(dtype), metadata=None, extratags=extra, **colours
        )
        if hasattr(os, "posix_fallocate"):  # writing to a memory map on a full disk would end the process
            try:
                with open(path, "r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                    raise
        return array

    def close(self) -> None:
        """Closes the file."""
        self._mapped = None
        self._blocks.clear()
        self._kept = 0
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "TiffWindows":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _unsupported(file: Any, page: Any, indices: bool) -> str | None:
    """What prevents reading by windows; None if nothing does."""
    dtype, photometric, jpeg = page.dtype, page.photometric, page.compression in JPEG
    if dtype is None or dtype.kind not in "uif" or page.bitspersample not in (8, 16, 32, 64):
        return f"its samples have {page.bitspersample} bits"
    if photometric == YCBCR and jpeg:
        photometric = RGB  # the decoder converts it
    if photometric not in (GREY, RGB, *((PALETTE,) if indices else ())):
        return f"its colours are {getattr(page.photometric, 'name', page.photometric)}, neither grey nor RGB"
    if jpeg and page.samplesperpixel > 2 and (photometric == RGB) != (page.planarconfig == 1):
        return "it has JPEG compression of several channels"  # whose colours tifffile misinterprets
    if ORIENTATION in page.tags and page.tags[ORIENTATION].value != 1:
        return "its first row is not on top"
    if page.imagedepth != 1 or file.series[0].size != page.size:
        return "its first picture has several pages"
    return None


def open_tiff(
    path: str | pathlib.Path, *, channels: int | None = None, bits: int | None = None, indices: bool = False
) -> TiffWindows:
    """Opens a TIFF file, such as a GeoTIFF, as an array whose windows are read when they are sliced.

    The picture may be larger than memory, and larger than `read_image` accepts. `dz.predict_tiled` takes it as it is.
    Its pixels are those of `read_image`. A tile or strip of the file that has no data gets the file's nodata value.

    Files with small tiles are read fastest. Tiles and strips of a compressed file are decoded whole, and the last
    256 MB of them are kept.

    Args:
        path: path of the file: strips or tiles, interleaved or separate channels, with any compression that tifffile
            reads.
        channels: the number of channels to convert to, as in `read_image`; None for as many as the file has.
        bits: the number of bits that the pixels use, as in `read_image`.
        indices: whether a palette file is opened too, as the numbers of its colours. For masks.

    Raises:
        ValueError: if the file is damaged, its channels cannot be converted, or its pixels cannot be read by windows:
            those of a palette or a turned picture, of other than 8, 16, 32 or 64 bits, and of several pages.
        OSError: if it cannot be opened.

    Example:
        >>> import tempfile, numpy as np, tifffile
        >>> path = tempfile.mkdtemp() + "/field.tif"
        >>> tifffile.imwrite(path, np.arange(12 * 3, dtype=np.uint8).reshape(3, 4, 3), photometric="rgb")
        >>> with open_tiff(path) as picture:
        ...     picture.shape, picture[1:2, 2:4].tolist()
        ((3, 4, 3), [[[18, 19, 20], [21, 22, 23]]])
    """
    return TiffWindows(pathlib.Path(path), channels, bits, indices=indices)
