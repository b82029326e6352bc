"""Windows of arrays, and the operations that treat every position separately.

Rows and columns are the two spatial axes, `k` 0 and 1. A rule maps a window of an operation's result to the windows of
its inputs that it reads, along one spatial axis, and computes the result from these windows. Windows may extend beyond
the array: what is there is never used, and operations that pad their input are given the padding's value instead.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.inspect.flat import Node, Step, compact


class Window(NamedTuple):
    """A part of an array along one spatial axis, for each tile.

    Attributes:
        start: first position by tile.
        length: number of positions.
        used: whether the tile needs it at all.
    """

    start: np.ndarray
    length: int
    used: np.ndarray


class NotLocal(Exception):
    """An operation that mixes distant positions, or for which there is no rule."""


Axes = tuple[int, int]
Tables = dict[str, np.ndarray]
"""Numbers that an operation reads for each tile, as arrays whose first axis is the tile."""


class Rule:
    """Operations whose result at a position depends on that position only, but whose axes may be in another order."""

    def axes(self, step: Step) -> list[Axes]:
        """The spatial axes of each output."""
        raise NotImplementedError

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        """The window of each input; None for an input that is read whole.

        `exact` means that the lengths need not be the same for images of other sizes.
        """
        return [None if node.axes is None else out for node in step.inputs]

    def fill(self, step: Step, k: int) -> Any:
        """The value of positions outside of the input, if the operation reads them; None if it does not."""
        return None

    def reads_stored(self, step: Step, k: int) -> bool:
        """Whether the operation takes all that is stored of its input, and not only the window that it needs."""
        return False

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        """The numbers for each tile. `inputs` are the windows of the inputs as they are stored."""
        return {}

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        """The outputs, for inputs that were cut to their windows, and the lengths of the result's windows."""
        return bind(step, arrays)


def bind(step: Step, arrays: Sequence[Any], **changed: Any) -> list[Any]:
    """Computes a step with other parameters."""
    parameters = step.equation.params
    changed |= {name: None for name in ("sharding", "out_sharding") if name in parameters}
    results = step.equation.primitive.bind(*arrays, **{**parameters, **changed})
    return list(results) if step.equation.primitive.multiple_results else [results]


def common(step: Step) -> Axes:
    """The axes that all image-dependent inputs of an operation have in common."""
    axes = {node.axes for node in step.inputs if node.axes is not None}
    if len(axes) != 1:
        raise NotLocal
    return axes.pop()


def axes_of(node: Node) -> Axes:
    """The spatial axes of an array that depends on the image."""
    assert node.axes is not None
    return node.axes


def positions(window: Window, size: int) -> np.ndarray:
    """The positions of each tile's window; those outside of the array are the nearest within."""
    return np.clip(window.start[:, None] + np.arange(window.length), 0, size - 1)


def windowed(node: Node, lengths: Axes) -> tuple[int, ...]:
    """The shape of a window of an array."""
    shape = list(node.shape)
    for axis, length in zip(axes_of(node), lengths, strict=True):
        shape[axis] = length
    return tuple(shape)


def along(x: Any, axis: int, rank: int) -> Any:
    """A vector as an array of more axes."""
    return jnp.expand_dims(x, [other for other in range(rank) if other != axis])


def cut(x: Any, axis: int, start: Any, length: int) -> Any:
    """A part of known length; all of it if there is no more."""
    return x if x.shape[axis] == length else jax.lax.dynamic_slice_in_dim(x, start, length, axis)


class Aligned(Rule):
    """Elementwise operations, and concatenations along other axes."""

    def axes(self, step: Step) -> list[Axes]:
        axes = common(step)
        for node in step.inputs:
            if node.axes is None and node.shape and node.known is None:
                raise NotLocal
            if node.axes is None and node.shape and min(compact(node.known).shape[a] > 1 for a in axes):
                raise NotLocal  # weights that depend on row and column
        return [axes] * len(step.outputs)

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        tables = {}
        for number, node in enumerate(step.inputs):
            if node.axes is None and node.shape:
                axis = common(step)[k]
                small = compact(node.known)
                if small.shape[axis] > 1:
                    tables[f"{number}"] = np.stack(
                        [small.take(places, axis) for places in positions(out, small.shape[axis])]
                    )
        return tables

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        axes = common(step)
        for number, node in enumerate(step.inputs):
            if node.axes is None and node.shape:
                given = [table[f"{number}"] for table in tables if f"{number}" in table]
                small = given[0] if given else jnp.asarray(compact(node.known))
                shape = list(node.shape)
                for axis, length in zip(axes, lengths, strict=True):
                    shape[axis] = length
                arrays[number] = jnp.broadcast_to(small, shape)
        return bind(step, arrays)


