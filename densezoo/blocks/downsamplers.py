"""Downsamplers: `downsampler(x, size)` returns `x` at about half its size. `FIR` resamples in both directions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks.conv import Conv
from densezoo.blocks.factories import register_blocks
from densezoo.blocks.initializers import he_uniform
from densezoo.ops.resize import repeat_edges
from densezoo.types import Dtype, Initializer, Size, size_of


def halved(size: Size) -> Size:
    """Half of a size, rounded up.

    Example:
        >>> halved((5, 8))
        (3, 4)
    """
    return -(-size[0] // 2), -(-size[1] // 2)


class StridedConv(nn.Module):
    """Learned downsampling by 2: a convolution with stride 2.

    Attributes:
        padding: pixels of zeros on every side. "SAME" adds them at the bottom and right of a map with even sides, which
            is what TensorFlow and the first diffusion models do.
    """

    kernel_size: int = 3
    padding: int | str = 1
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        y = Conv(
            x.shape[-1],
            self.kernel_size,
            strides=2,
            padding=self.padding,  # pyright: ignore[reportArgumentType]
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        if size_of(y) != tuple(size):
            raise ValueError(
                f"StridedConv halves a map of {size_of(x)} to {size_of(y)} with kernel_size={self.kernel_size} and"
                f" padding={self.padding}, not to {size}: choose padding=kernel_size // 2"
            )
        return y


class AveragePool(nn.Module):
    """Mean of windows of 2x2 pixels; no weights. The last row or column of an odd side is repeated."""

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        return ops.avg_pool(_even(x, size, "AveragePool"), window=2)


class FIR(nn.Module):
    """Resampling by 2 with the filter (1, 3, 3, 1), which suppresses aliasing; no weights.

    Halves a map if `size` is smaller than it, and doubles it otherwise. Pixels outside the map are 0.

    Karras et al., 2020, https://arxiv.org/abs/1912.04958; as in Song et al., 2021, https://arxiv.org/abs/2011.13456.
    """

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        if tuple(size) == size_of(x):
            return x
        if size[0] < x.shape[1] or size[1] < x.shape[2]:
            x = _even(x, size, "FIR")
            return _filtered(_filtered(x, 1), 2)
        # Between the taps of a doubled map, (1, 3, 3, 1) is linear interpolation.
        doubled = (2 * x.shape[1], 2 * x.shape[2])
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        y = ops.resize_bilinear(padded, (doubled[0] + 4, doubled[1] + 4))[:, 2:-2, 2:-2]
        return y[:, : size[0], : size[1]]


def _even(x: jax.Array, size: Size, name: str) -> jax.Array:
    """The map with even sides, so that its half is `size`."""
    if halved(size_of(x)) != tuple(size):
        raise ValueError(f"{name} halves a map: it cannot change {size_of(x)} to {tuple(size)}")
    return repeat_edges(x, (x.shape[1] % 2, x.shape[2] % 2))


def _filtered(x: jax.Array, axis: int) -> jax.Array:
    """Every second pixel of the map filtered by (1, 3, 3, 1) / 8 along an axis."""
    padded = jnp.pad(x, [(1, 1) if each == axis else (0, 0) for each in range(x.ndim)])
    taps = [
        jax.lax.slice_in_dim(padded, tap, tap + x.shape[axis] - 1, stride=2, axis=axis) * jnp.asarray(weight, x.dtype)
        for tap, weight in enumerate((0.125, 0.375, 0.375, 0.125))
    ]
    return sum(taps[1:], taps[0])


register_blocks("downsample", strided_conv=StridedConv, average_pool=AveragePool, fir=FIR)
