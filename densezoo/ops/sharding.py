"""Sharding of operations over several devices.

Under data parallelism, the batch, which is the first axis of every map, is sharded over the devices, and the parameters
are replicated. An operation on maps then needs no communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SPACE = "space"
"""The name of a mesh's axis that shares the rows of maps and not the batch."""


def reduced_like(cotangent: jax.Array, primal: jax.Array) -> jax.Array:
    """A cotangent, summed over the devices that share the batch but not the primal (inside `jax.shard_map`)."""
    axes = _varying(cotangent) - _varying(primal)
    return jax.lax.psum(cotangent, tuple(axes)) if axes else cotangent


def explicitly_sharded(*arrays: jax.Array) -> bool:
    """Whether the arrays' types contain their sharding, so that most reshapes would have to specify it."""
    return any(part is not None for x in arrays for part in jax.typeof(x).sharding.spec)


def in_auto_mesh(x: jax.Array) -> bool:
    """Whether XLA may shard `x` over the devices of a mesh in a way that its type does not show.

    It is also False if a `jit` gets its mesh only from `in_shardings`, which is unknown during tracing.
    """
    mesh = jax.typeof(x).sharding.mesh
    return mesh.size > 1 and AxisType.Auto in mesh.axis_types


def per_device(function: Callable[..., Any], *maps: Any, weights: Sequence[Any] = (), auto: bool = False) -> Any:
    """Computes `function(*maps, *weights)` on each device for its own part of the batch.

    In a mesh with explicit axes, JAX requires the result's sharding for most reshapes and gathers; this avoids it.
    Without a mesh, or if other axes than the batch are sharded, `function` is called directly.

    Args:
        function: maps the arrays to arrays with the batch as their first axis. Samples must be independent.
        maps: arrays with the batch as their first axis, or pytrees of them.
        weights: arrays that every device has, or Python numbers, which `function` gets as such.
        auto: do the same in a mesh with automatic axes, for operations that XLA would compute for the whole batch on
            every device. The batch is assumed to be sharded over all of its axes but "space", if they divide it.
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
    elif auto and set(mesh.axis_types) == {AxisType.Auto} and _divides(_parts(mesh), leaves[0].shape[0]):
        batch, kind = tuple(name for name in mesh.axis_names if name != SPACE), AxisType.Auto
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
        axis_names={
            name for name, its in zip(mesh.axis_names, mesh.axis_types, strict=True) if its == kind and name != SPACE
        },
    )(maps, arrays)


def rows_shared(x: jax.Array) -> int:
    """The number of devices among which XLA may share the rows of maps: those of a mesh's automatic axis "space"."""
    mesh = jax.typeof(x).sharding.mesh
    automatic = [name for name, its in zip(mesh.axis_names, mesh.axis_types, strict=True) if its == AxisType.Auto]
    return mesh.shape[SPACE] if SPACE in automatic else 1


def by_rows(
    function: Callable[..., Any],
    x: jax.Array,
    *,
    above: int,
    below: int,
    repeat: bool = False,
    weights: Sequence[jax.Array] = (),
) -> jax.Array:
    """Computes `function(rows, *weights)` on each device that shares the rows of maps, for its own and some more rows.

    For operations for which XLA would gather the maps. `rows_shared(x)` divides the height.

    Args:
        function: a function of a device's rows of the maps, those around them included, to its rows of the result.
        x: maps.
        above: number of rows that each device gets from the one before it.
        below: number of rows that it gets from the one after it.
        repeat: whether the rows outside the maps repeat their first and last row. Otherwise they are 0.
        weights: arrays that every device has.
    """
    count = rows_shared(x)

    def neighbours(x: jax.Array, rows: int, step: int) -> list[jax.Array]:
        """The neighbour's rows that touch those of this device."""
        if not rows:
            return []
        mine, edge, outside = (x[:, -rows:], x[:, :1], 0) if step == 1 else (x[:, :rows], x[:, -1:], count - 1)
        found = jax.lax.ppermute(mine, SPACE, [(i, i + step) for i in range(count) if 0 <= i + step < count])
        if not repeat:
            return [found]
        return [jnp.where(jax.lax.axis_index(SPACE) == outside, jnp.broadcast_to(edge, found.shape), found)]

    return jax.shard_map(
        lambda x, weights: function(
            jnp.concatenate([*neighbours(x, above, 1), x, *neighbours(x, below, -1)], 1), *weights
        ),
        mesh=jax.typeof(x).sharding.mesh,
        in_specs=(PartitionSpec(None, SPACE), PartitionSpec()),
        out_specs=PartitionSpec(None, SPACE),
        axis_names={SPACE},
    )(x, tuple(weights))


def reshape(x: jax.Array, *shape: Any) -> jax.Array:
    """`x.reshape(*shape)` for shapes whose first axis starts with the batch.

    In a mesh with explicit axes, JAX must be told that the batch stays sharded.
    """
    return jnp.reshape(x, shape, out_sharding=_by_batch(x))


def repeat_for(maps: jax.Array, x: jax.Array) -> jax.Array:
    """Repeats one sample `x` for each sample in the batch of `maps`, with the sharding of `maps`."""
    return jnp.broadcast_to(x, (maps.shape[0], *x.shape[1:]), out_sharding=_by_batch(maps))


def shared_like(x: jax.Array, maps: jax.Array) -> jax.Array:
    """Shards `x`, which is replicated and starts with the batch, like `maps`, if their type contains a sharding."""
    batch = _by_batch(maps)
    return x if batch is None else jax.sharding.reshard(x, batch)


def _by_batch(x: jax.Array) -> NamedSharding | None:
    """The sharding of maps that are sharded only along the batch, if their type contains it."""
    batch, *others = jax.typeof(x).sharding.spec
    if batch is None or any(part is not None for part in others):
        return None
    return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(batch))


def _parts(mesh: Any) -> int:
    return mesh.size // mesh.shape.get(SPACE, 1)


def _divides(parts: int, size: Any) -> bool:
    return parts > 1 and isinstance(size, int) and size % parts == 0  # a symbolic size is never sharded


def _varying(x: jax.Array) -> frozenset[str]:
    """The axes of a manual mesh along which the values differ."""
    kind = jax.typeof(x)
    # jax 0.10 and later store them in the type's manual axes, earlier versions in `vma`.
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", None) or getattr(kind, "vma", frozenset())
