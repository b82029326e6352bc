"""The pyramid attention network's decoder: coarse features gate the channels of fine ones."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Bilinear, ConvNormAct, GroupNorm, LayerNorm, SpatialDropout, build, upsampled
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import from_a_quarter, from_reduction, one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, Naming, Rule
from densezoo.ops import global_avg_pool, max_pool
from densezoo.ops.resize import repeat_edges
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class FeaturePyramidAttention(nn.Module):
    """Feature pyramid attention: a weight per pixel, from windows that grow with the scale, and the global mean.

    See figure 3 of the paper.

    The result has the size of the input.
    """

    features: int
    upsample: ModuleDef
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w d"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # The reference has biases before batch norms, here and below.
        conv = partial(ConvNormAct, use_bias=True, act=self.act, **dtypes)
        weights = partial(conv, 1, norm=_for_one_channel(self.norm))

        def up(y: jax.Array, like: jax.Array, name: str) -> jax.Array:
            return upsampled(build(self.upsample, name=name, **dtypes), y, size_of(like))

        mean = conv(self.features, 1, norm=self.norm, name="branch1")(global_avg_pool(x), train=train)
        middle = conv(self.features, 1, norm=self.norm, name="mid")(x, train=train)
        half = weights(7, name="down1")(_halve(x), train=train)
        quarter = weights(5, name="down2")(_halve(half), train=train)
        eighth = weights(3, name="down3_1")(_halve(quarter), train=train)
        eighth = weights(3, name="down3_2")(eighth, train=train)
        y = weights(5, name="conv2")(quarter, train=train) + up(eighth, quarter, "upsample3")
        y = weights(7, name="conv1")(half, train=train) + up(y, half, "upsample2")
        return up(y, x, "upsample1") * middle + mean


class GlobalAttentionUpsample(nn.Module):
    """Global attention upsample (figure 4): the coarse map's means gate the channels of the encoder's map; adds both.

    If `upsample` is None, both maps have the same size.
    """

    upsample: ModuleDef | None
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h2 w2 d"], *, train: bool = False
    ) -> Float[Array, "b h2 w2 e"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        up = x
        if self.upsample is not None:
            up = upsampled(build(self.upsample, name="upsample", **dtypes), x, size_of(feature))
        # As many channels as the upsampled map has, because an upsampler may divide them.
        conv = partial(ConvNormAct, up.shape[-1], use_bias=True, norm=self.norm, **dtypes)
        gate = conv(1, act=nn.sigmoid, name="conv1")(global_avg_pool(x), train=train)
        return up + conv(3, act=self.act, name="conv2")(feature, train=train) * gate


class PANDecoder(nn.Module):
    """PAN: attention over a pyramid of the coarsest map, then a decoder block per finer map, up to 1/4 of the image.

    Attributes:
        features: channels of the result.
        finest: maps with at least this reduction are used. In a pyramid without `reductions`, all maps are used.
        dropout: share of the result's channels that are dropped in training (needs a `dropout` random key).
        upsample: factory of the upsampler of each decoder block; align-corners as in the reference.
        attention_upsample: factory of the upsampler within the attention, for maps with one channel.
        norm: factory of the normalisation, None for none. A group norm gets one group for maps with one channel. A
          layer norm is rejected, because it would set these maps to a constant.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 9, 8, 128))))
        >>> jax.eval_shape(PANDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 32)

    References:
        Li et al., Pyramid attention network for semantic segmentation, 2018. https://arxiv.org/abs/1805.10180, with the
        details of segmentation_models_pytorch.
    """

    features: int = 32
    finest: int = 4
    dropout: float = 0.0
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    attention_upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        fields = {"norm": self.norm, "act": self.act, "dtype": self.dtype, "param_dtype": self.param_dtype}
        *finer, (x, coarser) = from_reduction(pyramid, self.finest)
        x = FeaturePyramidAttention(self.features, self.attention_upsample, name="fpa", **fields)(x, train=train)
        for step, (feature, reduction) in reversed(list(enumerate(finer, start=1))):
            # A dilated encoder has several maps of one size.
            upsample = None if reduction == coarser else self.upsample
            x = GlobalAttentionUpsample(upsample, name=f"gau{step}", **fields)(x, feature, train=train)
            coarser = reduction
        return SpatialDropout(self.dropout)(x, train=train)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""

        def named(path: str, name: str) -> list[Rule]:
            return [Rule(rf"{path}/conv", rf"{name}.conv"), Rule(rf"{path}/norm", rf"{name}.bn")]

        rules = [
            *named(r"fpa/(branch1|down1|down2)", r"fpa.\1.1"),
            *named(r"fpa/mid", r"fpa.mid.0"),
            *named(r"fpa/down3_(\d)", r"fpa.down3.\1"),
            *named(r"fpa/(conv\d)", r"fpa.\1"),
            *named(r"gau(\d+)/conv1", r"gau\1.conv1.1"),
            *named(r"gau(\d+)/conv2", r"gau\1.conv2"),
        ]
        return [Naming(SMP, rules, "decoder.")]


def _halve(x: jax.Array) -> jax.Array:
    """Max-pooling by 2. Drops an odd row or column at the end, unless it is the only one."""
    height, width = size_of(x)
    return max_pool(repeat_edges(x, (max(0, 2 - height), max(0, 2 - width))), 2, 2)


def _for_one_channel(norm: ModuleDef | None) -> ModuleDef | None:
    kind = norm.func if isinstance(norm, partial) else norm
    if kind in (LayerNorm, nn.LayerNorm, nn.RMSNorm):
        raise ValueError(
            f"PAN normalises maps with one channel, which {kind.__name__} makes constant: use BatchNorm or GroupNorm"
        )
    return partial(norm, num_groups=1) if kind in (GroupNorm, nn.GroupNorm) else norm  # pyright: ignore


register(
    Blueprint(
        name="pan",
        description="Attention over a pyramid of the coarsest map, then light upsampling gated by the coarser map.",
        skip_strategy="adds convolved maps of the encoder, whose channels are gated by the coarser map",
        excels_at="segmentation with context at little cost",
        paper="Li et al. 2018, https://arxiv.org/abs/1805.10180",
        decoder=PANDecoder,
        encoder="resnet34",
        head=SegmentationHead,
        encoder_fields={"output_stride": 16},
        misfit=one_scale,
        reads=from_a_quarter,
    )
)
