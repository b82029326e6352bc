"""DPT's decoder: converts the maps of a plain transformer to a pyramid, and fuses it from coarse to fine."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import BatchNorm, Bilinear, Conv, ConvNormAct, build, torch_bias, torch_uniform, upsampled
from densezoo.blocks.regularize import Dropout
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import check_count
from densezoo.encoders import Encoder
from densezoo.heads import DPTHead
from densezoo.naming import SMP, TRANSFORMERS, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, size_of


class Readout(nn.Module):
    """Adds the class token's information to every pixel of its map.

    `mode` selects how: "cat" concatenates it and projects back, "add" adds it, "ignore" ignores it.
    """

    mode: str
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], tokens: Float[Array, "b n c"] | None) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        if self.mode == "cat":
            if tokens is not None:
                token = jnp.broadcast_to(jnp.expand_dims(tokens[:, :1], 1), x.shape)
                x = jnp.concatenate(promote_dtype(x, token, dtype=self.dtype), axis=-1)
            init = nn.initializers.xavier_uniform()
            dense = nn.Dense(channels, kernel_init=init, dtype=self.dtype, param_dtype=self.param_dtype, name="project")
            return nn.gelu(dense(x), approximate=False)
        if self.mode == "add" and tokens is not None:
            return x + jnp.expand_dims(tokens.mean(1, keepdims=True), 1).astype(x.dtype)
        return x


class TransposedTiles(nn.Module):
    """A transposed convolution whose stride equals its kernel size, initialised as in torch."""

    factor: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        channels = x.shape[-1]
        shape = (self.factor, self.factor, channels, channels)
        kernel = self.param("kernel", torch_uniform, shape, self.param_dtype)
        bias = self.param("bias", torch_bias(self.factor**2 * channels), (channels,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        return ops.conv_transpose(x, kernel, stride=self.factor) + jnp.expand_dims(bias, (0, 1, 2))


class Reassemble(nn.Module):
    """Resizes a map by a factor with learned convolutions.

    Attributes:
        hidden: channels while it is resized.
        features: channels of the result.
    """

    hidden: int
    features: int
    factor: float
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.hidden, 1, name="project", **dtypes)(x)
        if self.factor > 1:
            x = TransposedTiles(int(self.factor), name="enlarge", **dtypes)(x)
        elif self.factor < 1:
            x = Conv(self.hidden, 3, int(1 / self.factor), name="reduce", **dtypes)(x)
        return Conv(self.features, 3, use_bias=False, name="output", **dtypes)(x)


class ResidualConvs(nn.Module):
    """Two convolutions with an activation before each, and a shortcut."""

    norm: ModuleDef | None
    act: Callable[[jax.Array], jax.Array]
    use_bias: bool | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, x.shape[-1], use_bias=self.use_bias, norm=self.norm, **dtypes)
        y = conv(act=self.act, name="conv_1")(self.act(x), train=train)
        return x + conv(act=None, name="conv_2")(y, train=train)


class Fusion(nn.Module):
    """Adds the coarser map to a feature, and resizes the sum to `size`, or to twice its size if that is None.

    Attributes:
        lateral: whether the feature passes `residual1` first.
    """

    upsample: ModuleDef
    norm: ModuleDef | None
    act: Callable[[jax.Array], jax.Array]
    use_bias: bool | None = None
    lateral: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        feature: Float[Array, "b h w c"],
        coarser: Float[Array, "b h3 w3 c"] | None,
        size: Size | None,
        *,
        train: bool,
    ) -> Float[Array, "b h2 w2 c"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        convs = partial(ResidualConvs, self.norm, self.act, self.use_bias, **dtypes)
        x = feature
        if coarser is not None and size_of(coarser) != size_of(x):
            x = ops.resize_bilinear(
                x, size_of(coarser)
            )  # the coarser map was doubled, and this one is an odd one's half
        if self.lateral:
            x = convs(name="residual1")(x, train=train)
        if coarser is not None:
            x = x + coarser
        x = convs(name="residual2")(x, train=train)
        # The references project after their bilinear resize, on four times as many pixels. The result is the same,
        # because the weights of the resize add up to 1.
        x = Conv(x.shape[-1], 1, name="project", **dtypes)(x)
        size = (2 * x.shape[1], 2 * x.shape[2]) if size is None else size
        return upsampled(build(self.upsample, name="upsample", **dtypes), x, size)


class DPTDecoder(nn.Module):
    """DPT: resizes a transformer's maps, all of one scale, to 1/4, 1/8, 1/16 and 1/32, and fuses them coarse to fine.

    The result is at 1/2 of the image. If the encoder padded the image, the result is cropped to the image.

    The fields from `factors` on describe the published models, which differ from segmentation_models_pytorch's.

    Attributes:
        intermediate_features: channels of each map while it is resized, one for each of the encoder's features.
        features: channels of the pyramid, and of the result.
        readout: how to use the class token: "cat" concatenates it to every pixel and projects, "add" adds it,
          "ignore" ignores it.
        upsample: factory of the upsampler between scales.
        norm: factory of the normalisation, None for none.
        act: activation.
        dropout: dropout rate of the result in training (needs a `dropout` random key).
        factors: how much each map is enlarged; 1/2 halves it. None means to 1/4, 1/8, 1/16 and 1/32 of the image, or
          (4, 2, 1, 1/2) if the side of the patches is not a power of 2.
        norm_fusions: whether the convolutions of the fusions have the norm, too; the last convolution always has it.
        fusion_bias: whether these convolutions have a bias; None means if they have no norm.
        first_lateral: whether the coarsest map, to which nothing is added, passes both residual blocks.
        double: whether each fusion exactly doubles its map, and the next finer map is resized to it. Otherwise it
          resizes its map to the next finer one. Both are equal if the sides of the maps are.
        output: whether a 3x3 convolution, which belongs to the head in the references, follows the fusions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> maps, tokens = (jnp.zeros((1, 5, 4, 32)),) * 4, (jnp.zeros((1, 1, 32)),) * 4
        >>> pyramid = dz.Pyramid(maps, reductions=(16,) * 4, image_size=(65, 64), tokens=tokens)
        >>> jax.eval_shape(DPTDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 33, 32, 256)

    References:
        Ranftl et al., Vision transformers for dense prediction, 2021. https://arxiv.org/abs/2103.13413, with the
        details of segmentation_models_pytorch: batch norms, the last convolution and the dropout of its head.
    """

    intermediate_features: Sequence[int] = (256, 512, 1024, 1024)
    features: int = 256
    readout: str = "cat"
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.1
    factors: Sequence[float] | None = None
    norm_fusions: bool = True
    fusion_bias: bool | None = None
    first_lateral: bool = True
    double: bool = False
    output: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        count = len(pyramid.maps)
        fields = self.intermediate_features
        check_count("DPTDecoder", len(fields), count, field=f"intermediate_features={fields}")
        if self.readout not in ("cat", "add", "ignore"):
            raise ValueError(f'readout must be "cat", "add" or "ignore", got {self.readout!r}')
        tokens = pyramid.tokens or (None,) * count
        factors = self._factors(pyramid.reductions or (16,) * count)
        maps = []
        for level, (x, token, hidden) in enumerate(zip(pyramid.maps, tokens, self.intermediate_features, strict=True)):
            x = Readout(self.readout, name=f"readout{level}", **dtypes)(x, token)
            maps.append(Reassemble(hidden, self.features, factors[level], name=f"reassemble{level}", **dtypes)(x))

        x = None
        norm = self.norm if self.norm_fusions else None
        for step, level in enumerate(reversed(range(count))):
            lateral = self.first_lateral or x is not None
            fusion = Fusion(self.upsample, norm, self.act, self.fusion_bias, lateral, name=f"fusion{step}", **dtypes)
            size = None if self.double or level == 0 else size_of(maps[level - 1])
            x = fusion(maps[level], x, size, train=train)
        assert x is not None
        x = _without_padding(x, pyramid)
        if self.output:
            init = nn.initializers.xavier_uniform()
            conv = ConvNormAct(self.features, norm=self.norm, act=self.act, kernel_init=init, name="output", **dtypes)
            x = conv(x, train=train)
        return Dropout(self.dropout)(x, deterministic=not train)

    def _factors(self, reductions: Sequence[int]) -> Sequence[float]:
        if self.factors is None:
            powers = all(4 <= reduction <= 32 and reduction.bit_count() == 1 for reduction in reductions)
            return [(reduction if powers else 16) / 2 ** (level + 2) for level, reduction in enumerate(reductions)]
        if len(self.factors) != len(reductions) or any(max(f, 1 / f) % 1 for f in self.factors if f > 0):
            raise ValueError(f"factors must be {len(reductions)} integers or their inverses, got {self.factors}")
        return self.factors

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and transformers."""
        fusion = r"decoder.fusion_blocks.\1"
        reassemble = r"decoder.reassemble_blocks.\1"
        rules = [
            Rule(r"readout(\d)/project", r"decoder.projection_blocks.\1.project.0"),
            Rule(r"reassemble(\d)/project", rf"{reassemble}.project_to_out_channel"),
            Rule(r"reassemble(\d)/enlarge", rf"{reassemble}.upsample", "conv_transpose"),
            Rule(r"reassemble(\d)/reduce", rf"{reassemble}.upsample"),
            Rule(r"reassemble(\d)/output", rf"{reassemble}.project_to_feature_dim"),
            Rule(r"fusion(\d)/residual(\d)/conv_(\d)/conv", rf"{fusion}.residual_conv_block\2.conv_\3"),
            Rule(r"fusion(\d)/residual(\d)/conv_(\d)/norm", rf"{fusion}.residual_conv_block\2.batch_norm_\3"),
            Rule(r"fusion(\d)/project", rf"{fusion}.project"),
            # Part of the head in the reference.
            Rule("output/conv", "segmentation_head.head.0"),
            Rule("output/norm", "segmentation_head.head.1"),
        ]
        return [Naming(SMP, rules), self._transformers()]

    def _transformers(self) -> Naming:
        """Parameter names of transformers' DPT and Depth Anything."""
        reassemble, fusion = r"neck.reassemble_stage.layers.\1", r"neck.fusion_stage.layers.\1"
        rules = [
            Rule(r"readout(\d)/project", r"neck.reassemble_stage.readout_projects.\1.0"),
            Rule(r"reassemble(\d)/project", rf"{reassemble}.projection"),
            Rule(r"reassemble(\d)/enlarge", rf"{reassemble}.resize", "conv_transpose"),
            Rule(r"reassemble(\d)/reduce", rf"{reassemble}.resize"),
            Rule(r"reassemble(\d)/output", r"neck.convs.\1"),
            Rule(r"fusion(\d)/residual(\d)/conv_(\d)/conv", rf"{fusion}.residual_layer\2.convolution\3"),
            Rule(r"fusion(\d)/residual(\d)/conv_(\d)/norm", rf"{fusion}.residual_layer\2.batch_norm\3"),
            Rule(r"fusion(\d)/project", rf"{fusion}.projection"),
            Rule("output/conv", "head.head.0"),
            Rule("output/norm", "head.head.1"),
        ]
        unused = r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*|auxiliary_head\..*"
        differs = "its coarsest map passes one residual block: first_lateral=False" if self.first_lateral else ""
        return Naming(TRANSFORMERS, rules, ignored=unused, differs=differs)


