"""Windows of large TIFF files, read and written without the rest of the picture."""

import pathlib
from typing import Any

import numpy as np

from densezoo.data._pixels import ORIENTATION, Unsupported

_GEOREFERENCE = (33550, 33922, 34264, 34735, 34736, 34737)
"""Tags of GeoTIFF: pixel scale, tie points, transformation, and the coordinate system's keys, numbers and texts."""
_GREY, _RGB = 1, 2


class TiffWindows:
    """The pixels of a TIFF file, (height, width, channels), as an array that reads what is sliced. See `open_tiff`.

    As a context manager, it closes the file.

    Attributes:
        shape: (height, width, channels).
        dtype: of the pixels.
    """

    def __init__(self, path: pathlib.Path):
        try:
            import tifffile
        except ImportError:
            raise Unsupported("TIFF files need two packages: pip install tifffile imagecodecs") from None
        self._path, self._file = path, None
        try:
            self._file: Any = tifffile.TiffFile(path)
            page: Any = self._file.pages[0]
        except OSError:
            raise
        except Exception as error:  # damage raises all kinds of errors
            self.close()
            raise ValueError(f"{path}: cannot be read ({error}). Is it a damaged TIFF file?") from error
        self._page = page
        turned = ORIENTATION in page.tags and page.tags[ORIENTATION].value != 1
        dtype = page.dtype
        plain = page.photometric in (_GREY, _RGB) and dtype is not None and dtype.kind in "uif" and dtype.itemsize > 0
        if not plain or turned or page.planarconfig != 1 or page.imagedepth != 1 or page.bitspersample % 8:
            self._file.close()
            raise Unsupported(
                "only grey and RGB pictures of 8, 16 or 32 bits with interleaved channels, the first row on top, can be"
                " read by windows"
            )
        self.shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
        self.dtype = dtype
        self._block = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        rows, columns = (range(n)[part] for n, part in zip(self.shape, index, strict=False))
        if rows.step != 1 or columns.step != 1:
            raise IndexError("windows have steps of 1")
        result = np.zeros((len(rows), len(columns), self.shape[2]), self.dtype)
        if not result.size:
            return result
        height, width = self._block
        across = -(-self.shape[1] // width)
        for block_row in range(rows.start // height, (rows.stop - 1) // height + 1):
            for block_column in range(columns.start // width, (columns.stop - 1) // width + 1):
                block = self._read(block_row * across + block_column)
                if block is None:  # a block without data is zero
                    continue
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
        return result

    def _read(self, number: int) -> np.ndarray | None:
        """A strip or tile of the file, (height, width, channels)."""
        page, file = self._page, self._file.filehandle
        size = page.databytecounts[number]
        if not size:
            return None
        file.seek(page.dataoffsets[number])
        data = file.read(size)
        try:
            if len(data) != size:
                raise ValueError("it is truncated")
            block, _, _ = page.decode(data, number, jpegtables=page.jpegtables)
        except MemoryError:
            raise
        except Exception as error:
            raise ValueError(f"{self._path}: cannot be read ({error}). Is it a damaged TIFF file?") from error
        return None if block is None else block[0]

    def create_like(self, path: pathlib.Path, dtype: Any) -> np.ndarray:
        """Creates a TIFF file of one channel with this picture's size and georeference, as an array on disk.

        Args:
            path: path of the file.
            dtype: of its pixels, such as uint8.

        Returns:
            A memory map (height, width), whose values are those of the file after `flush`.
        """
        import tifffile

        tags = [self._page.tags[code] for code in _GEOREFERENCE if code in self._page.tags]
        extra = [(tag.code, int(tag.dtype), tag.count, tag.value, True) for tag in tags]
        return tifffile.memmap(
            path, shape=self.shape[:2], dtype=np.dtype(dtype), photometric="minisblack", metadata=None, extratags=extra
        )

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "TiffWindows":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def open_tiff(path: str | pathlib.Path) -> TiffWindows:
    """Opens a TIFF file, such as a GeoTIFF, as an array whose windows are read when they are sliced.

    The picture may be larger than memory, and larger than `read_image` accepts. `dz.predict_tiled` takes it as it is.

    Args:
        path: path of the file: strips or tiles, with any compression that tifffile reads.

    Raises:
        ValueError: if the file's pixels cannot be read by windows, such as those with a palette.

    Example:
        >>> import tempfile, numpy as np, tifffile
        >>> path = tempfile.mkdtemp() + "/field.tif"
        >>> tifffile.imwrite(path, np.arange(12 * 3, dtype=np.uint8).reshape(3, 4, 3), photometric="rgb")
        >>> with open_tiff(path) as picture:
        ...     picture.shape, picture[1:2, 2:4].tolist()
        ((3, 4, 3), [[[18, 19, 20], [21, 22, 23]]])
    """
    return TiffWindows(pathlib.Path(path))
