"""Max-pooling that stores the positions of the maxima, its inverse, and average pooling over windows and bins."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int8

from densezoo.ops import reference
from densezoo.ops.checks import check_maps, check_size, check_whole
from densezoo.ops.implementation import chosen
from densezoo.ops.materialize import materialize_on_cpu
from densezoo.ops.sharding import per_device
from densezoo.types import Side, Size, accumulator_dtype


def window_taps(x: jax.Array, window: int, stride: int, padding: int = 0) -> list[jax.Array]:
    """The strided slices of `x` for the window's positions, row by row, padded with the minimum value.

    Each slice is padded separately: XLA fuses these pads into their consumers, but would store a padded map.
    """
    counts = [_windows(side, window, stride, padding) for side in x.shape[1:3]]

    def span(offset: int, side: Side, count: Side) -> tuple[int, Side]:
        """The range of windows for which the pixel at `offset` is inside the map; the end is exclusive."""
        return max(0, -(-(padding - offset) // stride)), min(count, (side - 1 + padding - offset) // stride + 1)

    def tap(i: int, j: int) -> jax.Array:
        spans = [span(offset, side, count) for offset, side, count in zip((i, j), x.shape[1:3], counts, strict=True)]
        if any(last <= first for first, last in spans):  # at this offset there is only padding
            return jnp.full((x.shape[0], *counts, x.shape[3]), _lowest(x.dtype))
        starts = [first * stride + offset - padding for (first, _), offset in zip(spans, (i, j), strict=True)]
        ends = [start + (last - first - 1) * stride + 1 for start, (first, last) in zip(starts, spans, strict=True)]
        inside = jax.lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, stride, stride, 1))
        around = [(first, count - last, 0) for (first, last), count in zip(spans, counts, strict=True)]
        return jax.lax.pad(inside, _lowest(x.dtype), ((0, 0, 0), *around, (0, 0, 0))) if padding else inside

    return [tap(i, j) for i in range(window) for j in range(window)]


def _windows(side: Side, window: int, stride: int, padding: int) -> Side:
    """The number of windows along an axis."""
    return (side + 2 * padding - window) // stride + 1


def _lowest(dtype: Any) -> np.ndarray:
    """The minimum value of the dtype."""
    return np.asarray(-np.inf if jnp.issubdtype(dtype, jnp.floating) else jnp.iinfo(dtype).min, dtype)


def _maxima(x, window, stride, padding):
    """The maximum of each window."""

    def along(axes, x):
        windows, strides = ([size if axis in axes else 1 for axis in range(4)] for size in (window, stride))
        pads = [(padding, padding) if axis in axes else (0, 0) for axis in range(4)]
        return jax.lax.reduce_window(x, _lowest(x.dtype), jax.lax.max, windows, strides, pads)

    def on_cpu(x):
        # One axis at a time is four times faster on CPU, in float32 eight times more than in bfloat16.
        wide = x.astype(accumulator_dtype(x.dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
        # A single pass over the taps is twice as fast again if windows barely overlap and stay inside the map.
        ends = [
            (_windows(side, window, stride, padding) - 1) * stride + window - padding - side for side in x.shape[1:3]
        ]
        by_taps = stride > 1 and window <= stride + 1 and max(ends) <= 0
        best = (
            functools.reduce(jnp.maximum, window_taps(wide, window, stride, padding))
            if by_taps
            else along((1,), along((2,), wide))
        )
        return best.astype(x.dtype)

    return jax.lax.platform_dependent(x, cpu=on_cpu, default=functools.partial(along, (1, 2)))


def _pool(x, window, stride, padding):
    """The maxima and their positions. A position is found by comparing, which writes one map less than storing both."""
    best, floating = _maxima(x, window, stride, padding), jnp.issubdtype(x.dtype, jnp.floating)
    # NaN is not less than infinity, but every other value in its window is (except infinity itself).
    bound = jnp.where(jnp.isnan(best), jnp.asarray(np.inf, x.dtype), best) if floating else best
    index = jnp.zeros(best.shape, jnp.int8)
    for position, tap in reversed(list(enumerate(window_taps(x, window, stride, padding)))):
        index = jnp.where(tap < bound, index, jnp.int8(position))
    return best, index


def _unpool_windows(g, index, shape, window, stride, padding):
    """Adjoint of max-pooling: each value of `g` is added at the position of its maximum.

    For each phase (a row and a column modulo the stride), this sums the few windows that cover its pixels, all of which
    see them at the same positions. Spreading a window's values over the map with zeros between is five times slower.
    """
    zero = jnp.zeros((), g.dtype)
    counts = [-(-side // stride) for side in shape[1:3]]

    def reaching(phase: int) -> list[tuple[int, int]]:
        """The positions along an axis at which windows see this phase, and the offset of their pixels."""
        return [(i, (i - phase - padding) // stride) for i in range((phase + padding) % stride, window, stride)]

    def gather(row: int, column: int) -> jax.Array:
        total = jnp.zeros((shape[0], *counts, shape[3]), g.dtype)
        for i, down in reaching(row):
            for j, right in reaching(column):
                part = jnp.where(index == window * i + j, g, zero)
                moved = [
                    (by, count - by - size, 0)
                    for by, count, size in zip((down, right), counts, g.shape[1:3], strict=True)
                ]
                total = total + jax.lax.pad(part, zero, ((0, 0, 0), *moved, (0, 0, 0)))
        return total

    y = _interleave([[gather(row, column) for column in range(stride)] for row in range(stride)])
    return y[:, : shape[1], : shape[2]]


def _interleave(phases: Sequence[Sequence[jax.Array]]) -> jax.Array:
    """Interleaves phases, given by row and column modulo their number (`phases[row][column]`), to a map."""
    batch, height, width, channels = phases[0][0].shape
    rows = [jnp.stack(row, axis=3).reshape(batch, height, len(row) * width, channels) for row in phases]
    return jnp.stack(rows, axis=2).reshape(batch, len(rows) * height, len(phases[0]) * width, channels)


def max_pool_with_indices(
    x: Float[Array, "b h w c"], window: int = 2, stride: int | None = None, padding: int = 0
) -> tuple[Float[Array, "b h2 w2 c"], Int8[Array, "b h2 w2 c"]]:
    """Max-pooling, and for every maximum its position in the window, counted row by row.

    Rows and columns that do not fill a window are dropped, as in torch. Ties select the first value. A NaN is greater
    than any number, and the first of several is selected. The backward pass uses the saved indices, which on CPU is
    many times faster than the select-and-scatter of `flax.linen.max_pool`. It is a custom VJP: reverse mode works,
    forward mode does not.

    Args:
        x: NHWC maps.
        window: side of the window in pixels, at most 11 (an index is an int8).
        stride: step in pixels; None means `window`.
        padding: pixels of minus infinity added on every side.

    Raises:
        ValueError: if `x` is not NHWC or is empty, a window, stride or padding is invalid, or a map is smaller than the
          window.

    Example:
        >>> import jax.numpy as jnp
        >>> y, index = max_pool_with_indices(jnp.array([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1))
        >>> float(y[0, 0, 0, 0]), int(index[0, 0, 0, 0])
        (5.0, 1)
    """
    stride = _checked(x, window, stride, padding)
    if chosen() == "reference":
        return per_device(lambda x: reference.max_pool_with_indices(x, window, stride, padding), x)
    shape = x.shape

    @jax.custom_vjp
    def pool(x):
        return _pool(x, window, stride, padding)

    def forward(x):
        y, index = _pool(x, window, stride, padding)
        # Otherwise XLA:CPU would recompute every position for every pixel that reads it in the backward pass.
        return (y, index), materialize_on_cpu(index)

    def backward(index, cotangents):
        return (_unpool_windows(cotangents[0], index, shape, window, stride, padding),)

    pool.defvjp(forward, backward)
    return pool(x)


def max_pool(
    x: Float[Array, "b h w c"], window: int = 2, stride: int | None = None, padding: int = 0
) -> Float[Array, "b h2 w2 c"]:
    """Max-pooling with torch's padding and a memory-saving backward pass; see `max_pool_with_indices`.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.zeros((1, 7, 7, 3)), 3, 2, 1).shape
        (1, 4, 4, 3)
    """
    if chosen() == "reference":
        stride = _checked(x, window, stride, padding)
        return per_device(lambda x: reference.max_pool(x, window, stride, padding), x)
    return max_pool_with_indices(x, window, stride, padding)[0]


def _checked(x: Any, window: int, stride: int | None, padding: int) -> int:
    """The stride, with all arguments checked."""
    check_maps(x, floating=False)
    stride = window if stride is None else stride
    check_whole(1, window=window, stride=stride)
    check_whole(0, padding=padding)
    if window > 11 or padding > window // 2:
        raise ValueError(f"window must be 1 to 11 and padding at most half of it; got {window=} {padding=}")
    if any(side + 2 * padding < window for side in x.shape[1:3]):
        raise ValueError(f"a {window}x{window} window does not fit into shape {x.shape} with padding {padding}")
    return stride


def max_unpool(
    x: Float[Array, "b h w c"], indices: Int8[Array, "b h w c"], size: Size | None = None
) -> Float[Array, "b _ _ c"]:
    """Puts every value at the position of its maximum in a 2x2 window, zeros elsewhere (SegNet's upsampling).

    Args:
        x: NHWC maps.
        indices: positions 0..3 in the window, as returned by 2x2 `max_pool_with_indices`. Inside `jit`, where values
          cannot be checked, another index drops its value.
        size: (height, width) before the pooling, twice `x`'s or one pixel more; None means twice.

    Raises:
        ValueError: if shapes do not match, 2x2 pooling of `size` does not give `x`'s size, or, outside `jit`, an index
          is outside the window.
        TypeError: if indices are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> y, index = max_pool_with_indices(jnp.array([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1))
        >>> max_unpool(y, index)[0, :, :, 0].tolist()
        [[0.0, 5.0], [0.0, 0.0]]

    References:
        Badrinarayanan et al., SegNet, 2015. https://arxiv.org/abs/1511.00561
    """
    check_maps(x, floating=False)
    if x.shape != indices.shape:
        raise ValueError(f"values and indices must have the same NHWC shape, got {x.shape} and {indices.shape}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices must be integers, as from max_pool_with_indices; got {indices.dtype}")
    if not isinstance(indices, Tracer):
        values = np.asarray(indices)  # with NumPy, so that nothing is traced
        if values.min() < 0 or values.max() > 3:
            raise ValueError(f"indices must be positions 0..3 in a 2x2 window; got {values.min()}..{values.max()}")
    height, width = x.shape[1:3]
    size = (2 * height, 2 * width) if size is None else check_size(size)
    if (size[0] // 2, size[1] // 2) != (height, width):
        raise ValueError(f"2x2 pooling of size {size} gives {(size[0] // 2, size[1] // 2)}, not {(height, width)}")
    if chosen() == "reference":
        return per_device(lambda x, indices: reference.max_unpool(x, indices, size), x, indices)
    y = _unpool(x, indices)
    return jnp.pad(y, ((0, 0), (0, size[0] - 2 * height), (0, size[1] - 2 * width), (0, 0)))


@jax.custom_vjp
def _unpool(x: jax.Array, indices: jax.Array) -> jax.Array:
    """`max_unpool` to twice the size. On NVIDIA GPUs one comparison for each result takes half as long."""
    return jax.lax.platform_dependent(x, indices, cuda=_unpool_by_comparison, default=_unpool_by_phases)


def _unpool_by_phases(x, indices):
    parts = [jnp.where(indices == position, x, jnp.zeros((), x.dtype)) for position in range(4)]
    return _interleave([parts[:2], parts[2:]])


def _unpool_by_comparison(x, indices):
    batch, height, width, channels = x.shape
    blocks = (batch, height, 2, width, 2, channels)
    row, column = (jax.lax.broadcasted_iota(indices.dtype, blocks, axis) for axis in (2, 4))
    hit = jnp.expand_dims(indices, (2, 4)) == 2 * row + column
    y = jnp.where(hit, jnp.expand_dims(x, (2, 4)), jnp.zeros((), x.dtype))
    # In two steps: with explicit sharding, JAX rejects a reshape that does both at once.
    return y.reshape(batch, 2 * height, width, 2, channels).reshape(batch, 2 * height, 2 * width, channels)


def _unpool_keep(x, indices):
    return _unpool(x, indices), (x, indices)


def _unpool_gradient(saved, g):
    x, indices = saved
    return *jax.vjp(lambda x: _unpool_by_phases(x, indices), x)[1](jnp.asarray(g)), None


_unpool.defvjp(_unpool_keep, _unpool_gradient)
