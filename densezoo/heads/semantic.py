"""The semantic branch of Panoptic FPN: all maps of a pyramid, upsampled to the finest one's size and added."""

import functools
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Bilinear, Conv, ConvNormAct, GroupNorm, build, upsampled
from densezoo.naming import Naming
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class SemanticHead(nn.Module):
    """Maps a pyramid to class logits for each pixel of the image.

    Attributes:
        num_classes: channels of the logits.
        features: channels of the maps that are added.
        levels: number of maps that are used, starting with the finest.
        upsample: factory of the upsampler between the maps' sizes.
        norm: factory of the normalisation, None for none.
        act: activation.

    References:
        Kirillov et al., Panoptic feature pyramid networks, 2019. https://arxiv.org/abs/1901.02446 (figure 3)
    """

    num_classes: int
    features: int = 128
    levels: int = 4
    upsample: ModuleDef = Bilinear
    norm: ModuleDef | None = GroupNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w k"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, self.features, norm=self.norm, act=self.act, **dtypes)
        maps = pyramid.maps[: self.levels]
        added = []
        for level, x in enumerate(maps):
            for step in range(max(level, 1)):
                x = conv(name=f"level{level}_conv{step}")(x, train=train)
                if level > 0:
                    upsample = build(self.upsample, name=f"level{level}_upsample{step}", **dtypes)
                    x = upsampled(upsample, x, size_of(maps[level - 1 - step]))
            added.append(x)
        logits = Conv(self.num_classes, 1, name="logits", **dtypes)(functools.reduce(jnp.add, added))
        assert pyramid.image_size is not None
        return Bilinear(name="resize")(logits.astype(jnp.float32), pyramid.image_size)

    def reference_names(self) -> list[Naming]:
        """None: torchvision does not have it."""
        return []
