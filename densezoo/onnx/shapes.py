"""Operations that move elements: reshapes, slices, padding, concatenation."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from densezoo.onnx.graph import Graph, Tensor, common_order
from densezoo.types import Side


def transpose(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """Costs nothing: the array has the same ONNX tensor."""
    axes = equation.params["permutation"]
    order = tuple(axes.index(axis) for axis in x.order)
    return graph.tensor(_name(graph, x), equation.outvars[0].aval, order, [axes.index(axis) for axis in x.repeats])


def broadcast(graph: Graph, equation: Any, x: Tensor, *_: Tensor) -> Tensor:
    """Costs no more than axes of length 1."""
    out, places = equation.outvars[0].aval, equation.params["broadcast_dimensions"]
    new = [axis for axis in range(len(out.shape)) if axis not in places]
    order = [places[axis] for axis in x.order]
    ordered = order == sorted(order)
    order = sorted([*order, *new]) if ordered else [*order, *new]
    positions = np.asarray([order.index(axis) for axis in new], np.int64)
    name = _name(graph, x)
    name = graph.add("Unsqueeze", name, positions) if new else name
    grown = [place for axis, place in enumerate(places) if x.shape[axis] == 1 or axis in x.repeats]
    return graph.tensor(name, out, tuple(order), [axis for axis in (*new, *grown) if out.shape[axis] != 1])


def _name(graph: Graph, x: Tensor) -> str:
    return graph.read(x, x.order, full=False)


def reshape(graph: Graph, equation: Any, x: Tensor, *_: Tensor) -> Tensor:
    """Keeps the order of axes if every axis that is split or merged allows that."""
    out = equation.outvars[0].aval
    groups = _groups(x.shape, out.shape)
    order, position = [], 0
    while groups and position < len(x.order):
        group = next(new for old, new in groups if x.order[position] in old)
        old = next(old for old, new in groups if x.order[position] in old)
        if x.order[position : position + len(old)] != tuple(old):
            groups = None
            break
        order += group
        position += len(old)
    if not groups:
        return graph.tensor(graph.reshape(graph.read(x), out.shape), out)
    order += [axis for old, new in groups if not old for axis in new]
    name = graph.reshape(graph.read(x, x.order), [out.shape[axis] for axis in order])
    return graph.tensor(name, out, tuple(order))


def _groups(old: Sequence[Side], new: Sequence[Side]) -> list[tuple[list[int], list[int]]] | None:
    """The smallest runs of axes with the same number of elements before and after; None if that is unknown."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        axes, others = [i] if i < len(old) else [], [j] if j < len(new) else []
        before, after = old[i] if axes else 1, new[j] if others else 1
        if before != after and isinstance(before, int) and before == 1:
            others = []
        elif before != after and isinstance(after, int) and after == 1:
            axes = []
        else:
            while before != after:
                if not (isinstance(before, int) and isinstance(after, int)):
                    return None
                if before < after:
                    axes.append(axes[-1] + 1)
                    before *= old[axes[-1]]
                else:
                    others.append(others[-1] + 1)
                    after *= new[others[-1]]
        groups.append((axes, others))
        i, j = i + len(axes), j + len(others)
    return groups


def expand_dims(graph: Graph, x: Tensor, axis: int) -> Tensor:
    """An array with one more axis."""
    order = [a + (a >= axis) for a in x.order]
    place = axis if order == sorted(order) else 0
    order.insert(place, axis)
    name = graph.add("Unsqueeze", graph.read(x, x.order, full=False), np.asarray([place], np.int64))
    shape = (*x.shape[:axis], 1, *x.shape[axis:])
    return Tensor(shape, x.dtype, name, None, tuple(order), frozenset(a + (a >= axis) for a in x.repeats))


