"""Host-side operations on the fields of a sample: each according to its kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from densezoo.data import _instances
from densezoo.data._geometry import check_unknown
from densezoo.data.fields import SIZE, Image, Map, kind_of
from densezoo.data.resizing import ResizeTo, target_size

Sample = dict[str, np.ndarray]


class Reader:
    """Wraps a source and converts its StopIteration errors: otherwise they would end an iteration early."""

    def __init__(self, source: Any):
        """Stores the source."""
        self._source = source

    def __repr__(self) -> str:
        """Returns the source's own name."""
        return repr(self._source)

    def __len__(self) -> int:
        """Returns the number of samples."""
        return len(self._source)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        """Reads one sample."""
        try:
            return self._source[index]
        except StopIteration as error:
            raise RuntimeError(
                f"reading sample {index} of {self!r} raised StopIteration: fix the source, which probably calls next()"
                " on an exhausted iterator"
            ) from error


def extent(item: Mapping[str, Any]) -> tuple[int, int]:
    """Returns the height and width of a sample, equal for all its images and maps."""
    shapes = {name: np.shape(item[name]) for name in item if isinstance(kind_of(name), Map)}
    extents = {shape[:2] for shape in shapes.values()}
    if len(extents) != 1:
        raise ValueError(f"a sample with the shapes {shapes}; expected images and maps of one height and width.")
    height, width = extents.pop()
    return height, width


def choose_fields(source: Any, fields: Sequence[str] | None, caller: str) -> tuple[str, ...]:
    """Determines the available fields from one sample, and checks the selected ones."""
    if len(source) == 0:
        raise ValueError(f"{source!r} has no samples.")
    sample = Reader(source)[0]
    numbers = tuple(name for name in sample if np.asarray(sample[name]).dtype.kind in "biuf")
    for name in fields or ():
        if name not in numbers and name != SIZE:
            reason = "is not numeric" if name in sample else "is not in the samples"
            raise ValueError(f"fields={tuple(fields or ())}: {name} {reason}; expected some of {', '.join(numbers)}.")
    names = numbers if fields is None else tuple(fields)
    pixels = [name for name in names if isinstance(kind_of(name), Map)]
    for name in names if pixels else ():
        if name != SIZE:
            kind_of(name).check(name, np.shape(sample[name]), caller)
            check_unknown(name, np.shape(sample[name]), np.shape(sample[pixels[0]])[:2], caller)
    return names


def with_partners(item: Mapping[str, Any], names: Iterable[str]) -> Mapping[str, Any]:
    """Selects the fields of a sample, and those that are needed to decide which instances stay."""
    wanted = {name for name in names if name != SIZE}
    for members in _instances.groups(item).values():
        if wanted.intersection(members):
            wanted.update(members)
    return {name: item[name] for name in item if name in wanted}


def convert(name: str, value: Any) -> np.ndarray:
    """Converts a field to the type that it has in batches."""
    return kind_of(name).convert(name, np.asarray(value))


def resize(
    item: Mapping[str, Any], size: tuple[int, int], to: ResizeTo | None
) -> tuple[Mapping[str, Any], tuple[int, int]]:
    """Resizes a sample of the given size; returns the fields, converted if they were resized, and their size."""
    if to is None:
        return item, size
    before, size = size, target_size(to, *size)
    zoom, shift = np.divide(size, before).astype(np.float32), np.zeros(2, np.float32)
    result = {}
    for name in item:
        kind, array = kind_of(name), convert(name, item[name])
        result[name] = kind.resize(array, size) if isinstance(kind, Map) else kind.move(array, zoom, shift)
    return result, size


def window(
    item: Mapping[str, Any],
    corner: Sequence[int],
    size: tuple[int, int],
    window: tuple[int, int],
    ignore_index: int,
    mode: Any,
) -> Sample:
    """Cuts a window from a sample, pads it outside the sample, and drops the instances there.

    Args:
        item: the fields.
        corner: top and left of the window, negative if it starts before the sample.
        size: height and width of the sample.
        window: height and width of the window.
        ignore_index: padding of label maps.
        mode: mode of `numpy.pad` for pictures.

    Returns:
        The converted fields.
    """
    cut = tuple(slice(max(low, 0), low + length) for low, length in zip(corner, window, strict=True))
    margins = [
        (max(-low, 0), max(low + length - side, 0)) for low, length, side in zip(corner, window, size, strict=True)
    ]
    zoom, shift = np.ones(2, np.float32), -np.array(corner, np.float32)
    result = {}
    for name in item:
        kind = kind_of(name)
        if isinstance(kind, Map):
            result[name] = pad(name, np.asarray(item[name])[cut], margins, ignore_index, mode)
        else:
            result[name] = kind.move(convert(name, item[name]), zoom, shift)
    return _instances.settle(item, result, *window, "train_batches")


def pad(name: str, value: Any, margins: Sequence[tuple[int, int]], ignore_index: int, mode: Any) -> np.ndarray:
    """Converts a field, and pads maps at the top and bottom, left and right."""
    kind, array = kind_of(name), convert(name, value)
    if isinstance(kind, Map) and any(before or after for before, after in margins):
        return kind.pad(array, margins, ignore_index, mode)
    return array


def empty(sample: Sample, ignore_index: int) -> Sample:
    """Returns a placeholder for a missing sample, in the shapes of another sample."""
    return {name: np.full_like(array, kind_of(name).filling(ignore_index)) for name, array in sample.items()}


def stack(samples: Sequence[Mapping[str, np.ndarray]]) -> Sample:
    """Stacks samples into a batch."""
    batch = {}
    for name in samples[0]:
        shapes = {sample[name].shape for sample in samples}
        if len(shapes) > 1:
            hint = (
                "convert them to one number of channels" if isinstance(kind_of(name), Image) else "pad them to one size"
            )
            if len({shape[:2] for shape in shapes}) > 1 and isinstance(kind_of(name), Map):
                hint = "pass crop_size"
            raise ValueError(f"samples do not stack: {name} has the shapes {sorted(shapes)}; {hint}.")
        batch[name] = np.stack([sample[name] for sample in samples])
    return batch
