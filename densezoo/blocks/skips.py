"""Skips: `skip(x, feature)` joins the decoder's map with the encoder's map of the same size."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo.blocks.conv import Conv, ConvNormAct
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.factories import register_blocks
from densezoo.blocks.initializers import he_uniform
from densezoo.blocks.upsamplers import defer, upsampled
from densezoo.types import Dtype, Initializer, ModuleDef, Size


class ConcatSkip(nn.Module):
    """U-Net's skip: concatenates both maps along the channels.

    `skip_first` puts the encoder's map first. This only matters for external weights: segmentation_models_pytorch puts
    the decoder's map first, and many plain U-Nets the encoder's.
    """

    skip_first: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(
        self, x: Float[Array, "b h w c"] | Upsampled, feature: Float[Array, "b h w d"]
    ) -> Float[Array, "b h w e"] | Upsampled:
        if isinstance(x, Upsampled):
            return dataclasses.replace(x, skip=feature, skip_first=self.skip_first)
        joined = [feature, x] if self.skip_first else [x, feature]
        return jnp.concatenate(promote_dtype(*joined, dtype=self.dtype), axis=-1)


class LateralAdd(nn.Module):
    """FPN's skip: a 1x1 convolution projects the encoder's map to the decoder's channels, and both are added.

    Attributes:
        norm: factory of a normalisation after the convolution, None for none.
    """

    norm: ModuleDef | None = None
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h w d"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.norm is None:
            lateral = Conv(x.shape[-1], 1, name="lateral", **fields)(feature)
        else:
            conv = ConvNormAct(x.shape[-1], 1, norm=self.norm, act=None, name="lateral", **fields)
            lateral = conv(feature, train=train)
        return x.astype(lateral.dtype) + lateral


class NoSkip(nn.Module):
    """Ignores the encoder's map, for comparison: the decoder only gets the coarsest map."""

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, x: Float[Array, "b h w c"], feature: Float[Array, "b h w d"]) -> Float[Array, "b h w c"]:
        del feature
        return x


class AttentionGate(ConcatSkip):
    """Attention U-Net's skip: the decoder's map gates the encoder's pixels by 0..1, and both are concatenated.

    The gate is additive attention: 1x1 convolutions of both maps, sum, ReLU, a 1x1 convolution to a single channel,
    and sigmoid. The authors gate a finer map by a coarser one; here both have the same size.

    Attributes:
        hidden: channels of the sum; None means half of the encoder's channels.

    Oktay et al., Attention U-Net: Learning where to look for the pancreas, 2018. https://arxiv.org/abs/1804.03999
    """

    hidden: int | None = None
    kernel_init: Initializer = he_uniform

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"] | Upsampled, feature: Float[Array, "b h w d"]
    ) -> Float[Array, "b h w e"] | Upsampled:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        hidden = self.hidden or max(1, feature.shape[-1] // 2)
        query = Conv(hidden, 1, name="gating", **fields)(x)
        key = Conv(hidden, 1, use_bias=False, name="feature", **fields)(feature)
        weight = nn.sigmoid(Conv(1, 1, name="weight", **fields)(nn.relu(query + key.astype(query.dtype))))
        return super().__call__(x, feature * weight.astype(feature.dtype))


def step_up(upsampler: Any, skip: Any, x: jax.Array, feature: Any, size: Size) -> Float[Array, "b _ _ c"] | Upsampled:
    """Upsamples `x` to `size` and joins it with the encoder's feature, if any, as the input of a convolution.

    If the convolution can read both without a concatenation, it gets them separately.
    """
    later = defer(upsampler, x, size) if skip is None or type(skip) is ConcatSkip else None
    at_size = upsampled(upsampler, x, size) if later is None else later
    return at_size if skip is None else skip(at_size, feature)


register_blocks("skip", concat=ConcatSkip, add=LateralAdd, attention=AttentionGate, none=NoSkip)
