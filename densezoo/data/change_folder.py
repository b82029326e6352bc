"""Folders of pictures before and after a change, with labels, as random-access sources."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from densezoo.data import _decode, _masks, _pairing
from densezoo.extras import require
from densezoo.messages import counted, option, shortened

_CHANGED = {0: 0, 1: 1, 255: 1}


class ChangeFolder:
    """A folder of picture pairs and their labels of change, as a random-access source.

    The layout is LEVIR-CD's: `root/A/NAME.*` shows a place before, `root/B/NAME.*` after, and `root/label/NAME.*` has 0
    for unchanged pixels, and 1 or 255 for changed ones. Other data sets have other names and numbers::

        ChangeFolder(root, folders=("T1", "T2", "change_label"))
        ChangeFolder(root, folders=("imgs_1", "imgs_2", "cm"), labels={1: 0, 2: 1}, bits=14)

    Pictures are read as by `read_image`: also GeoTIFF, of any number of bands. The constructor reads the files' headers
    and one pair, and reports all problems in one error; `check` decodes everything.

    An item contains the following fields:

    - image_before, image_after: (height, width, channels) in the file's type.
    - change: (height, width) int32, class numbers.
    - name: the name that the files share.

    Attributes:
        root: the folder.
        num_classes: the number of classes, 2 unless there are several kinds of change.
        names: the names of the items, in order.
        sizes: the (height, width) of the items, in order.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder in ("A", "B", "label"):
        ...         pathlib.Path(root, folder).mkdir()
        ...         Image.fromarray(np.full((4, 6), 255, np.uint8)).save(pathlib.Path(root, folder, "a.png"))
        ...     item = ChangeFolder(root, channels=3)[0]
        >>> item["image_before"].shape, item["image_after"].shape, int(item["change"].max())
        ((4, 6, 3), (4, 6, 3), 1)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        folders: tuple[str, str, str] = ("A", "B", "label"),
        num_classes: int = 2,
        ignore_index: int | None = None,
        labels: _masks.Labels | None = None,
        channels: int | None = None,
        bits: int | None = None,
    ):
        """Lists the folders, pairs the files and compares their sizes.

        Args:
            root: the folder that contains the three folders.
            folders: names of the folders with the pictures before, the pictures after, and the labels.
            num_classes: number of classes, including 0, unchanged.
            ignore_index: a label that is allowed besides the classes, for unlabelled pixels.
            labels: classes by number or colour in the label files, as in `ImageMaskFolder`. None for {0: 0, 1: 1,
                255: 1} with two classes, and for the numbers themselves with more.
            channels: number of channels, as in `read_image`; None for those of the files.
            bits: the number of bits that the pixels use, as in `read_image`.

        Raises:
            FileNotFoundError: if a folder is missing.
            ValueError: if a file has no partner, shares its name with another, cannot be read, or differs from its
                partners in size or bands. The message lists the files.
        """
        self.root = pathlib.Path(root)
        self.folders = tuple(folders)
        if len({*self.folders}) != 3 or isinstance(folders, str):
            raise ValueError(f"{option('folders')} needs three names: before, after, labels; got {folders}")
        self.num_classes = num_classes
        self.channels = channels
        self.bits = bits
        if labels is None and num_classes == 2:
            labels = {number: label for number, label in _CHANGED.items() if number != ignore_index}
        self._labels = _masks.MaskReader(num_classes, ignore_index, labels, False)
        self._files, self.sizes = _matched(self.root, self.folders)
        self.names = tuple(before.stem for before, _, _ in self._files)
        self[0]  # whose bands it compares

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"ChangeFolder({str(self.root)!r}, folders={self.folders}, num_classes={self.num_classes}, "
            f"ignore_index={self._labels.ignore_index}, labels={self._labels.labels}, channels={self.channels}, "
            f"bits={self.bits})"
        )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._files)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one pair.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such item.
            ValueError: if a file is damaged, the files differ in size or bands, or a label is not a class.
        """
        paths = self._files[index]
        before, after = (_decode.decode_image(path, self.channels, self.bits) for path in paths[:2])
        change, strangers = self._labels.read(paths[2])
        if problem := _difference(paths, (before.shape[:2], after.shape[:2], change.shape)):
            raise ValueError(problem)
        if before.shape[-1] != after.shape[-1]:
            raise ValueError(
                f"{paths[0]} has {before.shape[-1]} bands, and {paths[1]} {after.shape[-1]}: convert one of them, or"
                f" pass {option('channels', 3)} to drop alpha or repeat grey."
            )
        if strangers:
            raise ValueError(f"{paths[2]}: {self._labels.describe(strangers)}. {self._labels.advise(strangers)}")
        return {"image_before": before, "image_after": after, "change": change, "name": paths[0].stem}

    def check(self, *, progress: bool = True, num_threads: int = 4) -> None:
        """Decodes every file and reports all problems.

        Args:
            progress: whether to show a progress bar on standard error.
            num_threads: number of pairs to decode concurrently.

        Raises:
            ValueError: if files are damaged, contain NaN or infinity, or labels that are not classes, or if pictures
                differ in their number of bands. The message lists the files.
        """
        console = require("rich.console").Console(stderr=True)
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            found = pool.map(self._check, range(len(self)))
            found = require("rich.progress").track(
                found, f"Checking {self.root}", len(self), console=console, disable=not progress
            )
            results = list(found)
        problems = [result for result in results if isinstance(result, str)]
        by_bands: dict[int, str] = {}
        for name, result in zip(self.names, results, strict=True):
            if isinstance(result, int):
                by_bands.setdefault(result, name)
        if len(by_bands) > 1:
            examples = ", ".join(f"{name} has {bands}" for bands, name in by_bands.items())
            problems.append(f"pictures differ in their number of bands: {examples}")
        if problems:
            raise ValueError("\n  ".join([f"{self.root}: {len(self)} pairs, some of which are invalid:", *problems]))

    def _check(self, index: int) -> int | str:
        """The number of bands of a pair, or a problem."""
        try:
            item = self[index]
        except (ValueError, OSError) as error:
            return str(error)
        for path, name in zip(self._files[index], ("image_before", "image_after"), strict=False):
            if item[name].dtype.kind == "f" and not np.isfinite(item[name]).all():
                return f"{path}: values are NaN or infinite; replace them, by 0 for instance"
        return item["image_before"].shape[-1]


Paths = tuple[pathlib.Path, pathlib.Path, pathlib.Path]


def _matched(root: pathlib.Path, folders: Sequence[str]) -> tuple[list[Paths], tuple[tuple[int, int], ...]]:
    """The files of each pair, and its size."""
    layout = "Expected:\n" + "\n".join(
        f"  {root / folder}/NAME.png   {what}"
        for folder, what in zip(folders, ("before", "after", "0 and 1, or 0 and 255: changed"), strict=True)
    )
    if missing := [str(root / folder) for folder in folders if not (root / folder).is_dir()]:
        below = sorted(path.parent.name for path in root.glob(f"*/{folders[0]}") if path.is_dir())
        names = option("folders", "('before', 'after', 'labels')", typed="BEFORE AFTER LABELS")
        hint = f" Did you mean {root / below[0]}?" if below else f" If they have other names, pass {names}."
        raise FileNotFoundError(f"{' and '.join(missing)}: no such folder.{hint} {layout}")
    suffixes = (_decode.IMAGE_SUFFIXES, _decode.IMAGE_SUFFIXES, _decode.MASK_SUFFIXES)
    listed: dict[str, Mapping[str, list[pathlib.Path]]] = {}
    problems, skipped = [], []
    for folder, allowed in zip(folders, suffixes, strict=True):
        listed[folder], others = _pairing.list_files(root / folder, allowed)
        skipped += [f"{folder}: not read: {shortened(others, ', ', 10)}"] if others else []
        for stem, paths in listed[folder].items():
            if len(paths) > 1:
                problems.append(f"{folder}: {len(paths)} files named {stem}: {', '.join(path.name for path in paths)}")
    stems = sorted({stem for files in listed.values() for stem in files})
    if not stems:
        raise ValueError(f"{root}: the folders contain no pictures. {layout}")
    for folder, files in listed.items():
        if lacking := [stem for stem in stems if stem not in files]:
            problems.append(
                f"{counted(len(lacking), 'file', 'files')} missing in {folder}: {shortened(lacking, ', ', 10)}"
            )
    complete = [stem for stem in stems if all(stem in files for files in listed.values())]
    matched = [(*(listed[folder][stem][0] for folder in folders),) for stem in complete]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hides the latency of network file systems
        sizes = list(pool.map(_sizes, matched))
    unread = [size for size in sizes if isinstance(size, str)]
    differing = [
        problem
        for paths, size in zip(matched, sizes, strict=True)
        if not isinstance(size, str) and (problem := _difference(paths, size))
    ]
    problems += [shortened(kind, "\n  ", 10) for kind in (unread, differing) if kind]
    if problems:
        raise ValueError("\n  ".join([f"{root}: the files do not pair up:", *problems, *skipped]) + f"\n{layout}")
    if skipped:
        warnings.warn("\n  ".join([f"{root}: some files are not read:", *skipped]), stacklevel=3)
    return matched, tuple(size[0] for size in sizes)  # pyright: ignore[reportReturnType]


def _sizes(paths: Sequence[pathlib.Path]) -> tuple[tuple[int, int], ...] | str:
    try:
        return tuple(map(_decode.read_size, paths))
    except (ValueError, OSError) as error:
        return str(error)


def _difference(paths: Sequence[pathlib.Path], sizes: Sequence[tuple[int, ...]]) -> str:
    """What to say about files of different sizes; empty if they are equal."""
    if len({*map(tuple, sizes)}) == 1:
        return ""
    each = (f"{path} is {size[0]}x{size[1]}" for path, size in zip(paths, sizes, strict=True))
    return f"{', '.join(each)} (height x width); expected one size"
