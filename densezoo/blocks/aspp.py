"""Atrous spatial pyramid pooling, and the separable convolution that it uses."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks.conv import Conv, ConvNormAct
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.initializers import torch_uniform
from densezoo.blocks.norm import BatchNorm
from densezoo.blocks.regularize import Dropout
from densezoo.ops import global_avg_pool
from densezoo.types import Dtype, Initializer, ModuleDef


class SeparableConv(nn.Module):
    """A depthwise convolution and a 1x1 convolution, followed by normalisation and activation.

    As in segmentation_models_pytorch, there is no normalisation or activation between the two convolutions.

    Attributes:
        features: channels of the result.
        kernel_size: of the depthwise convolution.
        dilation: pixels between its taps.
        norm: factory of the normalisation, None for none.
        act: activation, None for none.
    """

    features: int
    kernel_size: int = 3
    dilation: int = 1
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    kernel_init: Initializer = torch_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"] | Upsampled, *, train: bool = False) -> Float[Array, "b h w d"]:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = x.shape[-1]
        x = Conv(
            channels,
            self.kernel_size,
            dilation=self.dilation,
            groups=channels,
            use_bias=False,
            name="depthwise",
            **fields,
        )(x)
        return ConvNormAct(self.features, 1, norm=self.norm, act=self.act, name="pointwise", **fields)(x, train=train)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel 1x1 convolution, dilated convolutions and global mean.

    The result has the size of the input.

    Attributes:
        features: channels of each branch and of the result.
        atrous_rates: dilation of each 3x3 convolution.
        separable: whether these are depthwise separable.
        dropout: dropout rate of the result in training (needs a `dropout` random key).
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> aspp = ASPP(features=16, atrous_rates=(2, 4))
        >>> jax.eval_shape(aspp.init_with_output, jax.random.key(0), jnp.zeros((1, 9, 8, 32)))[0].shape
        (1, 9, 8, 16)

    References:
        Chen et al., Rethinking atrous convolution, 2017. https://arxiv.org/abs/1706.05587 (figure 5)
    """

    features: int = 256
    atrous_rates: Sequence[int] = (12, 24, 36)
    separable: bool = False
    dropout: float = 0.5
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    kernel_init: Initializer = torch_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w d"]:
        fields = {
            "norm": self.norm,
            "act": self.act,
            "kernel_init": self.kernel_init,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        pointwise = partial(ConvNormAct, self.features, 1, **fields)
        atrous = partial(SeparableConv if self.separable else ConvNormAct, self.features, 3, **fields)
        branches = [pointwise(name="convs_0")(x, train=train)]
        for index, rate in enumerate(self.atrous_rates, start=1):
            branches.append(atrous(dilation=rate, name=f"convs_{index}")(x, train=train))
        mean = global_avg_pool(x)
        pooled = pointwise(name="pool")(mean, train=train)
        # A bilinear resize of a single pixel is a broadcast.
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = pointwise(name="project")(jnp.concatenate(branches, axis=-1), train=train)
        return Dropout(self.dropout)(y, deterministic=not train)
