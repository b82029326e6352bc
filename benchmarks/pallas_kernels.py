"""Pallas kernels for TPUs (Mosaic), each with one pass over the maps: bilinear x2, max-unpooling, and their adjoints.

In interpret mode on a CPU, they agree with plain JAX in values and gradients, and `jax.export` lowers them for TPU.
They have not been run or timed on a TPU, so it is unknown whether they are faster than XLA, and no model uses them.
`benchmarks.upsampling --platform tpu` times them as a separate form.

The channels are laid out along 128 lanes, so maps with few channels waste lanes, and XLA copies arrays into the layout
that the kernels read. XLA cannot split a kernel over several devices: call it inside `jax.shard_map(...,
check_vma=False)`, with one device's share of the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int8

# Bytes for one program's blocks and intermediate values: by default, TPUs allow 16 MiB per kernel.
VMEM = 10 * 2**20
# More rows of a map per program would not help: haloes are already a small part of the reads.
MAX_ROWS = 64


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def bilinear_x2(x: Float[Array, "b h w c"], interpret: bool = False) -> Float[Array, "b h2 w2 c"]:
    """Bilinear x2 upsampling at half-pixel centres, summed in float32.

    Along each axis `y[2i] = 0.25 x[i-1] + 0.75 x[i]` and `y[2i+1] = 0.75 x[i] + 0.25 x[i+1]`, with the edges repeated.

    Args:
        x: NHWC maps, float32 or bfloat16.
        interpret: runs the kernel as plain operations, on any platform and slowly, for tests.
    """
    batch, height, width, channels = x.shape
    grid, rows, depth = _blocks(x.shape)

    def kernel(x_ref, above_ref, below_ref, y_ref):
        x, above, below = (ref[0].astype(jnp.float32) for ref in (x_ref, above_ref, below_ref))
        # The last block may extend past the map: the map's last row is its own successor, wherever it is.
        row = pl.program_id(1) * rows + jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        following = jnp.where(row == height - 1, x, _after(x, below, 0))
        for phase, lines in enumerate(_even_odd(x, _before(x, above, 0), following)):
            pair = _even_odd(lines, _before(lines, lines[:, :1], 1), _after(lines, lines[:, -1:], 1))
            y_ref[0, :, phase] = jnp.stack(pair, 2).reshape(rows, 2 * width, depth).astype(y_ref.dtype)

    line = (1, 1, width, depth)
    y = _call(
        kernel,
        grid,
        [
            pl.BlockSpec((1, rows, width, depth), lambda b, i, c: (b, i, 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.maximum(i * rows - 1, 0), 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.minimum((i + 1) * rows, height - 1), 0, c)),
        ],
        pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i, c: (b, i, 0, 0, c)),
        jax.ShapeDtypeStruct((batch, height, 2, 2 * width, channels), x.dtype),
        interpret,
    )(x, x, x)
    return y.reshape(batch, 2 * height, 2 * width, channels)


def bilinear_x2_adjoint(g: Float[Array, "b h2 w2 c"], interpret: bool = False) -> Float[Array, "b h w c"]:
    """The adjoint of `bilinear_x2`.

    Along each axis, with `e[i] = g[2i]` and `o[i] = g[2i+1]`, it is `0.75 (e[i] + o[i]) + 0.25 (o[i-1] + e[i+1])`. At
    the edges, `e[0]` replaces `o[-1]`, and `o[n-1]` replaces `e[n]`.
    """
    batch, height, width, channels = g.shape
    height, width = height // 2, width // 2
    grid, rows, depth = _blocks((batch, height, width, channels))

    def kernel(g_ref, above_ref, below_ref, x_ref):
        even, odd = (g_ref[0, :, phase].astype(jnp.float32) for phase in (0, 1))
        above, below = (ref[0, 0].astype(jnp.float32) for ref in (above_ref, below_ref))
        row = pl.program_id(1) * rows + jax.lax.broadcasted_iota(jnp.int32, even.shape, 0)
        odd_before = jnp.where(row == 0, even, _before(odd, above, 0))
        even_after = jnp.where(row == height - 1, odd, _after(even, below, 0))
        pairs = _merge(even, odd, odd_before, even_after).reshape(rows, width, 2, depth)
        even, odd = pairs[:, :, 0], pairs[:, :, 1]
        x = _merge(even, odd, _before(odd, even[:, :1], 1), _after(even, odd[:, -1:], 1))
        x_ref[0] = x.astype(x_ref.dtype)

    pairs = g.reshape(batch, height, 2, 2 * width, channels)
    line = (1, 1, 1, 2 * width, depth)
    return _call(
        kernel,
        grid,
        [
            pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i, c: (b, i, 0, 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.maximum(i * rows - 1, 0), 1, 0, c)),
            pl.BlockSpec(line, lambda b, i, c: (b, jnp.minimum((i + 1) * rows, height - 1), 0, 0, c)),
        ],
        pl.BlockSpec((1, rows, width, depth), lambda b, i, c: (b, i, 0, c)),
        jax.ShapeDtypeStruct((batch, height, width, channels), g.dtype),
        interpret,
    )(pairs, pairs, pairs)


bilinear_x2.defvjp(
    lambda x, interpret: (bilinear_x2(x, interpret), None),
    lambda interpret, _, g: (bilinear_x2_adjoint(g, interpret),),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def max_unpool_x2(
    x: Float[Array, "b h w c"], indices: Int8[Array, "b h w c"], interpret: bool = False
) -> Float[Array, "b h2 w2 c"]:
    """Puts every value at the position of its maximum in a 2x2 window, zeros elsewhere.

    Args:
        x: NHWC maps, float32 or bfloat16.
        indices: positions 0..3 in the window, row by row; another index drops its value.
        interpret: as in `bilinear_x2`.
    """
    batch, height, width, channels = x.shape
    grid, rows, depth = _blocks(x.shape)

    def kernel(x_ref, index_ref, y_ref):
        # Vector units compare and select 32-bit values.
        x, index = x_ref[0].astype(jnp.float32), index_ref[0].astype(jnp.int32)
        for phase in (0, 1):
            pair = [jnp.where(index == 2 * phase + column, x, 0.0) for column in (0, 1)]
            y_ref[0, :, phase] = jnp.stack(pair, 2).reshape(rows, 2 * width, depth).astype(y_ref.dtype)

    small, large = _unpooling_blocks(rows, width, depth)
    out = jax.ShapeDtypeStruct((batch, height, 2, 2 * width, channels), x.dtype)
    y = _call(kernel, grid, [small, small], large, out, interpret)(x, indices)
    return y.reshape(batch, 2 * height, 2 * width, channels)


def max_unpool_x2_adjoint(
    g: Float[Array, "b h2 w2 c"], indices: Int8[Array, "b h w c"], interpret: bool = False
) -> Float[Array, "b h w c"]:
    """The adjoint of `max_unpool_x2`: the value at each window's index, 0 for an index outside the window."""
    batch, height, width, channels = indices.shape
    grid, rows, depth = _blocks(indices.shape)

    def kernel(g_ref, index_ref, x_ref):
        index = index_ref[0].astype(jnp.int32)
        x = jnp.zeros(index.shape, jnp.float32)
        for phase in (0, 1):
            pairs = g_ref[0, :, phase].astype(jnp.float32).reshape(rows, width, 2, depth)
            for column in (0, 1):
                x = jnp.where(index == 2 * phase + column, pairs[:, :, column], x)
        x_ref[0] = x.astype(x_ref.dtype)

    small, large = _unpooling_blocks(rows, width, depth)
    out = jax.ShapeDtypeStruct(indices.shape, g.dtype)
    pairs = g.reshape(batch, height, 2, 2 * width, channels)
    return _call(kernel, grid, [large, small], small, out, interpret)(pairs, indices)


