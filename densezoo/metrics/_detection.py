"""COCO's average precision. hotcoco computes it; this file converts between its formats and densezoo's."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densezoo.extras import require

_SCORES = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
_SCORES |= {"ar1": "AR1", "ar10": "AR10", "ar100": "AR100"}


def coco_dataset(source: Any, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Converts the objects of a source to a COCO dataset for `average_precision`.

    Args:
        source: samples with boxes (n, 4), labels (n,) with -1 in rows without an object, and optionally `instances`. If
            it has its own `dataset`, as `data.CocoDetection` does, this is used.
        class_names: names of the classes; if empty, those of the source, or their numbers.

    Returns:
        A dict with images, annotations and categories, as in COCO's files. Ids of images are those of the source's
        `dataset`, else the samples' `image_id`, else index + 1; ids of categories likewise, else label + 1.

    Raises:
        ModuleNotFoundError: if there are instances and hotcoco is not installed, which encodes their masks.

    Example:
        >>> import numpy as np
        >>> sample = {"image": np.zeros((8, 9, 3)), "boxes": np.array([[1.0, 2, 5, 6]]), "labels": np.array([0])}
        >>> coco_dataset([sample])["annotations"][0]["bbox"]
        [1.0, 2.0, 4.0, 4.0]
    """
    if hasattr(source, "dataset"):
        return source.dataset
    images, annotations, found = [], [], {0}
    for index in range(len(source)):
        sample = source[index]
        height, width = sample["image"].shape[:2]
        number = int(sample.get("image_id", index + 1))
        images.append({"id": number, "height": height, "width": width, "file_name": str(sample.get("name", index))})
        for annotation in coco_annotations(sample, number):
            found.add(annotation["category_id"] - 1)
            annotations.append(annotation | {"id": len(annotations) + 1})
    names = tuple(class_names or getattr(source, "class_names", ())) or tuple(map(str, range(max(found) + 1)))
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_annotations(sample: Mapping[str, Any], image_id: int) -> list[dict[str, Any]]:
    """Converts the objects of one picture to COCO's format.

    Args:
        sample: boxes (n, 4), labels (n,) with -1 in rows without an object, and optionally `instances` (h, w),
            `areas` (n,) with NaN for the area of the mask or box, and `boxes_crowd`, `labels_crowd` and
            `instances_crowd` of crowds.
        image_id: id of the picture.

    Returns:
        A dict for each object and crowd; its id is the place in the list, from 1 on, and its category label + 1.

    Example:
        >>> import numpy as np
        >>> sample = {"boxes": np.array([[1.0, 2, 5, 6], [0, 0, 0, 0]]), "labels": np.array([4, -1])}
        >>> [(each["id"], each["category_id"], each["area"]) for each in coco_annotations(sample, 7)]
        [(1, 5, 16.0)]
    """
    annotations = []
    for crowd, group in enumerate(("", "_crowd")):
        labels = np.asarray(sample.get(f"labels{group}", ()))
        for row in np.flatnonzero(labels >= 0).tolist():
            box = _xywh(sample[f"boxes{group}"][row])
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(labels[row]) + 1}
            annotation |= {"bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
            if f"instances{group}" in sample:
                mask = np.asarray(sample[f"instances{group}"]) == row + 1
                annotation |= {"segmentation": encode_mask(mask), "area": int(mask.sum())}
            if not crowd and "areas" in sample and np.isfinite(sample["areas"][row]):
                annotation["area"] = float(sample["areas"][row])
            annotations.append(annotation)
    return annotations


def coco_results(
    image_id: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    category_ids: Sequence[int] | None = None,
    masks: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Converts the detections of one picture to COCO's result format.

    Args:
        image_id: id of the picture in the dataset.
        boxes: (n, 4), x0, y0, x1, y1 in pixels of the picture.
        scores: (n,).
        labels: (n,), class indices; rows with a negative label are skipped.
        category_ids: the dataset's id of each class; None for label + 1.
        masks: (n, height, width) bool, of the picture's size.

    Returns:
        A dict for each detection, with plain numbers that can be written as JSON.

    Example:
        >>> import numpy as np
        >>> coco_results(7, np.array([[1.0, 2, 5, 6]]), np.array([0.5]), np.array([0]))
        [{'image_id': 7, 'category_id': 1, 'bbox': [1.0, 2.0, 4.0, 4.0], 'score': 0.5}]
    """
    results = []
    for row in np.flatnonzero(np.asarray(labels) >= 0).tolist():
        label = int(labels[row])
        result = {
            "image_id": int(image_id),
            "category_id": label + 1 if category_ids is None else int(category_ids[label]),
            "bbox": _xywh(boxes[row]),
            "score": float(scores[row]),
        }
        results.append(result if masks is None else result | {"segmentation": encode_mask(masks[row])})
    return results


def average_precision(
    dataset: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    *,
    masks: bool = False,
    size_limits: tuple[float, float] = (32.0, 96.0),
) -> dict[str, float]:
    """Computes COCO's scores of detections.

    Args:
        dataset: images, annotations and categories, as returned by `coco_dataset`.
        results: detections in COCO's result format, as returned by `coco_results`, in any order.
        masks: compare masks instead of boxes.
        size_limits: sides in pixels of the squares whose areas separate small, medium and large objects.

    Returns:
        `ap`, the mean over IoU thresholds of 0.5 to 0.95, `ap50`, `ap75`; `ap_small` (by default area below 32^2
        pixels), `ap_medium`, `ap_large` (by default from 96^2 on); `ar1`, `ar10`, `ar100`; `ap_<class>`. NaN without
        objects. At most 100 detections per picture are used.

    Raises:
        ValueError: results or annotations of pictures or categories that the dataset does not have, or with scores or
            boxes that are no numbers, annotations with the same id, or limits that do not increase.
        ModuleNotFoundError: if hotcoco is not installed.

    Example:
        >>> truth = {
        ...     "images": [{"id": 1, "height": 20, "width": 20}],
        ...     "categories": [{"id": 1, "name": "cat"}],
        ...     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "area": 81}],
        ... }
        >>> result = {"image_id": 1, "category_id": 1, "bbox": [2, 2, 9, 9], "score": 0.7}
        >>> round(average_precision(truth, [result])["ap"], 6)
        1.0

    References:
        https://cocodataset.org/#detection-eval
    """
    if not 0 < size_limits[0] < size_limits[1] < math.inf:
        raise ValueError(f"size_limits must be two increasing numbers above 0, got {size_limits}")
    hotcoco = require("hotcoco")
    images = {image["id"] for image in dataset["images"]}
    categories = {category["id"]: str(category.get("name", category["id"])) for category in dataset["categories"]}
    for number, result in enumerate(results):
        if result["image_id"] not in images or result["category_id"] not in categories:
            raise ValueError(
                f"result {number} is of image {result['image_id']}, category {result['category_id']}; the dataset has"
                f" {len(images)} images and the categories {sorted(categories)}, but not these"
            )
        if not math.isfinite(result["score"]) or not np.isfinite(result["bbox"]).all():
            raise ValueError(f"result {number} has the score {result['score']} and box {result['bbox']}")
        if masks and "segmentation" not in result:
            raise ValueError(f"result {number} has no segmentation, and masks=True compares masks")
    _check_truth(dataset["annotations"], images, categories)
    if not any(not annotation.get("iscrowd") for annotation in dataset["annotations"]):
        return dict.fromkeys((*_SCORES, *(f"ap_{name}" for name in categories.values())), math.nan)
    truth = hotcoco.COCO(dict(dataset))
    evaluation = hotcoco.COCOeval(truth, truth.load_res([dict(result) for result in results]), _kind(masks))
    small, large = (side**2 for side in size_limits)
    evaluation.params.area_rng = [[0, 1e10], [0, small], [small, large], [large, 1e10]]
    evaluation.evaluate()
    evaluation.accumulate()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summary_lines()
    found = evaluation.get_results(per_class=True)
    scores = {name: found.get(theirs, -1.0) for name, theirs in _SCORES.items()}
    scores |= {f"ap_{name}": found.get(f"AP/{name}", -1.0) for name in categories.values()}
    return {name: math.nan if value < 0 else float(value) for name, value in scores.items()}


def _check_truth(annotations: Sequence[Mapping[str, Any]], images: Any, categories: Any) -> None:
    """Raises a ValueError for annotations that would silently count as something else."""
    seen: set[Any] = set()
    for number, annotation in enumerate(annotations):
        name, image, category = (annotation.get(field) for field in ("id", "image_id", "category_id"))
        if image not in images or category not in categories:
            raise ValueError(
                f"annotation {number}, with the id {name}, is of image {image}, category {category}; the dataset has"
                f" {len(images)} images and the categories {sorted(categories)}, and not these"
            )
        if not np.isfinite(annotation["bbox"]).all():
            raise ValueError(f"annotation {number}, with the id {name}, has the box {annotation['bbox']}")
        if name in seen:
            raise ValueError(f"annotation {number} has the id {name} of an earlier one: give each its own")
        seen.add(name)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encodes a mask (h, w) as COCO's compressed run lengths for JSON; needs hotcoco.

    Example:
        >>> import numpy as np
        >>> encode_mask(np.ones((2, 3), bool))
        {'size': [2, 3], 'counts': '06'}
    """
    runs = require("hotcoco.mask").encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def _kind(masks: bool) -> str:
    return "segm" if masks else "bbox"


def _xywh(box: Any) -> list[float]:
    x0, y0, x1, y1 = (float(side) for side in box)
    return [x0, y0, x1 - x0, y1 - y0]
