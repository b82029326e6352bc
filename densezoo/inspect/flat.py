"""A traced program as one list of steps: calls are inlined, and what does not depend on the inputs is computed."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
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
    """

    shape: tuple[int, ...]
    dtype: Any
    known: np.ndarray | None = None
    axes: tuple[int, int] | None = None
    number: int = -1


@dataclasses.dataclass(eq=False)
class Step:
    """An operation.

    Attributes:
        name: of the primitive.
        equation: JAX's equation.
        inputs: arrays that it reads.
        outputs: arrays that it makes.
        scopes: names of the enclosing modules and transformations.
    """

    name: str
    equation: Any
    inputs: list[Node]
    outputs: list[Node]
    scopes: Path


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
                values = _evaluated(equation, inputs)
                if values is None:
                    outputs = [new(variable) for variable in equation.outvars]
                    steps.append(Step(equation.primitive.name, equation, inputs, outputs, names))
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


def compact(value: np.ndarray) -> np.ndarray:
    """The array with length 1 along the axes along which it is constant by construction."""
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


def _evaluated(equation: Any, inputs: Sequence[Node]) -> list[np.ndarray] | None:
    """The results of an equation whose inputs are known; None if they are not, or too large."""
    values = [node.known for node in inputs]
    if any(value is None for value in values):
        return None
    given: list[Any] = values
    name, shape = equation.primitive.name, equation.outvars[0].aval.shape
    if name == "broadcast_in_dim":
        dimensions = equation.params["broadcast_dimensions"]
        expanded = np.expand_dims(given[0], [axis for axis in range(len(shape)) if axis not in dimensions])
        return [np.broadcast_to(expanded, shape)]
    if name in ELEMENTWISE and all(value.shape in (shape, ()) for value in given):
        # Axes along which all of them are constant are computed once.
        same = [all(v.ndim == 0 or (v.strides[axis] == 0 or n == 1) for v in given) for axis, n in enumerate(shape)]
        part = tuple(slice(0, 1) if constant else slice(None) for constant in same)
        small = [value[part] if value.ndim else value for value in given]
        if math.prod(small[0].shape if small[0].ndim else ()) <= LIMIT:
            return [np.broadcast_to(value, shape) for value in _bind(equation, small)]
        return None
    sizes = [math.prod(variable.aval.shape) for variable in (*equation.invars, *equation.outvars)]
    return None if max(sizes) > LIMIT else _bind(equation, given)


def _bind(equation: Any, values: Sequence[Any]) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        results = equation.primitive.bind(*values, **equation.params)
    return [np.asarray(result) for result in (results if equation.primitive.multiple_results else [results])]
