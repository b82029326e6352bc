"""Convolutions with torch's padding, and basic blocks made of them."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.initializers import he_uniform
from densezoo.blocks.norm import BatchNorm, norm_act
from densezoo.types import Dtype, Initializer, ModuleDef


class Conv(nn.Module):
    """Convolution with torch's explicit padding: `kernel_size // 2 * dilation` pixels of zeros on every side.

    The input is an array, or an `Upsampled`, which is convolved without materialising it.

    Attributes:
        padding: pixels of zeros on every side. None means `kernel_size // 2 * dilation`; an even kernel needs a value.
            "SAME" is TensorFlow's padding, which puts odd pixels at the bottom and right.
        kernel_init: initialiser of the kernel.
        bias_init: initialiser of the bias.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    padding: int | Literal["SAME"] | None = None
    kernel_init: Initializer = he_uniform
    bias_init: Initializer = nn.initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"] | Upsampled) -> Float[Array, "b h2 w2 d"]:
        if self.kernel_size % 2 == 0 and self.padding is None:
            raise ValueError(
                f"kernel_size={self.kernel_size}: an even kernel has no centre and changes the size: pass padding"
            )
        if self.features % self.groups or x.shape[-1] % self.groups:
            raise ValueError(f"groups={self.groups} must divide the {x.shape[-1]} channels in and {self.features} out")
        size = self.kernel_size
        shape = (size, size, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype) if self.use_bias else None
        dtype = jnp.result_type(*jax.tree.leaves((x, kernel))) if self.dtype is None else self.dtype
        kernel = jnp.asarray(kernel).astype(dtype)
        padding = size // 2 * self.dilation if self.padding is None else self.padding
        if isinstance(x, Upsampled) and (size, self.strides, padding, self.dilation, self.groups) == (3, 1, 1, 1, 1):
            y = x.conv(kernel, dtype)
        else:
            x = x.build() if isinstance(x, Upsampled) else jnp.asarray(x)
            y = ops.conv(
                x.astype(dtype),
                kernel,
                strides=self.strides,
                padding=_same(x.shape, size, self.strides, self.dilation) if padding == "SAME" else padding,
                dilation=self.dilation,
                groups=self.groups,
            )
        return y if bias is None else y + jnp.expand_dims(bias.astype(dtype), (0, 1, 2))


def _same(shape: tuple[int, ...], size: int, strides: int, dilation: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """TensorFlow's padding, for ceil(n / strides) windows; an odd pixel is added at the end."""
    missing = [max((-(-n // strides) - 1) * strides + dilation * (size - 1) + 1 - n, 0) for n in shape[1:3]]
    rows, columns = ((n // 2, n - n // 2) for n in missing)
    return rows, columns


class ConvNormAct(nn.Module):
    """Convolution, normalisation and activation: the basic block of all networks.

    `norm=None` omits the normalisation, and `act=None` the activation. The convolution has a bias if no normalisation
    follows, unless `use_bias` overrides this. `padding` and the initialiser are those of `Conv`.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool | None = None
    padding: int | Literal["SAME"] | None = None
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"] | Upsampled, *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        x = Conv(
            self.features,
            self.kernel_size,
            self.strides,
            self.dilation,
            self.groups,
            use_bias=self.norm is None if self.use_bias is None else self.use_bias,
            padding=self.padding,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)
        return norm_act(
            self.norm, self.act, x, train=train, name="norm", dtype=self.dtype, param_dtype=self.param_dtype
        )


class DoubleConv(nn.Module):
    """Two 3x3 convolutions: the block of the plain U-Net's encoder and, after the skip, of its decoder.

    Attributes:
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
    def __call__(self, x: Float[Array, "b h w c"] | Upsampled, *, train: bool = False) -> Float[Array, "b h w d"]:
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


class ResidualDoubleConv(nn.Module):
    """Two 3x3 convolutions, where the result of the first one is also added to that of the second: SNUNet's block.

    Attributes:
        features: channels of the result.
    """

    features: int
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w d"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.features, kernel_init=self.kernel_init, name="conv1", **dtypes)(x)
        y = norm_act(self.norm, self.act, x, train=train, name="norm1", **dtypes)
        conv = ConvNormAct(
            self.features, norm=self.norm, act=None, kernel_init=self.kernel_init, name="conv2", **dtypes
        )
        y = conv(y, train=train)
        return self.act(x.astype(y.dtype) + y)
