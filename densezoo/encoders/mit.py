"""Mix Transformer, SegFormer's encoder, with segmentation_models_pytorch's layout and names."""

import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    Conv,
    DropPath,
    LayerNorm,
    attend,
    drop_path_rates,
    he_normal_fan_out,
    run_block,
    truncated_normal,
)
from densezoo.blocks.transformer import gelu
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import SMP, TRANSFORMERS, Naming, Rule
from densezoo.ops.sharding import reshape
from densezoo.types import Dtype, Pyramid


class SpatialReductionAttention(nn.Module):
    """Self-attention whose keys are tiles of `reduction` x `reduction` pixels, reduced by a strided convolution."""

    num_heads: int
    reduction: int = 1
    dilation: int = 1
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, kernel_init=truncated_normal, **dtypes)
        batch, _, _, channels = shape = x.shape
        num_heads = (self.num_heads, channels // self.num_heads)
        query = reshape(dense(channels, name="q")(x), batch, -1, *num_heads)
        if self.reduction > 1:
            strides, padding = (self.reduction, 0) if self.dilation == 1 else (1, self.reduction // 2 * self.dilation)
            x = Conv(
                channels,
                self.reduction,
                strides,
                self.dilation,
                padding=padding,
                kernel_init=he_normal_fan_out,
                name="sr",
                **dtypes,
            )(x)
            x = LayerNorm(epsilon=1e-5, name="norm", **dtypes)(x)
        pairs = reshape(dense(2 * channels, name="kv")(x), batch, -1, 2, *num_heads)
        y = attend(query, pairs[:, :, 0], pairs[:, :, 1])
        return dense(channels, name="proj")(reshape(y, *shape))


class MixMlp(nn.Module):
    """Two linear layers per pixel, with a depthwise 3x3 convolution between them, which encodes positions."""

    hidden: int
    dilation: int = 1
    act: Callable[[jax.Array], jax.Array] = gelu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense = partial(nn.Dense, kernel_init=truncated_normal, **dtypes)
        y = dense(self.hidden, name="fc1")(x)
        # He et al. 2015 by fan-out, which for a depthwise convolution is its nine taps.
        init = nn.initializers.normal(math.sqrt(2 / 9))
        conv = Conv(self.hidden, dilation=self.dilation, groups=self.hidden, kernel_init=init, name="dwconv", **dtypes)
        return dense(x.shape[-1], name="fc2")(self.act(conv(y)))


class MixBlock(nn.Module):
    """Attention, then the convolutional MLP, each with a norm before it and a shortcut around it."""

    num_heads: int
    reduction: int
    mlp_ratio: int = 4
    dilation: int = 1
    act: Callable[[jax.Array], jax.Array] = gelu
    epsilon: float = 1e-6
    drop_path: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = LayerNorm(self.epsilon, name="norm1", **dtypes)(x)
        y = SpatialReductionAttention(self.num_heads, self.reduction, self.dilation, name="attn", **dtypes)(y)
        x = x + DropPath(self.drop_path)(y, train=train)
        y = LayerNorm(self.epsilon, name="norm2", **dtypes)(x)
        y = MixMlp(self.mlp_ratio * x.shape[-1], self.dilation, self.act, name="mlp", **dtypes)(y)
        return x + DropPath(self.drop_path)(y, train=train)


@renamed(widths="embed_dims", heads="num_heads")
class MixTransformer(Encoder):
    """Mix Transformer, a hierarchical transformer: maps at 1/4, 1/8, 1/16 and 1/32 of the image, each normalised.

    Overlapping convolutions make the patches, and there are no position embeddings: any image size works, with the same
    weights. Pixels at the right and lower border beyond the last whole tile of `sr_ratios` are queries but never keys.

    Attributes:
        depths: blocks in each stage.
        embed_dims: channels of each stage.
        num_heads: number of attention heads of each stage, which must divide its channels.
        sr_ratios: side of the tiles that are each stage's keys.
        mlp_ratios: hidden channels of each stage's MLP, as a multiple of its channels.
        act: activation of the MLPs.
        epsilon: epsilon of the norms of blocks and stages; transformers has 1e-5.
        drop_path: rate of stochastic depth in the last block; the rates increase linearly from 0.
        coarsest: reduction of the last stage to build, 4 to 32.
        output_stride: 16 or 8 limits the reduction, with dilated convolutions instead of strides, also in the
          attention, as in the reference.
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = MixTransformer(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 16, 17, 32), (1, 8, 9, 64), (1, 4, 5, 160), (1, 2, 3, 256)]

    References:
        Xie et al., SegFormer, 2021. https://arxiv.org/abs/2105.15203 (table 6)
    """

    depths: Sequence[int]
    embed_dims: Sequence[int] = (64, 128, 320, 512)
    num_heads: Sequence[int] = (1, 2, 5, 8)
    sr_ratios: Sequence[int] = (8, 4, 2, 1)
    mlp_ratios: Sequence[int] = (4, 4, 4, 4)
    act: Callable[[jax.Array], jax.Array] = gelu
    epsilon: float = 1e-6
    drop_path: float = 0.0
    coarsest: int = 32
    output_stride: int = 32
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "patch_embed1_proj"

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(2 ** (stage + 2) for stage in range(len(self.depths)))

    @property
    def min_size(self) -> int:
        """The smallest image side for which every stage's attention has a whole tile."""
        stages = range(len(self.reductions))
        ratios = [1 if self._dilation(stage) > 1 else self.sr_ratios[stage] for stage in stages]
        return max((ratio - 1) * 2 ** (stage + 2) + 1 for stage, ratio in enumerate(ratios))

    def _dilation(self, stage: int) -> int:
        return max(1, 2 ** (stage + 2) // self.output_stride)

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        x, maps = images, []
        for stage in range(len(self.reductions)):
            dilation = self._dilation(stage)
            x = Conv(
                self.embed_dims[stage],
                7 if stage == 0 else 3,
                strides=4 if stage == 0 else 2 if dilation == 1 else 1,
                dilation=dilation,
                kernel_init=he_normal_fan_out,
                name=f"patch_embed{stage + 1}_proj",
                **dtypes,
            )(x)
            x = LayerNorm(epsilon=1e-5, name=f"patch_embed{stage + 1}_norm", **dtypes)(x)
            for index in range(self.depths[stage]):
                block = MixBlock(
                    self.num_heads[stage],
                    self.sr_ratios[stage],
                    self.mlp_ratios[stage],
                    dilation,
                    self.act,
                    self.epsilon,
                    drop_path=next(rates),
                    name=f"block{stage + 1}_{index}",
                    **dtypes,
                )
                x = run_block(block, x, train=train, remat=self.remat)
            x = LayerNorm(self.epsilon, name=f"norm{stage + 1}", **dtypes)(x)
            maps.append(x)
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch, which are those of SegFormer's authors, and transformers."""
        rules = [
            Rule(r"patch_embed(\d)_(proj|norm)", r"patch_embed\1.\2"),
            Rule(r"block(\d)_(\d+)/(norm\d)", r"block\1.\2.\3"),
            Rule(r"block(\d)_(\d+)/mlp/dwconv", r"block\1.\2.mlp.dwconv.dwconv"),
            Rule(r"block(\d)_(\d+)/(attn|mlp)/(\w+)", r"block\1.\2.\3.\4"),
            Rule(r"norm(\d)", r"norm\1"),
        ]
        others = rf"head\..*|(patch_embed|block|norm)[{len(self.reductions) + 1}-9]\..*"
        places = ((SMP, "encoder."), ("SegFormer's authors", ""), ("SegFormer's authors", "backbone."))
        namings = [Naming(source, rules, prefix, rf"{re.escape(prefix)}({others})") for source, prefix in places]
        return [*namings, self._transformers("segformer."), self._transformers("")]

    def _transformers(self, prefix: str) -> Naming:
        def within(kind: str, rest: str) -> Callable[[re.Match[str]], str]:
            return lambda match: f"encoder.{kind}.{int(match[1]) - 1}" + match.expand(rest)

        block, attention = r"block(\d)_(\d+)", r".\2.attention"
        rules = [
            Rule(r"patch_embed(\d)_proj", within("patch_embeddings", ".proj")),
            Rule(r"patch_embed(\d)_norm", within("patch_embeddings", ".layer_norm")),
            Rule(rf"{block}/norm(\d)", within("block", r".\2.layer_norm_\3")),
            Rule(rf"{block}/attn/q", within("block", rf"{attention}.self.query")),
            Rule(rf"{block}/attn/kv", within("block", rf"{attention}.self.{{key,value}}")),
            Rule(rf"{block}/attn/sr", within("block", rf"{attention}.self.sr")),
            Rule(rf"{block}/attn/norm", within("block", rf"{attention}.self.layer_norm")),
            Rule(rf"{block}/attn/proj", within("block", rf"{attention}.output.dense")),
            Rule(rf"{block}/mlp/fc(\d)", within("block", r".\2.mlp.dense\3")),
            Rule(rf"{block}/mlp/dwconv", within("block", r".\2.mlp.dwconv.dwconv")),
            Rule(r"norm(\d)", within("layer_norm", "")),
        ]
        differs = "" if self.epsilon == 1e-5 else f"its norms have epsilon=1e-05 where the encoder has {self.epsilon:g}"
        return Naming(TRANSFORMERS, rules, prefix, r"classifier\..*", differs=differs)


# Xie et al. 2021, table 6; the rate of stochastic depth is segmentation_models_pytorch's.
_mit = partial(MixTransformer, drop_path=0.1)
register_encoders(
    {
        "mit_b0": partial(_mit, depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256)),
        "mit_b1": partial(_mit, depths=(2, 2, 2, 2)),
        "mit_b2": partial(_mit, depths=(3, 4, 6, 3)),
        "mit_b3": partial(_mit, depths=(3, 4, 18, 3)),
        "mit_b4": partial(_mit, depths=(3, 8, 27, 3)),
        "mit_b5": partial(_mit, depths=(3, 6, 40, 3)),
    }
)
