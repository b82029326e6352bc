"""Pictures with objects from an annotation file in COCO's format."""

from __future__ import annotations

import collections
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any, SupportsIndex

import numpy as np

from densezoo.data import _coco_file, _decode, _instances, _segments
from densezoo.messages import shortened

_ByImage = dict[int, list[dict[str, Any]]]


class CocoDetection:
    """Pictures, boxes and masks of an annotation file in COCO's format, as a random-access source.

    `root/annotations.json` lists the pictures of `root/images`. The constructor reads the annotations and the
    headers of the pictures, and reports all problems in one error; `check` decodes everything.

    An item contains the following fields, where n is the maximum number of objects in a picture:

    - image: (height, width, channels) as in the file.
    - boxes: (n, 4) float32, x0, y0, x1, y1 in pixels, clipped to the picture; zeros in rows without an object.
    - labels: (n,) int32, indices of `class_names`; -1 in rows without an object.
    - areas: (n,) float32, as annotated; NaN where the file has none.
    - instances: (height, width) int32; k for the object in row k - 1, 0 for none. Where objects overlap, the smaller
      one is on top. Only with `masks`.
    - image_id: the picture's id in the file.
    - boxes_crowd, labels_crowd and instances_crowd: the same for crowds, if the file has any.

    Crowds, which stand for many objects at once, are not among the objects: they take no part in training, and the
    scores leave out what is detected there.

    Attributes:
        root: the folder.
        class_names: the names of the categories, ordered by their ids in the file.
        num_classes: the number of classes.
        category_ids: the ids of the categories in the file, in the order of `class_names`.
        dataset: the content of the file, for `metrics.average_precision`.
        names: file names of the pictures, in order.
        sizes: the (height, width) of the pictures, in order.

    Example:
        >>> import json, pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> dataset = {
        ...     "images": [{"id": 7, "file_name": "a.png", "height": 8, "width": 10}],
        ...     "categories": [{"id": 3, "name": "cat"}],
        ...     "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 4, 5], "iscrowd": 0}],
        ... }
        >>> with tempfile.TemporaryDirectory() as root:
        ...     pathlib.Path(root, "images").mkdir()
        ...     Image.fromarray(np.ones((8, 10, 3), np.uint8)).save(pathlib.Path(root, "images", "a.png"))
        ...     _ = pathlib.Path(root, "annotations.json").write_text(json.dumps(dataset))
        ...     source = CocoDetection(root, masks=False)
        ...     item = source[0]
        >>> source.class_names, item["boxes"].tolist(), item["labels"].tolist()
        (('cat',), [[1.0, 2.0, 5.0, 7.0]], [0])

    References:
        Lin et al., Microsoft COCO: Common objects in context, 2014. https://arxiv.org/abs/1405.0312
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        images: str = "images",
        annotations: str = "annotations.json",
        masks: bool = True,
        channels: int | None = 3,
        max_objects: int | None = None,
    ):
        """Reads the annotations and compares them with the pictures.

        Args:
            root: the folder.
            images: the subfolder of the pictures.
            annotations: the annotation file, relative to `root`.
            masks: return `instances`. Every annotation then needs a segmentation, and polygons need the package
                hotcoco.
            channels: number of channels, as in `read_image`; None for the channels of the file.
            max_objects: rows of boxes and labels; None for the maximum number of objects in a picture.

        Raises:
            FileNotFoundError: if a folder, the annotation file, or pictures are missing.
            ValueError: if the file is invalid, ids repeat or refer to nothing, a box is invalid or outside its picture,
                a picture's size differs from the file, or a picture has more than `max_objects` objects. The message
                lists all problems with their ids.

        Warns:
            UserWarning: if boxes without area were dropped, or boxes were clipped to the picture.
        """
        self.root = pathlib.Path(root)
        self.file = self.root / annotations
        self.masks = masks
        self.channels = channels
        self.dataset = _coco_file.read(self.file)
        folder = self.root / images
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder; expected the pictures that {self.file} lists.")
        problems: list[str] = []
        records = _coco_file.unique(self.dataset["images"], "image", problems)
        categories = _coco_file.unique(self.dataset["categories"], "category", problems)
        _coco_file.unique(self.dataset["annotations"], "annotation", problems)
        self.category_ids = tuple(sorted(categories))
        self.class_names = tuple(str(categories[number].get("name", number)) for number in self.category_ids)
        self.num_classes = len(self.class_names)
        self._records = [records[number] for number in sorted(records)]
        self._paths, self.sizes = _coco_file.pictures(folder, self._records, problems)
        self.names = tuple(path.name for path in self._paths)
        _coco_file.same(self._records, "file_name", "images", problems)
        _coco_file.same(list(categories.values()), "name", "categories", problems)
        if not self._records:
            problems.append("the file lists no images")
        if not self.category_ids:
            problems.append("the file lists no categories")
        sizes = dict(zip(sorted(records), self.sizes, strict=True))
        self._objects, self._crowds = self._by_image(sizes, problems)
        if problems:
            raise ValueError("\n  ".join([f"{self.file}:", *_coco_file.listed(problems)]))
        counts = {number: len(self._objects[number]) for number in sorted(records)}
        self._rows = _instances.rows_for(counts, f"{self.file}: image ", max_objects)
        self._crowd_rows = max(map(len, self._crowds.values()), default=0)

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"CocoDetection({str(self.root)!r}, annotations={self.file.name!r}, masks={self.masks}, "
            f"channels={self.channels}, max_objects={self._rows})"
        )

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one picture and its objects.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such picture.
            ValueError: if a file is damaged, or a segmentation is invalid.
        """
        path, record, size = self._paths[index], self._records[index], self.sizes[index]
        image = _decode.decode_image(path, self.channels)
        objects = self._objects.get(record["id"], [])
        item = {"image": image, "image_id": np.int32(record["id"]), **self._rows_of(objects, self._rows, size, "")}
        item["areas"] = np.zeros(self._rows, np.float32)
        for row, annotation in enumerate(objects):
            item["areas"][row] = np.nan if annotation.get("area") is None else annotation["area"]
        if self._crowd_rows:
            item |= self._rows_of(self._crowds.get(record["id"], []), self._crowd_rows, size, "_crowd")
        return item

    def _rows_of(
        self, annotations: list[dict[str, Any]], rows: int, size: tuple[int, int], group: str
    ) -> dict[str, np.ndarray]:
        """Boxes, labels and the map of some annotations of a picture."""
        boxes, labels = np.zeros((rows, 4), np.float32), np.full(rows, -1, np.int32)
        for row, annotation in enumerate(annotations):
            boxes[row] = _coco_file.corners(annotation["bbox"], size)
            labels[row] = self.category_ids.index(annotation["category_id"])
        maps = {f"instances{group}": self._draw(annotations, size)} if self.masks else {}
        return {f"boxes{group}": boxes, f"labels{group}": labels, **maps}

    def check(self) -> None:
        """Decodes every picture and every segmentation, and compares boxes with masks.

        Raises:
            ValueError: if one cannot be decoded, or a box differs from its mask's by more than two pixels; all are
                listed.
        """
        problems: list[str] = []
        for path, record, size in zip(self._paths, self._records, self.sizes, strict=True):
            try:
                _decode.decode_image(path, self.channels)
            except (ValueError, OSError) as error:
                problems.append(str(error))
            for annotation in self._objects.get(record["id"], ()) if self.masks else ():
                try:
                    mask = self._mask(annotation, size)
                except ValueError as error:
                    problems.append(str(error))
                    continue
                if not mask.any():
                    problems.append(f"annotation {annotation['id']}: its mask has no pixel")
                    continue
                box, extent = _coco_file.corners(annotation["bbox"], size), _instances.extent_of(mask)
                if max(abs(side - other) for side, other in zip(box, extent, strict=True)) > 2:
                    problems.append(
                        f"annotation {annotation['id']}: the box {list(box)} (x0, y0, x1, y1) differs from its mask's,"
                        f" {list(extent)}"
                    )
        if problems:
            raise ValueError("\n  ".join([f"{self.file}:", *_coco_file.listed(problems)]))

    def _by_image(self, sizes: dict[int, tuple[int, int]], problems: list[str]) -> tuple[_ByImage, _ByImage]:
        """The objects and the crowds of each picture, without those that have no area."""
        objects, crowds = collections.defaultdict(list), collections.defaultdict(list)
        empty, cut = [], []
        for annotation in self.dataset["annotations"]:
            number, image = annotation.get("id"), annotation.get("image_id")
            if not isinstance(image, int) or image not in sizes:
                problems.append(f"annotation {number}: there is no image {image!r}")
                continue
            size = sizes[image]
            if annotation.get("category_id") not in self.category_ids:
                problems.append(f"annotation {number}: there is no category {annotation.get('category_id')}")
                continue
            if annotation.get("iscrowd") not in (None, 0, 1):
                problems.append(f"annotation {number}: iscrowd is {annotation['iscrowd']!r}; expected 0 or 1")
                continue
            if self.masks and not annotation.get("segmentation"):
                problems.append(f"annotation {number} has no segmentation: pass masks=False to read only boxes")
                continue
            box = annotation.get("bbox")
            if not _coco_file.is_box(box):
                problems.append(f"annotation {number}: the box {box}; expected x, y, width, height, finite numbers")
                continue
            if not _coco_file.is_area(annotation.get("area")):
                problems.append(f"annotation {number}: the area {annotation['area']!r}; expected 0 or more")
                continue
            x0, y0, x1, y1 = _coco_file.corners(box, size)
            if box[2] <= 0 or box[3] <= 0:
                empty.append(number)
            elif x1 <= x0 or y1 <= y0:
                problems.append(
                    f"annotation {number}: the box {box} (x, y, width, height) is outside image"
                    f" {annotation['image_id']} of {size[0]}x{size[1]} (height x width)"
                )
            else:
                if box[0] < -1 or box[1] < -1 or box[0] + box[2] > size[1] + 1 or box[1] + box[3] > size[0] + 1:
                    cut.append(number)
                (crowds if annotation.get("iscrowd") else objects)[annotation["image_id"]].append(annotation)
        for numbers, what in ((empty, "without area were left out"), (cut, "were cut off at the picture's border")):
            if numbers:
                listed = shortened([str(number) for number in numbers], ", ", 10)
                warnings.warn(f"{self.file}: {len(numbers)} boxes {what}: annotations {listed}", stacklevel=3)
        return objects, crowds

    def _draw(self, objects: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
        masks = [self._mask(annotation, size) for annotation in objects]
        instances = np.zeros(size, np.int32)
        for row in sorted(range(len(masks)), key=lambda row: -int(masks[row].sum())):
            instances[masks[row]] = row + 1
        return instances

    def _mask(self, annotation: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
        try:
            return _segments.decode(annotation["segmentation"], size)
        except ValueError as error:
            raise ValueError(f"{self.file}: annotation {annotation['id']}: {error}") from error
