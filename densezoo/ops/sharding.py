"""Sharding of operations over several devices.

Under data parallelism, the batch, which is the first axis of every map, is sharded over the devices, and the parameters
are replicated. An operation on maps then needs no communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def reduced_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """A cotangent, summed over the devices that share the batch but not the primal (inside `jax.shard_map`)."""
    axes = _varying(cotangent) - _varying(primal)
    return jax.lax.psum(cotangent, tuple(axes)) if axes else cotangent


def explicitly_sharded(*arrays: jax.Array) -> bool:
    """Whether the types of the arrays say how devices share them, which most reshapes would have to say again."""
    return any(part is not None for x in arrays for part in jax.typeof(x).sharding.spec)


def in_auto_mesh(x: jax.Array) -> bool:
    """Whether XLA may divide `x` among the devices of a mesh, in a way that its type does not say.

    False also where a `jit` gets its mesh from `in_shardings` alone, which is not known while it is traced.
    """
    mesh = jax.typeof(x).sharding.mesh
    return mesh.size > 1 and AxisType.Auto in mesh.axis_types


def per_device(function: Callable[..., Any], *maps: Any, weights: Sequence[Any] = (), auto: bool = False) -> Any:
    """Computes `function(*maps, *weights)` on each device for its own part of the batch.

    In a mesh with explicit axes, JAX requires the result's sharding for most reshapes and gathers; this avoids it.
    Without a mesh, or if more than the batch is sharded, `function` is simply called.

    Args:
        function: takes the arrays, and gives arrays with the batch as their first axis. No sample affects another.
        maps: arrays with the batch as their first axis, or pytrees of them.
        weights: arrays that every device has, or Python numbers, which `function` gets as such.
        auto: the same in a mesh with automatic axes, for what XLA would compute for the whole batch on every device.
            All of its devices are taken to share the batch, if they divide it.
    """
    leaves, arrays = jax.tree.leaves(maps), [x for x in weights if isinstance(x, jax.Array)]
    shardings = [jax.typeof(x).sharding for x in leaves]
    batch, mesh = next(
        ((sharding.spec[0], sharding.mesh) for sharding in shardings if sharding.spec[0] is not None),
        (None, shardings[0].mesh),
    )
    if batch is not None:
        if explicitly_sharded(*arrays) or any(part is not None for s in shardings for part in s.spec[1:]):
            return function(*maps, *weights)
        shared = NamedSharding(mesh, PartitionSpec(batch))
        maps = jax.tree.map(
            lambda x: x if jax.typeof(x).sharding.spec[0] == batch else jax.sharding.reshard(x, shared), maps
        )
        kind = AxisType.Explicit
    elif auto and set(mesh.axis_types) == {AxisType.Auto} and _divides(mesh.size, leaves[0].shape[0]):
        batch, kind = mesh.axis_names, AxisType.Auto
    else:
        return function(*maps, *weights)

    def with_numbers(maps: Any, arrays: Any) -> Any:
        given = iter(arrays)
        return function(*maps, *(next(given) if isinstance(x, jax.Array) else x for x in weights))

    return jax.shard_map(
        with_numbers,
        mesh=mesh,
        in_specs=(PartitionSpec(batch), PartitionSpec()),
        out_specs=PartitionSpec(batch),
        axis_names={name for name, its in zip(mesh.axis_names, mesh.axis_types, strict=True) if its == kind},
    )(maps, arrays)


def reshape(x: jax.Array, *shape: Any) -> jax.Array:
    """`x.reshape(*shape)` where the first axis begins with the batch in both shapes.

    In a mesh with explicit axes, JAX has to be told that the devices go on sharing the batch.
    """
    return jnp.reshape(x, shape, out_sharding=_by_batch(x))


def repeat_for(maps: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, which is one sample, for each sample in the batch of `maps`, shared by the devices as these are."""
    return jnp.broadcast_to(x, (maps.shape[0], *x.shape[1:]), out_sharding=_by_batch(maps))


def shared_like(x: jax.Array, maps: jax.Array) -> jax.Array:
    """`x`, which begins with the batch and which every device has, shared as `maps` are if their type says how."""
    batch = _by_batch(maps)
    return x if batch is None else jax.sharding.reshard(x, batch)


def _by_batch(x: jax.Array) -> NamedSharding | None:
    """How devices share maps of which they share the batch alone, if their type says so."""
    batch, *others = jax.typeof(x).sharding.spec
    if batch is None or any(part is not None for part in others):
        return None
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(batch))


def _divides(parts: int, size: Any) -> bool:
    return parts > 1 and isinstance(size, int) and size % parts == 0  # a symbolic size is none of a mesh


def _varying(x: jax.Array) -> frozenset[str]:
    """The axes of a manual mesh along which the values differ."""
    kind = jax.typeof(x)
    # jax 0.10 and later keep them in the type of the manual axes, earlier ones in `vma`.
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", None) or getattr(kind, "vma", frozenset())
