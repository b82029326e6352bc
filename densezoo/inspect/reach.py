"""Which rows or columns of an image each position of a traced program's arrays depends on.

A traced program is run on intervals instead of numbers: for each array that depends on the image, the axis along which
its rows (or columns) lie, and for each position on that axis the first and the last row of the image that it depends
on. Operations that are not listed here depend on everything that their inputs depend on, so results may be too wide,
but never too narrow.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from densezoo.inspect.intervals import EMPTY, Reach, Value, empty, join, narrowest, pad, reshaped, windows
from densezoo.inspect.walk import called_program

Known = np.ndarray


def run(
    program: Any,
    inputs: Sequence[Value],
    constants: Sequence[Any],
    visit: Callable[[str, Value, tuple[int, ...]], None],
    known: Sequence[Known | None] | None = None,
) -> list[tuple[Value, Known | None]]:
    """Runs a program on intervals.

    Args:
        program: a traced program (jaxpr).
        inputs: what each of its inputs depends on.
        constants: values of its constants.
        visit: called with name, dependence and shape of every array that `checkpoint_name` has named.
        known: values of inputs that are known.

    Returns:
        For each output what it depends on, and its value if that is known.
    """
    reaches: dict[Any, Value] = dict(zip(program.invars, inputs, strict=True))
    values: dict[Any, Known] = {v: np.asarray(x) for v, x in zip(program.constvars, constants, strict=True)}
    values |= {v: x for v, x in zip(program.invars, known or (), strict=False) if x is not None}

    def read(variable: Any) -> tuple[Value, Known | None]:
        if hasattr(variable, "val"):  # a literal
            return None, np.asarray(variable.val)
        return reaches.get(variable), values.get(variable)

    for equation in program.eqns:
        given = [read(variable) for variable in equation.invars]
        for variable, (reach, value) in zip(equation.outvars, _apply(equation, given, visit), strict=True):
            reaches[variable] = reach
            if value is not None:
                values[variable] = value
    return [read(variable) for variable in program.outvars]


Given = tuple[Value, Known | None]
LIMIT = 1 << 22
"""Numbers in an array that is computed, such as the indices of a gather."""


def _apply(equation: Any, given: Sequence[Given], visit: Any) -> list[Given]:
    name, reaches = equation.primitive.name, [reach for reach, _ in given]
    if name not in ("scan", "while") and (inner := called_program(equation)) is not None:
        outer = next(x for x in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program) if _is_program(x))
        return run(inner, reaches, getattr(outer, "consts", ()), visit, [value for _, value in given])
    if name == "name":
        visit(equation.params["name"], reaches[0], equation.invars[0].aval.shape)
    if all(reach is None for reach in reaches):
        return _known(equation, [value for _, value in given])
    reach = RULES[name](equation, given) if name in RULES else _everything(reaches)
    reach = reach if isinstance(reach, list) else [reach] * len(equation.outvars)
    return [(one, None) for one in reach]


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _known(equation: Any, values: list[Known | None]) -> list[Given]:
    """Computes an equation whose inputs are known, such as the positions of a resize."""
    sizes = [math.prod(variable.aval.shape) for variable in (*equation.invars, *equation.outvars)]
    if any(value is None for value in values) or max(sizes) > LIMIT:
        return [(None, None)] * len(equation.outvars)
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*values, **equation.params)
    results = results if equation.primitive.multiple_results else [results]
    return [(None, np.asarray(result)) for result in results]


def _everything(reaches: Sequence[Value]) -> Value:
    return join(*(reach.everywhere() for reach in reaches if reach is not None))


def _elementwise(equation: Any, given: Sequence[Given]) -> Value:
    rank = len(equation.outvars[0].aval.shape)
    shaped = [(reach, variable.aval.shape) for (reach, _), variable in zip(given, equation.invars, strict=True)]
    return join(*(reach if reach is None or len(shape) == rank else reach.everywhere() for reach, shape in shaped))


def _shapes(equation: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return equation.invars[0].aval.shape, equation.outvars[0].aval.shape


def _reshape(equation: Any, given: Sequence[Given]) -> Value:
    reach = given[0][0]
    return None if reach is None else reshaped(reach, *_shapes(equation))


def _transpose(equation: Any, given: Sequence[Given]) -> Value:
    reach = given[0][0]
    return reach and reach.moved(None if reach.axis is None else equation.params["permutation"].index(reach.axis))


def _broadcast(equation: Any, given: Sequence[Given]) -> Value:
    reach = given[0][0]
    if reach is None or reach.axis is None or len(reach.first) == 1:
        return reach and reach.everywhere()
    return reach.moved(equation.params["broadcast_dimensions"][reach.axis])


def _concatenate(equation: Any, given: Sequence[Given]) -> Value:
    axis, reaches = equation.params["dimension"], [reach for reach, _ in given]
    axes = {reach.axis for reach in reaches if reach is not None} - {None}
    if axes - {axis}:
        return join(*reaches)
    parts = []
    for reach, variable in zip(reaches, equation.invars, strict=True):
        length = variable.aval.shape[axis]
        part = empty(length) if reach is None else reach.select(lambda x, n=length: np.broadcast_to(x, n))
        parts.append(part)
    return Reach(axis, *(np.concatenate(arrays) for arrays in zip(*(part[1:] for part in parts), strict=True)))


def _stack(equation: Any, given: Sequence[Given]) -> Value:
    new = equation.params["axis"]
    reach = join(*(reach for reach, _ in given))
    return reach and reach.moved(None if reach.axis is None else reach.axis + (reach.axis >= new))


def _slice(equation: Any, given: Sequence[Given]) -> Value:
    reach, parameters = given[0][0], equation.params
    if reach is None or reach.axis is None:
        return reach
    strides = parameters["strides"] or [1] * len(parameters["start_indices"])
    part = slice(
        *(bounds[reach.axis] for bounds in (parameters["start_indices"], parameters["limit_indices"], strides))
    )
    return reach.select(lambda array: array[part])


def _split(equation: Any, given: Sequence[Given]) -> Any:
    reach, sizes = given[0][0], equation.params["sizes"]
    if reach is None or reach.axis != equation.params["axis"]:
        return reach
    ends = np.cumsum(sizes)
    return [reach.select(lambda x, a=end - size, b=end: x[a:b]) for size, end in zip(sizes, ends, strict=True)]


def _pad(equation: Any, given: Sequence[Given]) -> Value:
    reach, config = given[0][0], equation.params["padding_config"]
    if reach is not None and reach.axis is not None:
        reach = pad(reach, *config[reach.axis])
    return join(reach, given[1][0])


def _rev(equation: Any, given: Sequence[Given]) -> Value:
    reach = given[0][0]
    flipped = reach is not None and reach.axis in equation.params["dimensions"]
    return reach.select(lambda array: array[::-1]) if reach is not None and flipped else reach


def _reduce(equation: Any, given: Sequence[Given]) -> Value:
    reach, axes = join(*(reach for reach, _ in given)), equation.params["axes"]
    if reach is None or reach.axis is None or reach.axis in axes:
        return reach and reach.everywhere()
    return reach.moved(reach.axis - sum(axis < reach.axis for axis in axes))


def _reduce_window(equation: Any, given: Sequence[Given]) -> Value:
    reach, parameters = given[0][0], equation.params
    if reach is None or reach.axis is None:
        return reach
    names = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
    return windows(reach, *(parameters[name][reach.axis] for name in names))


def _convolution(equation: Any, given: Sequence[Given]) -> Value:
    (reach, _), (kernel, _) = given
    if reach is None or kernel is not None:
        return _everything([reach, kernel])
    layout, parameters = equation.params["dimension_numbers"], equation.params
    if reach.axis is None or reach.axis == layout.lhs_spec[1]:
        return reach.everywhere()
    if reach.axis == layout.lhs_spec[0]:
        return reach.moved(layout.out_spec[0])
    spatial = layout.lhs_spec[2:].index(reach.axis)
    size = equation.invars[1].aval.shape[layout.rhs_spec[2 + spatial]]
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    return windows(reach, size, *(parameters[name][spatial] for name in names)).moved(layout.out_spec[2 + spatial])


def _dot(equation: Any, given: Sequence[Given]) -> Value:
    contracted, batched = equation.params["dimension_numbers"]
    results: list[Value] = []
    for side in (0, 1):
        (reach, _), (_, other) = given[side], given[1 - side]
        if reach is None:
            continue
        if reach.axis is None:
            results.append(reach)
        elif reach.axis in batched[side]:
            results.append(reach.moved(batched[side].index(reach.axis)))
        elif reach.axis not in contracted[side]:
            results.append(reach.moved(_free_axis(equation, side, reach.axis)))
        elif other is not None and not batched[0] and len(contracted[side]) == 1:
            results.append(_matrix(equation, side, reach, other, contracted[1 - side][0]))
        else:
            results.append(reach.everywhere())
    return join(*results)


def _free_axis(equation: Any, side: int, axis: int) -> int:
    """The axis of a product's result for an axis of one factor."""
    contracted, batched = equation.params["dimension_numbers"]
    ranks = [len(variable.aval.shape) for variable in equation.invars]
    free = [[a for a in range(ranks[s]) if a not in (*contracted[s], *batched[s])] for s in (0, 1)]
    return len(batched[0]) + (len(free[0]) if side else 0) + free[side].index(axis)


