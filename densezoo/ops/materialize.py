"""Stopping XLA:CPU from fusing a step with those that read it."""

import jax


def materialize(x: jax.Array) -> jax.Array:
    """`x`, as an array that XLA:CPU builds once: for what is compiled for a CPU alone.

    XLA:CPU would compute an array anew for each step, or each pixel, that reads it, inside the loop that does. An
    update in place is not fused, and it is not known to give the same array; a barrier is gone by then.
    """
    first = x[:, :, :1, :1]  # all of the axes over which devices may share the array
    return jax.lax.dynamic_update_slice(x, first, (0,) * x.ndim)


def materialize_on_cpu(x: jax.Array) -> jax.Array:
    """`materialize` where the program is compiled for a CPU, `x` itself elsewhere."""
    return jax.lax.platform_dependent(x, cpu=materialize, default=lambda x: x)
