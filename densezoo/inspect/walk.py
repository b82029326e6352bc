"""The walk over a traced model: the calls of its modules, and the equations of its program. Knows no architecture."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from densezoo.ops import implementation

Path = tuple[str, ...]
"""Names of modules, from the model's own fields inwards."""


@contextlib.contextmanager
def module_calls(visit: Callable[..., Any]) -> Iterator[None]:
    """Hands every call of a module that runs inside to `visit(module, call, args, kwargs)`, which gives its result.

    Args:
        visit: decides what the call gives: `call(*args, **kwargs)`, or anything else.
    """

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        return visit(context.module, call, args, kwargs)

    with nn.intercept_methods(intercept):
        yield


def traced(function: Callable[..., Any], *arguments: Any, visit: Callable[..., Any]) -> Any:
    """The program of `function(*arguments)`, in which `visit` decides what every call of a module gives."""
    with module_calls(visit):
        # A function of its own each time: JAX does not trace one again that it knows.
        return jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments).jaxpr


@contextlib.contextmanager
def as_reference(model: nn.Module) -> Iterator[nn.Module]:
    """The model in the plain form of every operation, in which every map exists and every block is called."""
    if hasattr(model, "impl"):
        model = model.clone(impl="reference")
    with implementation("reference"):
        yield model


class Step(NamedTuple):
    """An equation of a traced program.

    Attributes:
        equation: JAX's equation.
        program: that it is in, the whole one or an inner one.
        scopes: names around it: of modules, and of JAX's transformations.
        times: how often it runs, by the lengths of the scans around it.
    """

    equation: Any
    program: Any
    scopes: Path
    times: int

    @property
    def name(self) -> str:
        """Of the primitive."""
        return self.equation.primitive.name


def walk(program: Any, scopes: Path = (), times: int = 1) -> Iterator[Step]:
    """The equations of a traced program, those of inner programs after the one that calls them.

    Example:
        >>> import jax
        >>> program = jax.make_jaxpr(jax.jit(lambda x: 2 * x + 1))(1.0)
        >>> [step.name for step in walk(program.jaxpr)][1:]
        ['mul', 'add']
    """
    for equation in program.eqns:
        names = (*scopes, *str(equation.source_info.name_stack).split("/"))
        yield Step(equation, program, names, times)
        repeated = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in inner_programs(equation):
            yield from walk(inner, names, times * repeated)


def convolutions(program: Any) -> list[Any]:
    """The equations of a traced program that are convolutions."""
    return [step.equation for step in walk(program) if step.name == "conv_general_dilated"]


def inner_programs(equation: Any) -> list[Any]:
    """The programs that an equation calls; of those for several platforms the one for this platform alone."""
    parameters = list(equation.params.values())
    if platforms := equation.params.get("branches_platforms"):  # `jax.lax.platform_dependent`
        ours = [i for i, names in enumerate(platforms) if names is None or jax.default_backend() in names]
        parameters = [equation.params["branches"][ours[0]]]
    values = jax.tree.leaves(parameters, is_leaf=lambda value: hasattr(value, "eqns"))
    # Before JAX 0.12 a program with constants was of a class of its own, around the other.
    return [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns")]


def called_program(equation: Any) -> Any:
    """The program that an equation calls with its own arguments (jit, custom derivatives, remat); None without one."""
    first = inner_programs(equation)[:1]
    counts = (len(equation.invars), len(equation.outvars))
    return next((program for program in first if (len(program.invars), len(program.outvars)) == counts), None)
