"""Converts a JAX program to an ONNX model."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from densezoo.extras import require
from densezoo.inspect.flat import evaluated
from densezoo.inspect.inline import inlined
from densezoo.onnx import elementwise, indexing, layers, shapes
from densezoo.onnx.elementwise import select
from densezoo.onnx.graph import Graph, Tensor, known

OPSET = 18


def convert(function: Callable[..., Any], inputs: Sequence[Any], names: Sequence[str], results: Sequence[str]) -> bytes:
    """The ONNX model of a function of arrays.

    Args:
        function: returns arrays in any tree.
        inputs: shapes and dtypes of its inputs; the first axis may be symbolic.
        names: names of the inputs.
        results: names of the outputs.

    Raises:
        NotImplementedError: if it has an operation that is not converted.
    """
    helper = require("onnx").helper
    program = jax.make_jaxpr(inlined(function, *inputs))(*inputs)
    graph = Graph(batch=inputs[0].shape[0])
    given = [graph.tensor(name, x) for name, x in zip(names, inputs, strict=True)]
    if not isinstance(graph.batch, int):
        graph.batch_name = graph.add("Shape", names[0], start=0, end=1)
    found = evaluate(graph, program, given)
    outputs = [(name, graph.read(x), x) for name, x in zip(results, found, strict=True)]
    whole = graph.finish("densezoo", list(zip(names, inputs, strict=True)), outputs)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="densezoo")
    model.ir_version = 8
    return model.SerializeToString()


def evaluate(graph: Graph, program: Any, given: Sequence[Tensor]) -> list[Tensor]:
    """Adds a program to a graph; what depends on no input is computed here. Returns the program's outputs."""
    constants = getattr(program, "consts", ())
    program = getattr(program, "jaxpr", program)
    values = dict(zip(program.invars, given, strict=True))
    values |= {variable: known(x) for variable, x in zip(program.constvars, constants, strict=True)}

    def read(variable: Any) -> Tensor:
        if hasattr(variable, "val"):
            return known(np.asarray(variable.val, variable.aval.dtype))
        return values[variable]

    for equation in program.eqns:
        inputs = [read(variable) for variable in equation.invars]
        sides = [side for x in equation.outvars for side in x.aval.shape] + [equation.params.get("dim", 0)]
        fixed = all(isinstance(side, int) for side in sides)
        results = evaluated(equation, inputs) if fixed else None
        if results is not None:
            found = [known(x) for x in results]
        else:
            name = equation.primitive.name
            if name not in RULES:
                raise NotImplementedError(
                    f"the operation {name} is not converted: use others, or dz.export, which converts all"
                )
            made = RULES[name](graph, equation, *inputs)
            if made is None:
                plain = functools.partial(equation.primitive.impl, **equation.params)
                shapes_of = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
                made = evaluate(graph, jax.make_jaxpr(inlined(plain, *shapes_of))(*shapes_of), inputs)
            found = [made] if isinstance(made, Tensor) else made
        values.update(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in program.outvars]