# Indices are integers: their cotangent is None.
max_unpool_x2.defvjp(
    lambda x, indices, interpret: (max_unpool_x2(x, indices, interpret), indices),
    lambda interpret, indices, g: (max_unpool_x2_adjoint(g, indices, interpret), None),
)


def _call(
    kernel: Callable, grid: tuple[int, ...], in_specs: Sequence[Any], out_spec: Any, out: Any, interpret: bool
) -> Callable:
    """A `pallas_call` whose programs do not depend on each other."""
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=list(in_specs),
        out_specs=out_spec,
        out_shape=out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid)),
        interpret=interpret,
    )


def _blocks(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int, int]:
    """Grid, rows and channels of a program, from the shape of the smaller map."""
    batch, height, width, channels = shape
    depth = 128 if channels % 128 == 0 else channels
    # A row of the smaller map in tiles of 16 x 128 float32; then this row, an index or a halo, and the map of four
    # times the size, all double-buffered, and intermediate values.
    row = pl.cdiv(width, 16) * 16 * pl.cdiv(depth, 128) * 128 * 4
    rows = max(1, min(height, MAX_ROWS, VMEM // (20 * row)))
    return (batch, pl.cdiv(height, rows), channels // depth), rows, depth


def _unpooling_blocks(rows: int, width: int, depth: int) -> tuple[Any, Any]:
    """Blocks of the smaller map, and of the larger one, viewed as (b, h, 2, 2w, c)."""
    return (
        pl.BlockSpec((1, rows, width, depth), lambda b, i, c: (b, i, 0, c)),
        pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i, c: (b, i, 0, 0, c)),
    )


# The interpolations and their adjoint along one axis, from the pixels and their neighbours.
def _even_odd(x, previous, following):
    return 0.25 * previous + 0.75 * x, 0.75 * x + 0.25 * following


def _merge(even, odd, odd_before, even_after):
    return 0.75 * (even + odd) + 0.25 * (odd_before + even_after)


def _before(x: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """The neighbours at index - 1 along `axis`; `first` precedes the first."""
    size = x.shape[axis]
    # Mosaic does not support empty slices.
    return first if size == 1 else jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)


def _after(x: jax.Array, last: jax.Array, axis: int) -> jax.Array:
    """The neighbours at index + 1 along `axis`; `last` follows the last."""
    size = x.shape[axis]
    return last if size == 1 else jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
