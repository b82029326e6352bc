"""Which implementation of the operations is traced."""

import contextlib
from collections.abc import Iterator

import jax

IMPLEMENTATIONS = {
    "auto": "the fastest that was measured: exact rewrites and lean backward passes",
    "reference": "plain JAX, as one would write it down (densezoo.ops.reference); differentiates in forward mode too",
    "winograd": "as auto, and 3x3 convolutions of few pixels and many channels by Winograd's algorithm: faster on CPU,"
    " slower to compile, rounding errors some ten times larger",
    "pallas": "as auto, with the Pallas kernels of densezoo.ops.pallas on TPU and NVIDIA GPUs",
}

# Part of jit's cache key, so that a function compiled under one choice is not taken for another.
_chosen = jax.make_user_context("auto")
_onednn = jax.make_user_context(False)


def check_implementation(name: str) -> str:
    """Returns `name`, or says what there is."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"impl is one of {', '.join(IMPLEMENTATIONS)}; got {name!r}")
    return name


@contextlib.contextmanager
def implementation(name: str) -> Iterator[None]:
    """Chooses how the operations traced inside compute; a model's `impl` field does the same for that model.

    All give the same values and gradients up to rounding, from the same parameters.

    Args:
        name: "auto", "reference", "winograd" or "pallas", see `IMPLEMENTATIONS`.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo import ops
        >>> x = jnp.arange(4.0).reshape(1, 2, 2, 1)
        >>> with ops.implementation("reference"):
        ...     y = ops.resize_bilinear(x, (4, 4))
        >>> bool(jnp.allclose(y, ops.resize_bilinear(x, (4, 4))))
        True
    """
    with _chosen(check_implementation(name)):
        yield


def chosen() -> str:
    """The choice under which this is traced. A custom VJP asks in its forward function, not in its backward one.

    Backward functions are traced after the `with` has ended.
    """
    return _chosen.value


@contextlib.contextmanager
def onednn(available: bool) -> Iterator[None]:
    """Says whether what is traced inside is compiled with oneDNN's convolutions (see `densezoo.compiling`)."""
    with _onednn(available):
        yield


def has_onednn() -> bool:
    """Whether convolutions may take forms that are fast in oneDNN and slow in XLA's own."""
    return _onednn.value
