"""Upsamplers: `upsampler(x, size)` returns `x` resized to `size`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks.conv import Conv
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.factories import build, register_blocks
from densezoo.blocks.initializers import he_uniform, he_uniform_transposed, icnr
from densezoo.ops.implementation import chosen
from densezoo.ops.resize import repeat_edges
from densezoo.types import Dtype, Initializer, ModuleDef, Size


class Nearest(nn.Module):
    """Nearest-neighbour upsampling; no weights. `half_pixel` as in `ops.resize_nearest`."""

    half_pixel: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        return ops.resize_nearest(x, size, half_pixel=self.half_pixel)


class Bilinear(nn.Module):
    """Bilinear upsampling; no weights. `align_corners` as in `ops.resize_bilinear`."""

    align_corners: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        return ops.resize_bilinear(x, size, align_corners=self.align_corners)


def defer(upsampler: Any, x: jax.Array, size: Size) -> Upsampled | None:
    """A deferred form of `upsampler(x, size)`, if `ops.upsample_concat_conv` supports it.

    None means that the upsampler has to be called. The reference implementation always calls it.
    """
    if chosen() == "reference" or (2 * x.shape[1], 2 * x.shape[2]) != tuple(size):
        return None
    # Subclasses are excluded, because they may do anything.
    if type(upsampler) is Nearest:
        return Upsampled(x, method="nearest")
    if type(upsampler) is Bilinear:
        return Upsampled(x, method="bilinear_align_corners" if upsampler.align_corners else "bilinear")
    return None


def upsampled(upsampler: Any, x: jax.Array, size: Size) -> jax.Array:
    """Returns `upsampler(x, size)`. Raises an error that names the upsampler if that is no map of that size."""
    y = upsampler(x, size)
    what = f"{type(upsampler).__name__}, called as upsample(x, size) with a map of {x.shape[1:3]} and size={size},"
    if len(getattr(y, "shape", ())) != 4:
        raise TypeError(f"{what} gave {'None' if y is None else f'a {type(y).__name__}'} in place of an NHWC map")
    wrong = [side != wanted for side, wanted in zip(y.shape[1:3], size, strict=True) if not _symbolic(side, wanted)]
    if any(wrong):
        raise ValueError(
            f"{what} gave a map of {y.shape[1:3]}: it must give one of that size, whatever the image's size"
        )
    return y


def _symbolic(*sides: Any) -> bool:
    return any(map(jax.export.is_symbolic_dim, sides))


class Bicubic(nn.Module):
    """Bicubic upsampling; no weights. `align_corners` as in `ops.resize_bicubic`."""

    align_corners: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        return ops.resize_bicubic(x, size, align_corners=self.align_corners)


def _fit(x: jax.Array, size: Size) -> jax.Array:
    """Fits a doubled map to `size`: cuts one extra row or column, repeats one that is missing, or else resamples."""
    missing = (size[0] - x.shape[1], size[1] - x.shape[2])
    if missing == (0, 0):
        return x
    if max(map(abs, missing)) > 1:
        return ops.resize_bilinear(x, size)
    return repeat_edges(x[:, : size[0], : size[1]], (max(missing[0], 0), max(missing[1], 0)))


def _by_doubling(x: jax.Array, size: Size, double: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Upsamples `x` to `size` with a layer that doubles the sides, which is applied repeatedly if necessary.

    The same layer is used each time, so the weights never depend on the image size.
    """
    if size[0] < x.shape[1] or size[1] < x.shape[2]:
        raise ValueError(f"a learned upsampler cannot reduce a map, got a map of {x.shape[1:3]} and the size {size}")
    channels, x = x.shape[-1], double(x)
    # A layer that changes the channels cannot be used twice; `_fit` then resamples.
    while x.shape[-1] == channels and (2 * size[0] >= 3 * x.shape[1] or 2 * size[1] >= 3 * x.shape[2]):
        x = double(x)
    return _fit(x, size)


class TransposedConv(nn.Module):
    """Learned upsampling by 2: a transposed convolution. With `kernel_size=4`, its windows overlap evenly.

    Attributes:
        kernel_size: an even number. With 2, the windows do not overlap; 4 is the common alternative.
        reduction: the channels are divided by this; 2 is the original U-Net's "up-convolution".
    """

    kernel_size: int = 2
    reduction: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_uniform_transposed
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ d"]:
        if self.kernel_size % 2 or x.shape[-1] % self.reduction:
            raise ValueError(
                f"kernel_size must be even and reduction divide the channels; got kernel_size={self.kernel_size},"
                f" reduction={self.reduction} for {x.shape[-1]} channels"
            )
        features = x.shape[-1] // self.reduction
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)

        def double(x: jax.Array) -> jax.Array:
            y = ops.conv_transpose(x, kernel, stride=2, padding=self.kernel_size // 2 - 1)
            return y if bias is None else y + jnp.expand_dims(bias, (0, 1, 2))

        return _by_doubling(x, size, double)


class ResizeConv(nn.Module):
    """Resize, then convolve: learned upsampling without checkerboards.

    Odena et al., Deconvolution and checkerboard artifacts, 2016. https://distill.pub/2016/deconv-checkerboard
    """

    resize: ModuleDef = Nearest
    kernel_size: int = 3
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        resize = build(self.resize, name="resize")
        resized = defer(resize, x, size) or upsampled(resize, x, size)
        return Conv(
            x.shape[-1],
            self.kernel_size,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(resized)


class PixelShuffle(nn.Module):
    """Learned upsampling by 2: a convolution to four times the channels, then depth to space (Shi et al. 2016)."""

    kernel_size: int = 1
    kernel_init: Initializer = icnr()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        conv = Conv(
            4 * x.shape[-1],
            self.kernel_size,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )
        return _by_doubling(x, size, lambda x: ops.pixel_shuffle(conv(x), 2))


register_blocks(
    "upsample",
    nearest=Nearest,
    bilinear=Bilinear,
    bilinear_align_corners=partial(Bilinear, align_corners=True),
    bicubic=Bicubic,
    transposed_conv=TransposedConv,
    transposed_conv_4x4=partial(TransposedConv, kernel_size=4),
    resize_conv=ResizeConv,
    pixel_shuffle=PixelShuffle,
)
