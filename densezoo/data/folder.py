"""Folders of images and masks as random-access sources."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Float32, Int32

from densezoo.data import _decode, _pairing


def to_float(image: np.ndarray) -> Float32[np.ndarray, "*shape"]:
    """Gives pixels as float32: integers divided by the largest value of their type, floats as they are.

    Args:
        image: pixels of any shape.

    Returns:
        The same shape in float32; unsigned integers land in [0, 1].

    Raises:
        TypeError: if the pixels are neither integers nor floats.

    Example:
        >>> import numpy as np
        >>> to_float(np.array([0, 255], np.uint8))
        array([0., 1.], dtype=float32)
    """
    if image.dtype.kind == "f":
        return image.astype(np.float32, copy=False)
    if image.dtype.kind not in "iu":
        raise TypeError(f"pixels of type {image.dtype}; expected integers or floats.")
    return np.multiply(image, np.float32(1.0 / np.iinfo(image.dtype).max), dtype=np.float32)


def read_image(path: str | os.PathLike[str], channels: int | None = None) -> np.ndarray:
    """Reads one picture as a training folder would.

    Bit depth and channels stay as in the file: 8 or 16 bits; grey (1 channel), grey + alpha (2), RGB (3), RGBA (4), or
    any number from a TIFF, channels first or last. Palettes become RGB, 1-bit pictures become 0 and 255, and an EXIF
    orientation is applied. Alpha is an ordinary channel, never blended with a background; `channels` drops it.

    Args:
        path: a png, jpg, tif, bmp or webp file.
        channels: how many channels to give: 3 repeats grey, 1 takes the luminance of colours, and both drop alpha.
            None for as many as the file has.

    Returns:
        (height, width, channels) in the file's type; `to_float` scales it.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, of another format or too large, or if the channels cannot be converted.

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
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image file.")
    return _decode.convert_channels(_decode.decode_image(path), channels, path)


