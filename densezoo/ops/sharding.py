"""Sharding of operations over several devices.

Under data parallelism, the batch, which is the first axis of every map, is sharded over the devices, and the parameters
are replicated. An operation on maps then needs no communication.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

SPATIAL = {"rows": 1, "space": 1, "columns": 2}
"""The names of a mesh's axes that share not the batch but an axis of maps, and which one. "space" is as "rows"."""


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
            every device. The batch is assumed to be sharded over all axes that are not `SPATIAL`, if they divide it.
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
        batch, kind = tuple(name for name in mesh.axis_names if name not in SPATIAL), AxisType.Auto
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
        axis_names={name for name in _of_kind(mesh, kind) if name not in SPATIAL},
    )(maps, arrays)


def sides_shared(x: jax.Array) -> dict[int, tuple[str, int]]:
    """The mesh's axis that may share the rows (1) or the columns (2) of maps, and its number of devices.

    Only automatic axes: XLA may shard maps over them in a way that their types do not show.
    """
    mesh = jax.typeof(x).sharding.mesh
    spatial = [name for name in _of_kind(mesh, AxisType.Auto) if name in SPATIAL and mesh.shape[name] > 1]
    return {SPATIAL[name]: (name, mesh.shape[name]) for name in spatial}


def with_borders(
    function: Callable[..., Any],
    x: jax.Array,
    borders: Mapping[int, tuple[int, int]],
    *,
    repeat: bool = False,
    weights: Sequence[jax.Array] = (),
) -> jax.Array:
    """Computes `function(part, *weights)` on each device for its own part of maps and its neighbours' pixels around it.

    For operations for which XLA would gather the maps.

    Args:
        function: maps a device's part of the maps, with its borders, to its part of the result.
        x: maps.
        borders: for each axis that is shared, 1 for rows and 2 for columns, how many of them each device gets from the
            device before it and from the one after it. The axes must be among `sides_shared(x)`, which must divide
            them. XLA distributes the others.
        repeat: whether the pixels outside the maps repeat those at their edges. Otherwise they are 0.
        weights: arrays that every device has.
    """
    shared = sides_shared(x)

    def neighbours(x: jax.Array, axis: int, size: int, step: int) -> list[jax.Array]:
        """The pixels that the neighbour before (`step` 1) or after (-1) this device has next to it."""
        if not size:
            return []
        name, count = shared[axis]
        side = x.shape[axis]
        take = functools.partial(jax.lax.slice_in_dim, x, axis=axis)
        mine, edge = (take(side - size, side), take(0, 1)) if step == 1 else (take(0, size), take(side - 1, side))
        found = jax.lax.ppermute(mine, name, [(i, i + step) for i in range(count) if 0 <= i + step < count])
        if not repeat:
            return [found]
        outside = jax.lax.axis_index(name) == (0 if step == 1 else count - 1)
        return [jnp.where(outside, jnp.broadcast_to(edge, found.shape), found)]

    def compute(x: jax.Array, weights: Sequence[jax.Array]) -> jax.Array:
        for axis, (before, after) in borders.items():  # Later axes include the borders of earlier ones: the corners.
            x = jnp.concatenate([*neighbours(x, axis, before, 1), x, *neighbours(x, axis, after, -1)], axis)
        return function(x, *weights)

    mesh = jax.typeof(x).sharding.mesh
    # The devices that share the batch, too, so that gradients of weights are added up over all devices at once.
    batch = tuple(name for name in _of_kind(mesh, AxisType.Auto) if name not in SPATIAL)
    batch = batch if _divides(math.prod(mesh.shape[name] for name in batch), x.shape[0]) else ()
    sides = [shared[axis][0] if axis in borders else None for axis in (1, 2)]
    spec = PartitionSpec(batch or None, *sides)
    return jax.shard_map(
        compute,
        mesh=mesh,
        in_specs=(spec, PartitionSpec()),
        out_specs=spec,
        axis_names={*batch, *(name for name in sides if name is not None)},
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
    return math.prod(count for name, count in mesh.shape.items() if name not in SPATIAL)


def _of_kind(mesh: Any, kind: AxisType) -> list[str]:
    return [name for name, its in zip(mesh.axis_names, mesh.axis_types, strict=True) if its == kind]


def _divides(parts: int, size: Any) -> bool:
    return parts > 1 and isinstance(size, int) and size % parts == 0  # a symbolic size is never sharded


def _varying(x: jax.Array) -> frozenset[str]:
    """The axes of a manual mesh along which the values differ."""
    kind = jax.typeof(x)
    # jax 0.10 and later store them in the type's manual axes, earlier versions in `vma`.
    return getattr(getattr(kind, "manual_axis_type", kind), "varying", None) or getattr(kind, "vma", frozenset())
