"""The levels of a diffusion U-Net: residual blocks with attention, and the step to the next level.

The fields of `DiffusionUNet` hold factories of levels, such as `partial(DownLevel, attention=SelfAttention)`.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    FIR,
    ConcatSkip,
    Conv,
    GroupNorm,
    ResidualBlock,
    ResizeConv,
    StridedConv,
    build,
    halved,
    norm_act,
    upsampled,
)
from densezoo.types import Dtype, ModuleDef, Size, size_of


class DownLevel(nn.Module):
    """A level of the way down: residual blocks with attention after each of them, then a downsampler.

    Returns the map, all maps for the skips, and the image at the size of the map if `image`.

    Attributes:
        features: channels of the level.
        layers: number of residual blocks.
        resamples: whether it ends with the downsampler. The coarsest level does not.
        block: factory of the residual blocks.
        attention: factory of the attention after each block, None for none.
        downsample: factory of the downsampler.
        residual: whether the downsampler is a part of a further residual block instead of a layer of its own.
        image: whether the input image, smoothed and halved, is projected and added to the result (NCSN++).
    """

    features: int
    layers: int = 2
    resamples: bool = True
    block: ModuleDef = ResidualBlock
    attention: ModuleDef | None = None
    downsample: ModuleDef = StridedConv
    residual: bool = False
    image: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b e"],
        image: Float[Array, "b _ _ _"],
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b _ _ d"], list[Float[Array, "b _ _ d"]], Float[Array, "b _ _ _"]]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        maps = []
        for index in range(self.layers):
            x = build(self.block, features=self.features, name=f"block{index}", **dtypes)(x, condition, train=train)
            if self.attention is not None:
                x = build(self.attention, name=f"attention{index}", **dtypes)(x)
            maps.append(x)
        if self.resamples:
            size = halved(size_of(x))
            if self.residual:
                fields = {"features": self.features, "resize": self.downsample, "project": self.image or None}
                block = build(self.block, name="resample", **fields, **dtypes)
                x = block(x, condition, size, train=train)
            else:
                x = upsampled(build(self.downsample, name="downsample", **dtypes), x, size)
            if self.image:
                while size_of(image) != size:
                    image = FIR()(image, halved(size_of(image)))
                projected = Conv(self.features, 1, name="image", **dtypes)(image)
                x = x.astype(projected.dtype) + projected
            maps.append(x)
        return x, maps, image


class MiddleLevel(nn.Module):
    """The coarsest level: a residual block, attention, and a second residual block.

    Attributes:
        features: channels of the level.
        block: factory of the residual blocks.
        attention: factory of the attention between them, None for none.
    """

    features: int
    block: ModuleDef = ResidualBlock
    attention: ModuleDef | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], condition: Float[Array, "b e"], *, train: bool = False
    ) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = build(self.block, features=self.features, name="block0", **dtypes)(x, condition, train=train)
        if self.attention is not None:
            x = build(self.attention, name="attention0", **dtypes)(x)
        return build(self.block, features=self.features, name="block1", **dtypes)(x, condition, train=train)


class UpLevel(nn.Module):
    """A level of the way up: residual blocks, each of which first joins a skip, then an upsampler to the next skip.

    Returns the map, and the image so far if `image`.

    Attributes:
        features: channels of the level.
        resamples: whether it ends with the upsampler. The finest level does not.
        block: factory of the residual blocks.
        skip: factory of the skips.
        attention: factory of the attention after each block, None for none.
        attend_once: whether there is attention only after the last block.
        upsample: factory of the upsampler.
        residual: whether the upsampler is a part of a further residual block instead of a layer of its own.
        image: whether each level adds its part to an image that is smoothed and doubled from level to level (NCSN++).
        image_features: channels of that image.
        image_norm: factory of the normalisation of the level's part.
    """

    features: int
    resamples: bool = True
    block: ModuleDef = ResidualBlock
    skip: ModuleDef = ConcatSkip
    attention: ModuleDef | None = None
    attend_once: bool = False
    upsample: ModuleDef = ResizeConv
    residual: bool = False
    image: bool = False
    image_features: int = 3
    image_norm: ModuleDef | None = GroupNorm
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b e"],
        skips: Sequence[jax.Array],
        size: Size,
        image: Float[Array, "b _ _ _"] | None,
        *,
        train: bool = False,
    ) -> tuple[Float[Array, "b _ _ d"], Float[Array, "b _ _ _"] | None]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for index, feature in enumerate(skips):
            x = build(self.skip, name=f"skip{index}", **dtypes)(x, feature)
            x = build(self.block, features=self.features, name=f"block{index}", **dtypes)(x, condition, train=train)
            if self.attention is not None and (not self.attend_once or index + 1 == len(skips)):
                x = build(self.attention, name=f"attention{0 if self.attend_once else index}", **dtypes)(x)
        if self.image:
            if image is not None:
                image = FIR()(image, size_of(x))
            if self.resamples:
                y = norm_act(self.image_norm, nn.silu, x, train=train, name="image_norm", **dtypes)
                part = Conv(self.image_features, 3, name="image", **dtypes)(y)
                image = part if image is None else image + part
        if self.resamples:
            if self.residual:
                fields = {"features": self.features, "resize": self.upsample, "project": self.image or None}
                fields["first_norm"] = None  # it is for maps joined with a skip
                block = build(self.block, name="resample", **fields, **dtypes)
                x = block(x, condition, size, train=train)
            else:
                x = upsampled(build(self.upsample, name="upsample", **dtypes), x, size)
        return x, image
