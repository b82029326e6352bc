"""MA-Net: a U-Net with attention between all pixels of the coarsest map, and gates on the channels of every skip."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    BatchNorm,
    ChannelGate,
    ConcatSkip,
    Conv,
    ConvNormAct,
    DoubleConv,
    Nearest,
    SpatialDropout,
    build,
    run_block,
    step_up,
)
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale, steps_up
from densezoo.decoders.unet import UNetBlock, mirrored, smp_block
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, Naming, Rule
from densezoo.ops.sharding import reshape
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, accumulator_dtype


class PositionAttention(nn.Module):
    """MA-Net's position-wise attention block: residual self-attention between all pixels.

    It reproduces two peculiarities of segmentation_models_pytorch, whose weights were trained with them. The softmax
    runs over all pairs of pixels, so the weights of a single pixel do not sum to 1. And the result, pixels by channels,
    is reshaped as if it were channels by pixels.

    Attributes:
        features: channels of queries and keys.
    """

    features: int = 64
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        conv = partial(Conv, dtype=self.dtype, param_dtype=self.param_dtype)
        batch, height, width, channels = x.shape
        center = conv(self.features, 1, name="center_conv")(x).reshape(batch, height * width, -1)
        top = conv(self.features, 1, name="top_conv")(x).reshape(batch, height * width, -1)
        bottom = conv(channels, name="bottom_conv")(x).reshape(batch, height * width, -1)
        wide = accumulator_dtype(bottom.dtype)
        likeness = jnp.einsum("bic,bjc->bij", center, top, preferred_element_type=wide)
        weights = jax.nn.softmax(likeness, axis=(1, 2)).astype(bottom.dtype)
        attended = jnp.einsum("bij,bjc->bic", weights, bottom)
        attended = reshape(attended, batch, channels, height, width).transpose(0, 2, 3, 1)
        return conv(channels, name="out_conv")(x.astype(attended.dtype) + attended)


class FusionBlock(nn.Module):
    """MA-Net's multi-scale fusion attention block: a decoder block with channel gates computed from both joined maps.

    Attributes:
        features: channels of the result.
        reduction: ratio of input to hidden channels in the gates.
    """

    features: int
    reduction: int = 16
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = Nearest
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h2 w2 d"], size: Size, *, train: bool = False
    ) -> Float[Array, "b h2 w2 e"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, norm=self.norm, act=self.act, **dtypes)
        gate = partial(ChannelGate, max(1, feature.shape[-1] // self.reduction), **dtypes)
        x = conv(x.shape[-1], name="high_conv1")(x, train=train)
        x = conv(feature.shape[-1], 1, name="high_conv2")(x, train=train)
        # The reference computes the gate from the upsampled map. Doubling keeps the means, so use the smaller map.
        gates = gate(name="high_gate")(x) + gate(name="low_gate")(feature).astype(x.dtype)
        upsampler, skip = build(self.upsample, name="upsample", **dtypes), build(self.skip, name="skip", **dtypes)
        joined = step_up(upsampler, skip, x * gates, feature, size)
        return DoubleConv(self.features, None, self.norm, self.act, name="convs", **dtypes)(joined, train=train)


class MAnetDecoder(nn.Module):
    """MA-Net: attention on the coarsest map, then a block per scale with channel gates from both joined maps.

    The attention compares all pixels of the coarsest map: at 1/32 of an image of 512x512, 256 x 256 pairs.

    Attributes:
        features: channels of each block, coarse to fine: one entry for every skip, then one for every doubling from the
          finest map to the image. None gives the last block 16 channels, the one before 32, and so on.
        attention_features: channels of queries and keys in the attention.
        reduction: ratio of input to hidden channels in the channel gates.
        skip: how the encoder's map joins the gated one: `ConcatSkip`, `LateralAdd` or `AttentionGate`.
        upsample: factory of the upsampler; the default samples like segmentation_models_pytorch's "nearest".
        norm: factory of the normalisation, None for none.
        act: activation.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> features = jnp.zeros((1, 32, 33, 8)), jnp.zeros((1, 16, 17, 16))
        >>> pyramid = dz.Pyramid(features, reductions=(2, 4), image_size=(64, 65))
        >>> decoder = MAnetDecoder(features=(16, 8))
        >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 64, 65, 8)

    References:
        Fan et al., MA-Net: A multi-scale attention network for liver and tumor segmentation, 2020.
        https://ieeexplore.ieee.org/document/9201310, with the details of segmentation_models_pytorch.
    """

    features: Sequence[int] | None = None
    attention_features: int = 64
    reduction: int = 16
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"norm": self.norm, "act": self.act, **dtypes}
        x = PositionAttention(self.attention_features, name="center", **dtypes)(pyramid.maps[-1])
        steps = steps_up(pyramid, self.features, self.upsample, "MAnetDecoder")
        for index, (features, skip, size, upsample) in enumerate(steps):
            block = UNetBlock if skip is None else partial(FusionBlock, reduction=self.reduction, skip=self.skip)
            module = block(features, upsample=upsample, name=f"block{index}", **fields)
            x = run_block(module, x, skip, size=size, train=train, remat=self.remat)
        return SpatialDropout(self.dropout)(x, train=train) if self.dropout else x

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""

        def high_conv(match: re.Match[str]) -> str:
            return f"blocks.{match[1]}.hl_conv.{int(match[2]) - 1}.{int(match[3] == 'norm')}"

        def gate(match: re.Match[str]) -> str:
            return f"blocks.{match[1]}.SE_{match[2][0]}l.{1 if match[3] == 'reduce' else 3}"

        rules = [
            Rule(r"center/(\w+)_conv", r"center.\1_conv"),
            Rule(r"block(\d+)/high_conv(\d)/(conv|norm)", high_conv),
            Rule(r"block(\d+)/(high|low)_gate/(reduce|expand)", gate),
            *smp_block(r"block(?P<block>\d+)", r"blocks.\g<block>"),
        ]
        return [Naming(SMP, rules, "decoder.")]


register(
    Blueprint(
        name="manet",
        description="A U-Net with self-attention at the coarsest scale and channel attention at every scale.",
        skip_strategy="concatenates the encoder's map, which also contributes to the channel attention",
        excels_at="lesions and organs: global context, and channel weights that depend on the content",
        paper="Fan et al. 2020, https://ieeexplore.ieee.org/document/9201310; gates: Hu et al. 2017,"
        " https://arxiv.org/abs/1709.01507",
        decoder=MAnetDecoder,
        encoder="resnet34",
        head=SegmentationHead,
        decoder_fields=mirrored,
        misfit=one_scale,
    )
)
