"""The Flax blocks that encoders and decoders are composed of.

Conventions, so that blocks fit together:

- An upsampler is called `upsampler(x, size)` and gives `x` at `size`.
- A skip is called `skip(x, feature)` with both at the same size and joins them.
- `upsample`, `skip`, `norm` fields hold factories: a Module class or a `functools.partial` of one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.types import Dtype, Initializer, ModuleDef, Size, accumulator_dtype

he_normal_fan_out: Initializer = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""torchvision's initialiser of ResNet and VGG convolutions (He et al. 2015)."""

he_uniform: Initializer = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")
"""segmentation_models_pytorch's initialiser of decoders (He et al. 2015)."""


class BatchNorm(nn.Module):
    """Batch normalisation as torch does it: momentum 0.9 here is 0.1 there, and the running variance is unbiased.

    Statistics are taken in float32 over all axes but the last. Under `jit` over a mesh they are those of the global
    batch, without an axis name. Ioffe and Szegedy, 2015, https://arxiv.org/abs/1502.03167.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        features = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,), jnp.float32)

        if train:
            axes = tuple(range(x.ndim - 1))
            wide = x.astype(accumulator_dtype(x.dtype))
            mean = wide.mean(axes)
            var = jnp.square(wide - jnp.expand_dims(mean, axes)).mean(axes)
            if not self.is_initializing():
                count = x.size // features
                unbiased = var * (count / max(count - 1, 1))
                for running, now in ((running_mean, mean), (running_var, unbiased)):
                    now = now.astype(running.value.dtype)
                    running.value = self.momentum * running.value + (1 - self.momentum) * now
        else:
            mean, var = running_mean.value, running_var.value

        dtype = x.dtype if self.dtype is None else self.dtype
        wide = x.astype(accumulator_dtype(x.dtype))
        mean, var, scale, bias = (each.astype(wide.dtype) for each in (mean, var, scale, bias))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        shift = bias - mean * factor
        lead = tuple(range(x.ndim - 1))
        return (wide * jnp.expand_dims(factor, lead) + jnp.expand_dims(shift, lead)).astype(dtype)


class GroupNorm(nn.Module):
    """Group normalisation: statistics of each sample over groups of channels, so that a batch of one will do.

    Statistics are taken in float32. Wu and He, 2018, https://arxiv.org/abs/1803.08494.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        *lead, features = x.shape
        if self.num_groups < 1 or features % self.num_groups:
            raise ValueError(f"num_groups={self.num_groups} must divide the {features} channels")
        scale = self.param("scale", nn.initializers.ones, (features,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (features,), self.param_dtype)
        wide = x.astype(accumulator_dtype(x.dtype)).reshape(*lead, self.num_groups, features // self.num_groups)
        axes = (*range(1, len(lead)), wide.ndim - 1)
        mean = wide.mean(axes, keepdims=True)
        centred = wide - mean
        wide = centred * jax.lax.rsqrt(jnp.square(centred).mean(axes, keepdims=True) + self.epsilon)
        ahead = tuple(range(len(lead)))
        y = wide.reshape(x.shape) * jnp.expand_dims(scale.astype(wide.dtype), ahead)
        y = y + jnp.expand_dims(bias.astype(wide.dtype), ahead)
        return y.astype(x.dtype if self.dtype is None else self.dtype)


def normalize(
    norm: ModuleDef, x: jax.Array, *, train: bool, name: str, dtype: Dtype | None, param_dtype: Dtype
) -> jax.Array:
    """Applies a norm factory: those here, or Flax's own (`partial(nn.GroupNorm, num_groups=8)`)."""
    layer = build(norm, name=name, dtype=dtype, param_dtype=param_dtype)
    if isinstance(layer, BatchNorm):
        return layer(x, train=train)
    if isinstance(layer, nn.BatchNorm):
        return layer(x, use_running_average=not train)
    return layer(x)


class Conv(nn.Module):
    """Convolution with torch's explicit padding: `kernel_size // 2 * dilation` pixels of zeros on every side."""

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={self.kernel_size}: an even kernel has no middle and would change the size")
        if self.features % self.groups or x.shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} must divide the {x.shape[-1]} channels in and {self.features} out")
        size = self.kernel_size
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        padding = size // 2 * self.dilation
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.strides, self.strides),
            padding=((padding, padding), (padding, padding)),
            rhs_dilation=(self.dilation, self.dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        return y if bias is None else y + jnp.expand_dims(bias, (0, 1, 2))


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation: the brick of every network here.

    `norm=None` leaves the normalisation out, `act=None` the activation. The convolution has a bias where no
    normalisation follows, or where `use_bias` says so.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool | None = None
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.dilation,
            self.groups,
            use_bias=self.norm is None if self.use_bias is None else self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        if self.norm is not None:
            x = normalize(self.norm, x, train=train, name="norm", dtype=self.dtype, param_dtype=self.param_dtype)
        return x if self.act is None else self.act(x)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions: the block of the plain U-Net, on the way down and, after the skip, on the way up.

    Args (fields):
        features: channels of the result.
        hidden: channels between the two; None means `features`.
    """

    features: int
    hidden: int | None = None
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w d"]:
        conv = partial(
            ConvNormAct,
            norm=self.norm,
            act=self.act,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x = conv(self.hidden or self.features, name="conv1")(x, train=train)
        return conv(self.features, name="conv2")(x, train=train)


# Skips: `skip(x, feature)` joins the decoder's map with the encoder's at the same size.


class ConcatSkip(nn.Module):
    """U-Net's skip: concatenates the two along the channels.

    `skip_first` says which comes first. It matters only to weights from elsewhere: segmentation_models_pytorch puts
    the decoder's map first, many plain U-Nets the encoder's.
    """

    skip_first: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], feature: Float[Array, "b h w d"]) -> Float[Array, "b h w e"]:
        x, feature = promote_dtype(x, feature, dtype=self.dtype)
        return jnp.concatenate([feature, x] if self.skip_first else [x, feature], axis=-1)


class LateralAdd(nn.Module):
    """FPN's skip: a 1x1 convolution brings the encoder's map to the decoder's channels, and the two are added."""

    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], feature: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        lateral = Conv(
            x.shape[-1],
            kernel_size=1,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="lateral",
        )(feature)
        return x.astype(lateral.dtype) + lateral


