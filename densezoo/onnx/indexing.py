"""Reading and writing at computed positions, and sorting."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from densezoo.onnx.elementwise import select
from densezoo.onnx.graph import Graph, Tensor, known
from densezoo.onnx.shapes import counted, scalar, sliced
from densezoo.types import Side

_INSIDE = (jax.lax.GatherScatterMode.CLIP, jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS)
"""Modes for which positions outside are moved to the border, as XLA does; onnxruntime reports an error."""


def gather(graph: Graph, equation: Any, x: Tensor, indices: Tensor) -> Tensor:
    """Reads blocks of an array at positions."""
    out, p = equation.outvars[0].aval, equation.params
    numbers, sizes, mode = p["dimension_numbers"], p["slice_sizes"], p["mode"]
    indexed, batch = numbers.start_index_map, numbers.operand_batching_dims
    if indexed == numbers.collapsed_slice_dims and len(indexed) == 1 and not batch:
        axis = indexed[0]
        if all(size == n or i == axis for i, (size, n) in enumerate(zip(sizes, x.shape, strict=True))):
            return _take(graph, x, indices, axis, out, numbers, mode, p["fill_value"])
    rest = [axis for axis in range(len(x.shape)) if axis not in (*indexed, *batch)]
    ends = [sizes[axis] if axis in rest else side for axis, side in enumerate(x.shape)]
    part = jax.ShapeDtypeStruct(tuple(ends), x.dtype)
    x = sliced(graph, x, [0] * len(ends), ends, [1] * len(ends), part)
    windows = [axis for axis in indexed if axis not in numbers.collapsed_slice_dims]
    room = [(x.shape[axis], sizes[axis]) for axis in indexed]
    starts, inside = _starts(graph, indices, room)
    taken = [axis for axis in range(len(indices.shape) - 1) if axis not in numbers.start_indices_batching_dims]
    places = (*numbers.start_indices_batching_dims, *taken)
    positions = _positions(graph, starts, places, [sizes[axis] if axis in windows else 0 for axis in indexed], indices)
    name = graph.add("GatherND", graph.read(x, (*batch, *indexed, *rest)), positions, batch_dims=len(batch))
    # The axes of the result: those of the positions, the windows, the rest.
    free = [axis for axis in range(len(out.shape)) if axis not in numbers.offset_dims]
    blocks = [axis for axis in range(len(x.shape)) if axis not in (*numbers.collapsed_slice_dims, *batch)]
    offset = dict(zip(blocks, numbers.offset_dims, strict=True))
    order = (*(free[axis] for axis in places), *(offset[axis] for axis in (*windows, *rest)))
    if inside is not None and mode not in _INSIDE:
        sides = [indices.shape[axis] for axis in places] + [1] * (len(order) - len(places))
        inside = graph.reshape(graph.read(inside, places), sides)
        name = select(graph, inside, (_fill(graph, out.dtype, p["fill_value"]), name), x.dtype)
    return graph.tensor(name, out, order)


def _take(graph: Graph, x: Tensor, indices: Tensor, axis: int, out: Any, numbers: Any, mode: Any, fill: Any) -> Tensor:
    """Reads at positions along one axis."""
    starts, inside = _starts(graph, indices, [(x.shape[axis], 1)])
    name = graph.add("Gather", graph.read(x, x.order), graph.read(starts[0]), axis=x.order.index(axis))
    free = [i for i in range(len(out.shape)) if i not in numbers.offset_dims]
    others = [i for i in range(len(x.shape)) if i != axis]
    offset = dict(zip(others, numbers.offset_dims, strict=True))
    order = [place for i in x.order for place in (free if i == axis else [offset[i]])]
    if inside is not None and mode not in _INSIDE:
        sides = [out.shape[place] if place in free else 1 for place in order]
        which = graph.reshape(graph.read(inside), sides)
        name = select(graph, which, (_fill(graph, out.dtype, fill), name), x.dtype)
    return graph.tensor(name, out, tuple(order))


def _starts(graph: Graph, indices: Tensor, room: Sequence[tuple[Side, int]]) -> tuple[list[Tensor], Tensor | None]:
    """The parts of the last axis, moved inside, and which positions were inside; None if all of them.

    `room` has the side of each indexed axis, and that of the blocks along it.
    """
    shape = indices.shape[:-1]
    if indices.known is not None and all(isinstance(side, int) for side, _ in room):
        parts = [indices.known[..., i] for i in range(len(room))]
        if all(((part >= 0) & (part <= side - size)).all() for part, (side, size) in zip(parts, room, strict=True)):
            return [known(part.astype(np.int64)) for part in parts], None
    whole = graph.cast(graph.read(indices), np.int64)
    parts = [graph.add("Gather", whole, np.asarray(i), axis=len(shape)) for i in range(len(room))]
    make = lambda name, dtype: Tensor(shape, np.dtype(dtype), name, None, tuple(range(len(shape))))  # noqa: E731
    ends = [
        np.asarray(side - size) if isinstance(side, int) else graph.add("Sub", scalar(graph, side), np.asarray(size))
        for side, size in room
    ]
    clipped = [
        graph.add("Min", graph.add("Max", part, np.asarray(0)), end) for part, end in zip(parts, ends, strict=True)
    ]
    inside = ""
    for part, end in zip(clipped, parts, strict=True):
        same = graph.add("Equal", part, end)
        inside = graph.add("And", inside, same) if inside else same
    return [make(part, np.int64) for part in clipped], make(inside, np.bool_)


def _positions(graph: Graph, starts: list[Tensor], places: Any, windows: Sequence[int], indices: Tensor) -> str:
    """The positions of all elements of the blocks; `windows` are the blocks' sides, 0 for those without an axis."""
    sides, count = [indices.shape[axis] for axis in places], sum(size > 0 for size in windows)
    parts, number = [], 0
    whole = [*sides, *(size for size in windows if size)]
    for start, size in zip(starts, windows, strict=True):
        name = graph.read(start, places)
        if count:
            name = graph.reshape(name, [*sides, *[1] * count])
        if size:
            steps = np.arange(size).reshape([-1 if i == number else 1 for i in range(count)])
            name, number = graph.add("Add", name, steps), number + 1
        if count:
            name = graph.add("Expand", name, graph.sizes(whole))
        parts.append(graph.add("Unsqueeze", name, np.asarray([-1])))
    return graph.add("Concat", *parts, axis=-1) if len(parts) > 1 else parts[0]


