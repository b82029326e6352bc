"""The pixels and weights that each position of a resized axis reads."""

import functools
from typing import NamedTuple

import numpy as np


class Taps(NamedTuple):
    """A sparse matrix (outputs x inputs) with the same number of entries in every row.

    In a row with fewer entries, one of them is split into equal parts, because a weight of 0 would turn an infinity
    into NaN. Only the weights of an empty row are 0.
    """

    indices: np.ndarray  # (outputs, taps), int
    weights: np.ndarray  # (outputs, taps), float64
    inputs: int

    @classmethod
    def of(cls, indices: np.ndarray, weights: np.ndarray, inputs: int) -> "Taps":
        """Creates the table, with its zero weights replaced."""
        indices, weights = indices.copy(), weights.copy()
        for row in np.flatnonzero((weights == 0).any(1) & (weights != 0).any(1)):
            unused = weights[row] == 0
            used = np.flatnonzero(~unused)[-1]
            indices[row, unused] = indices[row, used]
            unused[used] = True
            weights[row, unused] = weights[row, used] / unused.sum()
        return cls(indices, weights, inputs)

    def transpose(self) -> "Taps":
        """The table of the adjoint: for every input, the outputs that read it."""
        outputs, taps = np.nonzero(self.weights)
        order = np.argsort(self.indices[outputs, taps], kind="stable")
        outputs, taps = outputs[order], taps[order]
        readers = np.bincount(self.indices[outputs, taps], minlength=self.inputs)
        row = np.repeat(np.arange(self.inputs), readers)
        place = np.arange(len(row)) - np.repeat(np.cumsum(readers) - readers, readers)
        indices = np.zeros((self.inputs, max(1, readers.max())), self.indices.dtype)
        weights = np.zeros(indices.shape, self.weights.dtype)
        indices[row, place], weights[row, place] = outputs, self.weights[outputs, taps]
        return Taps.of(indices, weights, len(self.indices))


@functools.lru_cache(maxsize=1024)
def nearest_taps(inputs: int, outputs: int, half_pixel: bool) -> Taps:
    """Taps of nearest-neighbour resampling."""
    # Integer arithmetic: floor((i + 1/2) * inputs / outputs) and floor(i * inputs / outputs) without rounding.
    rows = np.arange(outputs)
    indices = (2 * rows + 1) * inputs // (2 * outputs) if half_pixel else rows * inputs // outputs
    return Taps(indices[:, None], np.ones((outputs, 1)), inputs)


@functools.lru_cache(maxsize=1024)
def bilinear_taps(inputs: int, outputs: int, align_corners: bool) -> Taps:
    """Taps of linear interpolation along one axis."""
    positions = np.maximum(_positions(inputs, outputs, align_corners), 0)
    low = np.minimum(np.floor(positions).astype(int), inputs - 1)
    high = np.minimum(low + 1, inputs - 1)
    fraction = positions - low
    return Taps.of(np.stack([low, high], 1), np.stack([1 - fraction, fraction], 1), inputs)


@functools.lru_cache(maxsize=1024)
def bicubic_taps(inputs: int, outputs: int, align_corners: bool) -> Taps:
    """Taps of cubic convolution along one axis, with a = -0.75 and edge padding."""
    positions = _positions(inputs, outputs, align_corners)
    low = np.floor(positions).astype(int)
    distance = np.abs((positions - low)[:, None] - np.arange(-1, 3))
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return Taps.of(np.clip(low[:, None] + np.arange(-1, 3), 0, inputs - 1), weights, inputs)


def _positions(inputs: int, outputs: int, align_corners: bool) -> np.ndarray:
    """The positions of the outputs' centres in input pixels."""
    rows = np.arange(outputs, dtype=np.float64)
    if align_corners:
        return rows * ((inputs - 1) / max(outputs - 1, 1))
    return (rows + 0.5) * (inputs / outputs) - 0.5
