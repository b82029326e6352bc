"""What is done on the host to the fields of a sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from densezoo.data import _fields
from densezoo.data.folder import to_float


class Reader:
    """A source whose errors cannot be taken for its end: an iterator that reads it would end at a StopIteration."""

    def __init__(self, source: Any):
        """Keeps the source."""
        self._source = source

    def __repr__(self) -> str:
        """Names the source alone."""
        return repr(self._source)

    def __len__(self) -> int:
        """Gives the number of samples."""
        return len(self._source)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        """Reads one sample."""
        try:
            return self._source[index]
        except StopIteration as error:
            raise RuntimeError(
                f"reading sample {index} of {self!r} raised StopIteration: mend the source, where an iterator that has"
                " ended is read on"
            ) from error


def extent(item: Mapping[str, Any]) -> tuple[int, int]:
    """Gives the height and width of a sample, which all its images and maps share."""
    shapes = {name: item[name].shape for name in item if _fields.is_image(name) or _fields.is_map(name)}
    extents = {shape[:2] for shape in shapes.values()}
    if len(extents) != 1:
        raise ValueError(f"a sample with the shapes {shapes}; expected images and maps of one height and width.")
    height, width = extents.pop()
    return height, width


def convert(name: str, value: Any) -> np.ndarray:
    """Gives a field the type that it has in batches."""
    array = np.asarray(value)
    if _fields.is_image(name):
        return to_float(array)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False)


def pad(name: str, array: np.ndarray, margins: Sequence[tuple[int, int]], mode: Any, ignore_index: int) -> np.ndarray:
    """Pads images and maps at the top and bottom, left and right."""
    if not any(before or after for before, after in margins):
        return array
    if _fields.is_image(name):
        return np.pad(array, (*margins, (0, 0)), mode=mode)
    if _fields.is_map(name):
        return np.pad(array, margins, constant_values=_fields.fill_of(name, ignore_index) or 0)
    return array


def stack(samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Makes samples a batch."""
    batch = {}
    for name in samples[0]:
        shapes = {sample[name].shape for sample in samples}
        if len(shapes) > 1:
            hint = "convert them to one number of channels" if _fields.is_image(name) else "pad them to one size"
            if len({shape[:2] for shape in shapes}) > 1 and (_fields.is_image(name) or _fields.is_map(name)):
                hint = "pass crop_size"
            raise ValueError(f"samples do not stack: {name} has the shapes {sorted(shapes)}; {hint}.")
        batch[name] = np.stack([sample[name] for sample in samples])
    return batch
