"""Overlapping tiles, blended with Gaussian weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from densezoo.compiling import Jitted
from densezoo.dihedral import Turn, averaged
from densezoo.types import Size

STEP = 0.5
"""Distance of tiles, in tiles."""
SIGMA = 1 / 8
"""Standard deviation of the weights, in tiles."""


def blended(
    outputs: Any, picture: Any, max_pixels: int, ways: Sequence[Turn], activate: Any
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Bands of the picture: the weighted means of tiles that were computed as if they were pictures.

    Tiles are half a tile apart or less, the first and the last at the borders. Weights fall with the distance from a
    tile's centre.

    References:
        Isensee et al., nnU-Net, 2021. https://arxiv.org/abs/1904.08128
    """
    size = picture.size
    tile = _tile(size, max_pixels)
    rows, columns = (_places(side, length) for side, length in zip(size, tile, strict=True))
    program = Jitted(lambda images: activate(outputs(images)))
    weights = np.outer(*(_gaussian(side) for side in tile)).astype(np.float32)
    sums, total = np.zeros(0, np.float32), np.zeros((tile[0], size[1]), np.float32)
    for row, following in zip(rows, [*rows[1:], size[0]], strict=True):
        for column in columns:
            result = averaged(program, picture.part((row, column, *tile)), ways, np.float32)
            factors = weights.reshape(*tile, *(1,) * (result.ndim - 2))
            if sums.ndim == 1:
                sums = np.zeros((*total.shape, *result.shape[2:]), np.float32)
            sums[:, column : column + tile[1]] += factors * result
            total[:, column : column + tile[1]] += weights
        # The rows that no further tile covers.
        done = following - row
        yield row, 0, sums[:done] / total[:done].reshape(done, size[1], *(1,) * (sums.ndim - 2))
        for array in (sums, total):
            array[: tile[0] - done] = array[done:].copy()
            array[tile[0] - done :] = 0


def _tile(size: Size, max_pixels: int, grid: int = 32) -> Size:
    """A tile of at most `max_pixels` pixels; its sides are those of the picture or multiples of 32."""
    side = max(grid, math.isqrt(max_pixels) // grid * grid)
    height = min(size[0], side)
    width = min(size[1], max(grid, max_pixels // height // grid * grid))
    return min(size[0], max(grid, max_pixels // width // grid * grid)), width


def _places(side: int, length: int) -> list[int]:
    """First positions of tiles that cover an axis."""
    steps = math.ceil((side - length) / (length * STEP))
    return [round((side - length) * step / max(1, steps)) for step in range(steps + 1)]


def _gaussian(length: int) -> np.ndarray:
    distances = (np.arange(length) - (length - 1) / 2) / (length * SIGMA)
    return np.maximum(np.exp(-(distances**2) / 2), 1e-4)
