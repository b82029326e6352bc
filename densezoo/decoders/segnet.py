"""SegNet's decoder: max-unpooling with the encoder's saved indices, followed by convolutions."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ConvNormAct
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import check_count
from densezoo.deprecation import renamed
from densezoo.encoders import VGG, Encoder, PlainEncoder
from densezoo.heads import SegmentationHead
from densezoo.ops import max_unpool
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


@renamed(stage_sizes="depths")
class SegNetDecoder(nn.Module):
    """SegNet: max-unpooling with the indices of the encoder's max-pooling. Only the indices are kept, not the maps.

    The decoder mirrors the encoder: before each unpooling, it has as many channels as the encoder pooled.

    Attributes:
        depths: number of convolutions after each unpooling, coarse to fine, at least one each.
        features: channels of the result at the image's size; None means the channels of the first pooled map.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pooled, indices = dz.ops.max_pool_with_indices(jnp.zeros((1, 9, 8, 4)))
        >>> pyramid = dz.Pyramid((pooled,), (indices,), (2,), (9, 8))
        >>> jax.eval_shape(SegNetDecoder((2,)).init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 9, 8, 4)

    References:
        Badrinarayanan et al., SegNet, 2015. https://arxiv.org/abs/1511.00561
    """

    depths: Sequence[int] = (3, 3, 3, 2, 1)
    features: int | None = None
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        if pyramid.pool_indices is None:
            raise ValueError(
                "SegNetDecoder unpools with saved indices, but this encoder does some of its downsampling without 2x2"
                " max-pooling, or is the difference of two: use one that keeps pool_indices (plain, or vgg11 to vgg19"
                " with or without _bn), and fusion='concat' for two images"
            )
        poolings = list(reversed(pyramid.pool_indices))
        check_count(
            "SegNetDecoder", len(self.depths), len(poolings), field=f"depths={tuple(self.depths)}", what="poolings"
        )
        if min(self.depths) < 1:
            raise ValueError(f"depths are numbers of convolutions, at least 1 each; got {tuple(self.depths)}")
        conv = partial(ConvNormAct, norm=self.norm, act=self.act, dtype=self.dtype, param_dtype=self.param_dtype)
        x = pyramid.maps[-1]
        if x.shape[-1] != poolings[0].shape[-1]:
            # The plain encoder convolves after its last pooling: restore the number of channels that were pooled.
            x = conv(poolings[0].shape[-1], name="top")(x, train=train)
        for stage, (indices, size) in enumerate(zip(poolings, self.depths, strict=True)):
            if stage + 1 < len(poolings):
                # The input of this pooling is the output of the next finer one.
                size_before, features = size_of(poolings[stage + 1]), poolings[stage + 1].shape[-1]
            else:
                size_before, features = pyramid.image_size, self.features or indices.shape[-1]
            x = max_unpool(x, indices, size_before)
            for index in range(size):
                channels = features if index == size - 1 else x.shape[-1]
                x = conv(channels, name=f"stage{stage}_conv{index}")(x, train=train)
        return x


def _fields(encoder: Encoder) -> dict[str, Any]:
    if isinstance(encoder, PlainEncoder):
        return {"depths": (2,) * (len(encoder.features) - 1)}
    if isinstance(encoder, VGG):
        # The mirror image of the encoder, whose last convolution is the head.
        first, *others = encoder.depths[: encoder.reductions[-1].bit_length() - 1]
        return {"depths": (*reversed(others), max(1, first - 1))}
    return {}


def _misfit(encoder: Encoder) -> str:
    if encoder.pools and encoder.reductions[-1] > 1:
        return ""
    lacks = "and this encoder has none: give it more stages" if encoder.pools else "which this encoder does not have"
    return f"SegNet needs the indices of 2x2 max-pooling, {lacks}; use plain, or vgg11 to vgg19_bn"


register(
    Blueprint(
        name="segnet",
        description="A mirrored VGG that unpools each value to the position of its maximum.",
        skip_strategy="unpools with the saved max-pooling indices",
        excels_at="segmentation with little memory: it stores indices instead of maps",
        paper="Badrinarayanan et al. 2015, https://arxiv.org/abs/1511.00561",
        decoder=SegNetDecoder,
        encoder="vgg16_bn",
        head=SegmentationHead,
        decoder_fields=_fields,
        misfit=_misfit,
        reads=lambda reductions: [len(reductions) - 1],
    )
)
