"""Pictures with things and stuff, from an annotation file in COCO's panoptic format."""

from __future__ import annotations

import os
import pathlib
import warnings
from typing import Any, SupportsIndex

import numpy as np

from densezoo.data import _coco_file, _decode, _instances
from densezoo.messages import shortened

Segment = dict[str, Any]


class CocoPanoptic:
    """Pictures, objects and a map of classes from files in COCO's panoptic format, as a random-access source.

    `root/panoptic.json` lists the pictures of `root/images` and for each one a PNG of `root/panoptic`, in which the
    colour of a pixel is the number of its segment: red + 256 green + 65536 blue, and 0 for none. Categories have
    `isthing`. Building the source reads the annotations and the headers of the pictures; `check` decodes everything.

    An item has the fields of `CocoDetection`, with boxes around the segments' pixels, and

    - mask: (height, width) int32, the class of each pixel: 0 for none, 1 to t for the t thing classes, label + 1, and
      from t + 1 on for the stuff classes. Pixels of crowds have the class of the crowd, and no instance.

    Attributes:
        root: the folder.
        class_names: the names of the thing classes, by their numbers in the file.
        num_classes: how many there are.
        stuff_names: the names of the stuff classes.
        stuff: the values of the stuff classes in `mask`, for `tasks.PanopticSegmentation`.
        names: file names of the pictures, in order.
        sizes: the (height, width) of the pictures, in order.

    Example:
        >>> import json, pathlib, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> dataset = {
        ...     "images": [{"id": 7, "file_name": "a.jpg", "height": 8, "width": 10}],
        ...     "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}],
        ...     "annotations": [
        ...         {
        ...             "image_id": 7,
        ...             "file_name": "a.png",
        ...             "segments_info": [{"id": 1, "category_id": 9}, {"id": 300, "category_id": 3}],
        ...         }
        ...     ],
        ... }
        >>> colours = np.zeros((8, 10, 3), np.uint8)
        >>> colours[:3, :, 0] = 1
        >>> colours[4:, 2:5] = 300 % 256, 300 // 256, 0
        >>> with tempfile.TemporaryDirectory() as root:
        ...     for folder, name in (("images", "a.jpg"), ("panoptic", "a.png")):
        ...         pathlib.Path(root, folder).mkdir()
        ...         Image.fromarray(colours).save(pathlib.Path(root, folder, name))
        ...     _ = pathlib.Path(root, "panoptic.json").write_text(json.dumps(dataset))
        ...     source = CocoPanoptic(root)
        ...     item = source[0]
        >>> item["boxes"].tolist(), np.unique(item["mask"]).tolist(), source.stuff
        ([[2.0, 4.0, 5.0, 8.0]], [0, 1, 2], (2,))

    References:
        Kirillov et al., Panoptic segmentation, 2018. https://arxiv.org/abs/1801.00868
        https://cocodataset.org/#format-data
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        images: str = "images",
        maps: str = "panoptic",
        annotations: str = "panoptic.json",
        channels: int | None = 3,
        max_objects: int | None = None,
    ):
        """Reads the annotations and compares them with the pictures.

        Args:
            root: the folder.
            images: the folder of the pictures in it.
            maps: the folder of the maps in it.
            annotations: the annotation file in it.
            channels: what `read_image` converts to; None for the channels of the file.
            max_objects: rows of boxes and labels; None for as many as the fullest picture needs.

        Raises:
            FileNotFoundError: if a folder or the annotation file is missing.
            ValueError: if the file is no such JSON, if files are missing or have other sizes than it says, if numbers
                repeat or point to nothing, or a picture has more objects than `max_objects`. All problems are named at
                once, with their numbers.

        Warns:
            UserWarning: pictures without an annotation, which have no objects and no classes, as in COCO's format.
        """
        self.root = pathlib.Path(root)
        self.file = self.root / annotations
        self.channels = channels
        dataset = _coco_file.read(self.file)
        for folder in (self.root / images, self.root / maps):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder}: no such folder; expected the files that {self.file} lists.")
        problems: list[str] = []
        records = _coco_file.unique(dataset["images"], "image", problems)
        categories = _coco_file.unique(dataset["categories"], "category", problems)
        if lacking := [number for number, each in categories.items() if each.get("isthing") not in (0, 1)]:
            problems.append(f"the categories {lacking} have no isthing of 0 or 1")
        things = [number for number in sorted(categories) if categories[number].get("isthing")]
        stuff = [number for number in sorted(categories) if number not in things]
        if not things or not stuff:
            problems.append(f"the file lists {len(things)} categories of things and {len(stuff)} of stuff")
        self._values = {number: value + 1 for value, number in enumerate([*things, *stuff])}
        self.class_names, self.stuff_names = (
            tuple(str(categories[number].get("name", number)) for number in numbers) for numbers in (things, stuff)
        )
        self.num_classes = len(things)
        self.stuff = tuple(range(len(things) + 1, len(things) + len(stuff) + 1))
        self._records = [records[number] for number in sorted(records)]
        self._paths, self.sizes = _coco_file.pictures(self.root / images, self._records, problems)
        self.names = tuple(path.name for path in self._paths)
        if not self._records:
            problems.append("the file lists no images")
        self._maps, self._segments = self._by_image(dataset, records, self.root / maps, problems)
        if problems:
            raise ValueError("\n  ".join([f"{self.file}:", *_coco_file.listed(problems)]))
        if bare := [str(number) for number in sorted(records) if number not in self._maps]:
            listed = shortened(bare, ", ", 10)
            warnings.warn(f"{self.file}: {len(bare)} images have no annotation: {listed}", stacklevel=2)
        counts = {number: len(self._things(number, crowd=False)) for number in sorted(records)}
        self._rows = _instances.rows_for(counts, f"{self.file}: image ", max_objects)
        self._crowd_rows = max(len(self._things(number, crowd=True)) for number in records)

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"CocoPanoptic({str(self.root)!r}, annotations={self.file.name!r}, channels={self.channels}, "
            f"max_objects={self._rows})"
        )

    def __len__(self) -> int:
        """Gives the number of pictures."""
        return len(self._records)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Reads one picture and its map.

        Args:
            index: 0..len-1, or from the end if negative.

        Returns:
            The fields that the class describes.

        Raises:
            IndexError: if there is no such picture.
            ValueError: if a file is damaged, or the map and the file list other segments.
        """
        number, size = self._records[index]["id"], self.sizes[index]
        image = _decode.decode_image(self._paths[index], self.channels)
        numbers = self._read_map(number, size)
        mask = np.zeros(size, np.int32)
        for segment in self._segments.get(number, ()):
            mask[numbers == segment["id"]] = self._values[segment["category_id"]]
        item = {"image": image, "mask": mask, "image_id": np.int32(number)}
        item |= self._rows_of(self._things(number, crowd=False), self._rows, numbers, "")
        if self._crowd_rows:
            item |= self._rows_of(self._things(number, crowd=True), self._crowd_rows, numbers, "_crowd")
            del item["areas_crowd"]
        return item

    def check(self) -> None:
        """Decodes every picture and every map, and compares the boxes with the segments.

        Raises:
            ValueError: if any cannot be decoded, or a box is not that of its segment to within two pixels; all are
                named.
        """
        problems: list[str] = []
        for path, record, size in zip(self._paths, self._records, self.sizes, strict=True):
            try:
                _decode.decode_image(path, self.channels)
                numbers = self._read_map(record["id"], size)
            except (ValueError, OSError) as error:
                problems.append(str(error))
                continue
            for segment in self._segments.get(record["id"], ()):
                if not _coco_file.is_box(segment.get("bbox")):
                    continue
                box = _coco_file.corners(segment["bbox"], size)
                extent = _instances.extent_of(numbers == segment["id"])
                if max(abs(side - other) for side, other in zip(box, extent, strict=True)) > 2:
                    problems.append(
                        f"image {record['id']}, segment {segment['id']}: the box {list(box)} (x0, y0, x1, y1) is not"
                        f" that of its pixels, {list(extent)}"
                    )
        if problems:
            raise ValueError("\n  ".join([f"{self.file}:", *_coco_file.listed(problems)]))

    def _by_image(
        self, dataset: dict[str, Any], records: dict[int, Any], folder: pathlib.Path, problems: list[str]
    ) -> tuple[dict[int, pathlib.Path], dict[int, list[Segment]]]:
        """The map and the segments of each picture."""
        maps: dict[int, pathlib.Path] = {}
        segments: dict[int, list[Segment]] = {}
        for annotation in dataset["annotations"]:
            number, found = annotation.get("image_id"), annotation.get("segments_info")
            if not isinstance(number, int) or number not in records:
                problems.append(f"an annotation is of image {_coco_file.shown(number)}, which the file does not list")
            elif number in maps:
                problems.append(f"image {number} has more than one annotation")
            elif not isinstance(found, list) or not all(isinstance(segment, dict) for segment in found):
                problems.append(
                    f"image {number}: segments_info is {_coco_file.shown(found)}; expected a list of objects"
                )
            else:
                record = {"id": number, "file_name": annotation.get("file_name")}
                maps[number] = _coco_file.picture(folder, record, problems)
                wrong: list[str] = []
                segments[number] = list(_coco_file.unique(found, "segment", wrong).values())
                for segment in segments[number]:
                    category = segment.get("category_id")
                    if not isinstance(category, int) or category not in self._values:
                        wrong.append(f"segment {segment['id']}: there is no category {_coco_file.shown(category)}")
                    if not _coco_file.is_area(segment.get("area")):
                        wrong.append(f"segment {segment['id']}: the area {segment['area']!r}; expected 0 or more")
                problems += [f"image {number}: {problem}" for problem in wrong]
        return maps, segments

    def _things(self, number: int, *, crowd: bool) -> list[Segment]:
        """The objects, or the crowds, of a picture."""
        return [
            segment
            for segment in self._segments.get(number, ())
            if self._values[segment["category_id"]] <= self.num_classes and bool(segment.get("iscrowd")) == crowd
        ]

    def _read_map(self, number: int, size: tuple[int, int]) -> np.ndarray:
        """The number of the segment at each pixel of a picture."""
        if number not in self._maps:
            return np.zeros(size, np.int32)
        path = self._maps[number]
        found = _decode.read_size(path)  # before a picture of any size is decoded
        if found != size:
            raise ValueError(f"{path} is {found[0]}x{found[1]}, and image {number} {size[0]}x{size[1]}")
        colours = _decode.decode_colours(path)
        numbers = (colours >> 16) | (colours & 0xFF00) | ((colours & 0xFF) << 16)  # from the order blue, green, red
        known = {segment["id"] for segment in self._segments[number]}
        there = set(np.unique(numbers).tolist()) - {0}
        if there != known:
            raise ValueError(
                f"image {number}: {path} has the segments {sorted(there - known)[:10]}, which {self.file} does not"
                f" list, and lacks {sorted(known - there)[:10]}"
            )
        return numbers

    def _rows_of(self, segments: list[Segment], rows: int, numbers: np.ndarray, group: str) -> dict[str, np.ndarray]:
        """Boxes, labels, areas and the map of some segments."""
        boxes, labels = np.zeros((rows, 4), np.float32), np.full(rows, -1, np.int32)
        areas, instances = np.zeros(rows, np.float32), np.zeros(numbers.shape, np.int32)
        for row, segment in enumerate(segments):
            pixels = numbers == segment["id"]
            instances[pixels] = row + 1
            boxes[row] = _instances.extent_of(pixels)
            labels[row] = self._values[segment["category_id"]] - 1
            areas[row] = np.nan if segment.get("area") is None else segment["area"]
        fields = {"boxes": boxes, "labels": labels, "areas": areas, "instances": instances}
        return {f"{name}{group}": array for name, array in fields.items()}
