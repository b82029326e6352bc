"""Prevents XLA:CPU from fusing a step with its consumers."""

import jax


def materialize(x: jax.Array) -> jax.Array:
    """Returns `x` as an array that XLA:CPU builds once, for programs that are only compiled for CPU.

    XLA:CPU would recompute an array inside the loop of each step, or each pixel, that reads it. An in-place update is
    not fused, and the compiler cannot tell that it returns the same array; a barrier is removed before fusion.
    """
    first = x[:, :, :1, :1]  # contains whole axes over which devices may share the array
    return jax.lax.dynamic_update_slice(x, first, (0,) * x.ndim)


def materialize_on_cpu(x: jax.Array) -> jax.Array:
    """Returns `materialize(x)` if the program is compiled for a CPU, `x` otherwise."""
    return jax.lax.platform_dependent(x, cpu=materialize, default=lambda x: x)
