"""Boxes, labels and maps of instances: an instance outside the picture is removed from all of them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from densezoo.data._arrays import namespace
from densezoo.data.fields import Boxes, InstanceMap, Labels, Rows, group_of, kind_of

_LEAST_REST = 0.25  # minimum share of a box inside the picture


def groups(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups the fields of instances by the suffix of their names."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        if isinstance(kind_of(name), Rows | InstanceMap):
            found[group_of(name)].append(name)
    return found


def extent_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Returns the box x0, y0, x1, y1 around the pixels of a nonempty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def rows_for(counts: Mapping[Any, int], before: str, max_objects: int | None) -> int:
    """Returns the number of rows of boxes and labels in every sample of a source.

    Args:
        counts: number of objects of each picture, by its name or number.
        before: text before the picture's name in the message, such as "image ".
        max_objects: the number of rows; None for the maximum number of objects in a picture.

    Raises:
        ValueError: if a picture has more objects than `max_objects`.
    """
    fullest = max(counts, key=lambda number: counts[number])
    if max_objects is not None and counts[fullest] > max_objects:
        raise ValueError(
            f"{before}{fullest} has {counts[fullest]} objects, but max_objects is {max_objects}: pass"
            f" {counts[fullest]} or more, or None"
        )
    return max(1, counts[fullest] if max_objects is None else max_objects)


def settle(before: Mapping[str, Any], after: Mapping[str, Any], height: int, width: int, caller: str) -> dict[str, Any]:
    """Clips a sample's boxes to the picture, and clears the rows and ids of instances outside.

    Args:
        before: the fields before the picture was cropped or zoomed; only the maps of instances are used.
        after: the fields with moved boxes and maps.
        height: height of the picture now.
        width: width of the picture now.
        caller: name of the caller, for errors.

    Returns:
        The fields. If less than a quarter of an instance's box is left, or none of its pixels on the map, its rows
        contain their fill and its pixels on the map are 0.

    Raises:
        ValueError: if there are boxes but no labels.
    """
    result = dict(after)
    for group, names in groups(after).items():
        labels, boxes, maps = (
            [name for name in names if isinstance(kind_of(name), kind)] for kind in (Labels, Boxes, InstanceMap)
        )
        if not labels and boxes:
            raise ValueError(
                f"{caller} got {boxes[0]} but no labels{group}; expected class numbers (n,), -1 in rows without a box."
            )
        if not labels or not (boxes or maps):
            continue
        numpy = namespace(after[labels[0]])
        kept = after[labels[0]] >= 0
        for name in boxes:
            limits = np.array([[width, height, width, height]], np.float32).astype(after[name].dtype)
            result[name] = numpy.clip(after[name], np.zeros_like(limits), limits)
            rest = _area(result[name])
            kept = kept & (rest > 0) & (rest >= _LEAST_REST * _area(after[name]))
        for name in maps:
            kept = kept & ((_pixels(before[name], len(kept)) == 0) | (_pixels(after[name], len(kept)) > 0))
        for name in names:
            if name in maps:
                # Row 0 of the table is for 0, the last one for numbers without a row; both stay unchanged.
                table = numpy.concatenate([np.ones(1, bool), kept, np.ones(1, bool)])
                stays = table[numpy.where(after[name] < 0, 0, numpy.minimum(after[name], len(kept) + 1))]
                result[name] = numpy.where(stays, after[name], numpy.zeros_like(after[name]))
            else:
                rows = kept.reshape(-1, *[1] * (after[name].ndim - 1))
                fill = numpy.full_like(after[name], kind_of(name).filling(-1))
                result[name] = numpy.where(rows, result[name], fill)
    return result


def _area(boxes: Any) -> Any:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _pixels(ids: Any, rows: int) -> Any:
    """Counts the pixels of the instances 1..rows."""
    numpy = namespace(ids)
    bins = numpy.clip(numpy.asarray(ids, np.int32), 0, rows + 1).ravel()
    counts = np.bincount(bins, minlength=rows + 2) if numpy is np else numpy.bincount(bins, length=rows + 2)
    return counts[1 : rows + 1]
