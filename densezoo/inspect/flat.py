"""A traced program as one list of steps: calls are inlined, and what does not depend on the inputs is computed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.inspect.reach import ELEMENTWISE
from densezoo.inspect.walk import Path, inner_programs

LIMIT = 1 << 24
"""Numbers in an array that is computed here. Larger ones are computed by the program."""


@dataclasses.dataclass(eq=False)
class Node:
    """An array of the program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        known: its value, if it depends on no input. Axes along which it is constant have a stride of 0.
        axes: the axes along which the rows and the columns of the image lie; None where no input is involved.
        number: its position among the arrays of the program.
        varies: for each axis, whether its length depends on the size of the image, where that was found out.
    """

    shape: tuple[int, ...]
    dtype: Any
    known: np.ndarray | None = None
    axes: tuple[int, int] | None = None
    number: int = -1
    varies: tuple[bool, ...] = ()


@dataclasses.dataclass(eq=False)
class Step:
    """An operation.

    Attributes:
        name: of the primitive.
        equation: JAX's equation.
        inputs: arrays that it reads.
        outputs: arrays that it makes.
        scopes: names of the enclosing modules and transformations.
        number: its position among the steps; -1 if it has no counterpart in a program that it was matched with.
    """

    name: str
    equation: Any
    inputs: list[Node]
    outputs: list[Node]
    scopes: Path
    number: int = -1


@dataclasses.dataclass(eq=False)
class Flat:
    """A program.

    Attributes:
        steps: its operations in order.
        inputs: its inputs.
        output: its only output.
        nodes: all arrays that depend on an input.
    """

    steps: list[Step]
    inputs: list[Node]
    output: Node
    nodes: list[Node]


def flatten(program: Any) -> Flat:
    """Flattens a traced program (closed jaxpr) with one output."""
    steps: list[Step] = []
    nodes: list[Node] = []

    def new(variable: Any) -> Node:
        node = Node(tuple(variable.aval.shape), variable.aval.dtype, number=len(nodes))
        nodes.append(node)
        return node

    def run(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Node], scopes: Path) -> list[Node]:
        found = dict(zip(jaxpr.invars, arguments, strict=True))
        found |= {variable: known(x) for variable, x in zip(jaxpr.constvars, constants, strict=True)}

        def read(variable: Any) -> Node:
            if hasattr(variable, "val"):
                return known(np.asarray(variable.val, variable.aval.dtype))
            return found[variable]

        for equation in jaxpr.eqns:
            inputs = [read(variable) for variable in equation.invars]
            names = (*scopes, *filter(None, str(equation.source_info.name_stack).split("/")))
            if (inner := _called(equation, inputs)) is not None:
                outputs = run(*inner, names)
            elif equation.primitive.name in ("name", "optimization_barrier"):
                outputs = inputs
            else:
                values = evaluated(equation, inputs)
                if values is None:
                    outputs = [new(variable) for variable in equation.outvars]
                    steps.append(Step(equation.primitive.name, equation, inputs, outputs, names, len(steps)))
                else:
                    outputs = [known(value) for value in values]
            found.update(zip(equation.outvars, outputs, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    inputs = [new(variable) for variable in program.jaxpr.invars]
    (output,) = run(program.jaxpr, program.consts, inputs, ())
    return Flat(steps, inputs, output, nodes)


def known(value: Any) -> Node:
    """An array whose value is known."""
    value = np.asarray(value)
    return Node(value.shape, value.dtype, value)


def compact(value: np.ndarray | None) -> np.ndarray:
    """A known array, with length 1 along the axes along which it is constant by construction."""
    assert value is not None
    constant = [step == 0 for step in value.strides]
    return value[tuple(slice(0, 1) if same else slice(None) for same in constant)]


def _called(equation: Any, inputs: Sequence[Node]) -> tuple[Any, Sequence[Any], Sequence[Node]] | None:
    """The program that an equation calls, its constants and its arguments; None if the equation calls none."""
    name = equation.primitive.name
    if name in ("scan", "while") or not (inner := inner_programs(equation)):
        return None
    # Of `cond`, only branches for platforms are known: their index comes first.
    arguments = inputs[1:] if name == "cond" and equation.params.get("branches_platforms") else inputs
    program = inner[0]
    if (len(program.invars), len(program.outvars)) != (len(arguments), len(equation.outvars)):
        return None
    wrapped = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    outer = next(value for value in wrapped if getattr(value, "jaxpr", value) is program)
    return program, getattr(outer, "consts", ()), arguments


def evaluated(equation: Any, inputs: Sequence[Any]) -> list[np.ndarray] | None:
    """The results of an equation whose inputs have a `known` value; None if one has none, or they are too large."""
    values = [node.known for node in inputs]
    keys = any(jnp.issubdtype(variable.aval.dtype, jax.dtypes.extended) for variable in equation.outvars)
    if keys or any(value is None for value in values):  # NumPy has no random keys
        return None
    given: list[Any] = values
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "broadcast_in_dim":
        dimensions = equation.params["broadcast_dimensions"]
        expanded = np.expand_dims(given[0], tuple(axis for axis in range(len(shape)) if axis not in dimensions))
        return [np.broadcast_to(expanded, shape)]
    if name in ELEMENTWISE and all(value.shape in (shape, ()) for value in given):
        # Axes along which all of them are constant are computed once.
        same = [all(v.ndim == 0 or (v.strides[axis] == 0 or n == 1) for v in given) for axis, n in enumerate(shape)]
        part = tuple(slice(0, 1) if constant else slice(None) for constant in same)
        small = [value[part] if value.ndim else value for value in given]
        if max(value.size for value in small) <= LIMIT:
            return [np.broadcast_to(value, shape) for value in _bind(equation, small)]
        return None
    sizes = [math.prod(variable.aval.shape) for variable in (*equation.invars, *equation.outvars)]
    return None if max(sizes) > LIMIT else _bind(equation, given)


def _bind(equation: Any, values: Sequence[Any]) -> list[np.ndarray]:
    """Computes an equation, with NumPy if possible, because XLA would compile a program for each."""
    name, p = equation.primitive.name, equation.params
    if name in _NUMPY:
        results = _NUMPY[name](*values, **p)
        return [np.asarray(results, equation.outvars[0].aval.dtype)]
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*values, **p)
    return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]


def _slice(x, start_indices, limit_indices, strides):
    return x[tuple(map(slice, start_indices, limit_indices, strides or (1,) * x.ndim))]


_NUMPY: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "add_any": lambda x, y: x + y,
    "and": lambda x, y: x & y,
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "convert_element_type": lambda x, new_dtype, **_: x.astype(new_dtype),
    "eq": lambda x, y: x == y,
    "ge": lambda x, y: x >= y,
    "gt": lambda x, y: x > y,
    "iota": lambda dtype, shape, dimension, **_: np.broadcast_to(
        np.arange(shape[dimension]).reshape([-1 if axis == dimension else 1 for axis in range(len(shape))]), shape
    ),
    "le": lambda x, y: x <= y,
    "lt": lambda x, y: x < y,
    "max": np.maximum,
    "min": np.minimum,
    "mul": lambda x, y, **_: x * y,
    "ne": lambda x, y: x != y,
    "neg": lambda x: -x,
    "not": lambda x: ~x,
    "or": lambda x, y: x | y,
    "reshape": lambda x, new_sizes, **_: x.reshape(new_sizes),
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "select_n": lambda which, *cases: (
        np.where(which, cases[1], cases[0]) if len(cases) == 2 else np.choose(which, cases)
    ),
    "slice": _slice,
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "sub": lambda x, y: x - y,
    "transpose": lambda x, permutation: np.transpose(x, permutation),
}
"""Operations on positions and weights, with NumPy."""
