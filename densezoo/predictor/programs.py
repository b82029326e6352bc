"""A few programs for pictures of many sizes, with the numbers of a program for each size."""

import collections
import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from densezoo.compiling import Jitted
from densezoo.inspect import walk
from densezoo.inspect.corner import Corner
from densezoo.inspect.matching import GlobalOperations, Misfit, trace
from densezoo.inspect.windows import Plan, traced
from densezoo.tiling.tiles import Picture
from densezoo.types import Size

SIDES = (256, 512, 1024)
"""Sides of the squares into which pictures are put."""
TILE = 512
FLAX = (nn.BatchNorm, nn.Conv, nn.Dense, nn.Dropout)
"""Flax's modules that `dz.detect` leaves as they are beside padding."""
KEPT = 1 << 26
"""Bytes of numbers of picture sizes that are remembered: about 1,000 sizes of up to 1024 pixels a side."""
SIZES = 4096
"""Number of picture sizes that are remembered."""


class Programs:
    """A bounded number of compiled programs; the one that was not used for the longest time is dropped.

    Several threads may use it. A program is compiled by one of them, while others wait.

    Attributes:
        compiled: how many programs were compiled.
    """

    def __init__(self, limit: int | None):
        self._limit = limit
        self._lock = threading.Lock()
        self._programs: collections.OrderedDict[Any, _Program] = collections.OrderedDict()
        self.compiled = 0

    def __call__(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """Computes `function(*arguments)` with the program of this key."""
        with self._lock:
            program = self._programs.setdefault(key, _Program(function))
            self._programs.move_to_end(key)
            while self._limit is not None and len(self._programs) > self._limit:
                self._programs.popitem(last=False)
        if program.ready:
            return program.jitted(*arguments)
        with program.lock:  # others that need the same program wait for it
            result = program.jitted(*arguments)
            if not program.ready:
                program.ready = True
                with self._lock:
                    self.compiled += 1
        return result


class _Program:
    def __init__(self, function: Callable[..., Any]):
        self.jitted, self.lock, self.ready = Jitted(function), threading.Lock(), False


def window_of(size: Size) -> Size:
    """The window into which a picture is put: a square, or multiples of half the largest one for larger pictures."""
    if max(size) <= SIDES[-1]:
        side = next(side for side in SIDES if max(size) <= side)
        return side, side
    step = SIDES[-1] // 2
    return -(-size[0] // step) * step, -(-size[1] // step) * step


def is_alone_in_window(model: nn.Module, outputs: Callable[..., Any], count: int, channels: int) -> bool:
    """Whether a detector that is given the sizes of padded pictures has the same results as without the padding.

    So it is for networks of densezoo's modules without attention and aligned corners: see `dz.detect`.

    Args:
        model: the detector.
        outputs: its (images, sizes) -> any results.
        count: number of images.
        channels: of each image.
    """
    modules: list[nn.Module] = [model]

    def visit(module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        modules.append(module)
        return call(*args, **kwargs)

    images = [jax.ShapeDtypeStruct((1, SIDES[0], SIDES[0], channels), np.float32)] * count
    try:
        program = walk.traced(outputs, images, jax.ShapeDtypeStruct((1, 2), np.int32), visit=visit)
    except Exception:  # whatever a model for images of one size raises
        return False
    known = all(type(module).__module__.startswith("densezoo.") or isinstance(module, FLAX) for module in modules)
    aligned = any(getattr(module, "align_corners", False) for module in modules)
    return known and not aligned and not any("attend" in step.scopes for step in walk.walk(program))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a picture of a size is computed: in a window of a size, or for None by tiles of a larger picture.

    Each tile has its first row and column, its part of the picture, and its numbers. Without tiles, no program fits.
    """

    key: Size | None
    tiles: tuple[tuple[Size, tuple[int, int, int, int], Any], ...]
    nbytes: int = 0


class Shared:
    """Computes pictures of all sizes with one program for each of a few sizes of windows.

    A picture lies in the corner of a window. Larger pictures are computed by tiles if the network allows it.

    Args:
        function: images -> one map of the images' size.
        channels: of the images.
        programs: where programs are kept.
        name: of the function; part of the programs' keys.
    """

    def __init__(self, function: Callable[[jax.Array], Any], channels: int, programs: Programs, name: str):
        self._function, self._channels, self._programs, self._name = function, channels, programs, name
        self._templates: dict[Size | None, Corner | Plan | None] = {}
        self._layouts: collections.OrderedDict[Size, _Layout] = collections.OrderedDict()
        self._kept = 0  # bytes
        self._lock, self._tracing = threading.Lock(), threading.Lock()

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The function's result for a picture, (h, w, c) float32.

        Raises:
            Misfit: if a picture of this size needs a program of its own.
        """
        size: Size = picture.shape[:2]
        layout = self._known(size)
        if not layout.tiles:
            raise Misfit
        template = self._templates[layout.key]
        assert template is not None
        pixels, result = Picture(picture), None
        for (row, column), source, numbers in layout.tiles:
            tile = self._programs((self._name, layout.key), template.run, pixels.part(source)[None], numbers)
            tile = np.asarray(tile)[0]
            if result is None:
                result = np.empty((*size, *tile.shape[2:]), tile.dtype)
            part = result[row : row + tile.shape[0], column : column + tile.shape[1]]
            part[...] = tile[: part.shape[0], : part.shape[1]]
        assert result is not None
        return result

    def _known(self, size: Size) -> _Layout:
        """The layout of a size, traced if it is new. Sizes that are known do not wait for the tracing of others."""
        if (layout := self._stored(size)) is None:
            with self._tracing:
                if (layout := self._stored(size)) is None:  # no other thread traced it meanwhile
                    layout = self._layout(size)
                    with self._lock:
                        self._layouts[size] = layout
                        self._kept += layout.nbytes
                        while len(self._layouts) > 1 and (self._kept > KEPT or len(self._layouts) > SIZES):
                            self._kept -= self._layouts.popitem(last=False)[1].nbytes
        return layout

    def _stored(self, size: Size) -> _Layout | None:
        with self._lock:
            if size in self._layouts:
                self._layouts.move_to_end(size)
            return self._layouts.get(size)

    def sides(self) -> list[int]:
        """Sides of square pictures, one for each program."""
        squares = [side for side in SIDES if self._template((side, side)) is not None]
        return squares if self._template(None) is None else [*squares, SIDES[-1] + 1]

    def _layout(self, size: Size) -> _Layout:
        keys: list[Size | None] = [(side, side) for side in SIDES if max(size) <= side]
        flat = None
        for key in keys or [None, window_of(size)]:
            template = self._template(key)
            with contextlib.suppress(Misfit, GlobalOperations):  # axes of very few pixels cannot be told apart
                if isinstance(template, Plan):
                    return self._in_tiles(size, template)
                if template is not None and key is not None:
                    flat = flat or trace(self._function, (1, *size, self._channels))
                    numbers = template.numbers(flat)
                    return _Layout(key, (((0, 0), (0, 0, *key), numbers),), sum(x.nbytes for x in numbers.values()))
        return _Layout(None, ())

    def _template(self, key: Size | None) -> Corner | Plan | None:
        """The program of a window, or that of tiles for None; None if there can be none."""
        if key not in self._templates:
            try:
                self._templates[key] = self._tiled() if key is None else self._window(key)
            except Exception:  # no rule for an operation, or whatever a model for images of one size raises
                self._templates[key] = None
        return self._templates[key]

    def _window(self, window: Size) -> Corner:
        """The program of a window."""
        # Compared with smaller images whose sides are even after several halvings, or odd, rounded down or up.
        height, width = window[0] * 3 // 4, window[1] // 2
        sizes = [window, *((height + odd, width + odd) for odd in (0, -1, 1))]
        return Corner(*(trace(self._function, (1, *size, self._channels)) for size in sizes))

    def _tiled(self) -> Plan:
        """The program of tiles, those of a picture of which some are far from all borders."""
        far = 8 * TILE
        origins = range(0, far, TILE)
        flat = traced(self._function, (1, far, far, self._channels))
        return Plan(flat, (origins, origins), (TILE, TILE), shared=True)

    def _in_tiles(self, size: Size, template: Plan) -> _Layout:
        origins = [range(0, n, tile) for n, tile in zip(size, template.tile, strict=True)]
        flat = traced(self._function, (1, *size, self._channels))
        plan = Plan(flat, (origins[0], origins[1]), template.tile, template=template)
        tiles = []
        for i, j in itertools.product(range(len(origins[0])), range(len(origins[1]))):
            (top, height), (left, width) = plan.source(0, i), plan.source(1, j)
            tiles.append(((origins[0][i], origins[1][j]), (top, left, height, width), plan.numbers(i, j)))
        return _Layout(None, tuple(tiles), sum(packed.nbytes for packed in plan.packed))
