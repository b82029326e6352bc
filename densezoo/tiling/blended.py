"""Overlapping tiles, blended with Gaussian weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from densezoo.compiling import Jitted
from densezoo.messages import option
from densezoo.tiling.tiles import GRID
from densezoo.tiling.turns import Turn, averaged
from densezoo.types import Size

STEP = 0.5
"""Distance of tiles, in tiles."""
SIGMA = 1 / 8
"""Standard deviation of the weights, in tiles."""


def blended(
    outputs: Any, size: Size, max_pixels: int, ways: Sequence[Turn], activate: Any
) -> Callable[[Any], Iterator[tuple[int, int, np.ndarray]]]:
    """A function that computes bands of pictures of a size: weighted means of tiles, each computed like a picture.

    Tiles are half a tile apart or less, the first and the last at the borders. Weights fall with the distance from a
    tile's centre. The sums of one row of tiles are kept.

    Raises:
        ValueError: if `max_pixels` is too small.

    References:
        Isensee et al., nnU-Net, 2021. https://arxiv.org/abs/1904.08128
    """
    tile = _tile(size, max_pixels)
    rows, columns = (_places(side, length) for side, length in zip(size, tile, strict=True))
    program = Jitted(lambda images: activate(outputs(images)))
    weights = np.outer(*(_gaussian(side) for side in tile)).astype(np.float32)

    def bands(picture: Any) -> Iterator[tuple[int, int, np.ndarray]]:
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

    return bands


def _tile(size: Size, max_pixels: int) -> Size:
    """A tile of at most `max_pixels` pixels; its sides are those of the picture or multiples of 32."""
    smallest = min(size[0], GRID) * min(size[1], GRID)
    if max_pixels < smallest:
        raise ValueError(f"{option('max_pixels', max_pixels)} is too small for a tile: it must be at least {smallest}")
    side = max(GRID, math.isqrt(max_pixels) // GRID * GRID)
    height = min(size[0], side)
    width = min(size[1], max(GRID, max_pixels // height // GRID * GRID))
    return min(size[0], max(GRID, max_pixels // width // GRID * GRID)), width


def _places(side: int, length: int) -> list[int]:
    """First positions of tiles that cover an axis."""
    steps = math.ceil((side - length) / (length * STEP))
    return [round((side - length) * step / max(1, steps)) for step in range(steps + 1)]


def _gaussian(length: int) -> np.ndarray:
    distances = (np.arange(length) - (length - 1) / 2) / (length * SIGMA)
    return np.maximum(np.exp(-(distances**2) / 2), 1e-4)
