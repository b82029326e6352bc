"""One program for pictures of many sizes, with the numbers of a program for each size."""

import collections
import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from densezoo.compiling import Jitted
from densezoo.inspect.windows import GlobalOperations, Misfit, Plan, traced
from densezoo.tiling.tiles import Picture
from densezoo.types import Size

SIDES = (256, 512, 1024)
"""Sides of the squares into which pictures are put. Larger pictures are computed by tiles."""
TILE = 512
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


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a picture of a size is computed: a template's key, and for each tile its origin, source and numbers.

    Without tiles, no template fits the size.
    """

    key: Any
    tiles: tuple[tuple[Size, tuple[int, int, int, int], Any], ...]
    nbytes: int = 0


class Shared:
    """Computes pictures of all sizes with one program for each of a few sizes of windows.

    Args:
        outputs: images -> maps of the images' size.
        channels: of the images.
        programs: where programs are kept.

    Raises:
        GlobalOperations: if the model has operations that read the whole image.
    """

    def __init__(self, outputs: Callable[[jax.Array], jax.Array], channels: int, programs: Programs):
        self._outputs, self._channels, self._programs = outputs, channels, programs
        self._templates: dict[Any, Plan] = {}
        self._layouts: collections.OrderedDict[Size, _Layout] = collections.OrderedDict()
        self._kept = 0  # bytes
        self._lock, self._tracing = threading.Lock(), threading.Lock()
        traced(outputs, (1, SIDES[0], SIDES[0], channels))  # raises if that cannot be

    def __call__(self, name: str, finish: Callable[[Any], Any], picture: np.ndarray) -> np.ndarray:
        """The result of `finish(outputs(picture))`, where `finish` treats every pixel separately.

        Args:
            name: of `finish`; part of the programs' keys.
            finish: applied to maps.
            picture: (h, w, channels) float32.

        Raises:
            Misfit: if a picture of this size needs a program of its own.
        """
        size: Size = picture.shape[:2]
        layout = self._known(size)
        if not layout.tiles:
            raise Misfit
        plan = self._templates[layout.key]
        pixels, result = Picture(picture), None
        for (row, column), source, numbers in layout.tiles:
            tile = self._programs(
                (name, layout.key),
                lambda image, numbers: finish(plan.run(image, numbers)),
                pixels.part(source)[None],
                numbers,
            )
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
                    try:
                        layout = self._layout(size)
                    except Misfit:
                        layout = _Layout(None, ())
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

    def _layout(self, size: Size) -> _Layout:
        side = next((side for side in SIDES if max(size) <= side), None)
        try:
            if side not in self._templates:
                self._templates[side] = self._template(side)
            flat = self._traced(size)
        except GlobalOperations as error:  # in a picture of very few pixels, axes cannot be told apart
            raise Misfit from error
        template = self._templates[side]
        origins = [range(0, n, tile) for n, tile in zip(size, template.tile, strict=True)]
        plan = Plan(flat, (origins[0], origins[1]), template.tile, template=template)
        tiles = []
        for i, j in itertools.product(range(len(origins[0])), range(len(origins[1]))):
            (top, height), (left, width) = plan.source(0, i), plan.source(1, j)
            tiles.append(((origins[0][i], origins[1][j]), (top, left, height, width), plan.numbers(i, j)))
        return _Layout(side, tuple(tiles), sum(packed.nbytes for packed in plan.packed))

    def _template(self, side: int | None) -> Plan:
        if side is not None:
            return Plan(self._traced((side, side)), ([0], [0]), (side, side), shared=True)
        far = 8 * TILE
        origins = range(0, far, TILE)
        return Plan(self._traced((far, far)), (origins, origins), (TILE, TILE), shared=True)

    def _traced(self, size: Size) -> Any:
        return traced(self._outputs, (1, *size, self._channels))
