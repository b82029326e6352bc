"""Bilinear sampling at data-dependent positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.implementation import chosen
from densezoo.ops.materialize import materialize_on_cpu
from densezoo.ops.sharding import in_auto_mesh, per_device
from densezoo.types import accumulator_dtype


def sample_bilinear(x: Float[Array, "b h w c"], positions: Float[Array, "b h2 w2 *g 2"]) -> Float[Array, "b h2 w2 c"]:
    """Samples `x` bilinearly at any positions, with edge padding.

    Equal to torch's `grid_sample(padding_mode="border", align_corners=False)`, but positions are in pixels. Both
    arguments get gradients. A position on or beyond the border gets none, because the value does not change there.
    Forward-mode differentiation needs `ops.implementation("reference")`.

    Args:
        x: NHWC maps.
        positions: (batch, H, W, 2), row and column in pixels of `x`, where integers are pixel centres; or
          (batch, H, W, groups, 2), where each of `groups` equal channel groups has its own positions. Pass float32,
          because bfloat16 positions beyond 256 are only accurate to whole pixels.

    Returns:
        (batch, H, W, c), in `x`'s dtype.

    Raises:
        ValueError: if shapes do not match or are empty.
        TypeError: if one of the two is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[0.0, 1.0], [10.0, 11.0]]).reshape(1, 2, 2, 1)
        >>> positions = jnp.array([[0.5, 0.0], [1.0, 0.25], [9.0, -9.0]]).reshape(1, 1, 3, 2)
        >>> sample_bilinear(x, positions)[0, 0, :, 0].tolist()
        [5.0, 10.25, 10.0]

    References:
        Jaderberg et al., Spatial transformer networks, 2015, equation 5. https://arxiv.org/abs/1506.02025
    """
    if x.ndim != 4 or 0 in x.shape:
        raise ValueError(f"expected NHWC maps with no empty axis, got shape {x.shape}")
    if positions.ndim not in (4, 5) or 0 in positions.shape or positions.shape[-1] != 2:
        raise ValueError(f"positions are (batch, H, W, 2) or (batch, H, W, groups, 2), got shape {positions.shape}")
    if positions.shape[0] != x.shape[0]:
        raise ValueError(f"expected as many maps as sets of positions, got {x.shape} and {positions.shape}")
    if positions.ndim == 5 and x.shape[3] % positions.shape[3]:
        raise ValueError(f"{positions.shape[3]} groups must divide the {x.shape[3]} channels")
    for name, array in (("maps", x), ("positions", positions)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"sample_bilinear needs {name} of a float type, got {array.dtype}: cast them")
    if chosen() == "reference":
        return per_device(reference.sample_bilinear, x, positions)
    return per_device(_by_groups, x, positions)


def _by_groups(x, positions):
    groups = positions.shape[3] if positions.ndim == 5 else 1
    grouped = positions.reshape(*positions.shape[:3], groups, 2)
    return _sample(x, grouped).reshape(*positions.shape[:3], x.shape[3])


def _corners(shape, positions, compute):
    """The four pixels around each position as rows of the map's table, their weights, and the weights' derivatives.

    A corner is (row of the table, weight, its derivative by the row position, by the column position).
    """
    _, height, width, _ = shape
    groups = positions.shape[3]
    position = positions.astype(compute)
    wholes, fractions, moves = [], [], []
    for axis, side in enumerate((height, width)):
        raw = position[..., axis]
        clamped = jnp.where(raw <= 0, 0, jnp.where(raw >= side - 1, side - 1, raw))
        low = jnp.floor(clamped)
        fractions.append(clamped - low)
        moves.append(((raw > 0) & (raw < side - 1)).astype(compute))
        # A position in the last row has weight 0 for the next row, which does not exist.
        wholes.append([jnp.clip(low.astype(jnp.int32) + step, 0, side - 1) for step in (0, 1)])
    group = np.arange(groups, dtype=np.int32).reshape(1, 1, 1, -1)
    (down, right), (moves_down, moves_right) = fractions, moves
    corners = []
    for i, vertical, slope in zip(wholes[0], (1 - down, down), (-moves_down, moves_down), strict=True):
        for j, horizontal, lean in zip(wholes[1], (1 - right, right), (-moves_right, moves_right), strict=True):
            index = (i * width + j) * groups + group
            corners.append((index, vertical * horizontal, slope * horizontal, vertical * lean))
    return corners


def _tables(x, groups):
    """(batch, rows, channels of a group): a row for every pixel and group."""
    return x.reshape(x.shape[0], -1, x.shape[3] // groups)


def _read(tables, index):
    """The rows of each map at (batch, H, W, groups) indices. Per map, so that devices do not need each other's maps."""
    return jax.vmap(lambda table, index: table.at[index].get(mode="promise_in_bounds"))(tables, index)


