"""Bilinear x2 upsampling at half-pixel centres, and its adjoint."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float

from densezoo.ops.checks import check_maps
from densezoo.ops.pallas.launch import (
    Backend,
    after,
    before,
    by_platform,
    channel_block,
    gpu_flat_call,
    lane_bytes,
    ravel,
    rows_that_fit,
    supported,
    tpu_call,
)
from densezoo.types import accumulator_dtype


def bilinear_x2(
    x: Float[Array, "b h w c"], *, backend: Backend | None = None, interpret: bool = False
) -> Float[Array, "b _ _ c"]:
    """Bilinear x2 upsampling at half-pixel centres, in one pass over the maps.

    Every pixel of `x` is fetched once, but for the lines where two programs' blocks meet, and the result written once.
    Along each axis `y[2i] = 0.25 x[i-1] + 0.75 x[i]` and `y[2i+1] = 0.75 x[i] + 0.25 x[i+1]`, with the edges repeated:
    torch's `interpolate(scale_factor=2, mode="bilinear", align_corners=False)`. Halves are summed in float32. Reverse
    mode differentiates it any number of times, forward mode does not.

    Args:
        x: NHWC maps; the kernels take float32 and bfloat16, plain JAX computes other floats.
        backend: None takes the platform's kernel; "tpu" or "gpu" forces one, which makes sense in interpret mode.
        interpret: runs the kernel as plain operations, on any platform and slowly, to check it.

    Returns:
        Maps of twice the height and width.

    Raises:
        ValueError: `x` is not NHWC or is empty, or an unknown backend.
        TypeError: `x` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
        >>> bilinear_x2(x, backend="gpu", interpret=True)[0, 0, :, 0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    check_maps(x)
    return _up(x, backend, interpret)


def bilinear_x2_adjoint(
    g: Float[Array, "b h2 w2 c"], *, backend: Backend | None = None, interpret: bool = False
) -> Float[Array, "b _ _ c"]:
    """The adjoint of `bilinear_x2`: maps of twice the size to maps of the size, the gradient's way back.

    Along each axis, with `e[i] = g[2i]` and `o[i] = g[2i+1]`, it is `0.75 (e[i] + o[i]) + 0.25 (o[i-1] + e[i+1])`. At
    the edges `e[0]` stands for `o[-1]`, and `o[n-1]` for `e[n]`.

    Args:
        g: NHWC maps of even height and width.
        backend: as for `bilinear_x2`.
        interpret: as for `bilinear_x2`.

    Returns:
        Maps of half the height and width.

    Raises:
        ValueError: `g` is not NHWC, is empty or has an odd side, or an unknown backend.
        TypeError: `g` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> g = jnp.array([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 4, 1)
        >>> bilinear_x2_adjoint(g)[0, 0, :, 0].tolist()
        [3.25, 6.75]
    """
    check_maps(g)
    if g.shape[1] % 2 or g.shape[2] % 2:
        raise ValueError(f"expected maps of even height and width, as bilinear_x2 returns them; got shape {g.shape}")
    return _down(g, backend, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _up(x, backend, interpret):
    rows = _rows(x.shape)
    fits = supported(4 * x.size, x)
    tpu = functools.partial(_up_tpu, rows=rows, interpret=interpret) if fits and rows else None
    gpu = functools.partial(_up_gpu, interpret=interpret) if fits else None
    return by_platform(_up_plain, tpu, gpu, backend, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _down(g, backend, interpret):
    batch, height, width, channels = g.shape
    rows = _rows((batch, height // 2, width // 2, channels))
    fits = supported(g.size, g)
    tpu = functools.partial(_down_tpu, rows=rows, interpret=interpret) if fits and rows else None
    gpu = functools.partial(_down_gpu, interpret=interpret) if fits else None
    return by_platform(_down_plain, tpu, gpu, backend, g)


_up.defvjp(
    lambda x, backend, interpret: (_up(x, backend, interpret), None),
    lambda backend, interpret, _, g: (_down(g, backend, interpret),),
)
_down.defvjp(
    lambda g, backend, interpret: (_down(g, backend, interpret), None),
    lambda backend, interpret, _, x: (_up(x, backend, interpret),),
)


def _rows(shape):
    """Rows of the smaller map that a TPU program takes; 0 if not even one fits."""
    _, height, width, channels = shape
    # In rows of the smaller map: one and its four times larger result, both buffered twice, and intermediate values.
    return rows_that_fit(height, 20 * lane_bytes(width, channel_block(channels)))


# The lerps and their adjoint along one axis, from the pixels and their neighbours.
def _even_odd(x, previous, following):
    return 0.25 * previous + 0.75 * x, 0.75 * x + 0.25 * following


def _merge(even, odd, odd_before, even_after):
    return 0.75 * (even + odd) + 0.25 * (odd_before + even_after)


def _up_columns(x):
    """(rows, w, c) -> (rows, 2w, c)."""
    pair = _even_odd(x, before(x, x[:, :1], 1), after(x, x[:, -1:], 1))
    return jnp.stack(pair, 2).reshape(x.shape[0], 2 * x.shape[1], x.shape[2])


def _down_columns(g):
    """(rows, 2w, c) -> (rows, w, c)."""
    pairs = g.reshape(g.shape[0], g.shape[1] // 2, 2, g.shape[2])
    even, odd = pairs[:, :, 0], pairs[:, :, 1]
    return _merge(even, odd, before(odd, even[:, :1], 1), after(even, odd[:, -1:], 1))


def _up_plain(x):
    batch, height, width, channels = x.shape
    wide = x.astype(accumulator_dtype(x.dtype))
    pair = _even_odd(wide, before(wide, wide[:, :1], 1), after(wide, wide[:, -1:], 1))
    # Two passes: fused into one, each row is interpolated again for every pixel that reads it, slower on CPUs.
    lines = jax.lax.optimization_barrier(jnp.stack(pair, 2).reshape(batch * 2 * height, width, channels))
    y = _up_columns(lines)
    return y.reshape(batch, 2 * height, 2 * width, channels).astype(x.dtype)


def _down_plain(g):
    batch, height, width, channels = g.shape
    pairs = g.astype(accumulator_dtype(g.dtype)).reshape(batch, height // 2, 2, width, channels)
    even, odd = pairs[:, :, 0], pairs[:, :, 1]
    merged = _merge(even, odd, before(odd, even[:, :1], 1), after(even, odd[:, -1:], 1))
    y = _down_columns(merged.reshape(batch * height // 2, width, channels))
    return y.reshape(batch, height // 2, width // 2, channels).astype(g.dtype)


def _up_tpu(x, *, rows, interpret):
    batch, height, width, channels = x.shape
    depth = channel_block(channels)

    def kernel(x_ref, above_ref, below_ref, y_ref):
        x, above, below = (ref[0].astype(jnp.float32) for ref in (x_ref, above_ref, below_ref))
        # The last block may reach past the map: the map's last row is its own successor, wherever it stands.
        row = pl.program_id(1) * rows + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        following = jnp.where(row == height - 1, x, after(x, below, 0))
        for phase, lines in enumerate(_even_odd(x, before(x, above, 0), following)):
            y_ref[0, :, phase] = _up_columns(lines).astype(y_ref.dtype)

    y = tpu_call(
        kernel,
        (batch, pl.cdiv(height, rows), channels // depth),
        [
            pl.BlockSpec((1, rows, width, depth), lambda b, i, c: (b, i, 0, c)),
            pl.BlockSpec((1, 1, width, depth), lambda b, i, c: (b, jnp.maximum(i * rows - 1, 0), 0, c)),
            pl.BlockSpec((1, 1, width, depth), lambda b, i, c: (b, jnp.minimum((i + 1) * rows, height - 1), 0, c)),
        ],
        pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i, c: (b, i, 0, 0, c)),
        jax.ShapeDtypeStruct((batch, height, 2, 2 * width, channels), x.dtype),
        interpret,
    )(x, x, x)
    return y.reshape(batch, 2 * height, 2 * width, channels)


def _down_tpu(g, *, rows, interpret):
    batch, height, width, channels = g.shape
    height //= 2
    depth = channel_block(channels)

    def kernel(g_ref, above_ref, below_ref, x_ref):
        even, odd = (g_ref[0, :, phase].astype(jnp.float32) for phase in (0, 1))
        above, below = (ref[0, 0].astype(jnp.float32) for ref in (above_ref, below_ref))
        row = pl.program_id(1) * rows + jax.lax.broadcasted_iota(jnp.int32, even.shape, 0)
        odd_before = jnp.where(row == 0, even, before(odd, above, 0))
        even_after = jnp.where(row == height - 1, odd, after(even, below, 0))
        x_ref[0] = _down_columns(_merge(even, odd, odd_before, even_after)).astype(x_ref.dtype)

    pairs = g.reshape(batch, height, 2, width, channels)
    line = (1, 1, 1, width, depth)
    return tpu_call(
        kernel,
        (batch, pl.cdiv(height, rows), channels // depth),
        [
            pl.BlockSpec((1, rows, 2, width, depth), lambda b, i, c: (b, i, 0, 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.maximum(i * rows - 1, 0), 1, 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.minimum((i + 1) * rows, height - 1), 0, 0, c)),
        ],
        pl.BlockSpec((1, rows, width // 2, depth), lambda b, i, c: (b, i, 0, c)),
        jax.ShapeDtypeStruct((batch, height, width // 2, channels), g.dtype),
        interpret,
    )(pairs, pairs, pairs)


# On GPUs neighbouring programs and threads read the same pixels again, which the caches answer.
def _up_gpu(x, *, interpret):
    batch, height, width, channels = shape = x.shape

    def kernel(x_ref, image, row, column, channel):
        def near_far(position, size):
            # The pixel above this one, and its neighbour on the side where this one lies.
            near = jax.lax.div(position, jnp.int32(2))
            far = near + 2 * jax.lax.rem(position, jnp.int32(2)) - 1
            return (near, 0.75), (jnp.clip(far, 0, size - 1), 0.25)

        total = 0.0
        for i, weight_i in near_far(row, height):
            for j, weight_j in near_far(column, width):
                pixel = pltriton.load(x_ref.at[ravel((image, i, j, channel), shape)])
                total = total + weight_i * weight_j * pixel.astype(jnp.float32)
        return total

    return gpu_flat_call(kernel, (batch, 2 * height, 2 * width, channels), x.dtype, interpret)(x)


def _down_gpu(g, *, interpret):
    batch, height, width, channels = shape = g.shape

    def kernel(g_ref, image, row, column, channel):
        def taps(position, size):
            weights = (0.25, 0.75, 0.75, 0.25)
            return [(jnp.clip(2 * position + k - 1, 0, size - 1), weight) for k, weight in enumerate(weights)]

        total = 0.0
        for i, weight_i in taps(row, height):
            for j, weight_j in taps(column, width):
                pixel = pltriton.load(g_ref.at[ravel((image, i, j, channel), shape)])
                total = total + weight_i * weight_j * pixel.astype(jnp.float32)
        return total

    return gpu_flat_call(kernel, (batch, height // 2, width // 2, channels), g.dtype, interpret)(g)
