"""Folders of images with depth and normals as random-access sources."""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
from typing import Any, Literal, SupportsIndex

import numpy as np

from densezoo.data import _decode, _measured, _pairing
from densezoo.extras import require
from densezoo.messages import option, shortened

Axes = Literal["opencv", "opengl"]
_SIGNS: dict[str, np.ndarray] = {
    "opencv": np.array([1, 1, 1], np.float32),
    "opengl": np.array([1, -1, -1], np.float32),
}
_SHORTEST = 0.5  # of a vector in a picture; shorter ones mark pixels without a measurement


class DepthFolder:
    """A folder of images with depth, and with normals if there are some, as a random-access source.

    `root/images/NAME.*` belongs to `root/depth/NAME.*`, and to `root/normals/NAME.*` if there is such a folder. Depth
    is a .npy file (height, width), or one channel of numbers as a PNG or TIFF: the distance along the camera's axis.
    Numbers that are not above 0, infinity and NaN mark pixels without a measurement, which become 0.

    Normals are a .npy or TIFF file of floats (height, width, 3), or colours of 8 or 16 bits that stand for -1 to 1,
    from black to white; they become unit vectors. NaN, black, and vectors of less than half a unit mark pixels without
    a measurement. `ops.normals_from_depth` computes normals where there are none.

    An item contains:

    - image: (height, width, channels) in the file's type.
    - depth: (height, width) float32, in the unit that `depth_scale` converts to; 0 in holes.
    - normals: (height, width, 3) float32, if there are some: x right, y down, z forward; zeros in holes.
    - name: the name that the files share.

    Attributes:
        root: the folder.
        depth_scale: the unit of the numbers in the files.
        names: the names of the items, in order.
        sizes: the (height, width) of the items, in order.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder in ("images", "depth"):
        ...         pathlib.Path(root, folder).mkdir()
        ...     Image.fromarray(np.zeros((1, 2), np.uint8)).save(pathlib.Path(root, "images", "a.png"))
        ...     Image.fromarray(np.array([[0, 2500]], np.uint16)).save(pathlib.Path(root, "depth", "a.png"))
        ...     item = DepthFolder(root, depth_scale=0.001)[0]  # millimetres to metres
        >>> item["depth"].tolist()
        [[0.0, 2.5]]
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        depth_scale: float | None = None,
        channels: int | None = 3,
        bits: int | None = None,
        axes: Axes = "opencv",
    ):
        """Lists the folder, pairs the files and compares their sizes.

        Args:
            root: the folder that contains `images` and `depth`.
            depth_scale: factor from the numbers in the files to the unit of depth: 0.001 for millimetres to metres
                (NYU, ScanNet), 1/256 for KITTI, 1/5000 for TUM. None for 1; whole numbers need one.
            channels: number of channels of the images, as in `read_image`.
            bits: the number of bits that the images' pixels use, as in `read_image`.
            axes: the axes of normals in files: "opencv" has x right, y down, z forward; "opengl" has x right, y up, z
                backward, which is usual for normals as colours (bluish where they face the camera).

        Raises:
            FileNotFoundError: if a folder is missing.
            TypeError: if `depth_scale` is not a number.
            ValueError: if an argument is out of its range, whole numbers have no scale, or files have no partner or
                differ in size. The message lists all of them.
        """
        if depth_scale is not None and not isinstance(depth_scale, int | float | np.number):
            raise TypeError(
                f"depth_scale={depth_scale!r}; expected a factor to the unit of depth, such as 0.001 for millimetres to"
                " metres."
            )
        if depth_scale is not None and not (np.isfinite(depth_scale) and depth_scale > 0):
            raise ValueError(f"{option('depth_scale', depth_scale)}; expected a factor above 0.")
        if axes not in _SIGNS:
            raise ValueError(f"{option('axes', axes)}; expected one of {', '.join(_SIGNS)}.")
        self.root = pathlib.Path(root)
        self.depth_scale = 1.0 if depth_scale is None else float(depth_scale)
        self.channels = channels
        self.bits = bits
        self.axes: Axes = axes
        self._pairs, self.sizes = _pairing.pair_files(self.root, "depth", _measured.SUFFIXES)
        self.names = tuple(image.stem for image, _ in self._pairs)
        self._normals: list[pathlib.Path] | None = None
        if (self.root / "normals").is_dir():
            self._normals = [path for _, path in _pairing.pair_files(self.root, "normals", _measured.SUFFIXES)[0]]
        if depth_scale is None and (first := _measured.decode(self._pairs[0][1])).dtype.kind != "f":
            raise ValueError(
                f"{self._pairs[0][1]}: depth of type {first.dtype}, up to {first.max()}, in an unknown unit. Pass"
                f" {option('depth_scale', 0.001)} for millimetres, {1 / 256:g} for KITTI, or 1 to keep the numbers."
            )

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"DepthFolder({str(self.root)!r}, depth_scale={self.depth_scale}, channels={self.channels},"
            f" bits={self.bits}, axes={self.axes!r})"
        )

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one item.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such item.
            ValueError: if a file is damaged, differs in size from its image, or has normals as other whole numbers
                than colours of 8 or 16 bits.
        """
        image_path, depth_path = self._pairs[index]
        image = _decode.decode_image(image_path, self.channels, self.bits)
        item = {"image": image, "depth": self._depth(depth_path), "name": image_path.stem}
        maps = {"depth": depth_path}
        if self._normals is not None:
            maps["normals"] = self._normals[index]
            item["normals"] = self._vectors(maps["normals"])
        for name, path in maps.items():
            if item[name].shape[:2] != image.shape[:2]:
                raise ValueError(
                    f"{_pairing.size_difference(image_path, image.shape[:2], path, item[name].shape, name)}."
                )
        return item

    def check(self, *, progress: bool = True, num_threads: int = 4) -> None:
        """Decodes every file and reports all problems, such as a map of depth without any measurement.

        Args:
            progress: whether to show a progress bar on standard error.
            num_threads: number of items to decode concurrently.

        Raises:
            ValueError: if files are damaged, a map has no measurement, or images contain NaN or infinity. The message
                lists them.
        """
        console = require("rich.console").Console(stderr=True)
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            found = require("rich.progress").track(
                pool.map(self._check, range(len(self))),
                f"Checking {self.root}",
                total=len(self),
                console=console,
                disable=not progress,
            )
            problems = [problem for item in found for problem in item]
        if problems:
            text = shortened(problems, "\n  ", 100)
            raise ValueError(f"{self.root}: {len(self)} images, some of which are invalid:\n  {text}")

    def _check(self, index: int) -> list[str]:
        image_path, depth_path = self._pairs[index]
        try:
            item = self[index]
        except (ValueError, OSError) as error:
            return [str(error)]
        problems = []
        if item["image"].dtype.kind == "f" and not np.isfinite(item["image"]).all():
            problems.append(f"{image_path}: values that are NaN or infinite; replace them, by 0 for instance")
        if not item["depth"].any():
            problems.append(f"{depth_path}: no pixel has a depth above 0")
        if "normals" in item and not item["normals"].any():
            problems.append(f"{self._normals[index] if self._normals else ''}: no pixel has a normal")
        return problems

    def _depth(self, path: pathlib.Path) -> np.ndarray:
        numbers = _measured.decode(path)
        with np.errstate(invalid="ignore", over="ignore"):
            depth = (numbers.astype(np.float32) * np.float32(self.depth_scale)).astype(np.float32)
        return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))

    def _vectors(self, path: pathlib.Path) -> np.ndarray:
        numbers = _measured.decode(path, channels=3)
        vectors = numbers.astype(np.float32)
        known = np.isfinite(vectors).all(-1, keepdims=True)
        if numbers.dtype.kind in "iu":
            if numbers.dtype.kind == "i" or numbers.dtype.itemsize > 2:
                raise ValueError(
                    f"{path}: normals of type {numbers.dtype}; expected floats, or colours of 8 or 16 bits."
                )
            vectors = vectors * np.float32(2 / np.iinfo(numbers.dtype).max) - 1
            known &= numbers.any(-1, keepdims=True)
        length = np.sqrt(np.square(np.where(known, vectors, 0)).sum(-1, keepdims=True))
        known &= length >= _SHORTEST
        return np.where(known, vectors / np.where(known, length, 1), np.float32(0)) * _SIGNS[self.axes]
