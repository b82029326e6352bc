"""Operations on each element, reductions, and their names in ONNX."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from densezoo.onnx.graph import Graph, Tensor, common_order

Make = Callable[..., str]

_SAME = {
    "abs": "Abs", "acos": "Acos", "acosh": "Acosh", "add": "Add", "add_any": "Add", "asin": "Asin", "asinh": "Asinh",
    "atan": "Atan", "atanh": "Atanh", "ceil": "Ceil", "cos": "Cos", "cosh": "Cosh", "div": "Div", "eq": "Equal",
    "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual",
    "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg",
    "pow": "Pow", "sign": "Sign", "sin": "Sin", "sinh": "Sinh", "sqrt": "Sqrt", "sub": "Sub", "tan": "Tan",
    "tanh": "Tanh",
}  # fmt: skip
"""Operations that ONNX has."""
_REDUCE = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd"}
_WIDE: dict[np.dtype, np.dtype] = {np.dtype(name): np.dtype("int32") for name in ("int8", "uint8", "int16", "uint16")}
_WIDE[np.dtype("uint32")] = np.dtype("int64")
"""Whole numbers that onnxruntime computes in another dtype only."""


def _made(graph: Graph, equation: Any, given: tuple[Tensor, ...]) -> Make:
    """A function that writes the operation, from names to a name."""
    name, p, out = equation.primitive.name, equation.params, equation.outvars[0].aval
    add, dtype = graph.add, given[-1].dtype
    boolean = dtype == np.bool_

    def number(value: float) -> np.ndarray:
        return np.asarray(value, _WIDE.get(dtype, dtype))

    if name == "max" and np.issubdtype(out.dtype, np.floating):
        for i in (0, 1):
            if given[i].known is not None and not np.any(given[i].known):
                return lambda *names: add("Relu", names[1 - i])
    if name in ("min", "max") and boolean:
        name = {"min": "and", "max": "or"}[name]
    if name in _SAME:
        return lambda *names: add(_SAME[name], *names)
    if name in ("and", "or", "xor"):
        return lambda *names: add(name.capitalize() if boolean else f"Bitwise{name.capitalize()}", *names)
    if name == "select_n":
        return lambda which, *cases: _select_number(graph, which, cases, given)
    forms: dict[str, Make] = {
        "clamp": lambda low, x, high: add("Min", add("Max", x, low), high),
        "convert_element_type": lambda x: _converted(graph, x, given[0].dtype, out.dtype),
        "copy": lambda x: x,
        "copy_p": lambda x: x,
        "erfc": lambda x: _erfc(graph, x, number(1)),
        "exp2": lambda x: add("Pow", number(2), x),
        "expm1": lambda x: _expm1(graph, x, number),
        "integer_pow": lambda x: add("Pow", x, number(p["y"])),
        "is_finite": lambda x: add("Not", add("Or", add("IsInf", x), add("IsNaN", x))),
        "log1p": lambda x: _log1p(graph, x, number),
        "log2": lambda x: add("Mul", add("Log", x), number(1 / np.log(2))),
        "ne": lambda x, y: add("Not", add("Equal", x, y)),
        "not": lambda x: add("Not" if boolean else "BitwiseNot", x),
        "rem": lambda x, y: add("Mod", x, y, fmod=1),
        "round": lambda x: _rounded(graph, x, number(0.5), p["rounding_method"]),
        "rsqrt": lambda x: add("Reciprocal", add("Sqrt", x)),
        "square": lambda x: add("Mul", x, x),
    }
    return forms[name]


ELEMENTWISE = frozenset(_SAME) | {
    *("and", "clamp", "convert_element_type", "copy", "copy_p", "erfc", "exp2", "expm1", "integer_pow", "is_finite"),
    *("log1p", "log2", "ne", "not", "or", "rem", "round", "rsqrt", "select_n", "square", "xor"),
}
"""Names of JAX's primitives that are converted here."""


def elementwise(graph: Graph, equation: Any, *given: Tensor) -> Tensor:
    """An operation on each element, in the order of axes of its largest input."""
    out = equation.outvars[0].aval
    order = common_order(given)
    repeats = frozenset.intersection(*[x.repeats for x in given if x.shape] or [frozenset()])
    if equation.primitive.name in ("add", "mul") and given[0].known is not None:
        given = given[::-1]  # constants come second, where onnxruntime looks for them
    names = [graph.read(x, order if x.shape else (), full=False) for x in given]
    wide = None if equation.primitive.name in ("convert_element_type", "select_n") else _WIDE.get(given[-1].dtype)
    names = [graph.cast(name, wide) for name in names] if wide else names
    name = _made(graph, equation, given)(*names)
    name = graph.cast(name, out.dtype) if wide and out.dtype != np.bool_ else name
    return graph.tensor(name, out, order, repeats)


def _erfc(graph: Graph, x: str, one: np.ndarray) -> str:
    """1 - erf(x), and for GELU's -y / sqrt(2) in the form that onnxruntime computes at once."""
    scaled = graph.maker(x)
    if scaled is not None and scaled.op_type == "Mul":
        negative, factor = graph.maker(scaled.input[0]), graph.value(scaled.input[1])
        if negative is not None and negative.op_type == "Neg" and factor is not None and not factor.shape:
            return graph.add("Add", graph.add("Erf", graph.add("Div", negative.input[0], 1 / factor)), one)
    return graph.add("Sub", one, graph.add("Erf", x))


