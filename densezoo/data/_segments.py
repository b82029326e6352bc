"""Converts COCO's segmentations to masks: polygons, and run lengths as numbers or as a string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

from densezoo.data._coco_file import is_finite, shown
from densezoo.extras import require


def decode(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Rasterises a segmentation.

    Args:
        segmentation: polygons [[x0, y0, x1, y1, ...], ...], or a dict with `size` and `counts`.
        size: height and width of the picture.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: if the format is invalid or the size differs; the message gives the reason.
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation, size)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError(f"the segmentation is {shown(segmentation)}; expected polygons, or a dict of run lengths")
    for polygon in segmentation:
        if not _numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(f"the polygon {shown(polygon)}; expected x and y, finite, of 3 points or more")
        if max(map(abs, polygon)) > 10 * (max(size) + 100):
            raise ValueError(f"the polygon {shown(polygon)} reaches far beyond the picture of {size[0]}x{size[1]}")
    mask = require("hotcoco.mask")
    points = [[float(number) for number in polygon] for polygon in segmentation]
    return mask.decode(mask.merge(mask.frPyObjects(points, *size))).astype(bool)


def _of_runs(runs: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    given, counts = runs.get("size"), runs.get("counts")
    if not _numbers(given) or tuple(given) != tuple(size):
        raise ValueError(f"the run lengths are of a picture of size {shown(given)}; expected {list(size)}")
    if isinstance(counts, str):
        counts = _numbers_of(counts)
    if not _numbers(counts) or any(number < 0 or number != int(number) for number in counts):
        raise ValueError(f"counts are {shown(counts)}; expected whole numbers of at least 0, or a string of them")
    if sum(counts) != size[0] * size[1]:
        raise ValueError(f"the run lengths add up to {sum(counts)} pixels; expected {size[0]} x {size[1]}")
    lengths = np.array(counts, np.int64)
    values = np.arange(len(lengths)) % 2 == 1  # the first run is background
    return np.repeat(values, lengths).reshape(size, order="F")


def _numbers_of(text: str) -> list[int]:
    """The run lengths in COCO's string: characters hold 5 bits each, and values after the third are differences."""
    numbers: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"counts contain the character {character!r}, which is invalid in run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("counts end in the middle of a number")
    return numbers


def _numbers(value: Any) -> TypeGuard[Sequence[float]]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(is_finite(number) and not isinstance(number, bool) for number in value)