@jax.custom_vjp
def _sample(x, positions):
    compute = accumulator_dtype(x.dtype)
    tables = _tables(x, positions.shape[3])
    total = jnp.zeros((), compute)
    for index, weight, _, _ in _corners(x.shape, positions, compute):
        total = total + weight[..., None] * _read(tables, index).astype(compute)
    return total.reshape(*positions.shape[:3], x.shape[3]).astype(x.dtype)


def _backward(saved, g):
    x, positions = saved
    compute = accumulator_dtype(x.dtype)
    tables = _tables(x, positions.shape[3])
    g = g.astype(compute).reshape(*positions.shape[:4], -1)
    corners = [corner[:2] for corner in _corners(x.shape, positions, compute)]
    add = functools.partial(_add, tables)
    # XLA would gather all maps for the loop over them.
    on_cpu = add if in_auto_mesh(x) else functools.partial(_add_by_map, tables)
    to_tables = jax.lax.platform_dependent(corners, g, cpu=on_cpu, default=add)
    to_positions, unlike = [], positions
    for axis in (0, 1):
        # Otherwise XLA:CPU stores the gathered values once for both axes, four maps of the result's size. Gathering
        # for each axis, in the loop that weights the values, takes a quarter of the time.
        unlike = materialize_on_cpu(unlike)
        slope = jnp.zeros((), compute)
        for index, _, *slopes in _corners(x.shape, unlike, compute):
            slope = slope + slopes[axis][..., None] * _read(tables, index).astype(compute)
        # XLA:CPU sums over the last axis twice as fast as a matrix product.
        ones = jnp.ones((g.shape[-1],), compute)
        to_positions.append(jnp.einsum("...c,c->...", slope * g, ones, precision="highest"))
    return to_tables.reshape(x.shape).astype(x.dtype), jnp.stack(to_positions, -1).astype(positions.dtype)


def _add(tables, corners, g):
    """The gradient of the tables: adds every pixel of `g`, weighted, to its corners' rows."""
    add = jax.vmap(lambda table, index, parts: table.at[index].add(parts, mode="promise_in_bounds"))
    total = jnp.zeros(tables.shape, g.dtype)
    for index, weight in corners:
        total = add(total, index, weight[..., None] * g)
    return total


def _add_by_map(tables, corners, g):
    """The same in a loop over maps and corners: XLA:CPU would store all weighted maps at once, beyond its caches."""
    batch, channels = g.shape[0], g.shape[-1]
    indices, weights = (
        jnp.stack([part.reshape(batch, -1) for part in parts], 1) for parts in zip(*corners, strict=True)
    )
    first = tables.shape[1] * jnp.arange(batch, dtype=jnp.int32)[:, None, None]
    indices = indices + first  # as rows of all tables, stacked vertically
    of = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def add(step, table):
        weighed = of(weights.reshape(4 * batch, -1), step)[:, None] * of(g.reshape(batch, -1, channels), step // 4)
        return table.at[of(indices.reshape(4 * batch, -1), step)].add(weighed, mode="promise_in_bounds")

    # The first iteration is separate, so that inside `jax.shard_map` the loop starts with a correctly varying carry.
    zeros = jnp.zeros((batch * tables.shape[1], channels), g.dtype)
    return jax.lax.fori_loop(1, 4 * batch, add, add(0, zeros)).reshape(tables.shape)


_sample.defvjp(lambda x, positions: (_sample(x, positions), (x, positions)), _backward)
