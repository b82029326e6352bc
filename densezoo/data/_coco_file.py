"""Checks of an annotation file in COCO's format and of its pictures."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

from densezoo.data import _decode

_TABLES = ("images", "annotations", "categories")
_LARGEST_FLOAT32 = 3.4e38


def read(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected annotations in COCO's format.")
    try:
        dataset = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSON and Unicode errors are ValueErrors
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(dataset, dict):
        raise ValueError(f"{file} contains a {type(dataset).__name__}; expected an object with {', '.join(_TABLES)}")
    for table in _TABLES:
        rows = dataset.get(table)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file}: {table!r} is missing or not a list of objects; expected {', '.join(_TABLES)}")
    return dataset


def unique(rows: list[dict[str, Any]], what: str, problems: list[str]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for row in rows:
        number = row.get("id")
        if not isinstance(number, int) or isinstance(number, bool):
            problems.append(f"the id {shown(number)} of one {what}; expected a whole number")
        elif what == "image" and not -(2**31) <= number < 2**31:  # items have it as int32
            problems.append(f"the image id {shown(number)}; expected a number of 32 bits")
        elif number in found:
            problems.append(f"the {what} id {number} occurs more than once")
        else:
            found[number] = row
    return found


def same(records: list[dict[str, Any]], field: str, what: str, problems: list[str]) -> None:
    """Reports records that share a file or a name."""
    ids: dict[str, list[int]] = {}
    for record in records:
        if field in record:
            ids.setdefault(str(record[field]), []).append(record["id"])
    problems += [f"the {what} {given} have the same {field}, {value!r}" for value, given in ids.items() if given[1:]]


def picture(folder: pathlib.Path, record: dict[str, Any], problems: list[str]) -> pathlib.Path:
    name = record.get("file_name")
    path = folder / name if _is_name(name) else folder
    if path == folder or not path.resolve().is_relative_to(folder.resolve()):
        problems.append(f"image {record['id']}: file_name is {shown(name)}; expected a file in {folder}")
        return folder
    if not path.is_file():
        problems.append(f"image {record['id']}: {path} is missing")
    return path


def _is_name(name: Any) -> TypeGuard[str]:
    try:
        return isinstance(name, str) and bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:  # JSON may contain half of a surrogate pair
        return False


def size_of(path: pathlib.Path, record: dict[str, Any], problems: list[str]) -> tuple[int, int]:
    said = record.get("height"), record.get("width")
    if not path.is_file():
        return (0, 0)
    try:
        size = _decode.read_size(path)
    except (ValueError, OSError) as error:
        problems.append(str(error))
        return (0, 0)
    if said != size:
        problems.append(
            f"image {record['id']}: {path} is {size[0]}x{size[1]} (height x width), but the file"
            f" says {said[0]}x{said[1]}"
        )
    return size


def pictures(
    folder: pathlib.Path, records: list[dict[str, Any]], problems: list[str]
) -> tuple[list[pathlib.Path], tuple[tuple[int, int], ...]]:
    """Returns the paths and the sizes (height, width) of all pictures, and adds what is wrong to the problems."""
    paths = [picture(folder, record, problems) for record in records]
    return paths, tuple(size_of(path, record, problems) for path, record in zip(paths, records, strict=True))


def is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4:
        return False
    return all(is_finite(side) for side in box)


def is_area(area: Any) -> bool:
    """Whether it is an area, or missing."""
    return area is None or (is_finite(area, _LARGEST_FLOAT32) and area >= 0)


def is_finite(number: Any, largest: float = sys.float_info.max) -> bool:
    # `math.isfinite` raises an OverflowError for the long integers that JSON may contain.
    return isinstance(number, int | float) and abs(number) <= largest


def shown(value: Any) -> str:
    """The value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def corners(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of a box (x, y, width, height), clipped to the picture."""
    x0, x1 = (min(max(x, 0.0), float(size[1])) for x in (box[0], box[0] + box[2]))
    y0, y1 = (min(max(y, 0.0), float(size[0])) for y in (box[1], box[1] + box[3]))
    return x0, y0, x1, y1


def listed(problems: list[str]) -> list[str]:
    return problems if len(problems) <= 20 else [*problems[:20], f"and {len(problems) - 20} more"]