class ImageMaskFolder:
    """A folder of images and their masks as a random-access source, which grain reads directly.

    `root/images/NAME.*` belongs to `root/masks/NAME.*`. Building the source lists the folder and reads the files'
    headers, and reports every problem that shows there in one error; `check` decodes everything. Items are sorted by
    name; hidden files are skipped and links are followed.

    Pixels are read as by `read_image`. Masks hold class numbers: grey values of 8 or 16 bits, palette indices, or the
    0 and 1 of a 1-bit file.

    Attributes:
        root: the folder.
        num_classes: the number of classes, or None if masks may hold any number.
        ignore_index: the mask value that stands for "unlabelled", or None.
        channels: the channels that images are converted to, or None.
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
    ):
        """Lists the folder, pairs the files and compares their sizes.

        Args:
            root: the folder that holds `images` and `masks`.
            num_classes: if given, reading an item whose mask holds any other value than 0..num_classes-1 is an error.
            ignore_index: a mask value, no class, that is allowed besides the classes, for pixels without a label.
            channels: what `read_image` converts to.

        Raises:
            FileNotFoundError: if a folder is missing.
            ValueError: if ignore_index is one of the classes, if there are no images, or for any image or mask that is
                alone, that shares its name with another, that cannot be read, or that differs in size from its partner.
                All files are named at once.
        """
        _check_positive("num_classes", num_classes)
        _check_positive("channels", channels)
        if num_classes is not None and ignore_index is not None and 0 <= ignore_index < num_classes:
            raise ValueError(
                f"ignore_index={ignore_index} is one of the classes 0..{num_classes - 1}: pass None if every class"
                " counts, or a number that is no class."
            )
        self.root = pathlib.Path(root)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.channels = channels
        pairs, self.sizes = _pairing.pair_files(self.root)
        self.names = tuple(image.stem for image, _ in pairs)
        self._pairs = pairs

    def __repr__(self) -> str:
        """Gives a name that stays the same between runs, as grain's checkpoints want."""
        return (
            f"ImageMaskFolder({str(self.root)!r}, num_classes={self.num_classes}, "
            f"ignore_index={self.ignore_index}, channels={self.channels})"
        )

    def __len__(self) -> int:
        """Gives the number of pairs."""
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one pair.

        Args:
            index: 0..len-1, or from the end if negative.

        Returns:
            image: (height, width, channels) in the file's type; mask: (height, width) int32; name: the shared name.

        Raises:
            IndexError: if there is no such item.
            ValueError: if a file is damaged or the mask holds other values than the classes.
        """
        image_path, mask_path = self._pairs[index]
        image = _decode.convert_channels(_decode.decode_image(image_path), self.channels, image_path)
        mask = _decode.decode_mask(mask_path)
        if image.shape[:2] != mask.shape:
            raise ValueError(f"{_pairing.size_difference(image_path, image.shape[:2], mask_path, mask.shape)}.")
        strangers = self._strangers(mask)
        if strangers:
            raise ValueError(f"{mask_path}: {_values(strangers)}. {self._advice(strangers)}")
        return {"image": image, "mask": mask, "name": image_path.stem}

    def check(self, *, progress: bool = True, num_threads: int = 4) -> None:
        """Decodes every file and reports everything that is wrong with any of them.

        Args:
            progress: whether to show a bar, on the standard error stream.
            num_threads: how many files to decode at a time.

        Raises:
            ValueError: if files are damaged, if masks hold other values than the classes, or if images differ in their
                number of channels. The one message names the files.
        """
        import rich.console
        import rich.progress

        problems: list[str] = []
        strangers: collections.Counter[int] = collections.Counter()
        present: set[int] = set()
        by_channels: dict[int, list[pathlib.Path]] = collections.defaultdict(list)
        with (
            rich.progress.Progress(console=rich.console.Console(stderr=True), disable=not progress) as bar,
            concurrent.futures.ThreadPoolExecutor(num_threads) as pool,
        ):
            # In chunks, so that an interrupt does not wait for the whole folder.
            task = bar.add_task(f"Checking {self.root}", total=len(self))
            for start in range(0, len(self), 8 * num_threads):
                chunk = self._pairs[start : start + 8 * num_threads]
                for (image_path, _), (found, channels, values, labels) in zip(
                    chunk, pool.map(self._check, chunk), strict=True
                ):
                    problems.extend(found)
                    present.update(labels)
                    strangers.update(values)
                    if channels is not None:
                        by_channels[channels].append(image_path)
                    bar.advance(task)
        if self.num_classes and self.ignore_index in present and len(present) == 2:
            problems.append(
                f"the masks hold {min(present)} and {max(present)} alone, and {self.ignore_index} is ignore_index: that"
                " leaves nothing to tell apart. If it is a class, store it under its number: 1 in a binary mask."
            )
        if not problems and len(by_channels) <= 1:
            return
        lines = [f"{self.root}: {len(self)} pairs, of which some do not fit:"]
        if problems:
            lines.append(_pairing.shorten(problems, "\n  ", limit=100))
        if strangers:
            lines.append(self._advice(strangers))
        if len(by_channels) > 1:
            lines.append("images differ in their number of channels:")
            for channels, paths in sorted(by_channels.items()):
                lines.append(f"    {channels}: {_pairing.shorten([path.name for path in paths])}")
            lines.append("Pass channels= to convert them (3 repeats grey; alpha is dropped), or convert the files.")
        raise ValueError("\n  ".join(lines))

    def _check(
        self, pair: tuple[pathlib.Path, pathlib.Path]
    ) -> tuple[list[str], int | None, Mapping[int, int], set[int]]:
        """Gives the problems of one pair, its channels, the mask values that are no classes, and all mask values."""
        image_path, mask_path = pair
        problems: list[str] = []
        image = mask = None
        strangers: dict[int, int] = {}
        try:
            image = _decode.decode_image(image_path)
            image = _decode.convert_channels(image, self.channels, image_path)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        try:
            mask = _decode.decode_mask(mask_path)
            strangers = self._strangers(mask)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        if image is not None and mask is not None and image.shape[:2] != mask.shape:
            problems.append(_pairing.size_difference(image_path, image.shape[:2], mask_path, mask.shape))
        if strangers:
            problems.append(f"{mask_path}: {_values(strangers)}")
        labels = set() if mask is None else set(np.unique(mask).tolist())
        return problems, None if image is None else image.shape[-1], strangers, labels

    def _strangers(self, mask: Int32[np.ndarray, "h w"]) -> dict[int, int]:
        """Counts the mask's pixels by value, for the values that are no classes."""
        if self.num_classes is None:
            return {}
        wrong = (mask < 0) | (mask >= self.num_classes)
        if self.ignore_index is not None:
            wrong &= mask != self.ignore_index
        if not wrong.any():
            return {}
        values, counts = np.unique(mask[wrong], return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))

    def _advice(self, strangers: Iterable[int]) -> str:
        values = set(strangers)
        allowed = f"Masks may hold 0..{(self.num_classes or 0) - 1}"
        if self.ignore_index is not None:
            allowed += f" and ignore_index={self.ignore_index}"
        if values == {255} and self.ignore_index != 255:
            hint = "if 255 marks unlabelled pixels, pass ignore_index=255; if it is a class, as in masks of 0 and 255,"
            return f"{allowed}: {hint} save that class under its number."
        if len(values) == 1 and self.ignore_index is None:
            value = next(iter(values))
            return (
                f"{allowed}: if {value} marks unlabelled pixels, pass ignore_index={value}; else num_classes is wrong."
            )
        return f"{allowed}: num_classes is too small, or the masks hold other numbers than those of the classes."


def _check_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name}={value}; expected 1 or more, or None.")


def _values(strangers: Mapping[int, int]) -> str:
    found = [f"{value} ({count} pixels)" for value, count in sorted(strangers.items())]
    return f"mask value{'s' if len(found) > 1 else ''} {_pairing.shorten(found)} outside the classes"