def _without_padding(x: Float[Array, "b h w c"], pyramid: Pyramid) -> Float[Array, "b _ _ c"]:
    """The part of the fused map that is within the image, if the encoder padded the image to whole patches."""
    if pyramid.image_size is None:
        return x
    reduction = (pyramid.reductions or (16,))[0]
    covered = [reduction * side for side in size_of(pyramid.maps[0])]
    height, width = (
        side if image >= whole else -(-image * side // whole)
        for side, image, whole in zip(size_of(x), pyramid.image_size, covered, strict=True)
    )
    return x[:, :height, :width]


def _misfit(encoder: Encoder) -> str:
    if len(set(encoder.reductions)) == 1:
        return ""
    return "DPT needs a plain transformer with maps of a single scale, such as vit_base_patch16_224"


register(
    Blueprint(
        name="dpt",
        description="A pyramid built from a Vision Transformer's maps of one size, fused from coarse to fine.",
        skip_strategy="adds maps of evenly spaced blocks, each resized by learned convolutions",
        excels_at="depth and segmentation from large pretrained Vision Transformers",
        paper="Ranftl et al. 2021, https://arxiv.org/abs/2103.13413",
        decoder=DPTDecoder,
        encoder="vit_base_patch16_224",
        head=DPTHead,
        misfit=_misfit,
    )
)
