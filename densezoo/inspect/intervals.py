"""Intervals of rows (or columns) of an image, one for each position of an array along one of its axes."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

EMPTY = (np.iinfo(np.int64).max, np.iinfo(np.int64).min)
"""First and last row of a position that does not depend on the image, such as padding."""


class Reach(NamedTuple):
    """What an array depends on.

    Attributes:
        axis: the axis along which the dependence varies. None if it is the same everywhere.
        first: first row of the image by position on `axis`; one number if `axis` is None.
        last: last row, likewise.
    """

    axis: int | None
    first: np.ndarray
    last: np.ndarray

    def everywhere(self) -> "Reach":
        """The union over all positions."""
        return Reach(None, self.first.min().reshape(1), self.last.max().reshape(1))

    def on(self, axis: int | None) -> "Reach":
        """The same along another axis; wider, unless it varies along this axis."""
        return self if axis == self.axis else self.everywhere()

    def select(self, function: Callable[[np.ndarray], np.ndarray]) -> "Reach":
        """Applies a selection to both arrays."""
        return Reach(self.axis, function(self.first), function(self.last))

    def moved(self, axis: int | None) -> "Reach":
        """The same values, on an axis that has another number now."""
        return Reach(axis, self.first, self.last) if axis is not None else self.everywhere()


Value = Reach | None
"""None for an array that does not depend on the image."""


def empty(length: int) -> Reach:
    """Positions that do not depend on the image."""
    first, last = (np.full(length, value, np.int64) for value in EMPTY)
    return Reach(0, first, last)


def join(*values: Value) -> Value:
    """The union of what several arrays of one shape depend on."""
    given = [value for value in values if value is not None]
    if not given:
        return None
    axes = {value.axis for value in given} - {None}
    axis = axes.pop() if len(axes) == 1 else None
    given = [value.on(axis) for value in given]
    first, last = (np.broadcast_arrays(*arrays) for arrays in zip(*(value[1:] for value in given), strict=True))
    return Reach(axis, np.minimum.reduce(first), np.maximum.reduce(last))


def windows(value: Reach, size: int, stride: int, padding: Sequence[int], base: int, dilation: int) -> Reach:
    """What the windows of a convolution or a pooling along `value.axis` depend on."""
    value = pad(value, padding[0], padding[1], base - 1)
    length = len(value.first)
    count = max((length - dilation * (size - 1) - 1) // stride + 1, 0)
    taps = np.arange(count)[:, None] * stride + np.arange(size) * dilation
    return Reach(value.axis, value.first[taps].min(1), value.last[taps].max(1))


def pad(value: Reach, low: int, high: int, interior: int = 0) -> Reach:
    """Adds positions that depend on nothing; negative numbers remove positions."""

    def padded(array: np.ndarray, fill: int) -> np.ndarray:
        length = len(array) + max(len(array) - 1, 0) * interior
        spread = np.full(length, fill, np.int64)
        spread[:: interior + 1] = array
        spread = np.pad(spread, (max(low, 0), max(high, 0)), constant_values=fill)
        return spread[max(-low, 0) : len(spread) - max(-high, 0)]

    return Reach(value.axis, padded(value.first, EMPTY[0]), padded(value.last, EMPTY[1]))


def reshaped(value: Reach, old: Sequence[int], new: Sequence[int]) -> Reach:
    """What an array depends on after a reshape: along the new axis on which the dependence varies most."""
    if value.axis is None:
        return value
    # The shortest groups of axes, old and new, that have the same number of positions and contain the axis.
    start = end = begin = stop = 0
    while not (start <= value.axis < end):
        start, begin = end, stop
        end += 1
        stop += 1
        while math.prod(old[start:end]) != math.prod(new[begin:stop]):
            if math.prod(old[start:end]) < math.prod(new[begin:stop]):
                end += 1
            else:
                stop += 1
    group, target = tuple(old[start:end]), tuple(new[begin:stop])
    shape = [-1 if axis == value.axis else 1 for axis in range(start, end)]
    full = value.select(lambda array: np.broadcast_to(array.reshape(shape), group).reshape(target))
    return narrowest(full, range(begin, stop))


def narrowest(full: Reach, axes: Sequence[int]) -> Reach:
    """Keeps one axis of a dependence that varies along several: that on which the others widen it least.

    Args:
        full: with arrays of several axes.
        axes: the numbers of these axes in the program's array.
    """
    candidates = []
    for axis, number in enumerate(axes):
        others = tuple(other for other in range(len(axes)) if other != axis)
        candidates.append(Reach(number, full.first.min(others), full.last.max(others)))
    return min(candidates, key=_width, default=full.everywhere())


def _width(reach: Reach) -> float:
    """The mean number of rows that a position depends on."""
    return float(np.where(reach.last >= reach.first, reach.last - reach.first + 1.0, 0.0).mean())
