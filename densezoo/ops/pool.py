"""Max-pooling that remembers where the maximum stood, its inverse, and means of windows and over a grid of bins."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int8

from densezoo.ops import reference
from densezoo.ops.checks import check_maps, check_size, check_whole
from densezoo.ops.implementation import chosen
from densezoo.types import Size, accumulator_dtype


def _taps(x: jax.Array, window: int, stride: int) -> list[jax.Array]:
    """The strided slice of `x` that each position of the window reads, row by row."""
    height = (x.shape[1] - window) // stride + 1
    width = (x.shape[2] - window) // stride + 1
    return [
        jax.lax.slice(
            x,
            (0, i, j, 0),
            (x.shape[0], i + (height - 1) * stride + 1, j + (width - 1) * stride + 1, x.shape[3]),
            (1, stride, stride, 1),
        )
        for i in range(window)
        for j in range(window)
    ]


def _pool(x, window, stride, padding):
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    pads = ((0, 0, 0), (padding, padding, 0), (padding, padding, 0), (0, 0, 0))
    x = jax.lax.pad(x, jnp.asarray(lowest, x.dtype), pads)
    best, *others = _taps(x, window, stride)
    index = jnp.zeros(best.shape, jnp.int8)
    for position, tap in enumerate(others, start=1):
        # The first maximum wins, and a NaN wins over everything, as in torch.
        wins = (tap > best) | jnp.isnan(tap)
        best = jnp.where(wins, tap, best)
        index = jnp.where(wins, jnp.int8(position), index)
    return best, index


def _unpool_windows(g, index, shape, window, stride, padding):
    """Adjoint of max-pooling: each value of `g` goes to where its maximum stood; overlapping windows add up."""
    batch, height, width, channels = shape
    padded = (height + 2 * padding, width + 2 * padding)
    total = jnp.zeros((), g.dtype)
    for position in range(window * window):
        i, j = divmod(position, window)
        part = jnp.where(index == position, g, jnp.zeros((), g.dtype))
        low_high = [
            (offset, size - offset - (count - 1) * stride - 1, stride - 1)
            for offset, size, count in zip((i, j), padded, g.shape[1:3], strict=True)
        ]
        part = jax.lax.pad(part, jnp.zeros((), g.dtype), ((0, 0, 0), *low_high, (0, 0, 0)))
        total = total + part
    return jax.lax.slice(total, (0, padding, padding, 0), (batch, padding + height, padding + width, channels))


def max_pool_with_indices(
    x: Float[Array, "b h w c"], window: int = 2, stride: int | None = None, padding: int = 0
) -> tuple[Float[Array, "b h2 w2 c"], Int8[Array, "b h2 w2 c"]]:
    """Max-pooling, and for every maximum its position in the window, counted row by row.

    Rows and columns that do not fill a window are left out, as in torch. Of equal values the first wins; a NaN wins
    over any number. The backward pass uses the saved indices, which on CPU is many times faster than the
    select-and-scatter of `flax.linen.max_pool`. It is a custom VJP: reverse mode works, forward mode does not.

    Args:
        x: NHWC maps.
        window: side of the window in pixels, at most 11 (an index is an int8).
        stride: step in pixels; None means `window`.
        padding: pixels of minus infinity added on every side.

    Raises:
        ValueError: `x` is not NHWC or is empty, a window, stride or padding that cannot be, or a map smaller than the
          window.

    Example:
        >>> import jax.numpy as jnp
        >>> y, index = max_pool_with_indices(jnp.array([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1))
        >>> float(y[0, 0, 0, 0]), int(index[0, 0, 0, 0])
        (5.0, 1)
    """
    check_maps(x, floating=False)
    stride = window if stride is None else stride
    check_whole(1, window=window, stride=stride)
    check_whole(0, padding=padding)
    if window > 11 or padding > window // 2:
        raise ValueError(f"window is 1 to 11 and padding at most half of it; got {window=} {padding=}")
    if min(x.shape[1:3]) + 2 * padding < window:
        raise ValueError(f"a {window}x{window} window does not fit into shape {x.shape} with padding {padding}")
    if chosen() == "reference":
        return reference.max_pool_with_indices(x, window, stride, padding)
    shape = x.shape

    @jax.custom_vjp
    def pool(x):
        return _pool(x, window, stride, padding)

    def forward(x):
        y, index = _pool(x, window, stride, padding)
        return (y, index), index

    def backward(index, cotangents):
        return (_unpool_windows(cotangents[0], index, shape, window, stride, padding),)

    pool.defvjp(forward, backward)
    return pool(x)


def max_pool(
    x: Float[Array, "b h w c"], window: int = 2, stride: int | None = None, padding: int = 0
) -> Float[Array, "b h2 w2 c"]:
    """Max-pooling with torch's padding and a lean backward pass; see `max_pool_with_indices`.

    Example:
        >>> import jax.numpy as jnp
        >>> max_pool(jnp.zeros((1, 7, 7, 3)), 3, 2, 1).shape
        (1, 4, 4, 3)
    """
    return max_pool_with_indices(x, window, stride, padding)[0]


def max_unpool(
    x: Float[Array, "b h w c"], indices: Int8[Array, "b h w c"], size: Size | None = None
) -> Float[Array, "b _ _ c"]:
    """Puts every value back to where its maximum stood in a 2x2 window, zeros elsewhere (SegNet's upsampling).

    Args:
        x: NHWC maps.
        indices: positions 0..3 in the window, as 2x2 `max_pool_with_indices` gives them. Inside `jit`, where values
          cannot be checked, another index drops its value.
        size: (height, width) before the pooling, twice `x`'s or one pixel more; None means twice.

    Raises:
        ValueError: shapes that do not match, a size that 2x2 pooling does not bring to `x`'s, or, outside of `jit`, an
          index outside of the window.
        TypeError: indices that are not integers.

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
        raise ValueError(f"values and indices have the same NHWC shape, got {x.shape} and {indices.shape}")
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"indices are integers, as max_pool_with_indices gives them; got {indices.dtype}")
    if not isinstance(indices, Tracer):
        values = np.asarray(indices)  # with numpy, so that nothing is traced
        if values.min() < 0 or values.max() > 3:
            raise ValueError(f"indices are positions 0..3 in a 2x2 window; got {values.min()}..{values.max()}")
    batch, height, width, channels = x.shape
    size = (2 * height, 2 * width) if size is None else check_size(size)
    if (size[0] // 2, size[1] // 2) != (height, width):
        raise ValueError(f"2x2 pooling of size {size} gives {(size[0] // 2, size[1] // 2)}, not {(height, width)}")
    if chosen() == "reference":
        return reference.max_unpool(x, indices, size)
    zero = jnp.zeros((), x.dtype)
    parts = [jnp.where(indices == position, x, zero) for position in range(4)]
    rows = [jnp.stack(parts[i : i + 2], axis=3).reshape(batch, height, 2 * width, channels) for i in (0, 2)]
    y = jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, channels)
    return jnp.pad(y, ((0, 0), (0, size[0] - 2 * height), (0, size[1] - 2 * width), (0, 0)))


def avg_pool(x: Float[Array, "b h w c"], window: int = 2, stride: int | None = None) -> Float[Array, "b h2 w2 c"]:
    """Means of square windows, summed in float32; rows and columns that do not fill a window are left out.

    Args:
        x: NHWC float maps.
        window: side of the window in pixels.
        stride: step in pixels; None means `window`.

    Raises:
        ValueError: `x` is not NHWC or is empty, a window or stride below 1, or a map smaller than the window.
        TypeError: `x` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> avg_pool(jnp.array([[1.0, 5.0], [2.0, 4.0]]).reshape(1, 2, 2, 1)).item()
        3.0
    """
    check_maps(x)
    stride = window if stride is None else stride
    check_whole(1, window=window, stride=stride)
    if min(x.shape[1:3]) < window:
        raise ValueError(f"a {window}x{window} window does not fit into shape {x.shape}")
    # On CPU, slices take half the time of a window reduction in the backward pass.
    first, *others = _taps(x.astype(accumulator_dtype(x.dtype)), window, stride)
    return (sum(others, first) * (1 / window**2)).astype(x.dtype)


def adaptive_avg_pool(x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
    """Means over a grid of bins, with the numbers of `torch.nn.functional.adaptive_avg_pool2d`.

    Of n pixels along an axis, bin i of m holds those from floor(i n / m) to before ceil((i + 1) n / m). Bins overlap
    where m does not divide n, and there may be more bins than pixels. Sums are taken in float32. A value that is not
    finite reaches every bin of its channel.

    Args:
        x: NHWC float maps.
        size: bins along the height and the width.

    Raises:
        ValueError: `x` is not NHWC or is empty, or `size` is not two positive whole numbers.
        TypeError: `x` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> adaptive_avg_pool(jnp.arange(5.0).reshape(1, 1, 5, 1), (1, 2))[0, 0, :, 0].tolist()
        [1.0, 3.0]
    """
    check_maps(x)
    size = check_size(size)
    y = x.astype(accumulator_dtype(x.dtype))
    for axis, equation in ((1, "nh,bhwc->bnwc"), (2, "nw,bhwc->bhnc")):
        weights = jnp.asarray(_bins(x.shape[axis], size[axis - 1]), y.dtype)
        y = jnp.einsum(equation, weights, y, precision="highest")
    return y.astype(x.dtype)


def _bins(inputs: int, outputs: int) -> np.ndarray:
    """The matrix (outputs x inputs) that takes the mean of each bin."""
    rows, columns = np.arange(outputs)[:, None], np.arange(inputs)
    within = (columns >= rows * inputs // outputs) & (columns < -(-(rows + 1) * inputs // outputs))
    return within / within.sum(1, keepdims=True)
