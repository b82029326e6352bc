"""Tiles of a picture that are computed with the numbers of one pass."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.compiling import Jitted
from densezoo.inspect.flat import Flat
from densezoo.inspect.windows import Plan, traced
from densezoo.messages import option
from densezoo.preprocessing import Preprocessing
from densezoo.tiling.turns import Part, Turn, averaged, mean
from densezoo.types import Size

GRID = 32
"""Sides of tiles are multiples of this, because most models reduce images by this factor."""


class Picture:
    """Reads parts of a picture, with zeros around it."""

    def __init__(self, image: Any, preprocessing: Preprocessing | None = None):
        # JAX would compile a program for each part.
        self._image = np.asarray(image) if isinstance(image, jax.Array) else image
        self._preprocessing, self._warned = preprocessing, False
        self.size: Size = (image.shape[0], image.shape[1])
        self.channels = image.shape[2]

    def part(self, part: Part) -> np.ndarray:
        """A part as float32 (h, w, c)."""
        (top, left, *sides), found = part, np.zeros((*part[2:], self.channels), np.float32)
        begins = [max(0, -start) for start in (top, left)]
        ends = [min(side, n - start) for side, n, start in zip(sides, self.size, (top, left), strict=True)]
        if all(begin < end for begin, end in zip(begins, ends, strict=True)):
            (above, left_), (below, right) = begins, ends
            pixels = np.asarray(self._image[top + above : top + below, left + left_ : left + right])
            if self._preprocessing is not None:
                pixels = self._prepared(pixels, top + above, left + left_)
            elif not jnp.issubdtype(pixels.dtype, jnp.floating):
                raise TypeError(
                    f"expected a normalised image of floats, got {pixels.dtype}: pass preprocessing=dz.Preprocessing(),"
                    " with the model's mean and std"
                )
            found[above:below, left_:right] = pixels
        return found

    def _prepared(self, pixels: np.ndarray, row: int, column: int) -> np.ndarray:
        assert self._preprocessing is not None
        try:
            prepared = self._preprocessing.prepare(pixels, warn=False)
        except ValueError as error:
            rows, columns = (f"{start}:{start + n}" for start, n in zip((row, column), pixels.shape, strict=False))
            raise ValueError(f"rows {rows}, columns {columns}: {error}") from error
        if not self._warned and (text := self._preprocessing.doubt(pixels)):  # one warning for all tiles
            warnings.warn(text, stacklevel=2)
            self._warned = True
        return prepared


Tiles = Iterator[tuple[int, int, np.ndarray]]
"""First row, first column and values of parts that cover the picture."""


def whole(outputs: Any, ways: Sequence[Turn], activate: Any) -> Callable[[Picture], Tiles]:
    """A function that computes pictures in one pass."""
    program = Jitted(lambda images: activate(outputs(images)))

    def tiles(picture: Picture) -> Tiles:
        yield 0, 0, averaged(program, picture.part((0, 0, *picture.size)), ways)

    return tiles


def exactly(
    outputs: Any, shape: tuple[int, ...], max_pixels: int, ways: Sequence[Turn], activate: Any
) -> Callable[[Picture], Tiles]:
    """A function that computes pictures of a shape (h, w, channels) by tiles, with the values of one pass.

    Raises:
        GlobalOperations: if the model has operations that read the whole image.
        ValueError: if `max_pixels` is too small.
    """
    size = shape[0], shape[1]
    orientations = {way.quarters % 2: way for way in ways}  # upright and lying
    flats = {odd: traced(outputs, (1, *way.size(size), shape[2])) for odd, way in orientations.items()}
    sides = tile_size(flats, size, ways, max_pixels)
    plans = {
        odd: _Places(flat, [way for way in ways if way.quarters % 2 == odd], size, sides) for odd, flat in flats.items()
    }
    programs = {
        odd: Jitted(lambda image, numbers, plan=places.plan: activate(plan.run(image, numbers)))
        for odd, places in plans.items()
    }

    def start(picture: Picture, row: int, column: int, way: Turn) -> Any:
        odd = way.quarters % 2
        source, numbers = plans[odd].tile((row, column, *sides), way)
        pixels = way(picture.part(way.source(source, size)))
        return programs[odd](np.ascontiguousarray(pixels)[None], numbers)

    def finished(row: int, column: int, results: Sequence[Any]) -> tuple[int, int, np.ndarray]:
        tile = mean([way.undo(np.asarray(result)[0]) for way, result in zip(ways, results, strict=True)])
        return row, column, tile[: size[0] - row, : size[1] - column]

    def tiles(picture: Picture) -> Tiles:
        running = None
        for row in range(0, size[0], sides[0]):
            for column in range(0, size[1], sides[1]):
                # This tile is computed while the one before it is written.
                following = row, column, [start(picture, row, column, way) for way in ways]
                if running is not None:
                    yield finished(*running)
                running = following
        if running is not None:
            yield finished(*running)

    return tiles


class _Places:
    """A plan for the tiles of a picture in those ways of turning it that give the same orientation."""

    def __init__(self, flat: Flat, ways: Sequence[Turn], size: Size, sides: Size):
        self._size = size
        corners = [(row, column) for row in range(0, size[0], sides[0]) for column in (0,)]
        corners += [(0, column) for column in range(0, size[1], sides[1])]
        parts = [way.part((*corner, *sides), size) for way in ways for corner in corners]
        origins = [sorted({part[k] for part in parts}) for k in (0, 1)]
        self._numbers = [{origin: number for number, origin in enumerate(each)} for each in origins]
        self.plan = Plan(flat, (origins[0], origins[1]), (parts[0][2], parts[0][3]))

    def tile(self, part: Part, way: Turn) -> tuple[Part, Any]:
        """The part of the turned picture that a tile reads, and the numbers that its program reads."""
        row, column, *_ = way.part(part, self._size)
        numbers = self._numbers[0][row], self._numbers[1][column]
        (top, height), (left, width) = (self.plan.source(k, numbers[k]) for k in (0, 1))
        return (top, left, height, width), self.plan.numbers(*numbers)


def tile_size(flats: Mapping[int, Flat], size: Size, ways: Sequence[Turn], max_pixels: int) -> Size:
    """The tiles with the least overhead whose sources, margins included, have at most `max_pixels` pixels."""

    def sources(sides: Size) -> list[Size]:
        """Height and width of the tiles' sources, in the picture as it is."""
        found = []
        for odd, flat in flats.items():
            plan = _Places(flat, [way for way in ways if way.quarters % 2 == odd], size, sides).plan
            height, width = (plan.source(k, 0)[1] for k in (0, 1))
            found.append((width, height) if odd else (height, width))
        return found

    margins = [max(source[k] for source in sources((GRID, GRID))) - GRID for k in (0, 1)]
    smallest = math.prod(min(side, GRID + margin) for side, margin in zip(size, margins, strict=True))
    while smallest <= max_pixels:
        best = (0.0, size)
        for rows in range(1, 1 + -(-size[0] // GRID)):
            height = size[0] if rows == 1 else -(-size[0] // (rows * GRID)) * GRID
            source = size[0] if rows == 1 else height + margins[0]
            whole_rows = size[1] * source <= max_pixels
            width = size[1] if whole_rows else (max_pixels // source - margins[1]) // GRID * GRID
            if width > 0:
                across = width if whole_rows else width + margins[1]
                best = max(best, (height * width / (source * across), (height, width)))
        if best[0] == 0:
            break
        if max(map(math.prod, sources(best[1]))) <= max_pixels:
            return best[1]
        margins = [margin + GRID // 4 for margin in margins]
        smallest = math.prod(min(side, GRID + margin) for side, margin in zip(size, margins, strict=True))
    raise ValueError(
        f"{option('max_pixels', max_pixels)} is too small: a tile of {GRID}x{GRID} pixels depends on"
        f" {GRID + margins[0]}x{GRID + margins[1]}, so that {option('max_pixels')} must be at least {smallest}"
    )