# Upsamplers: `upsampler(x, size)` gives `x` at `size`.


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


def _fit(x: jax.Array, size: Size) -> jax.Array:
    """Brings a doubled map to `size`: a row or column too many is cut, one too few repeated, more is resampled."""
    missing = (size[0] - x.shape[1], size[1] - x.shape[2])
    if max(map(abs, missing)) > 1:
        return ops.resize_bilinear(x, size)
    x = x[:, : size[0], : size[1]]
    return jnp.pad(x, ((0, 0), *((0, max(m, 0)) for m in missing), (0, 0)), mode="edge")


def _by_doubling(x: jax.Array, size: Size, double: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Brings `x` to `size` by a layer that doubles the sides: once, and again while much is missing.

    It is the same layer each time, so the weights never depend on the size of an image, however small it is.
    """
    if size[0] < x.shape[1] or size[1] < x.shape[2]:
        raise ValueError(f"a learned upsampler only enlarges, got a map of {x.shape[1:3]} for the size {size}")
    channels, x = x.shape[-1], double(x)
    # A layer that changes the channels cannot be used twice; `_fit` then resamples.
    while x.shape[-1] == channels and (2 * size[0] >= 3 * x.shape[1] or 2 * size[1] >= 3 * x.shape[2]):
        x = double(x)
    return _fit(x, size)


# Each pixel of a transposed convolution with stride 2 sums a quarter of the kernel's taps, hence four times the
# variance of he_uniform.
he_uniform_transposed: Initializer = nn.initializers.variance_scaling(8.0, "fan_in", "uniform")


class TransposedConv(nn.Module):
    """Learned upsampling by 2: a transposed convolution; with `kernel_size=4` its windows overlap evenly.

    Args (fields):
        kernel_size: an even number; 2 paints tiles that do not overlap, 4 is the usual other choice.
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
    """Resize, then convolve: upsampling that learns without checkerboards.

    Odena et al., Deconvolution and checkerboard artifacts, 2016. https://distill.pub/2016/deconv-checkerboard
    """

    resize: ModuleDef = Nearest
    kernel_size: int = 3
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        resized = build(self.resize, name="resize")(x, size)
        return Conv(
            x.shape[-1],
            self.kernel_size,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(resized)


def icnr(init: Initializer = he_uniform, factor: int = 2) -> Initializer:
    """Initialises the convolution before a pixel shuffle so that it starts as nearest upsampling: no checkerboard.

    Aitken et al., Checkerboard artifact free sub-pixel convolution, 2017. https://arxiv.org/abs/1707.02937
    """

    def initialise(key, shape, dtype=jnp.float32):
        *lead, features = shape
        return jnp.repeat(init(key, (*lead, features // factor**2), dtype), factor**2, axis=-1)

    return initialise


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


def build(factory: ModuleDef, **fields: Any) -> Any:
    """Calls a module factory, and says so kindly if it is a module already (which several places would share)."""
    if not callable(factory):
        raise TypeError(f"expected a factory of modules, such as dz.Bilinear or dz.LateralAdd, got {factory!r}")
    if isinstance(factory, nn.Module):
        kind = type(factory).__name__
        raise TypeError(
            f"expected a factory of modules, got an instance of {kind}: pass {kind} or a partial({kind}, ...)"
        )
    return factory(**fields)
