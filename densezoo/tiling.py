"""Prediction for pictures that are too large for one pass: by tiles, exactly or blended."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo import metrics
from densezoo.blending import blended
from densezoo.compiling import Jitted
from densezoo.dihedral import Part, Turn, averaged, mean, turns
from densezoo.inference import compile
from densezoo.inspect.flat import Flat
from densezoo.inspect.windows import GlobalOperations, Plan, traced
from densezoo.messages import option, shortened
from densezoo.preprocessing import Preprocessing
from densezoo.types import Size

GRID = 32
"""Sides of tiles are multiples of this, because most models reduce images by this factor."""

Reduction = str | Callable[[jax.Array], jax.Array]


def predict_tiled(
    model: nn.Module,
    variables: Any,
    image: Any,
    *,
    max_pixels: int = 1 << 21,
    reduce: Reduction = "logits",
    out: Any = None,
    augment: bool | Sequence[tuple[int, bool]] = False,
    blend: bool = False,
    preprocessing: Preprocessing | None = None,
) -> Any:
    """Computes a model's output for a picture of any size by tiles, with the numbers of a single pass.

    Each tile is computed from its part of the picture plus a margin, which is as wide as the receptive field. Zero
    padding happens at the borders of the picture only, and resizes read the positions that they read in the whole
    picture. So the result equals that of `model.apply` up to rounding, for every height and width. All tiles share one
    compiled program. Memory depends on `max_pixels` and not on the size of the picture.

    The margins are computed again for each tile. With a receptive field of r pixels and tiles of t pixels, the cost is
    about (1 + r / t)**2 times that of a single pass, so `max_pixels` should be as large as memory allows.

    Exact tiles need a model that reads a limited neighbourhood. Global pooling, attention, squeeze-and-excitation, and
    group and instance norms read the whole picture. For a model that has them, `blend=True` computes overlapping tiles
    as if they were pictures, half a tile apart, and blends their outputs with Gaussian weights, as nnU-Net does. This
    is an approximation.

    Args:
        model: a model that maps images (b, h, w, c) to maps of the same height and width.
        variables: the model's variables.
        image: (height, width, channels), normalised for the model. An array, or anything with `shape` that returns
            arrays for slices, such as `np.memmap`.
        max_pixels: limit of the number of pixels that are computed at once, margin included. A picture with fewer is
            computed in one pass.
        reduce: what is kept of the logits: "logits" (everything), "probabilities" (softmax, or sigmoid for one
            channel) or "classes" (the most likely class of each pixel, int32). Or a function of logits (1, h, w, k)
            that treats every pixel separately.
        out: where the result is written, by `out[rows, columns] = tile`, such as an `np.memmap`. None for a new array.
        augment: averages the probabilities of the turned and mirrored picture: True for all eight ways. Or a sequence
            of (quarter turns, mirrored), such as `((0, False), (0, True))`. For "probabilities", "classes", and
            functions that return floats, whose results are averaged.
        blend: whether to blend overlapping tiles if the model has global operations.
        preprocessing: prepares and normalises the pixels of each tile, if `image` has the values of a file.

    Returns:
        `out`, or an array: (height, width, k), or (height, width) for "classes".

    Raises:
        ValueError: if `max_pixels` is less than the receptive field needs; if the model has global operations, which
            are named; or if shapes or options are invalid.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=3)
        >>> image = np.random.default_rng(0).random((150, 201, 3), np.float32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> logits = predict_tiled(model, variables, image, max_pixels=10_000)
        >>> bool(np.allclose(logits, model.apply(variables, image[None])[0], atol=1e-5))
        True
        >>> predict_tiled(model, variables, image, max_pixels=10_000, reduce="classes").shape
        (150, 201)

    References:
        Isensee et al., nnU-Net, 2021 (for `blend`). https://arxiv.org/abs/1904.08128
    """
    size = _checked(image, max_pixels)
    infer, normalize = compile(model, variables), None if preprocessing is None else preprocessing.normalize()

    def outputs(images: jax.Array) -> jax.Array:
        if normalize is not None:
            images = normalize(None, {"image": images})["image"]  # which needs no key
        return infer.run(images)

    picture, ways = Picture(image, preprocessing), turns(augment)
    on_device, on_host = _stages(reduce, len(ways) > 1)
    try:
        if math.prod(size) <= max_pixels:
            tiles = whole(outputs, picture, ways, on_device)
        else:
            tiles = exactly(outputs, picture, max_pixels, ways, on_device)
    except GlobalOperations as error:
        if not blend:
            raise ValueError(
                f"{type(model).__name__} cannot be computed exactly by tiles, because parts of it read the whole image:"
                f" {shortened(error.names, ', ')}. {option('blend', True)} blends overlapping tiles, which is an"
                f" approximation; {option('max_pixels')} of at least {math.prod(size)} computes the image in one pass"
            ) from error
        on_device, on_host = _stages(reduce, True)
        tiles = blended(outputs, picture, max_pixels, ways, on_device)
    for row, column, tile in tiles:
        tile = on_host(tile)
        if out is None:
            out = np.empty((*size, *tile.shape[2:]), tile.dtype)
        out[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
    return out


def _checked(image: Any, max_pixels: int) -> Size:
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"expected one image of shape (height, width, channels), got shape {shape}")
    if max_pixels < 1:
        raise ValueError(f"{option('max_pixels')} must be at least 1, got {max_pixels}")
    return shape[0], shape[1]


def _stages(
    reduce: Reduction, apart: bool
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[np.ndarray], np.ndarray]]:
    """What the program computes from logits, and what is computed from (the average of) its results."""
    if callable(reduce):
        return reduce, lambda tile: tile
    if reduce == "logits":
        return lambda logits: logits, lambda tile: tile
    if reduce == "probabilities" or (reduce == "classes" and apart):
        return _probabilities, _classes if reduce == "classes" else lambda tile: tile
    if reduce == "classes":
        return metrics.predict, lambda tile: tile
    raise ValueError(f'{option("reduce")} must be "logits", "probabilities", "classes" or a function; got {reduce!r}')


def _probabilities(logits: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def _classes(probabilities: np.ndarray) -> np.ndarray:
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= 0.5).astype(np.int32)
    return probabilities.argmax(-1).astype(np.int32)


class Picture:
    """Reads parts of a picture, with zeros around it."""

    def __init__(self, image: Any, preprocessing: Preprocessing | None = None):
        self._image, self._preprocessing = image, preprocessing
        self.size: Size = tuple(image.shape[:2])
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
                pixels = self._preprocessing.prepare(pixels)
            elif pixels.dtype.kind != "f":
                raise TypeError(
                    f"expected a normalised image of floats, got {pixels.dtype}: pass preprocessing=dz.Preprocessing(),"
                    " with the model's mean and std"
                )
            found[above:below, left_:right] = pixels
        return found


Tiles = Iterator[tuple[int, int, np.ndarray]]
"""First row, first column and values of parts that cover the picture."""


def whole(outputs: Any, picture: Picture, ways: Sequence[Turn], activate: Any) -> Tiles:
    """The picture in one pass."""
    program = Jitted(lambda images: activate(outputs(images)))
    image = picture.part((0, 0, *picture.size))
    yield 0, 0, averaged(program, image, ways)


def exactly(outputs: Any, picture: Picture, max_pixels: int, ways: Sequence[Turn], activate: Any) -> Tiles:
    """Tiles of the picture, with the values of one pass.

    Raises:
        GlobalOperations: if the model has operations that read the whole image.
        ValueError: if `max_pixels` is too small.
    """
    size = picture.size
    orientations = {way.quarters % 2: way for way in ways}  # upright and lying
    flats = {odd: traced(outputs, (1, *way.size(size), picture.channels)) for odd, way in orientations.items()}
    sides = tile_size(flats, size, ways, max_pixels)
    plans = {
        odd: _Places(flat, [way for way in ways if way.quarters % 2 == odd], size, sides) for odd, flat in flats.items()
    }
    programs = {
        odd: Jitted(lambda image, numbers, plan=places.plan: activate(plan.run(image, numbers)))
        for odd, places in plans.items()
    }

    def start(row: int, column: int, way: Turn) -> Any:
        odd = way.quarters % 2
        source, numbers = plans[odd].tile((row, column, *sides), way)
        pixels = way(picture.part(way.source(source, size)))
        return programs[odd](np.ascontiguousarray(pixels)[None], numbers)

    def finished(row: int, column: int, results: Sequence[Any]) -> tuple[int, int, np.ndarray]:
        tile = mean([way.undo(np.asarray(result)[0]) for way, result in zip(ways, results, strict=True)])
        return row, column, tile[: size[0] - row, : size[1] - column]

    def tiles() -> Tiles:
        running = None
        for row in range(0, size[0], sides[0]):
            for column in range(0, size[1], sides[1]):
                # This tile is computed while the one before it is written.
                following = row, column, [start(row, column, way) for way in ways]
                if running is not None:
                    yield finished(*running)
                running = following
        if running is not None:
            yield finished(*running)

    return tiles()


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
