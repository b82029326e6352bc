"""U-Net's decoder: repeatedly upsample, join the encoder's map of the same size, and convolve twice."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ConcatSkip, DoubleConv, Nearest, build, run_block, step_up, upsampled
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import dropped, one_scale, steps_up
from densezoo.encoders import VGG, Encoder, PlainEncoder
from densezoo.encoders.plain import PLAIN_FORMS, in_double_conv
from densezoo.heads import SegmentationHead
from densezoo.naming import PLAIN, SMP, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, Size


class UNetBlock(nn.Module):
    """One decoder block: upsamples x to `size`, joins the encoder's map (if there is one), then two convolutions.

    `attention` is applied to the joined map and to the result of the convolutions. As in segmentation_models_pytorch,
    the last block of a decoder omits the first of these if there is no map to join.
    """

    features: int
    hidden: int | None = None
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = Nearest
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    attention: ModuleDef | None = None
    last: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h2 w2 d"] | None, size: Size, *, train: bool = False
    ) -> Float[Array, "b h2 w2 e"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        skip = None if feature is None else build(self.skip, name="skip", **dtypes)
        upsampler = build(self.upsample, name="upsample", **dtypes)
        if self.attention is None or (skip is None and self.last):
            joined = step_up(upsampler, skip, x, feature, size)
        else:
            x = upsampled(upsampler, x, size)
            joined = build(self.attention, name="attention1", **dtypes)(x if skip is None else skip(x, feature))
        x = DoubleConv(self.features, self.hidden, self.norm, self.act, name="convs", **dtypes)(joined, train=train)
        return x if self.attention is None else build(self.attention, name="attention2", **dtypes)(x)


class UNetDecoder(nn.Module):
    """U-Net: a block per scale, from coarse to fine, with a skip at every scale of the encoder.

    With `all_scales=True`, it returns the results of all its blocks, fine to coarse, for deep supervision. The first of
    them is the result without `all_scales`.

    Attributes:
        features: channels of each block, coarse to fine: one entry for every skip, then one for every doubling from the
          finest map to the image. None gives the last block 16 channels, the one before 32, and so on.
        hidden: channels between each block's two convolutions; None means `features`.
        skip: factory of the skip: `ConcatSkip` as in the paper, `LateralAdd`, or `AttentionGate`.
        upsample: factory of the upsampler; the default samples like segmentation_models_pytorch's "nearest".
        center: whether to apply two convolutions to the coarsest map, as segmentation_models_pytorch does for VGG.
        norm: factory of the normalisation, None for none.
        act: activation.
        attention: factory of an attention module before and after the convolutions of each block, such as `SCSE`;
          None for none.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> features = jnp.zeros((1, 32, 33, 8)), jnp.zeros((1, 16, 17, 16))
        >>> pyramid = dz.Pyramid(features, reductions=(2, 4), image_size=(64, 65))
        >>> decoder = UNetDecoder(features=(16, 8))
        >>> jax.eval_shape(decoder.init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 64, 65, 8)

    References:
        Ronneberger et al., U-Net, 2015. https://arxiv.org/abs/1505.04597
    """

    features: Sequence[int] | None = None
    hidden: Sequence[int] | None = None
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = partial(Nearest, half_pixel=False)
    center: bool = False
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    attention: ModuleDef | None = None
    dropout: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pyramid: Pyramid, *, train: bool = False, all_scales: bool = False
    ) -> Float[Array, "b h w c"] | tuple[Float[Array, "b _ _ _"], ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        steps = steps_up(pyramid, self.features, self.upsample, "UNetDecoder")
        hidden = self.hidden or [None] * len(steps)
        if isinstance(hidden, int) or len(hidden) != len(steps):
            raise ValueError(f"hidden must be None or have one entry per block ({len(steps)}); got {self.hidden}")
        x = pyramid.maps[-1]
        if self.center:
            x = DoubleConv(x.shape[-1], None, self.norm, self.act, name="center", **dtypes)(x, train=train)
        block = partial(
            UNetBlock,
            skip=self.skip,
            norm=self.norm,
            act=self.act,
            attention=self.attention,
            **dtypes,
        )
        maps = []
        for index, (step, inner) in enumerate(zip(steps, hidden, strict=True)):
            last = index + 1 == len(steps)
            module = block(step.features, inner, upsample=step.upsample, last=last, name=f"block{index}")
            x = run_block(module, x, step.skip, size=step.size, train=train, remat=self.remat)
            maps.append(x)
        return dropped([*reversed(maps)] or [x], self.dropout, train=train, all_scales=all_scales)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and of plain U-Nets."""

        def plain(transposed: str, convs: str) -> Naming:
            def name(match: re.Match[str]) -> str:
                return f"{convs.format(int(match[1]) + 1)}.{in_double_conv(self.norm, match)}"

            up = Rule(r"block(\d+)/upsample", lambda match: transposed.format(int(match[1]) + 1), "conv_transpose")
            return Naming(PLAIN, [Rule(r"block(\d+)/convs/conv(\d)/(conv|norm)", name), up])

        smp = [
            *smp_block(r"block(?P<block>\d+)", r"blocks.\g<block>"),
            Rule(r"center/conv(\d)/conv", lambda match: f"center.{int(match[1]) - 1}.0"),
            Rule(r"center/conv(\d)/norm", lambda match: f"center.{int(match[1]) - 1}.1"),
        ]
        return [
            Naming(SMP, smp, "decoder.", UNUSED_ATTENTION),
            # The transposed convolution is within the block, or next to it.
            *(plain("up{}.up", convs) for _, _, convs in PLAIN_FORMS),
            *(plain("up{}", convs) for _, _, convs in PLAIN_FORMS),
        ]


UNUSED_ATTENTION = r"decoder\.blocks\.\w+\.attention1\..*"
"""The reference also has it in the last block, but never calls it there."""


def smp_block(path: str, name: str) -> list[Rule]:
    """Rules for a `UNetBlock`. `name` may refer to the groups of `path`."""
    attention = r"attention(?P<attention>\d)"
    there = rf"{name}.attention\g<attention>.attention"
    return [
        Rule(rf"{path}/convs/conv(?P<conv>\d)/conv", rf"{name}.conv\g<conv>.0"),
        Rule(rf"{path}/convs/conv(?P<conv>\d)/norm", rf"{name}.conv\g<conv>.1"),
        Rule(rf"{path}/{attention}/channels/reduce", rf"{there}.cSE.1"),
        Rule(rf"{path}/{attention}/channels/expand", rf"{there}.cSE.3"),
        Rule(rf"{path}/{attention}/pixels", rf"{there}.sSE.0"),
    ]


def mirrored(encoder: Encoder) -> dict[str, Any]:
    """Mirrors the channels of a plain encoder."""
    return {"features": tuple(reversed(encoder.features[:-1]))} if isinstance(encoder, PlainEncoder) else {}


def _fields(encoder: Encoder) -> dict[str, Any]:
    # segmentation_models_pytorch adds two convolutions after a VGG, and drops its map at full resolution.
    center = isinstance(encoder, VGG) and not encoder.full_resolution
    return mirrored(encoder) | ({"center": True} if center else {})


register(
    Blueprint(
        name="unet",
        description="A symmetric decoder that upsamples scale by scale, with two convolutions at each scale.",
        skip_strategy="concatenates the encoder's map at every scale",
        excels_at="pixel-precise segmentation, little data, diffusion backbones",
        paper="Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597",
        decoder=UNetDecoder,
        encoder="resnet34",
        head=SegmentationHead,
        decoder_fields=_fields,
        misfit=one_scale,
    )
)