def select(graph: Graph, which: str, cases: Sequence[str], dtype: np.dtype) -> str:
    """The second case where `which` is true, else the first."""
    if dtype in _WIDE:
        wide = [graph.cast(case, _WIDE[dtype]) for case in cases]
        return graph.cast(graph.add("Where", which, wide[1], wide[0]), dtype)
    if dtype == np.bool_:
        return graph.add("Or", graph.add("And", which, cases[1]), graph.add("And", graph.add("Not", which), cases[0]))
    return graph.add("Where", which, cases[1], cases[0])


def _select_number(graph: Graph, which: str, cases: Sequence[str], given: Sequence[Tensor]) -> str:
    """The case with a number, or with a truth value."""
    if given[0].dtype == np.bool_:
        return select(graph, which, cases, given[1].dtype)
    result = cases[0]
    for number, case in enumerate(cases[1:], 1):
        same = graph.add("Equal", which, np.asarray(number, given[0].dtype))
        result = select(graph, same, (result, case), given[1].dtype)
    return result


def _rounded(graph: Graph, x: str, half: np.ndarray, method: Any) -> str:
    if method == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return graph.add("Round", x)
    size = graph.add("Abs", x)
    whole = graph.add("Floor", size)
    up = graph.add("GreaterOrEqual", graph.add("Sub", size, whole), half)  # size + 1/2 would be rounded itself
    return graph.add("Mul", graph.add("Sign", x), graph.add("Add", whole, graph.cast(up, half.dtype)))


def _converted(graph: Graph, x: str, dtype: np.dtype, to: np.dtype) -> str:
    """A number of another type. As in XLA, floats beyond the range of integers are its ends, and NaN is 0."""
    if not (np.issubdtype(dtype, np.floating) and np.issubdtype(to, np.integer)):
        return graph.cast(x, to)
    limits = np.iinfo(to)
    number = graph.add("Where", graph.add("IsNaN", x), np.asarray(0, dtype), x)
    low, high = np.asarray(limits.min, dtype), np.asarray(limits.max, dtype)
    if int(high) <= limits.max:
        return graph.cast(graph.add("Min", graph.add("Max", number, low), high), to)
    # The largest integer is no float: floats of at least the next power of two are set to it afterwards.
    inside = graph.cast(graph.add("Min", graph.add("Max", number, low), np.nextafter(high, np.asarray(0, dtype))), to)
    return graph.add("Where", graph.add("GreaterOrEqual", number, high), np.asarray(limits.max, to), inside)


def _log1p(graph: Graph, x: str, number: Any) -> str:
    """log(u) x / (u - 1) for u = 1 + x, in which the rounding of u cancels; x where u is 1."""
    u = graph.add("Add", x, number(1))
    rest = graph.add("Sub", u, number(1))
    same = graph.add("Or", graph.add("Equal", rest, number(0)), graph.add("IsInf", u))
    value = graph.add("Div", graph.add("Mul", graph.add("Log", u), x), graph.add("Where", same, number(1), rest))
    return graph.add("Where", same, x, value)


def _expm1(graph: Graph, x: str, number: Any) -> str:
    """(u - 1) x / log(u) for u = exp(x), in which the rounding of u cancels; x where u is 1."""
    u = graph.add("Exp", x)
    rest, log = graph.add("Sub", u, number(1)), graph.add("Log", u)
    small = graph.add("Less", graph.add("Abs", x), number(1))
    near = graph.add("And", small, graph.add("Not", graph.add("Equal", rest, number(0))))
    exact = graph.add("Div", graph.add("Mul", rest, x), graph.add("Where", near, log, number(1)))
    return graph.add("Where", small, graph.add("Where", near, exact, x), rest)


def reduction(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """A sum, product, maximum or minimum over axes."""
    name, out, axes = equation.primitive.name, equation.outvars[0].aval, equation.params["axes"]
    positions = np.asarray([x.order.index(axis) for axis in axes], np.int64)
    source = graph.read(x, x.order)
    logical = name in ("reduce_and", "reduce_or")
    wide = np.dtype("int32") if logical else _WIDE.get(x.dtype)
    if logical:
        name = {"reduce_and": "reduce_min", "reduce_or": "reduce_max"}[name]
    source = graph.cast(source, wide) if wide else source
    result = graph.add(_REDUCE[name], source, positions, keepdims=0)
    return graph.tensor(graph.cast(result, out.dtype) if wide else result, out, _without(x.order, axes))


def arg_reduction(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """The position of the first maximum or minimum along an axis."""
    out, axes = equation.outvars[0].aval, equation.params["axes"]
    op = {"argmax": "ArgMax", "argmin": "ArgMin"}[equation.primitive.name]
    source = graph.read(x, x.order)
    source = graph.cast(source, np.int32) if x.dtype == np.bool_ else source
    result = graph.add(op, source, axis=x.order.index(axes[0]), keepdims=0)
    return graph.tensor(graph.cast(result, out.dtype), out, _without(x.order, axes))


def cumulative_sum(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """The sums up to each element along an axis."""
    axis = np.asarray(x.order.index(equation.params["axis"]), np.int64)
    result = graph.add("CumSum", graph.read(x, x.order), axis, reverse=int(equation.params["reverse"]))
    return graph.tensor(result, equation.outvars[0].aval, x.order)


def _without(order: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the remaining axes."""
    left = [axis for axis in order if axis not in axes]
    return tuple(sorted(left).index(axis) for axis in left)


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    **dict.fromkeys((*_REDUCE, "reduce_and", "reduce_or"), reduction),
    **dict.fromkeys(("argmax", "argmin"), arg_reduction),
    "cumsum": cumulative_sum,
}
