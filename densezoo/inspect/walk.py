"""Traversal of a traced model: its module calls and its program's equations. Independent of any architecture."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from densezoo.ops import implementation

Path = tuple[str, ...]
"""Names of modules, from the model's fields inwards."""


@contextlib.contextmanager
def module_calls(visit: Callable[..., Any]) -> Iterator[None]:
    """Intercepts all module calls in this context with `visit(module, call, args, kwargs)`, which returns the result.

    Args:
        visit: returns the result of the call: `call(*args, **kwargs)`, or anything else.
    """

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        return visit(context.module, call, args, kwargs)

    with nn.intercept_methods(intercept):
        yield


def traced(function: Callable[..., Any], *arguments: Any, visit: Callable[..., Any]) -> Any:
    """Traces `function(*arguments)`, with every module call replaced by `visit`."""
    with module_calls(visit):
        # A new function each time, because JAX caches traces by function.
        return jax.make_jaxpr(lambda *arguments: function(*arguments))(*arguments).jaxpr


def inference_method(model: nn.Module) -> str | None:
    """The method that turns images into a model's predictions, such as "detect"; None if calling the model does."""
    return next((name for name in ("panoptic", "detect") if hasattr(model, name)), None)


@contextlib.contextmanager
def as_reference(model: nn.Module) -> Iterator[nn.Module]:
    """The model with plain operations, so that every map is materialised and every block is called."""
    if hasattr(model, "impl"):
        model = model.clone(impl="reference")
    with implementation("reference"):
        yield model


class Step(NamedTuple):
    """An equation of a traced program.

    Attributes:
        equation: JAX's equation.
        program: the program that contains it, the whole one or an inner one.
        scopes: names of the enclosing modules and JAX transformations.
        times: how often it runs, which depends on the lengths of the enclosing scans.
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
    """Yields the equations of a traced program. Those of an inner program follow the equation that calls it.

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
    """The convolutions in a traced program."""
    return [step.equation for step in walk(program) if step.name == "conv_general_dilated"]


def inner_programs(equation: Any) -> list[Any]:
    """The programs that an equation calls. Of platform-dependent programs, only the one for this platform."""
    parameters = list(equation.params.values())
    if platforms := equation.params.get("branches_platforms"):  # `jax.lax.platform_dependent`
        ours = [i for i, names in enumerate(platforms) if names is None or jax.default_backend() in names]
        parameters = [equation.params["branches"][ours[0]]]
    values = jax.tree.leaves(parameters, is_leaf=lambda value: hasattr(value, "eqns"))
    # Before JAX 0.12, a program with constants was wrapped in a class of its own.
    return [getattr(value, "jaxpr", value) for value in values if hasattr(value, "eqns")]


def called_program(equation: Any) -> Any:
    """The program that an equation calls with its own arguments (jit, custom derivatives, remat), or None."""
    first = inner_programs(equation)[:1]
    counts = (len(equation.invars), len(equation.outvars))
    return next((program for program in first if (len(program.invars), len(program.outvars)) == counts), None)
