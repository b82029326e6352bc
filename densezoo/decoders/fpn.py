"""The feature pyramid network: laterals added on the way down from coarse to fine; as a neck, and for segmentation."""

import functools
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    Bilinear,
    Conv,
    ConvNormAct,
    GroupNorm,
    LateralAdd,
    Nearest,
    SpatialDropout,
    build,
    he_uniform,
)
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale, upsampler_to
from densezoo.encoders import Encoder
from densezoo.heads import SegmentationHead
from densezoo.naming import DETECTORS, SMP, Naming, Rule
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, size_of

lecun_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""torchvision's initialiser of the neck, `kaiming_uniform_(a=1)`."""


class TopDown(nn.Module):
    """The pathway that all FPNs share: the coarsest map through a 1x1 convolution, then upsample and add laterals.

    Gives as many maps as it takes, fine to coarse, all with `features` channels. Called with their reductions
    it learns no upsampling between maps of one scale.
    """

    features: int = 256
    skip: ModuleDef = LateralAdd
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: tuple[jax.Array, ...], reductions: Sequence[int] | None = None
    ) -> tuple[jax.Array, ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        *finer, x = features
        x = Conv(self.features, 1, kernel_init=self.kernel_init, name="top", **dtypes)(x)
        maps = [x]
        for level, feature in reversed(list(enumerate(finer))):
            upsample = upsampler_to(level, reductions, self.upsample)
            x = build(upsample, name=f"upsample{level}", **dtypes)(x, size_of(feature))
            x = build(self.skip, name=f"skip{level}", **dtypes)(x, feature)
            maps.append(x)
        return tuple(reversed(maps))


class FPNNeck(nn.Module):
    """FPN as a neck for detectors: a tuple of maps P2, P3, ... with equal channels, fine to coarse.

    Args (fields):
        features: channels of every map.
        levels: how many of the encoder's coarsest maps take part; 4 are C2..C5 of a ResNet.
        upsample: factory of the upsampler on the way down.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 16, 16, 64)), jnp.zeros((1, 8, 8, 128))))
        >>> maps, _ = jax.eval_shape(FPNNeck(levels=2).init_with_output, jax.random.key(0), pyramid)
        >>> [p.shape for p in maps]
        [(1, 16, 16, 256), (1, 8, 8, 256)]

    References:
        Lin et al., Feature pyramid networks for object detection, 2016. https://arxiv.org/abs/1612.03144 (figure 3)
    """

    features: int = 256
    levels: int = 4
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> tuple[Float[Array, "b _ _ c"], ...]:
        maps = TopDown(
            self.features,
            partial(LateralAdd, kernel_init=lecun_uniform),
            self.upsample,
            lecun_uniform,
            self.dtype,
            self.param_dtype,
            name="top_down",
        )(*_coarsest(pyramid, self.levels))
        conv = partial(Conv, kernel_init=lecun_uniform, dtype=self.dtype, param_dtype=self.param_dtype)
        return tuple(conv(self.features, name=f"output{level}")(x) for level, x in enumerate(maps))

    def reference_names(self) -> list[Naming]:
        """Those of torchvision's detectors."""

        def naming(prefix: str, within: str) -> Naming:
            rules = [
                Rule(r"top_down/top", f"inner_blocks.{self.levels - 1}{within}"),
                Rule(r"top_down/skip(\d)/lateral", rf"inner_blocks.\1{within}"),
                Rule(r"output(\d)", rf"layer_blocks.\1{within}"),
            ]
            others = rf"{re.escape(prefix)}extra_blocks\..*|(rpn|roi_heads|head)\..*"
            return Naming(DETECTORS, rules, prefix, others)

        # Since torchvision 0.13 every convolution of the neck is in a block of its own.
        return [naming(prefix, within) for prefix in ("backbone.fpn.", "fpn.") for within in (".0", "")]


class FPNDecoder(nn.Module):
    """FPN for segmentation: every pyramid map is convolved and upsampled to the finest one's size, and all are added.

    The result has the size of the finest map that takes part, 1/4 of the image over a ResNet; a head brings it to the
    image's size. Called with `all_scales=True` it gives besides what each pyramid map contributed, fine to coarse, for
    deep supervision.

    Args (fields):
        features: channels of the pyramid.
        segmentation_features: channels of the result.
        levels: how many of the encoder's coarsest maps take part; None means 4, or all if there are fewer.
        dropout: share of channels dropped from the sum in training (needs a `dropout` random key).
        upsample: factory of the upsampler on the way down.
        segmentation_upsample: factory of the upsampler of the pyramid maps; align-corners as the reference has it.
        norm: factory of the normalisation; a group norm with 32 groups in the reference.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 9, 8, 128))))
        >>> jax.eval_shape(FPNDecoder(levels=2).init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 128)

    References:
        Kirillov et al., Panoptic feature pyramid networks, 2019. https://arxiv.org/abs/1901.02446 (figure 3), with the
        details of segmentation_models_pytorch.
    """

    features: int = 256
    segmentation_features: int = 128
    levels: int | None = None
    dropout: float = 0.2
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    segmentation_upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = GroupNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, *, train: bool = False, all_scales: bool = False
    ) -> Float[Array, "b h w c"] | tuple[Float[Array, "b h w c"], ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features, reductions = _coarsest(pyramid, self.levels or min(4, len(pyramid.maps)))
        maps = TopDown(self.features, upsample=self.upsample, name="top_down", **dtypes)(features, reductions)
        conv = partial(ConvNormAct, self.segmentation_features, norm=self.norm, act=self.act, **dtypes)
        levels = []
        for level, x in enumerate(maps):
            # One convolution for the finest map, else one before each step up to it.
            for step in range(max(level, 1)):
                x = conv(name=f"level{level}_conv{step}")(x, train=train)
                if level > 0:
                    finer = level - 1 - step
                    upsample = upsampler_to(finer, reductions, self.segmentation_upsample)
                    x = build(upsample, name=f"level{level}_upsample{step}", **dtypes)(x, size_of(maps[finer]))
            levels.append(x)
        total = SpatialDropout(self.dropout)(functools.reduce(jnp.add, levels), train=train)
        return (total, *levels) if all_scales else total

    def reference_names(self) -> list[Naming]:
        """Those of segmentation_models_pytorch."""
        coarsest = (self.levels or 4) - 1

        def segmentation_block(match: re.Match[str]) -> str:
            # Counted from the coarsest map there, from the finest here.
            return f"seg_blocks.{coarsest - int(match[1])}.block.{match[2]}.block.{int(match[3] == 'norm')}"

        rules = [
            Rule(r"top_down/top", f"p{coarsest + 2}"),
            Rule(r"top_down/skip(\d)/lateral", lambda match: f"p{int(match[1]) + 2}.skip_conv"),
            Rule(r"level(\d)_conv(\d)/(conv|norm)", segmentation_block),
        ]
        return [Naming(SMP, rules, "decoder.")]


def _coarsest(pyramid: Pyramid, levels: int) -> tuple[tuple[jax.Array, ...], tuple[int, ...] | None]:
    """Maps and, where the pyramid has them, their reductions."""
    if not 1 <= levels <= len(pyramid.maps):
        raise ValueError(f"levels={levels} of the encoder's {len(pyramid.maps)} maps cannot take part")
    return pyramid.maps[-levels:], pyramid.reductions and tuple(pyramid.reductions[-levels:])


def _fields(encoder: Encoder) -> dict[str, Any]:
    return {"levels": min(4, len(encoder.reductions))}


register(
    Blueprint(
        name="fpn",
        description="A light top-down pyramid with equal channels at every scale, summed up at 1/4 of the image.",
        skip_strategy="adds 1x1 lateral convolutions of the encoder's maps",
        excels_at="multi-scale objects, detection and panoptic segmentation on the same features",
        paper="Lin et al. 2016, https://arxiv.org/abs/1612.03144; Kirillov et al. 2019, https://arxiv.org/abs/1901.02446",
        decoder=FPNDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        decoder_fields=_fields,
        misfit=one_scale,
        reads=lambda reductions: range(len(reductions))[-4:],
    )
)
