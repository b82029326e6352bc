"""Folders of images and instance maps as random-access sources."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, SupportsIndex

import numpy as np

from densezoo.data import _decode, _instances, _pairing


class InstanceFolder:
    """A folder of images and their maps of instances, such as Penn-Fudan's, as a random-access source.

    `root/images/NAME.*` belongs to `root/instances/NAME.*`, whose pixels contain the number of their object, 0 for
    none. By default all objects are of one class. With `divisor`, the number also encodes the class, as in Cityscapes,
    where 26003 is an object of category 26:

        InstanceFolder(root, class_names=("person", "car"), divisor=1000, categories={24: 0, 26: 1})

    An item contains the following fields, where n is the maximum number of objects in a picture:

    - image: (height, width, channels) as in the file.
    - boxes: (n, 4) float32, the extent of the object as x0, y0, x1, y1 in pixels; zeros in rows without an object.
    - labels: (n,) int32, the class; -1 in rows without an object.
    - instances: (height, width) int32; k for the object in row k - 1, 0 for none.
    - name: the name that the files share.

    The constructor reads every map once, to count the objects.

    Attributes:
        root: the folder.
        class_names: the names of the classes.
        num_classes: the number of classes.
        names: the names of the items, in order.
        sizes: the (height, width) of the items, in order.

    Example:
        >>> import pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> objects = np.zeros((4, 6), np.uint8)
        >>> objects[1:3, 2:6] = 9
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder in ("images", "instances"):
        ...         pathlib.Path(root, folder).mkdir()
        ...         Image.fromarray(objects).save(pathlib.Path(root, folder, "a.png"))
        ...     item = InstanceFolder(root)[0]
        >>> item["boxes"].tolist(), item["labels"].tolist(), int(item["instances"].max())
        ([[2.0, 1.0, 6.0, 3.0]], [0], 1)
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        class_names: Sequence[str] = ("object",),
        divisor: int | None = None,
        categories: Mapping[int, int] | None = None,
        channels: int | None = 3,
        max_objects: int | None = None,
    ):
        """Pairs the files and counts the objects.

        Args:
            root: the folder that contains `images` and `instances`.
            class_names: the names of the classes, in order.
            divisor: numbers of at least `divisor` are objects of category number // divisor; smaller ones are
                background.
            categories: classes by category; categories that are missing here are background. None for 1, 2, ... in the
                order of the classes.
            channels: number of channels, as in `read_image`; None for the channels of the file.
            max_objects: rows of boxes and labels; None for the maximum number of objects in a picture.

        Raises:
            FileNotFoundError: if a folder is missing.
            ValueError: if arguments are inconsistent, files do not pair up, a map is damaged, or a picture has
                more objects than `max_objects`.
        """
        if categories is not None and divisor is None:
            raise ValueError("categories are read from the numbers of the map by divisor: pass divisor too")
        if divisor is None and len(class_names) != 1:
            raise ValueError(f"class_names={tuple(class_names)} without divisor; expected one name for all objects")
        if divisor is not None and divisor < 1:
            raise ValueError(f"divisor={divisor}; expected 1 or more, or None")
        self.root = pathlib.Path(root)
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.divisor = divisor
        given = {place + 1: place for place in range(self.num_classes)} if categories is None else dict(categories)
        if wrong := {key: label for key, label in given.items() if not 0 <= label < self.num_classes}:
            raise ValueError(f"categories have {wrong}; expected classes of 0..{self.num_classes - 1}")
        self.categories = given
        self.channels = channels
        self._pairs, self.sizes = _pairing.pair_files(self.root, "instances")
        self.names = tuple(image.stem for image, _ in self._pairs)
        counts = {path: len(self._objects(_decode.decode_mask(path))) for _, path in self._pairs}
        self._rows = _instances.rows_for(counts, "", max_objects)

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"InstanceFolder({str(self.root)!r}, class_names={self.class_names}, divisor={self.divisor}, "
            f"categories={self.categories}, channels={self.channels}, max_objects={self._rows})"
        )

    def __len__(self) -> int:
        """Returns the number of pairs."""
        return len(self._pairs)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one pair.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such item.
            ValueError: if a file is damaged.
        """
        image_path, map_path = self._pairs[index]
        image, numbers = _decode.decode_image(image_path, self.channels), _decode.decode_mask(map_path)
        if image.shape[:2] != numbers.shape:
            raise ValueError(f"{_pairing.size_difference(image_path, image.shape[:2], map_path, numbers.shape)}.")
        boxes, labels = np.zeros((self._rows, 4), np.float32), np.full(self._rows, -1, np.int32)
        instances = np.zeros(numbers.shape, np.int32)
        for row, number in enumerate(self._objects(numbers)):
            pixels = numbers == number
            instances[pixels] = row + 1
            boxes[row] = _instances.extent_of(pixels)
            labels[row] = self._label(number)
        return {"image": image, "boxes": boxes, "labels": labels, "instances": instances, "name": image_path.stem}

    def _objects(self, numbers: np.ndarray) -> list[int]:
        """The numbers of the objects in a map."""
        return [number for number in np.unique(numbers).tolist() if number > 0 and self._label(number) >= 0]

    def _label(self, number: int) -> int:
        return 0 if self.divisor is None else self.categories.get(number // self.divisor, -1)