def squeeze(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """An array without some axes of length 1."""
    return _without(graph, x, equation.params["dimensions"], equation.outvars[0].aval)


def _without(graph: Graph, x: Tensor, axes: Sequence[int], out: Any) -> Tensor:
    left = [axis for axis in range(len(x.shape)) if axis not in axes]
    positions = np.asarray([x.order.index(axis) for axis in axes], np.int64)
    name = graph.add("Squeeze", _name(graph, x), positions) if len(axes) else _name(graph, x)
    order = tuple(left.index(axis) for axis in x.order if axis in left)
    return graph.tensor(name, out, order, [left.index(axis) for axis in x.repeats if axis in left])


def concatenate(graph: Graph, equation: Any, *given: Tensor) -> Tensor:
    """Joins arrays along an axis."""
    return _joined(graph, given, equation.params["dimension"], equation.outvars[0].aval)


def stack(graph: Graph, equation: Any, *given: Tensor) -> Tensor:
    """Joins arrays along a new axis."""
    axis = equation.params["axis"]
    return _joined(graph, [expand_dims(graph, x, axis) for x in given], axis, equation.outvars[0].aval)


def _joined(graph: Graph, given: Sequence[Tensor], axis: int, out: Any) -> Tensor:
    order = common_order(given)
    names = [graph.read(x, order) for x in given]
    return graph.tensor(graph.add("Concat", *names, axis=order.index(axis)), out, order)


def unstack(graph: Graph, equation: Any, x: Tensor) -> list[Tensor]:
    """The parts of an array along an axis, without this axis."""
    axis = equation.params["axis"]
    return [
        _without(graph, part, [axis], variable.aval)
        for part, variable in zip(_parts(graph, x, axis, [1] * x.shape[axis]), equation.outvars, strict=True)
    ]


def split(graph: Graph, equation: Any, x: Tensor) -> list[Tensor]:
    """The parts of an array along an axis."""
    return _parts(graph, x, equation.params["axis"], equation.params["sizes"])


def _parts(graph: Graph, x: Tensor, axis: int, sizes: Sequence[int]) -> list[Tensor]:
    name = graph.read(x, x.order)
    names = graph.add("Split", name, np.asarray(sizes, np.int64), outputs=len(sizes), axis=x.order.index(axis))
    shapes = [(*x.shape[:axis], size, *x.shape[axis + 1 :]) for size in sizes]
    names = names if len(sizes) > 1 else [names]
    return [Tensor(shape, x.dtype, part, None, x.order) for part, shape in zip(names, shapes, strict=True)]


def slice_(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """Every n-th element of a part of an array."""
    p = equation.params
    steps = p["strides"] or (1,) * len(x.shape)
    return sliced(graph, x, p["start_indices"], p["limit_indices"], steps, equation.outvars[0].aval)


def sliced(graph: Graph, x: Tensor, starts: Any, ends: Any, steps: Any, out: Any) -> Tensor:
    """A part of an array."""
    cut = [i for i, n in enumerate(x.shape) if not (starts[i] == 0 and ends[i] == n and steps[i] == 1)]
    if not cut:
        return x
    vectors = [np.asarray([which[i] for i in cut], np.int64) for which in (starts, ends)]
    axes = np.asarray([x.order.index(i) for i in cut], np.int64)
    name = graph.add("Slice", graph.read(x, x.order), *vectors, axes, np.asarray([steps[i] for i in cut], np.int64))
    return graph.tensor(name, out, x.order)


def reverse(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """Reverses axes."""
    axes = equation.params["dimensions"]
    ones = np.ones(len(axes), np.int64)
    positions = np.asarray([x.order.index(axis) for axis in axes], np.int64)
    end = np.iinfo(np.int64).min
    name = graph.add("Slice", graph.read(x, x.order), -ones, end * ones, positions, -ones)
    return graph.tensor(name, equation.outvars[0].aval, x.order)


def pad(graph: Graph, equation: Any, x: Tensor, value: Tensor) -> Tensor:
    """Adds elements at the borders, or removes them."""
    config, out = equation.params["padding_config"], equation.outvars[0].aval
    if any(inner for _, _, inner in config):
        raise NotImplementedError("ONNX has no padding between elements")
    pads = [config[axis][side] for side in (0, 1) for axis in x.order]
    name = graph.add("Pad", graph.read(x, x.order), np.asarray(pads, np.int64), graph.read(value))
    return graph.tensor(name, out, x.order)


def tile(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """Repeats an array along its axes."""
    counts = equation.params["reps"]
    name = graph.add("Tile", graph.read(x, x.order), np.asarray([counts[axis] for axis in x.order], np.int64))
    return graph.tensor(name, equation.outvars[0].aval, x.order)


def iota(graph: Graph, equation: Any) -> Tensor:
    """Whole numbers along an axis; here only if their number depends on that of the images."""
    out, axis = equation.outvars[0].aval, equation.params["dimension"]
    name = graph.cast(counted(graph, out.shape[axis]), out.dtype)
    others = [i for i in range(len(out.shape)) if i != axis]
    name = graph.add("Unsqueeze", name, np.asarray(others, np.int64)) if others else name
    return graph.tensor(name, out, None, others)


def counted(graph: Graph, side: Side) -> str:
    """The whole numbers below a side."""
    return graph.add("Range", np.asarray(0), scalar(graph, side), np.asarray(1))


def scalar(graph: Graph, side: Side) -> str:
    """A side as a number."""
    return graph.add("Squeeze", graph.sizes([side]), np.zeros(1, np.int64))


def dim_as_value(graph: Graph, equation: Any) -> Tensor:
    """A side that depends on the number of images."""
    out = equation.outvars[0].aval
    return graph.tensor(graph.cast(scalar(graph, equation.params["dim"]), out.dtype), out)


RULES: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": broadcast,
    "concatenate": concatenate,
    "dim_as_value": dim_as_value,
    "iota": iota,
    "pad": pad,
    "reshape": reshape,
    "rev": reverse,
    "slice": slice_,
    "split": split,
    "squeeze": squeeze,
    "stack": stack,
    "tile": tile,
    "transpose": transpose,
    "unstack": unstack,
}