def _matrix(equation: Any, side: int, reach: Reach, matrix: Known, axis: int) -> Reach:
    """The product with a matrix whose numbers are known, such as the weights of a resize."""
    if matrix.ndim != 2:
        return reach.everywhere()
    used = np.moveaxis(matrix, axis, 1) != 0
    first = np.where(used, reach.first, EMPTY[0]).min(1)
    last = np.where(used, reach.last, EMPTY[1]).max(1)
    return Reach(_free_axis(equation, 1 - side, 1 - axis), first, last)


def _gather(equation: Any, given: Sequence[Given]) -> Value:
    (reach, _), (chosen, indices) = given[:2]
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    rank = len(equation.outvars[0].aval.shape)
    batch = [axis for axis in range(rank) if axis not in numbers.offset_dims]
    results: list[Value] = []
    if chosen is not None:
        last = len(equation.invars[1].aval.shape) - 1  # which holds the components of an index
        results.append(chosen.moved(None if chosen.axis in (None, last) else batch[chosen.axis]))
    if reach is not None:
        hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        if reach.axis is None:
            results.append(reach)
        elif reach.axis in numbers.operand_batching_dims:
            at = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(reach.axis)]
            results.append(reach.moved(batch[at]))
        elif reach.axis not in numbers.start_index_map:
            offsets = [axis for axis in range(len(sizes)) if axis not in hidden]
            results.append(reach.moved(numbers.offset_dims[offsets.index(reach.axis)]))
        elif indices is not None and sizes[reach.axis] == 1 and reach.axis in hidden:
            results.append(_taken(reach, indices[..., numbers.start_index_map.index(reach.axis)], batch))
        else:
            results.append(reach.everywhere())
    return join(*results)


def _taken(reach: Reach, indices: Known, batch: Sequence[int]) -> Reach:
    """Positions picked by known indices."""
    picked = np.clip(indices, 0, len(reach.first) - 1)
    return narrowest(reach.select(lambda array: array[picked]), batch[: picked.ndim])


_ELEMENTWISE = """
abs add and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp exp2 expm1 floor ge
gt integer_pow is_finite le log log1p log2 logistic lt max min mul name ne neg not optimization_barrier or pow
reduce_precision rem round rsqrt select_n shift_left shift_right_logical sign sin sqrt square stop_gradient sub tan
tanh xor"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
"""Primitives whose result at a position depends on their inputs at that position."""

_REDUCTIONS = "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum"
REDUCTIONS = frozenset(_REDUCTIONS.split())
"""Primitives that remove axes."""

WINDOWS = ("reduce_window_max", "reduce_window_min", "reduce_window_sum")
"""Primitives that reduce windows."""

RULES: dict[str, Callable[[Any, Sequence[Given]], Any]] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(WINDOWS, _reduce_window),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "gather": _gather,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "stack": _stack,
    "transpose": _transpose,
}
"""What the result of a primitive depends on."""
