"""Folders of images and masks as random-access sources."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import math
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, SupportsIndex

import numpy as np

from densezoo.data import _decode, _masks, _pairing
from densezoo.data._tiff_windows import TiffWindows, open_tiff
from densezoo.extras import require
from densezoo.messages import option, shortened


def read_image(
    path: str | os.PathLike[str] | bytes | BinaryIO, channels: int | None = None, *, bits: int | None = None
) -> np.ndarray:
    """Reads one picture, in the same way as `ImageMaskFolder`.

    Bit depth and channels are those of the file: 8 or 16 bits; grey (1 channel), grey + alpha (2), RGB (3), RGBA (4),
    or any number from a TIFF, channels first or last. Palettes become RGB, grey of less than 8 bits is scaled to 0..255
    (1-bit pictures become 0 and 255), and an EXIF orientation is applied. A TIFF in which 0 is white is inverted if it
    has 8 bits or fewer, as in Pillow; a wider one keeps its numbers, as in tifffile, Pillow and GDAL. Alpha is an
    ordinary channel, never blended with a background; `channels` drops it. 64-bit floats become 32-bit.

    TIFF files need the imagecodecs package for most compressions. Pages of the same kind as the first become channels;
    others, such as overviews, are ignored. Pictures that take more than 12 * `PIL.Image.MAX_IMAGE_PIXELS` bytes (1 GiB
    by default) raise an error.

    Args:
        path: a png, jpg, tif, bmp or webp file; or its bytes, or a file object open for reading bytes.
        channels: the number of channels to return: 3 repeats grey, 1 takes the luminance of colours, and both drop
            alpha. None for as many as the file has.
        bits: the number of bits of the file's type that the pixels use: 12 for pictures of 0..4095 in 16-bit files,
            which otherwise appear 16 times too dark. Pixels are scaled to the full range of the type. None for all
            bits.

    Returns:
        (height, width, channels) in the file's type; `to_float` scales it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, in another format or too large, the channels cannot be converted, or a pixel does
            not fit `bits`.
        MemoryError: if memory is insufficient.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "grey.png")
        ...     Image.fromarray(np.zeros((4, 6), np.uint8)).save(path)
        ...     read_image(path).shape, read_image(path, channels=3).shape
        ((4, 6, 1), (4, 6, 3))
    """
    _check_positive("channels", channels)
    _check_positive("bits", bits)
    if not isinstance(path, (str, os.PathLike)):
        content = path if isinstance(path, bytes) else path.read()
        with tempfile.TemporaryDirectory() as folder:  # the decoders open files by name
            file = pathlib.Path(folder, "picture")
            file.write_bytes(content)
            try:
                return _decode.decode_image(file, channels, bits)
            except (ValueError, MemoryError) as error:  # which name the file
                raise type(error)(str(error).replace(str(file), "the picture")) from None
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image file.")
    return _decode.decode_image(path, channels, bits)


class ImageMaskFolder:
    """A folder of images and their masks as a random-access source that grain reads directly.

    `root/images/NAME.*` belongs to `root/masks/NAME.*`. The constructor lists the folder and reads the files'
    headers, and reports all problems in one error; `check` decodes everything. Items are sorted by
    name. Hidden files are skipped, links are followed, and a warning lists other files and folders that are not read.

    Pixels are read as by `read_image`. Masks contain class numbers: grey values of any number of bits as stored, or
    palette indices. `labels` maps other numbers, or colours, to classes::

        ImageMaskFolder(root, labels={7: 0, 11: 1, 26: 2, 0: 255}, ignore_index=255)
        ImageMaskFolder(root, labels={(0, 0, 0): 0, (128, 64, 128): 1}, class_names=("background", "road"))

    Attributes:
        root: the folder.
        num_classes: the number of classes, or None if masks may hold any number.
        class_names: the names of the classes; may be empty.
        ignore_index: the mask value of unlabelled pixels, or None.
        channels: the channels that images are converted to, or None.
        bits: the number of bits that the pixels use, or None for all bits of their type.
        window_pixels: the number of pixels above which TIFF files are read by windows, or None.
        names: the names of the items, in order.
        sizes: the (height, width) of the items, in order.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder in ("images", "masks"):
        ...         pathlib.Path(root, folder).mkdir()
        ...         Image.fromarray(np.ones((4, 6), np.uint8)).save(pathlib.Path(root, folder, "a.png"))
        ...     source = ImageMaskFolder(root, num_classes=2, channels=3)
        ...     item = source[0]
        >>> len(source), item["name"], item["image"].shape, item["mask"].shape
        (1, 'a', (4, 6, 3), (4, 6))
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        num_classes: int | None = None,
        ignore_index: int | None = None,
        channels: int | None = None,
        bits: int | None = None,
        labels: _masks.Labels | None = None,
        class_names: Sequence[str] = (),
        multilabel: bool = False,
        window_pixels: int | None = None,
    ):
        """Lists the folder, pairs the files and compares their sizes.

        Args:
            root: the folder that contains `images` and `masks`.
            num_classes: number of classes. If given, other mask values than 0..num_classes-1 are an error.
            ignore_index: a mask value that is allowed besides the classes, for unlabelled pixels.
            channels: number of channels, as in `read_image`.
            bits: the number of bits that the pixels use, as in `read_image`.
            labels: classes by mask value, or by colour (red, green, blue). Values or colours that are missing here are
                an error. The class `ignore_index` excludes pixels.
            class_names: names of the classes, in order; may be empty.
            multilabel: masks have a channel for each class, with 1 for pixels with that label. If files contain 0 and
                255, pass `labels={0: 0, 255: 1}`.
            window_pixels: TIFF files of more pixels are not read whole: `image` and `mask` of such an item are arrays
                that read what is sliced, as those of `open_tiff`, with a `close` method. None reads every file whole.

        Raises:
            FileNotFoundError: if a folder is missing.
            ValueError: if ignore_index is one of the classes, or labels or class_names do not fit; if there are no
                images, or if an image or mask has no partner, shares its name with another, cannot be read, or differs
                in size from its partner. The message lists all of them.
        """
        _check_positive("num_classes", num_classes)
        _check_positive("channels", channels)
        _check_positive("bits", bits)
        self.root = pathlib.Path(root)
        values = 2 if multilabel else num_classes or 0
        if labels is None and ignore_index is not None and 0 <= ignore_index < values:
            raise ValueError(
                f"{option('ignore_index', ignore_index)} is one of the classes 0..{values - 1}: pass None if every"
                " class counts, or a number that is not a class."
            )
        self.num_classes = _masks.count_classes(num_classes, class_names, None if multilabel else labels, ignore_index)
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.channels = channels
        self.bits = bits
        self._masks = _masks.MaskReader(self.num_classes, ignore_index, labels, multilabel)
        _check_positive("window_pixels", window_pixels)
        self.window_pixels = window_pixels
        pairs, self.sizes = _pairing.pair_files(self.root, limited=window_pixels is None)
        self.names = tuple(image.stem for image, _ in pairs)
        self._pairs = pairs

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        given = {"bits": self.bits, "labels": self._masks.labels, "class_names": self.class_names}
        given |= {"multilabel": self._masks.multilabel}  # only if given, so that older runs keep their name
        more = "".join(f", {name}={value!r}" for name, value in given.items() if value)
        return (
            f"ImageMaskFolder({str(self.root)!r}, num_classes={self.num_classes}, "
            f"ignore_index={self.ignore_index}, channels={self.channels}{more})"
        )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one pair.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            image: (height, width, channels) in the file's type; mask: (height, width) int32, or (height, width,
            classes) with several labels per pixel; name: the shared name. Windows for large TIFF files, with
            `window_pixels`.

        Raises:
            IndexError: if there is no such item.
            ValueError: if a file is damaged or the mask contains values that are not classes.
        """
        image_path, mask_path = self._pairs[index]
        image, windows = self._windows(index)
        if image is None:
            image = _decode.decode_image(image_path, self.channels, self.bits)
        if windows is not None:
            return {"image": image, "mask": windows, "name": image_path.stem}
        mask, strangers = self._masks.read(mask_path)
        if image.shape[:2] != mask.shape[:2]:
            raise ValueError(f"{_pairing.size_difference(image_path, image.shape[:2], mask_path, mask.shape)}.")
        if strangers:
            raise ValueError(f"{mask_path}: {self._masks.describe(strangers)}. {self._masks.advise(strangers)}")
        return {"image": image, "mask": mask, "name": image_path.stem}

    def _windows(self, index: SupportsIndex) -> tuple[TiffWindows | None, _masks.MaskWindows | None]:
        """The image and the mask of a large item as windows; None for what is read whole."""
        if self.window_pixels is None or math.prod(self.sizes[index]) <= self.window_pixels:
            return None, None
        image_path, mask_path = self._pairs[index]
        image = mask = None
        with contextlib.suppress(ValueError):
            image = open_tiff(image_path, channels=self.channels, bits=self.bits)
        with contextlib.suppress(ValueError):
            mask = _masks.MaskWindows(mask_path, self._masks)
        return image, mask

    def check(
        self, *, progress: bool = True, num_threads: int = 4, value_range: tuple[float, float] | None = None
    ) -> None:
        """Decodes every file and reports all problems.

        Warns if the images never use the upper half of a type of 16 bits or more, and suggests `bits`; with a
        `value_range`, it warns if pixels are above it.

        Args:
            progress: whether to show a progress bar on standard error.
            num_threads: number of files to decode concurrently.
            value_range: the values that become 0 and 1, if `Preprocessing` scales the images.

        Raises:
            ValueError: if files are damaged, images contain NaN or infinity, masks contain values that are not classes,
                or images differ in their number of channels. The message lists the files.
        """
        bars, console = require("rich.progress"), require("rich.console").Console(stderr=True)
        problems: list[str] = []
        strangers: collections.Counter[int] = collections.Counter()
        present: set[int] = set()
        by_channels: dict[int, list[pathlib.Path]] = collections.defaultdict(list)
        largest: dict[np.dtype, int] = collections.defaultdict(int)
        with (
            bars.Progress(console=console, disable=not progress) as bar,
            concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
        ):
            # In chunks, so that an interrupt does not wait for the whole folder.
            task = bar.add_task(f"Checking {self.root}", total=len(self))
            for start in range(0, len(self), 8 * num_threads):
                chunk = range(start, min(start + 8 * num_threads, len(self)))
                for index, (found, image, values, labels) in zip(chunk, pool.map(self._check, chunk), strict=True):
                    problems.extend(found)
                    present.update(labels)
                    strangers.update(values)
                    if image is not None:
                        channels, dtype, highest = image
                        by_channels[channels].append(self._pairs[index][0])
                        largest[dtype] = max(largest[dtype], highest)
                    bar.advance(task)
        if self.num_classes and self.ignore_index in present and len(present) == 2:
            consequence, meaning = (
                ("no pixel has a label", "marks a label, map it to")
                if self._masks.multilabel
                else ("there is nothing to tell apart", "is a class, map it to its number, such as")
            )
            problems.append(
                f"the masks hold {min(present)} and {max(present)} alone, and {self.ignore_index} is"
                f" {option('ignore_index')}: {consequence}. If {self.ignore_index} {meaning} 1, by"
                f" {option('labels', {0: 0, self.ignore_index: 1})}"
            )
        highest = max(largest.values(), default=0)
        if value_range is not None and highest > value_range[1]:
            unusual = f"the largest pixel is {highest}, above the {value_range[1]:g} that becomes 1 (white)."
        else:
            unusual = None if self.bits or value_range is not None else _decode.describe_range(largest)
        if unusual:
            warnings.warn(f"{self.root}: {unusual}", stacklevel=2)
        if not problems and len(by_channels) <= 1:
            return
        lines = [f"{self.root}: {len(self)} pairs, some of which are invalid:"]
        if problems:
            lines.append(shortened(problems, "\n  ", 100))
        if strangers:
            lines.append(self._masks.advise(strangers))
        if len(by_channels) > 1:
            lines.append("images differ in their number of channels:")
            for channels, paths in sorted(by_channels.items()):
                lines.append(f"    {channels}: {shortened([path.name for path in paths], ', ', 10)}")
            given = option("channels", "", typed="N")
            lines.append(f"Pass {given} to convert them (3 repeats grey; alpha is dropped), or convert the files.")
        raise ValueError("\n  ".join(lines))

    def _check(self, index: int) -> tuple[list[str], tuple[int, np.dtype, int] | None, Mapping[int, int], set[int]]:
        """Returns the problems of one pair, the image's channels, type and maximum, invalid and all mask values.

        Of an image that is read by windows, the pixels are not read.
        """
        image_path, mask_path = self._pairs[index]
        problems: list[str] = []
        image: Any = None
        size: tuple[int, ...] | None = None
        strangers: Mapping[int, int] = {}
        labels: set[int] = set()
        windows, mask_windows = self._windows(index)
        try:
            image = windows or _decode.decode_image(image_path, self.channels, self.bits)
            if windows is None and image.dtype.kind == "f" and (wrong := int(np.count_nonzero(~np.isfinite(image)))):
                problems.append(f"{image_path}: {wrong} values are NaN or infinite; replace them, by 0 for instance")
        except (ValueError, OSError) as error:
            problems.append(str(error))
        try:
            if mask_windows is None:
                mask, strangers = self._masks.read(mask_path)
                size, labels = mask.shape, set(np.unique(mask).tolist())
            else:
                strangers, labels = mask_windows.survey()
        except (ValueError, OSError) as error:
            problems.append(str(error))
        if image is not None and size is not None and image.shape[:2] != size[:2]:
            problems.append(_pairing.size_difference(image_path, image.shape[:2], mask_path, size))
        if strangers:
            problems.append(f"{mask_path}: {self._masks.describe(strangers)}")
        found = None
        if image is not None:
            found = image.shape[-1], image.dtype, 0 if windows is not None else _decode.largest(image)
        for opened in (windows, mask_windows):
            if opened is not None:
                opened.close()
        return problems, found, strangers, labels


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{option(name, value)}; expected 1 or more, or None.")
