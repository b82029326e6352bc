"""A traced program as one flat list of equations."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

_IDENTITIES = ("optimization_barrier", "sharding_constraint", "name", "stop_gradient", "copy")
"""Primitives that return their inputs and only guide the compiler."""


def inlined(function: Callable[..., Any], *inputs: Any, platform: str | None = None) -> Callable[..., list[Any]]:
    """Returns a function that computes the same with plain equations of JAX only, for converters to other formats.

    It has no inner `jit`, custom derivatives, barriers or `platform_dependent` branches, and no equation whose result
    is unused. Bodies of loops and branches are treated in the same way.

    Args:
        function: any function of arrays.
        *inputs: its inputs, or their shapes.
        platform: selects the branches of `jax.lax.platform_dependent`, such as "cpu"; None selects the default ones.

    Returns:
        A function of the same inputs that returns the flat list of outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> @jax.jit
        ... def double(x):
        ...     unused = jnp.sin(x)
        ...     return 2 * x
        >>> [equation.primitive.name for equation in jax.make_jaxpr(inlined(double, 1.0))(1.0).eqns]
        ['mul']
    """
    program = jax.make_jaxpr(function)(*inputs)
    return lambda *arguments: _evaluate(program, jax.tree.leaves(arguments), platform)


def _evaluate(program: Any, arguments: Sequence[Any], platform: str | None) -> list[Any]:
    constants = getattr(program, "consts", ())
    # Before JAX 0.12, a program with constants was wrapped in a class of its own.
    program = getattr(program, "jaxpr", program)
    values: dict[Any, Any] = dict(zip(program.constvars, constants, strict=True))
    values |= dict(zip(program.invars, arguments, strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for equation in _used(program):
        found = _results(equation, [read(variable) for variable in equation.invars], platform)
        values |= dict(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in program.outvars]


def _used(program: Any) -> list[Any]:
    """The equations that the outputs depend on."""
    needed = {variable for variable in program.outvars if not isinstance(variable, Literal)}
    used = []
    for equation in reversed(program.eqns):
        if needed.isdisjoint(equation.outvars):
            continue
        used.append(equation)
        needed |= {variable for variable in equation.invars if not isinstance(variable, Literal)}
    return used[::-1]


def _results(equation: Any, values: list[Any], platform: str | None) -> list[Any]:
    name, parameters = equation.primitive.name, equation.params
    if name in _IDENTITIES:
        return values
    if name == "platform_index":
        return [0]  # only the branch below reads it
    if platforms := parameters.get("branches_platforms"):
        branch = next(i for i, names in enumerate(platforms) if names is None or platform in names)
        return _evaluate(parameters["branches"][branch], values[1:], platform)
    if name not in ("while", "scan", "cond"):
        for inner in ("jaxpr", "call_jaxpr", "fun_jaxpr"):  # jit, remat and custom derivatives
            if inner in parameters:
                return _evaluate(parameters[inner], values, platform)
    flat = {key: _flattened(value, platform) for key, value in parameters.items()}
    found = equation.primitive.bind(*values, **flat)
    return found if equation.primitive.multiple_results else [found]


def _flattened(parameter: Any, platform: str | None) -> Any:
    """A parameter of an equation with its programs inlined."""
    if type(parameter) is tuple:  # the branches of a `cond`, among others
        return tuple(_flattened(each, platform) for each in parameter)
    if not hasattr(parameter, "eqns"):
        return parameter
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in parameter.in_avals]
    return jax.make_jaxpr(lambda *arguments: _evaluate(parameter, arguments, platform))(*inputs)
