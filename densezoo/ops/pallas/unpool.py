"""2x2 max-unpooling by saved window indices, and its adjoint."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int8

from densezoo.ops.checks import check_maps
from densezoo.ops.pallas.launch import (
    Backend,
    by_platform,
    channel_block,
    gpu_flat_call,
    lane_bytes,
    ravel,
    rows_that_fit,
    supported,
    tpu_call,
)


def max_unpool_x2(
    x: Float[Array, "b h w c"],
    indices: Int8[Array, "b h w c"],
    *,
    backend: Backend | None = None,
    interpret: bool = False,
) -> Float[Array, "b _ _ c"]:
    """Puts every value back to where its maximum stood in a 2x2 window, zeros elsewhere.

    One read of the values and indices, one write of the result. Reverse mode differentiates it with respect to `x` any
    number of times, forward mode does not.

    Args:
        x: NHWC maps; the kernels take float32 and bfloat16, plain JAX computes other floats.
        indices: positions 0..3 in the window, row by row; another index drops its value.
        backend: None takes the platform's kernel; "tpu" or "gpu" forces one, which makes sense in interpret mode.
        interpret: runs the kernel as plain operations, on any platform and slowly, to check it.

    Returns:
        Maps of twice the height and width.

    Raises:
        ValueError: `x` is not NHWC or is empty, `indices` has another shape, or an unknown backend.
        TypeError: `x` is not of a float type, or `indices` not int8.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([5.0, 7.0]).reshape(1, 1, 2, 1)
        >>> index = jnp.array([1, 2], jnp.int8).reshape(1, 1, 2, 1)
        >>> max_unpool_x2(x, index, backend="gpu", interpret=True)[0, :, :, 0].tolist()
        [[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 7.0, 0.0]]

    References:
        Badrinarayanan et al., SegNet, 2015. https://arxiv.org/abs/1511.00561
    """
    check_maps(x)
    _check_indices(indices, x.shape)
    return _unpool(x, indices, backend, interpret)


def max_unpool_x2_adjoint(
    g: Float[Array, "b h2 w2 c"],
    indices: Int8[Array, "b h w c"],
    *,
    backend: Backend | None = None,
    interpret: bool = False,
) -> Float[Array, "b h w c"]:
    """The adjoint of `max_unpool_x2`: from every 2x2 window the value at its index.

    Args:
        g: NHWC maps of twice the height and width of `indices`.
        indices: positions 0..3 in the window; another index gives 0.
        backend: as for `max_unpool_x2`.
        interpret: as for `max_unpool_x2`.

    Raises:
        ValueError: `g` is not NHWC or is empty, `indices` has not half its size, or an unknown backend.
        TypeError: `g` is not of a float type, or `indices` not int8.

    Example:
        >>> import jax.numpy as jnp
        >>> g = jnp.array([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
        >>> max_unpool_x2_adjoint(g, jnp.full((1, 1, 1, 1), 2, jnp.int8)).item()
        2.0
    """
    check_maps(g)
    batch, height, width, channels = g.shape
    if height % 2 or width % 2:
        raise ValueError(f"expected maps of even height and width, as max_unpool_x2 returns them; got shape {g.shape}")
    _check_indices(indices, (batch, height // 2, width // 2, channels))
    return _pick(g, indices, backend, interpret)


def _check_indices(indices, shape):
    if indices.shape != shape:
        raise ValueError(f"expected indices of shape {shape}, one for every 2x2 window; got {indices.shape}")
    if indices.dtype != jnp.int8:
        raise TypeError(f"expected int8 indices, as max_pool_with_indices gives them; got {indices.dtype}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unpool(x, indices, backend, interpret):
    rows, fits = _rows(indices.shape), supported(4 * x.size, x)
    tpu = functools.partial(_unpool_tpu, rows=rows, interpret=interpret) if fits and rows else None
    gpu = functools.partial(_unpool_gpu, interpret=interpret) if fits else None
    return by_platform(_unpool_plain, tpu, gpu, backend, x, indices)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pick(g, indices, backend, interpret):
    rows, fits = _rows(indices.shape), supported(g.size, g)
    tpu = functools.partial(_pick_tpu, rows=rows, interpret=interpret) if fits and rows else None
    gpu = functools.partial(_pick_gpu, interpret=interpret) if fits else None
    return by_platform(_pick_plain, tpu, gpu, backend, g, indices)


# Indices are whole numbers: their cotangent is None.
_unpool.defvjp(
    lambda x, indices, backend, interpret: (_unpool(x, indices, backend, interpret), indices),
    lambda backend, interpret, indices, g: (_pick(g, indices, backend, interpret), None),
)
_pick.defvjp(
    lambda g, indices, backend, interpret: (_pick(g, indices, backend, interpret), indices),
    lambda backend, interpret, indices, x: (_unpool(x, indices, backend, interpret), None),
)


def _rows(shape):
    """Rows of the smaller map that a TPU program takes; 0 if not even one fits."""
    _, height, width, channels = shape
    # In rows of the smaller map: one, its index and the four times larger result, all buffered twice, and selections.
    return rows_that_fit(height, 20 * lane_bytes(width, channel_block(channels)))


def _spread(x, indices, phase):
    """The result's rows of one phase: (rows, w, c) -> (rows, 2w, c)."""
    zero = jnp.zeros((), x.dtype)
    pair = [jnp.where(indices == 2 * phase + column, x, zero) for column in (0, 1)]
    return jnp.stack(pair, 2).reshape(x.shape[0], 2 * x.shape[1], x.shape[2])


def _gather(lines, indices):
    """From two lines of (rows, 2w, c), the even and the odd, what stands at the indices: (rows, w, c)."""
    total = jnp.zeros(indices.shape, lines[0].dtype)
    for phase, line in enumerate(lines):
        pairs = line.reshape(line.shape[0], line.shape[1] // 2, 2, line.shape[2])
        for column in (0, 1):
            total = jnp.where(indices == 2 * phase + column, pairs[:, :, column], total)
    return total


def _unpool_plain(x, indices):
    batch, height, width, channels = x.shape
    x, indices = (a.reshape(batch * height, width, channels) for a in (x, indices))
    y = jnp.stack([_spread(x, indices, phase) for phase in (0, 1)], 1)
    return y.reshape(batch, 2 * height, 2 * width, channels)


def _pick_plain(g, indices):
    batch, height, width, channels = indices.shape
    lines = g.reshape(batch * height, 2, 2 * width, channels)
    picked = _gather((lines[:, 0], lines[:, 1]), indices.reshape(batch * height, width, channels))
    return picked.reshape(indices.shape)


def _specs(shape, rows):
    """Grid, and blocks of the smaller and of the larger map, seen as (b, h, 2, 2w, c)."""
    batch, height, width, channels = shape
    depth = channel_block(channels)
    return (
        (batch, pl.cdiv(height, rows), channels // depth),
        pl.BlockSpec((1, rows, width, depth), lambda b, i, c: (b, i, 0, c)),
        pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i, c: (b, i, 0, 0, c)),
    )


def _unpool_tpu(x, indices, *, rows, interpret):
    batch, height, width, channels = x.shape

    def kernel(x_ref, index_ref, y_ref):
        # Vector units compare and select 32-bit values.
        x, index = x_ref[0].astype(jnp.float32), index_ref[0].astype(jnp.int32)
        for phase in (0, 1):
            y_ref[0, :, phase] = _spread(x, index, phase).astype(y_ref.dtype)

    grid, small, large = _specs(x.shape, rows)
    out = jax.ShapeDtypeStruct((batch, height, 2, 2 * width, channels), x.dtype)
    y = tpu_call(kernel, grid, [small, small], large, out, interpret)(x, indices)
    return y.reshape(batch, 2 * height, 2 * width, channels)


def _pick_tpu(g, indices, *, rows, interpret):
    batch, height, width, channels = indices.shape

    def kernel(g_ref, index_ref, x_ref):
        lines = [g_ref[0, :, phase].astype(jnp.float32) for phase in (0, 1)]
        x_ref[0] = _gather(lines, index_ref[0].astype(jnp.int32)).astype(x_ref.dtype)

    grid, small, large = _specs(indices.shape, rows)
    out = jax.ShapeDtypeStruct(indices.shape, g.dtype)
    pairs = g.reshape(batch, height, 2, 2 * width, channels)
    return tpu_call(kernel, grid, [large, small], small, out, interpret)(pairs, indices)


def _unpool_gpu(x, indices, *, interpret):
    batch, height, width, channels = shape = x.shape

    def kernel(x_ref, index_ref, image, row, column, channel):
        two = jnp.int32(2)
        source = ravel((image, jax.lax.div(row, two), jax.lax.div(column, two), channel), shape)
        here = 2 * jax.lax.rem(row, two) + jax.lax.rem(column, two)
        x = pltriton.load(x_ref.at[source])
        return jnp.where(pltriton.load(index_ref.at[source]).astype(jnp.int32) == here, x, jnp.zeros((), x.dtype))

    return gpu_flat_call(kernel, (batch, 2 * height, 2 * width, channels), x.dtype, interpret)(x, indices)


def _pick_gpu(g, indices, *, interpret):
    def kernel(g_ref, index_ref, image, row, column, channel):
        index = pltriton.load(index_ref.at[ravel((image, row, column, channel), indices.shape)]).astype(jnp.int32)
        valid = (index >= 0) & (index < 4)
        index, two = jnp.where(valid, index, 0), jnp.int32(2)
        at = (image, 2 * row + jax.lax.div(index, two), 2 * column + jax.lax.rem(index, two), channel)
        picked = pltriton.load(g_ref.at[ravel(at, g.shape)])
        return jnp.where(valid, picked, jnp.zeros((), picked.dtype))

    return gpu_flat_call(kernel, indices.shape, g.dtype, interpret)(g, indices)
