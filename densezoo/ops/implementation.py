"""Which form of the operations is traced: the fastest measured, or the plain one."""

import contextlib
from collections.abc import Iterator

import jax

IMPLEMENTATIONS = ("auto", "reference")
"""What `implementation` and a model's `impl` field take."""

# Part of jit's cache key, so that a function compiled under one choice is not taken for another.
_chosen = jax.make_user_context("auto")
_onednn = jax.make_user_context(False)


def check_implementation(name: str) -> None:
    """Raises a ValueError that lists the names if `name` is not one of them."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Chooses how the operations traced inside compute; a model's `impl` field does the same for that model.

    Both forms give the same values and gradients up to rounding, from the same parameters.

    Args:
        name: "auto", the fastest form that was measured: exact rewrites and lean backward passes; or "reference", the
          plain form (`densezoo.ops.reference`), which differentiates in forward mode too.

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
    """The choice under which this is traced. A custom VJP asks in its forward function, not in its backward one.

    Backward functions are traced after the `with` has ended.
    """
    return _chosen.value


@contextlib.contextmanager
def with_onednn(available: bool = True) -> Iterator[None]:
    """What is traced inside is compiled with the options for which XLA:CPU hands convolutions to oneDNN.

    Some operations then take another form. Without the options, that form is right too, but can be 50 times slower.
    """
    with _onednn(available):
        yield


def onednn() -> bool:
    """Whether this is traced inside `with_onednn`. A custom VJP asks in its forward function, as for `chosen`."""
    return _onednn.value
