"""The feature pyramid network: a top-down pathway with lateral connections, as a neck and for segmentation."""

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
    upsampled,
)
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import check_count, one_scale, upsampler_to
from densezoo.encoders import Encoder
from densezoo.heads import SegmentationHead
from densezoo.naming import DETECTORS, SMP, Naming, Rule
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, size_of

lecun_uniform: Initializer = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""torchvision's initialiser of the neck, `kaiming_uniform_(a=1)`."""

NEAREST: ModuleDef = partial(Nearest, half_pixel=False)
"""torch's `nearest`, which all references use in the top-down pathway."""


class TopDown(nn.Module):
    """The top-down pathway of all FPNs: a 1x1 convolution of the coarsest map, then repeated upsampling and addition.

    Returns as many maps as it gets, fine to coarse, all with `features` channels. If it gets their reductions, it
    creates no upsampler between maps of one scale.
    """

    features: int = 256
    skip: ModuleDef = LateralAdd
    upsample: ModuleDef = NEAREST
    norm: ModuleDef | None = None
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, features: tuple[jax.Array, ...], reductions: Sequence[int] | None = None, *, train: bool = False
    ) -> tuple[jax.Array, ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        normed = {} if self.norm is None else {"norm": self.norm}
        *finer, x = features
        x = lateral(self.features, self.norm, self.kernel_init, name="top", **dtypes)(x, train=train)
        maps = [x]
        for level, feature in reversed(list(enumerate(finer))):
            upsample = upsampler_to(level, reductions, self.upsample)
            x = upsampled(build(upsample, name=f"upsample{level}", **dtypes), x, size_of(feature))
            skip = build(self.skip, name=f"skip{level}", **normed, **dtypes)
            x = skip(x, feature, train=train) if normed else skip(x, feature)
            maps.append(x)
        return tuple(reversed(maps))


class PooledLevel(nn.Module):
    """An additional pyramid map: every second pixel of the coarsest, as in Faster R-CNN."""

    features: int = 256
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    count = 1

    def __call__(self, maps: tuple[jax.Array, ...], pyramid: Pyramid) -> tuple[jax.Array, ...]:
        return (maps[-1][:, ::2, ::2],)


class ConvLevels(nn.Module):
    """Two additional pyramid maps by convolutions with stride 2, as in RetinaNet and FCOS: P6, and P7 from its ReLU.

    Attributes:
        features: channels of both.
        from_encoder: whether P6 is computed from the encoder's coarsest map, C5, or from the pyramid's, P5.
    """

    features: int = 256
    from_encoder: bool = False
    kernel_init: Initializer = lecun_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    count = 2

    @nn.compact
    def __call__(self, maps: tuple[jax.Array, ...], pyramid: Pyramid) -> tuple[jax.Array, ...]:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        p6 = Conv(self.features, strides=2, name="p6", **fields)(pyramid.maps[-1] if self.from_encoder else maps[-1])
        return p6, Conv(self.features, strides=2, name="p7", **fields)(nn.relu(p6))


class FPNNeck(nn.Module):
    """FPN as a neck for detectors: a tuple of maps P2, P3, ... with equal channels, fine to coarse.

    Attributes:
        features: channels of every map.
        levels: number of the encoder's coarsest maps that are used; 4 are C2..C5 of a ResNet.
        upsample: factory of the upsampler in the top-down pathway.
        norm: factory of the normalisation after each convolution, None for none.
        extra: factory of a module for additional coarser maps, `PooledLevel` or `ConvLevels`; None for none.

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
    upsample: ModuleDef = NEAREST
    norm: ModuleDef | None = None
    extra: ModuleDef | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> tuple[Float[Array, "b _ _ c"], ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        maps = TopDown(
            self.features,
            partial(LateralAdd, kernel_init=lecun_uniform),
            self.upsample,
            self.norm,
            lecun_uniform,
            name="top_down",
            **dtypes,
        )(*_coarsest(type(self).__name__, pyramid, self.levels), train=train)
        output = partial(lateral, self.features, self.norm, lecun_uniform, kernel_size=3, **dtypes)
        maps = tuple(output(name=f"output{level}")(x, train=train) for level, x in enumerate(maps))
        return maps if self.extra is None else maps + self._extra(name="extra", **dtypes)(maps, pyramid)

    def scales(self, reductions: Sequence[int]) -> tuple[int, ...]:
        """The reduction of each map, for an encoder with these reductions."""
        mine = tuple(reductions[-self.levels :])
        more = 0 if self.extra is None else self._extra(parent=None).count
        return mine + tuple(mine[-1] * 2 ** (step + 1) for step in range(more))

    @nn.nowrap
    def _extra(self, **fields: Any) -> Any:
        assert self.extra is not None
        return build(self.extra, features=self.features, **fields)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision's detectors."""

        def naming(prefix: str, within: str) -> Naming:
            def rules(path: str, name: str) -> list[Rule]:
                if self.norm is None:
                    return [Rule(path, name + within)]
                return [Rule(f"{path}/conv", f"{name}.0"), Rule(f"{path}/norm", f"{name}.1")]

            others = "" if self.extra is not None else rf"{re.escape(prefix)}extra_blocks\..*"
            places = [
                *rules(r"top_down/top", f"inner_blocks.{self.levels - 1}"),
                *rules(r"top_down/skip(\d)/lateral", r"inner_blocks.\1"),
                *rules(r"output(\d)", r"layer_blocks.\1"),
                Rule(r"extra/(p\d)", r"extra_blocks.\1"),
            ]
            return Naming(DETECTORS, places, prefix, others)

        # Since torchvision 0.13, every convolution of the neck is in its own block.
        return [naming(prefix, within) for prefix in ("backbone.fpn.", "fpn.") for within in (".0", "")]


class FPNDecoder(nn.Module):
    """FPN for segmentation: convolves and upsamples every pyramid map to the finest one's size, and adds all of them.

    The result has the size of the finest map that is used, 1/4 of the image for a ResNet. A head upsamples it to the
    image's size. With `all_scales=True`, it also returns the contribution of each pyramid map, fine to coarse, for deep
    supervision.

    Attributes:
        features: channels of the pyramid.
        segmentation_features: channels of the result.
        levels: number of the encoder's coarsest maps that are used; None means 4, or all if there are fewer.
        dropout: share of channels dropped from the sum in training (needs a `dropout` random key).
        upsample: factory of the upsampler in the top-down pathway.
        segmentation_upsample: factory of the upsampler of the pyramid maps; align-corners as in the reference.
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
    upsample: ModuleDef = NEAREST
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
        features, reductions = _coarsest(type(self).__name__, pyramid, self.levels or min(4, len(pyramid.maps)))
        maps = TopDown(self.features, upsample=self.upsample, name="top_down", **dtypes)(features, reductions)
        conv = partial(ConvNormAct, self.segmentation_features, norm=self.norm, act=self.act, **dtypes)
        levels = []
        for level, x in enumerate(maps):
            # One convolution for the finest map; for the others, one before each upsampling.
            for step in range(max(level, 1)):
                x = conv(name=f"level{level}_conv{step}")(x, train=train)
                if level > 0:
                    finer = level - 1 - step
                    upsample = upsampler_to(finer, reductions, self.segmentation_upsample)
                    upsampler = build(upsample, name=f"level{level}_upsample{step}", **dtypes)
                    x = upsampled(upsampler, x, size_of(maps[finer]))
            levels.append(x)
        total = SpatialDropout(self.dropout)(functools.reduce(jnp.add, levels), train=train)
        return (total, *levels) if all_scales else total

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        coarsest = (self.levels or 4) - 1

        def segmentation_block(match: re.Match[str]) -> str:
            # The reference counts from the coarsest map, densezoo from the finest.
            return f"seg_blocks.{coarsest - int(match[1])}.block.{match[2]}.block.{int(match[3] == 'norm')}"

        rules = [
            Rule(r"top_down/top", f"p{coarsest + 2}"),
            Rule(r"top_down/skip(\d)/lateral", lambda match: f"p{int(match[1]) + 2}.skip_conv"),
            Rule(r"level(\d)_conv(\d)/(conv|norm)", segmentation_block),
        ]
        return [Naming(SMP, rules, "decoder.")]


def lateral(
    features: int, norm: ModuleDef | None, kernel_init: Initializer, kernel_size: int = 1, **fields: Any
) -> Callable[..., Any]:
    """A convolution without activation, followed by the norm if there is one."""
    if norm is not None:
        return ConvNormAct(features, kernel_size, norm=norm, act=None, kernel_init=kernel_init, **fields)
    conv = Conv(features, kernel_size, kernel_init=kernel_init, **fields)
    return lambda x, *, train=False: conv(x)


def _coarsest(decoder: str, pyramid: Pyramid, levels: int) -> tuple[tuple[jax.Array, ...], tuple[int, ...] | None]:
    """The maps and, if the pyramid has them, their reductions."""
    check_count(decoder, levels, len(pyramid.maps), field=f"levels={levels}", more=True)
    return pyramid.maps[-levels:], pyramid.reductions and tuple(pyramid.reductions[-levels:])


def _fields(encoder: Encoder) -> dict[str, Any]:
    return {"levels": min(4, len(encoder.reductions))}


register(
    Blueprint(
        name="fpn",
        description="A light top-down pyramid with the same channels at every scale, added up at 1/4 of the image.",
        skip_strategy="adds 1x1 lateral convolutions of the encoder's maps",
        excels_at="objects at many scales; detection and panoptic segmentation with shared features",
        paper="Lin et al. 2016, https://arxiv.org/abs/1612.03144; Kirillov et al. 2019, https://arxiv.org/abs/1901.02446",
        decoder=FPNDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        decoder_fields=_fields,
        misfit=one_scale,
        reads=lambda reductions: range(len(reductions))[-4:],
    )
)
