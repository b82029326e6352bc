"""What custom gradients have to know of arrays that several devices share."""

import jax


def reduced_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """A cotangent, summed over the devices that share the batch but not the primal (inside `jax.shard_map`)."""
    axes = _varying(cotangent) - _varying(primal)
    return jax.lax.psum(cotangent, tuple(axes)) if axes else cotangent


def explicitly_sharded(*arrays: jax.Array) -> bool:
    """Whether the types of the arrays say how devices share them, which reshaping them would have to say anew."""
    return any(part is not None for x in arrays for part in jax.typeof(x).sharding.spec)


def _varying(x: jax.Array) -> frozenset[str]:
    """The axes of a manual mesh along which the values differ."""
    kind = jax.typeof(x)
    # jax 0.10 and later keep them in the type of the manual axes, earlier ones in `vma`.
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", None) or getattr(kind, "vma", frozenset())