def _fill(graph: Graph, dtype: Any, value: Any) -> str:
    """JAX's value for what is read outside."""
    if value is None:
        kind = np.dtype(dtype).kind
        value = np.nan if kind == "f" else True if kind == "b" else np.iinfo(dtype).min if kind == "i" else -1
    return graph.constant(np.asarray(value).astype(dtype))


def scatter(graph: Graph, equation: Any, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """Writes or adds blocks at positions; those outside are dropped."""
    out, p = equation.outvars[0].aval, equation.params
    numbers, mode = p["dimension_numbers"], p["mode"]
    indexed, batch = numbers.scatter_dims_to_operand_dims, numbers.operand_batching_dims
    rest = [axis for axis in range(len(x.shape)) if axis not in (*indexed, *batch)]
    blocks = [axis for axis in range(len(x.shape)) if axis not in (*numbers.inserted_window_dims, *batch)]
    of_block = dict(zip(blocks, numbers.update_window_dims, strict=True))
    windows = [axis for axis in indexed if axis in of_block]
    side = {axis: updates.shape[of_block[axis]] for axis in blocks}
    if any(side[axis] != x.shape[axis] for axis in rest):
        raise NotImplementedError("ONNX cannot write to a part of an axis")
    room = [(x.shape[axis], side.get(axis, 1)) for axis in indexed]
    starts, inside = _starts(graph, indices, room)
    taken = [axis for axis in range(len(indices.shape) - 1) if axis not in numbers.scatter_indices_batching_dims]
    places = (*numbers.scatter_indices_batching_dims, *taken)
    drop = inside is not None and mode not in _INSIDE
    order = (*batch, *indexed, *rest)
    source = graph.read(x, order)
    if drop:  # one more row takes what is dropped
        assert inside is not None
        if windows:
            raise NotImplementedError("ONNX cannot drop blocks that are outside")
        pads = np.zeros((2, len(order)), np.int64)
        pads[1, len(batch)] = 1
        source = graph.add("Pad", source, pads.reshape(-1), np.zeros((), x.dtype))
        first = graph.add("Where", graph.read(inside), graph.read(starts[0]), scalar(graph, x.shape[indexed[0]]))
        starts[0] = Tensor(starts[0].shape, starts[0].dtype, first, None, tuple(range(len(starts[0].shape))))
    rows = []
    for number, axis in enumerate(numbers.scatter_indices_batching_dims):
        sides = [n if i == axis else 1 for i, n in enumerate(indices.shape[:-1])]
        row = graph.reshape(counted(graph, x.shape[batch[number]]), sides)
        others = frozenset(range(len(sides))) - {axis}
        rows.append(Tensor(indices.shape[:-1], np.dtype(np.int64), row, None, tuple(range(len(sides))), others))
    sizes = [0] * len(rows) + [side.get(axis, 0) for axis in indexed]
    positions = _positions(graph, [*rows, *starts], places, sizes, indices)
    free = [axis for axis in range(len(updates.shape)) if axis not in numbers.update_window_dims]
    given = graph.read(updates, (*(free[axis] for axis in places), *(of_block[axis] for axis in (*windows, *rest))))
    reduction = {"scatter": "none", "scatter-add": "add"}[equation.primitive.name.replace("_", "-")]
    name = graph.add("ScatterND", source, positions, given, reduction=reduction)
    if drop:
        axis, end = np.asarray([len(batch)]), graph.sizes([x.shape[indexed[0]]])
        name = graph.add("Slice", name, np.asarray([0]), end, axis)
    return graph.tensor(name, out, order)


def dynamic_slice(graph: Graph, equation: Any, x: Tensor, *starts: Tensor) -> Tensor:
    """A block at a computed position."""
    sizes = equation.params["slice_sizes"]
    cut = [axis for axis, (size, n) in enumerate(zip(sizes, x.shape, strict=True)) if size != n]
    if not cut:
        return x
    begins = []
    for axis in cut:
        begin = graph.cast(graph.read(starts[axis]), np.int64)
        begin = graph.add("Min", graph.add("Max", begin, np.asarray(0)), np.asarray(x.shape[axis] - sizes[axis]))
        begins.append(graph.add("Unsqueeze", begin, np.asarray([0])))
    begin = graph.add("Concat", *begins, axis=0)
    end = graph.add("Add", begin, np.asarray([sizes[axis] for axis in cut]))
    axes = np.asarray([x.order.index(axis) for axis in cut])
    return graph.tensor(graph.add("Slice", graph.read(x, x.order), begin, end, axes), equation.outvars[0].aval, x.order)


def sort(graph: Graph, equation: Any, *given: Tensor) -> list[Tensor]:
    """Sorts arrays by the first of them; ties keep their order."""
    axis = equation.params["dimension"]
    if not isinstance(given[0].shape[axis], int):
        raise NotImplementedError("ONNX cannot sort along the images")
    names = [graph.read(x) for x in given]
    for number in reversed(range(equation.params["num_keys"])):
        keys = graph.cast(names[number], np.int32) if given[number].dtype == np.bool_ else names[number]
        count = np.asarray([given[0].shape[axis]])
        _, places = graph.add("TopK", keys, count, outputs=2, axis=axis, largest=0, sorted=1)
        names = [graph.add("GatherElements", name, places, axis=axis) for name in names]
    return [graph.tensor(name, variable.aval) for name, variable in zip(names, equation.outvars, strict=True)]


def top_k(graph: Graph, equation: Any, x: Tensor) -> list[Tensor]:
    """The largest values along an axis and their positions; ties in order."""
    axis = equation.params.get("axis", -1) % len(x.shape)
    values, places = graph.add(
        "TopK", graph.read(x), np.asarray([equation.params["k"]]), outputs=2, axis=axis, largest=1, sorted=1
    )
    first, second = (variable.aval for variable in equation.outvars)
    return [graph.tensor(values, first), graph.tensor(graph.cast(places, second.dtype), second)]


RULES: dict[str, Callable[..., Any]] = {
    "dynamic_slice": dynamic_slice,
    "gather": gather,
    "scatter": scatter,
    "scatter-add": scatter,
    "sort": sort,
    "top_k": top_k,
}