def while_loop(graph: Graph, equation: Any, *given: Tensor) -> list[Tensor]:
    """A loop that a condition ends."""
    p = equation.params
    of_condition = given[: p["cond_nconsts"]]
    of_body = given[p["cond_nconsts"] : p["cond_nconsts"] + p["body_nconsts"]]
    state = given[p["cond_nconsts"] + p["body_nconsts"] :]

    def goes_on(graph: Graph, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Whether the loop goes on, for each sample if it is a loop for each, and for any of them."""
        (each,) = evaluate(graph, p["cond_jaxpr"], [*of_condition, *state])
        if not each.shape:
            return each, each
        most = graph.add("ReduceMax", graph.cast(graph.read(each), np.int32), keepdims=0)
        return each, Tensor((), each.dtype, graph.cast(most, np.bool_))

    def body(inner: Graph, _: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        found = evaluate(inner, p["body_jaxpr"], [*of_body, *state])
        each, _ = goes_on(inner, state)
        if each.shape:
            found = [_choose(inner, each, new, old) for new, old in zip(found, state, strict=True)]
        return goes_on(inner, found)[1], found

    return _loop(graph, None, goes_on(graph, state)[1], state, [x.aval for x in equation.outvars], body)


def _choose(graph: Graph, which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The new values of the samples whose loop goes on."""
    aval = jax.ShapeDtypeStruct(new.shape, new.dtype)
    flat = graph.reshape(graph.read(which), [*which.shape, *[1] * (len(new.shape) - len(which.shape))])
    return graph.tensor(select(graph, flat, (graph.read(old), graph.read(new)), new.dtype), aval)


def scan(graph: Graph, equation: Any, *given: Tensor) -> list[Tensor]:
    """A loop over the first axis of arrays."""
    p, step = equation.params, getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])
    # From the ranks, because the parameters with these numbers depend on JAX's version.
    carried = sum(len(x.aval.shape) == len(y.aval.shape) for x, y in zip(equation.outvars, step.outvars, strict=True))
    fixed = sum(len(x.shape) == len(y.aval.shape) for x, y in zip(given, step.invars, strict=True)) - carried
    constants, state, rows = given[:fixed], given[fixed : fixed + carried], given[fixed + carried :]
    avals = [x.aval for x in equation.outvars]

    def body(inner: Graph, number: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        place = inner.add("Sub", np.asarray(p["length"] - 1), number.name) if p["reverse"] else number.name
        parts = [
            inner.tensor(inner.add("Gather", inner.read(x), place, axis=0), v.aval)
            for x, v in zip(rows, step.invars[fixed + carried :], strict=True)
        ]
        return known(np.asarray(True)), evaluate(inner, p["jaxpr"], [*constants, *state, *parts])

    found = _loop(graph, np.asarray(p["length"]), known(np.asarray(True)), state, avals, body)
    if p["reverse"]:
        for i in range(carried, len(found)):
            ends = (np.asarray([-1]), np.asarray([np.iinfo(np.int64).min]), np.asarray([0]), np.asarray([-1]))
            found[i] = graph.tensor(graph.add("Slice", graph.read(found[i]), *ends), avals[i])
    return found


def _loop(
    graph: Graph,
    count: np.ndarray | None,
    start: Tensor,
    state: Sequence[Tensor],
    avals: Sequence[Any],
    body: Callable[[Graph, Tensor, Sequence[Tensor]], tuple[Tensor, list[Tensor]]],
) -> list[Tensor]:
    """ONNX's loop. Results of the body beyond the state are stacked."""
    inner = Graph(graph)
    number, go = graph.fresh("number"), graph.fresh("condition")
    carried = [inner.tensor(graph.fresh("state"), x) for x in state]
    scalar = Tensor((), np.dtype(np.int64), number)
    more, results = body(inner, scalar, carried)
    stacked = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
    outputs = [(graph.fresh("more"), inner.read(more), more)]
    outputs += [(graph.fresh("next"), inner.read(x), aval) for x, aval in zip(results, stacked, strict=True)]
    truth = Tensor((), np.dtype(np.bool_), go)
    inputs = [(number, scalar), (go, truth), *((x.name or "", x) for x in carried)]
    program = inner.finish(graph.fresh("body"), inputs, outputs)
    names = graph.add(
        "Loop", count, graph.read(start), *[graph.read(x) for x in state], outputs=len(results), body=program
    )
    names = names if len(results) > 1 else [names]
    return [graph.tensor(name, aval) for name, aval in zip(names, avals, strict=True)]


def conditional(graph: Graph, equation: Any, which: Tensor, *given: Tensor) -> list[Tensor]:
    """One of two programs."""
    branches, avals = equation.params["branches"], [x.aval for x in equation.outvars]
    if len(branches) != 2:
        raise NotImplementedError("ONNX has no choice among more than two programs")
    bodies = []
    for branch in branches:
        inner = Graph(graph)
        found = evaluate(inner, branch, given)
        outputs = [(graph.fresh("branch"), inner.read(x), x) for x in found]
        bodies.append(inner.finish(graph.fresh("branch"), [], outputs))
    names = graph.add(
        "If", graph.cast(graph.read(which), np.bool_), outputs=len(avals), then_branch=bodies[1], else_branch=bodies[0]
    )
    names = names if len(avals) > 1 else [names]
    return [graph.tensor(name, aval) for name, aval in zip(names, avals, strict=True)]


RULES: dict[str, Callable[..., Any]] = {
    **elementwise.RULES,
    **shapes.RULES,
    **layers.RULES,
    **indexing.RULES,
    "cond": conditional,
    "scan": scan,
    "while": while_loop,
}
