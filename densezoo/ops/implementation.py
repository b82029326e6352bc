"""Selects the form of the operations: the fastest measured form, or the plain one."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

IMPLEMENTATIONS = ("auto", "reference")
"""Valid values of `implementation` and of a model's `impl` field."""

# Part of jit's cache key, so that a function compiled under one choice is not reused under another.
_chosen = jax.make_user_context("auto")
_onednn = jax.make_user_context(False)
_loop = jax.make_user_context(False)
_whole = jax.make_user_context(False)


def check_implementation(name: str) -> None:
    """Raises a ValueError that lists the names if `name` is not one of them."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Selects the form of operations that are traced in this context. A model's `impl` field does so for that model.

    Both forms give the same values and gradients up to rounding, from the same parameters.

    Args:
        name: "auto" is the fastest measured form, with exact rewrites and memory-saving backward passes. "reference" is
          the plain form (`densezoo.ops.reference`), which also supports forward-mode differentiation.

    Raises:
        ValueError: if the name is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo import ops
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> with ops.implementation("reference"):
        ...     y = ops.resize_bilinear(x, (4, 4))
        >>> bool(jnp.allclose(y, ops.resize_bilinear(x, (4, 4))))
        True
    """
    check_implementation(name)
    with _chosen(name):
        yield


def chosen() -> str:
    """The current choice. A custom VJP must read it in its forward function, not in its backward function.

    Backward functions are traced after the context has ended.
    """
    return _chosen.value


@contextlib.contextmanager
def with_onednn(available: bool = True) -> Iterator[None]:
    """Declares that code traced in this context is compiled with the options that make XLA:CPU use oneDNN.

    Some operations then use another form. Without the options, that form is also correct, but can be 50 times slower.
    """
    with _onednn(available):
        yield


def onednn() -> bool:
    """Whether this is traced inside `with_onednn`. A custom VJP must read it in its forward function; see `chosen`."""
    return _onednn.value


@contextlib.contextmanager
def within_loop() -> Iterator[None]:
    """Declares that code traced in this context is the body of a loop, where XLA:CPU does not choose layouts."""
    with _loop(True):
        yield


def in_loop() -> bool:
    """Whether this is traced inside `within_loop`. A custom VJP must read it in its forward function; see `chosen`."""
    return _loop.value


@contextlib.contextmanager
def whole_operations() -> Iterator[None]:
    """Declares that operations marked with `whole` become one equation each, for converters to other formats.

    Such a program can neither be differentiated nor compiled.
    """
    with _whole(True):
        yield


def whole(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function of arrays, which come first, and of options: `whole_operations` makes it one equation."""
    primitive = Primitive(function.__name__)
    primitive.multiple_results = True

    def shapes(*arrays: Any, **options: Any) -> list[Any]:
        with _whole(False):
            found = jax.eval_shape(functools.partial(function, **options), *arrays)
        return [ShapedArray(x.shape, x.dtype) for x in jax.tree.leaves(found)]

    def values(*arrays: Any, **options: Any) -> list[Any]:
        with _whole(False):
            return jax.tree.leaves(function(*arrays, **options))

    def batched(arrays: Any, axes: Any, **options: Any) -> tuple[list[Any], list[int]]:
        found = jax.vmap(functools.partial(values, **options), in_axes=axes)(*arrays)
        return found, [0] * len(found)

    primitive.def_abstract_eval(shapes)
    primitive.def_impl(values)
    batching.primitive_batchers[primitive] = batched

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if not _whole.value:
            return function(*arguments, **options)
        given = inspect.signature(function).bind(*arguments, **options).arguments
        arrays = {name: value for name, value in given.items() if isinstance(value, jax.Array | np.ndarray)}
        found = primitive.bind(*arrays.values(), **{name: given[name] for name in given if name not in arrays})
        return found[0] if len(found) == 1 else tuple(found)

    return call
