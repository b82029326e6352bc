"""Checks of the operations' arguments at trace time: shapes, dtypes and integers, never values."""

import operator
from typing import Any

import jax
import jax.numpy as jnp

from densezoo.types import Size


def check_maps(x: jax.Array, *, floating: bool = True) -> None:
    """Raises an error unless `x` contains NHWC maps, of a float type if `floating`."""
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"expected NHWC maps with no empty axis, got shape {x.shape}")
    if floating and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"expected maps of a float type, got {x.dtype}: cast them first")


def check_size(size: Any) -> Size:
    """Returns `size` as two positive ints, or raises an error.

    Symbolic sizes, which occur during export, are returned unchanged.
    """
    try:
        height, width = (side if jax.export.is_symbolic_dim(side) else int(side) for side in size)
        whole = (height, width) == tuple(size)
    except (TypeError, ValueError):
        whole, height, width = False, 0, 0
    if not whole or height < 1 or width < 1:
        raise ValueError(f"size is (height, width), two whole numbers of at least 1; got {size!r}")
    return height, width


def check_fixed(name: str, *sides: Any) -> None:
    """Raises an error if the sides of maps are symbolic: the computation of `name` depends on their values."""
    if symbolic := [str(side) for side in sides if jax.export.is_symbolic_dim(side)]:
        raise ValueError(
            f"{name} needs maps of a fixed height and width, but the sides {', '.join(symbolic)} are symbolic: export"
            " with fixed numbers instead (the batch may be symbolic)"
        )


def check_whole(minimum: int, **options: Any) -> None:
    """Raises an error unless every option is an integer of at least `minimum`."""
    for name, value in options.items():
        try:
            fits = operator.index(value) >= minimum
        except TypeError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must be an integer of at least {minimum}, got {value!r}")


def check_boxes(rank: int | None = None, **boxes: jax.Array) -> None:
    """Raises an error unless each array's last axis has four floats, and each array has `rank` axes if given."""
    for name, array in boxes.items():
        if array.ndim < 1 or array.shape[-1] != 4 or rank not in (None, array.ndim):
            expected = "(..., 4)" if rank is None else f"({'batch, ' * (rank - 2)}n, 4)"
            raise ValueError(f"{name} has the shape {expected}, got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} is of a float type, got {array.dtype}: cast it first")