class Concatenate(Aligned):
    """Along a spatial axis, such as repeated edges, every tile selects from its parts."""

    def axes(self, step: Step) -> list[Axes]:
        if step.equation.params["dimension"] in common(step) and any(node.axes is None for node in step.inputs):
            raise NotLocal
        return super().axes(step)

    def _ends(self, step: Step, k: int) -> np.ndarray | None:
        axis = step.equation.params["dimension"]
        return np.cumsum([node.shape[axis] for node in step.inputs]) if common(step)[k] == axis else None

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        if (ends := self._ends(step, k)) is None:
            return super().need(step, k, out, exact)
        windows: list[Window | None] = []
        for node, end in zip(step.inputs, ends, strict=True):
            size = node.shape[common(step)[k]]
            start = out.start - (end - size)
            used = out.used & (start < size) & (start + out.length > 0)
            windows.append(Window(np.where(used, start, 0), out.length, used))
        return windows

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        if (ends := self._ends(step, k)) is None:
            return super().tables(step, k, out, inputs)
        return {"ends": (ends - out.start[:, None]).astype(np.int32)}

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        for k in (0, 1):
            if self._ends(step, k) is not None:
                axis, result = step.equation.params["dimension"], arrays[-1]
                places = along(jnp.arange(lengths[k], dtype=jnp.int32), axis, result.ndim)
                for number in reversed(range(len(arrays) - 1)):
                    result = jnp.where(places < tables[k]["ends"][number], arrays[number], result)
                return [result]
        return super().run(step, arrays, lengths, tables)


class Transpose(Rule):
    """A transposition."""

    def axes(self, step: Step) -> list[Axes]:
        rows, columns = (step.equation.params["permutation"].index(axis) for axis in common(step))
        return [(rows, columns)]


class Stack(Aligned):
    """Along a new axis."""

    def axes(self, step: Step) -> list[Axes]:
        new = step.equation.params["axis"]
        rows, columns = (axis + (axis >= new) for axis in super().axes(step)[0])
        return [(rows, columns)]


class Broadcast(Rule):
    """New axes, or a row or column that is repeated."""

    def axes(self, step: Step) -> list[Axes]:
        rows, columns = (step.equation.params["broadcast_dimensions"][axis] for axis in common(step))
        return [(rows, columns)]

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        size, wide = step.inputs[0].shape[common(step)[k]], step.outputs[0].shape[axes_of(step.outputs[0])[k]]
        return [Window(np.zeros_like(out.start), 1, out.used) if size < wide else out]

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        return bind(step, arrays, shape=windowed(step.outputs[0], lengths))


class Reduce(Rule):
    """Sums, maxima and the like over axes that are not spatial."""

    def axes(self, step: Step) -> list[Axes]:
        removed = step.equation.params["axes"]
        if set(removed) & set(common(step)):
            raise NotLocal
        rows, columns = (axis - sum(other < axis for other in removed) for axis in common(step))
        return [(rows, columns)] * len(step.outputs)


class Along(Rule):
    """Operations along one axis that is not spatial, such as a split or a cumulative sum."""

    def axes(self, step: Step) -> list[Axes]:
        parameters, axes = step.equation.params, common(step)
        along = parameters["dimensions"] if "dimensions" in parameters else [parameters["axis"]]
        if set(along) & set(axes):
            raise NotLocal
        return [axes] * len(step.outputs)


class Dot(Rule):
    """Matrix products and the like over axes that are not spatial."""

    def axes(self, step: Step) -> list[Axes]:
        contracted, batched = step.equation.params["dimension_numbers"]
        found: set[Axes] = set()
        ranks = [len(node.shape) for node in step.inputs]
        free = [[a for a in range(ranks[s]) if a not in (*contracted[s], *batched[s])] for s in (0, 1)]
        for side, node in enumerate(step.inputs):
            if node.axes is None:
                continue
            if set(node.axes) & set(contracted[side]):
                raise NotLocal
            rows, columns = (
                batched[side].index(axis)
                if axis in batched[side]
                else len(batched[0]) + (len(free[0]) if side else 0) + free[side].index(axis)
                for axis in node.axes
            )
            found.add((rows, columns))
        if len(found) != 1:
            raise NotLocal
        (axes,) = found
        if any(axis < len(batched[0]) for axis in axes) and any(node.axes is None for node in step.inputs):
            raise NotLocal
        return [axes]
