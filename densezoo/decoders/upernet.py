"""UPerNet's decoder: PSPNet's pooling on the coarsest map, then an FPN whose maps are all fused."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Bilinear, ConvNormAct, LayerNorm, SpatialDropout, build, upsampled
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.pspnet import PyramidPooling
from densezoo.decoders.steps import from_a_quarter, from_reduction, one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, TRANSFORMERS, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class UPerNetDecoder(nn.Module):
    """UPerNet: an FPN with pyramid pooling on the coarsest map, whose maps are fused at the size of the finest.

    As in the reference, each map of the encoder first gets its own layer norm, for transformer encoders. With
    `all_scales=True`, it also returns the pyramid's maps before the fusion, fine to coarse, for deep supervision.

    Attributes:
        features: channels of the pyramid and of the result.
        pool_sizes: bins along each side, for each grid of the pyramid pooling.
        finest: maps with at least this reduction are used. In a pyramid without `reductions`, all maps are used.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        upsample: factory of the upsampler of the pooled maps, in the top-down pathway, and before the fusion.
        norm: factory of the normalisation after the convolutions, None for none.
        act: activation.
        feature_norm: factory of the norm of each of the encoder's maps, None for none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 9, 8, 128))))
        >>> jax.eval_shape(UPerNetDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 256)

    References:
        Xiao et al., Unified perceptual parsing for scene understanding, 2018. https://arxiv.org/abs/1807.10221
        (figure 4), with the details of segmentation_models_pytorch.
    """

    features: int = 256
    pool_sizes: Sequence[int] = (1, 2, 3, 6)
    finest: int = 4
    dropout: float = 0.0
    upsample: ModuleDef = Bilinear
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    feature_norm: ModuleDef | None = LayerNorm
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, *, train: bool = False, all_scales: bool = False
    ) -> Float[Array, "b h w c"] | tuple[Float[Array, "b _ _ c"], ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"norm": self.norm, "act": self.act, **dtypes}
        conv = partial(ConvNormAct, self.features, **fields)
        features, reductions = zip(*from_reduction(pyramid, self.finest), strict=True)
        if self.feature_norm is not None:
            norms = [build(self.feature_norm, name=f"feature_norm{i}", **dtypes) for i in range(len(features))]
            features = [norm(feature) for norm, feature in zip(norms, features, strict=True)]
        *finer, x = features

        def to(index: int, start: int, x: jax.Array, name: str) -> jax.Array:
            # A dilated encoder has several maps of one size.
            if reductions[start] == reductions[index]:
                return x
            return upsampled(build(self.upsample, name=name, **dtypes), x, size_of(features[index]))

        pooling = PyramidPooling(self.features, self.pool_sizes, True, self.upsample, name="pooling", **fields)
        pooled = promote_dtype(x, *pooling(x, train=train), dtype=self.dtype)
        x = conv(name="pooling_conv")(jnp.concatenate(pooled, axis=-1), train=train)
        maps = [x]
        for index, feature in reversed(list(enumerate(finer))):
            step = len(finer) - 1 - index
            x = to(index, index + 1, x, f"upsample{step}")
            # As many channels as the upsampled map has, because an upsampler may divide them.
            x = x + ConvNormAct(x.shape[-1], 1, name=f"lateral{step}", **fields)(feature, train=train)
            maps.insert(0, conv(name=f"conv{step}")(x, train=train))
        resized = [to(0, index, x, f"fusion_upsample{index}") for index, x in enumerate(maps)]
        x = conv(name="fusion")(jnp.concatenate(resized, axis=-1), train=train)
        x = SpatialDropout(self.dropout)(x, train=train)
        return (x, *maps) if all_scales else x

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and transformers."""
        rules = [Rule(r"feature_norm(\d+)", r"feature_norms.\1")]
        for place, part in enumerate(("conv", "norm")):
            rules += [
                Rule(rf"pooling/conv(\d+)/{part}", rf"psp.blocks.\1.1.{place}"),
                Rule(rf"pooling_conv/{part}", f"psp.out_conv.{place}"),
                Rule(rf"lateral(\d+)/{part}", rf"fpn_lateral_blocks.\1.conv_norm_relu.{place}"),
                Rule(rf"conv(\d+)/{part}", rf"fpn_conv_blocks.\1.{place}"),
                Rule(rf"fusion/{part}", f"fusion_block.{place}"),
            ]
        return [Naming(SMP, rules, "decoder."), self._transformers()]

    def _transformers(self) -> Naming:
        """Parameter names of transformers, for an encoder of four stages. The auxiliary head is ignored."""

        def fine_to_coarse(kind: str, part: str) -> Callable[[re.Match[str]], str]:
            return lambda match: f"decode_head.{kind}_convs.{2 - int(match[1])}.{part}"

        def norm(match: re.Match[str]) -> str:
            return f"backbone.hidden_states_norms.stage{int(match[1]) + 1}"

        rules = [Rule(r"feature_norm(\d+)", norm)]
        for here, there in (("conv", "conv"), ("norm", "batch_norm")):
            rules += [
                Rule(rf"pooling/conv(\d+)/{here}", rf"decode_head.psp_modules.\1.1.{there}"),
                Rule(rf"pooling_conv/{here}", f"decode_head.bottleneck.{there}"),
                Rule(rf"lateral(\d+)/{here}", fine_to_coarse("lateral", there)),
                Rule(rf"conv(\d+)/{here}", fine_to_coarse("fpn", there)),
                Rule(rf"fusion/{here}", f"decode_head.fpn_bottleneck.{there}"),
            ]
        return Naming(TRANSFORMERS, rules, ignored=r"auxiliary_head\..*")


register(
    Blueprint(
        name="upernet",
        description="PSPNet's pooling on the coarsest map, followed by an FPN whose maps are fused at 1/4.",
        skip_strategy="adds 1x1 lateral convolutions of the encoder's maps, and concatenates the results of all scales",
        excels_at="accuracy with any encoder, especially transformers and ConvNeXt",
        paper="Xiao et al. 2018, https://arxiv.org/abs/1807.10221",
        decoder=UPerNetDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=one_scale,
        reads=from_a_quarter,
    )
)
