"""CARAFE's reassembly: every output pixel is a weighted sum of its source's neighbourhood, with its own weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_whole
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import per_device
from densezoo.types import accumulator_dtype


def carafe(
    x: Float[Array, "b h w c"],
    masks: Float[Array, "b h2 w2 m"],
    *,
    kernel_size: int = 5,
    factor: int = 2,
    groups: int = 1,
) -> Float[Array, "b h2 w2 c"]:
    """Content-aware reassembly: enlarges `x` by an integer factor with a kernel given for every output pixel.

    Output pixel (i, j) is `sum_n masks[i, j, n] x[i // factor + n // k - k // 2, j // factor + n % k - k // 2]`, with
    zeros outside `x` (equation 4 of the paper). The tensor of all neighbourhoods, k * k times as large as `x`, is never
    built, not even in the backward pass. It is a custom VJP: reverse mode works, forward mode does not.

    Args:
        x: NHWC maps.
        masks: (batch, factor * h, factor * w, groups * k * k); the caller normalises them, with a softmax over k * k.
        kernel_size: k, the odd side of the neighbourhood in pixels.
        factor: output size over input size.
        groups: number of groups of neighbouring channels, each with its own k * k weights in `masks`.

    Raises:
        ValueError: if the kernel size is even, `factor` or `groups` is not positive, or shapes do not match them.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0]]).reshape(1, 1, 2, 1)
        >>> left = jnp.zeros((1, 2, 4, 9)).at[..., 3].set(1.0)  # reads the left neighbour
        >>> carafe(x, left, kernel_size=3)[0, 0, :, 0].tolist()
        [0.0, 0.0, 1.0, 1.0]

    References:
        Wang et al., CARAFE: Content-aware reassembly of features, 2019. https://arxiv.org/abs/1905.02188
    """
    check_whole(1, kernel_size=kernel_size, factor=factor, groups=groups)
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    if x.ndim != 4 or 0 in x.shape or x.shape[3] % groups:
        raise ValueError(f"expected NHWC maps with channels in multiples of groups={groups}, got shape {x.shape}")
    batch, height, width, _ = x.shape
    expected = (batch, factor * height, factor * width, groups * kernel_size**2)
    if masks.shape != expected:
        raise ValueError(
            f"masks for {x.shape} with {kernel_size=} {factor=} {groups=} are {expected}; got {masks.shape}"
        )
    for name, array in (("maps", x), ("masks", masks)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"carafe needs {name} of a float type, got {array.dtype}: cast them")
    if chosen() == "reference":
        plain = functools.partial(reference.carafe, kernel_size=kernel_size, factor=factor, groups=groups)
        return per_device(plain, x, masks)
    return per_device(lambda x, masks: _carafe(x, masks, kernel_size, factor, groups), x, masks)


def _padded(x: jax.Array, reach: int, groups: int) -> jax.Array:
    """`x` in the dtype of sums, padded with zeros and split into groups: (b, h, w, groups, channels of a group)."""
    x = jnp.pad(x.astype(accumulator_dtype(x.dtype)), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    return x.reshape(*x.shape[:3], groups, -1)


def _blocks(y: jax.Array, factor: int, groups: int) -> jax.Array:
    """(b, factor * h, factor * w, m) as (b, h, factor, w, factor, groups, m / groups), in the dtype of sums."""
    batch, height, width, _ = y.shape
    shape = (batch, height // factor, factor, width // factor, factor, groups, -1)
    return y.astype(accumulator_dtype(y.dtype)).reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _carafe(x, masks, kernel_size, factor, groups):
    (batch, height, width, channels), blocks = x.shape, _blocks(masks, factor, groups)
    padded = _padded(x, kernel_size // 2, groups)
    total = jnp.zeros((), padded.dtype)
    for tap, (i, j) in enumerate(np.ndindex(kernel_size, kernel_size)):
        # One source pixel is read by a block of factor x factor output pixels.
        source = padded[:, i : i + height, None, j : j + width, None]
        total = total + blocks[..., tap, None] * source
    return total.reshape(batch, factor * height, factor * width, channels).astype(x.dtype)


def _forward(x, masks, kernel_size, factor, groups):
    return _carafe(x, masks, kernel_size, factor, groups), (x, masks)


def _backward(kernel_size, factor, groups, saved, g):
    x, masks = saved
    g = _blocks(g, factor, groups)
    to_x = _to_x(g, _blocks(masks, factor, groups), kernel_size).reshape(x.shape)
    to_masks = _to_masks(g, _padded(x, kernel_size // 2, groups), kernel_size).reshape(masks.shape)
    return to_x.astype(x.dtype), to_masks.astype(masks.dtype)


def _to_x(g, masks, kernel_size):
    """Every source pixel gathers from the surrounding blocks that read it."""
    (_, height, factor, width, *_), reach = g.shape, kernel_size // 2
    pads = ((0, 0), (reach, reach), (0, 0), (reach, reach), (0, 0), (0, 0), (0, 0))
    g, masks = jnp.pad(g, pads), jnp.pad(masks, pads)
    total = jnp.zeros((), g.dtype)
    for tap, (i, j) in enumerate(np.ndindex(kernel_size, kernel_size)):
        # The block that reads by tap (i, j) is at the opposite offset.
        rows, columns = slice(2 * reach - i, 2 * reach - i + height), slice(2 * reach - j, 2 * reach - j + width)
        for di, dj in np.ndindex(factor, factor):
            weights = masks[:, rows, di, columns, dj, :, tap, None]
            total = total + g[:, rows, di, columns, dj] * weights
    return total


def _to_masks(g, padded, kernel_size):
    """The products over the channels of `g` with the neighbours, as matrix products of short runs of pixels.

    A run of 16 pixels is multiplied with all columns that any of them reads, and only the diagonals are kept. This is
    about four times the necessary multiplications, but as matrix products they are four times as fast as sums on CPU.
    """
    batch, height, factor, width, _, groups, channels = g.shape
    run = min(16, width)
    runs = -(-width // run)
    missing = runs * run - width
    g = jnp.pad(g, ((0, 0), (0, 0), (0, 0), (0, missing), (0, 0), (0, 0), (0, 0)))
    g = g.reshape(batch, height, factor, runs, run, factor, groups, channels)
    padded = jnp.pad(padded, ((0, 0), (0, 0), (0, missing), (0, 0), (0, 0)))
    columns = jnp.stack([padded[:, :, n * run : (n + 1) * run + kernel_size - 1] for n in range(runs)], 2)
    diagonals = (np.arange(run)[:, None] + np.arange(kernel_size)).reshape(1, 1, 1, 1, run, 1, 1, kernel_size)
    taps = []
    for i in range(kernel_size):
        rows = columns[:, i : i + height]
        products = jnp.einsum("bhinwjgc,bhnvgc->bhinwjgv", g, rows, precision=jax.lax.Precision.HIGHEST)
        taps.append(jnp.take_along_axis(products, diagonals, -1, mode="promise_in_bounds"))
    y = jnp.concatenate(taps, -1).reshape(batch, height, factor, runs * run, factor, -1)
    return y[:, :, :, :width]


_carafe.defvjp(_forward, _backward)
