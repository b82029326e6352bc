"""U-Net's decoder: upsample, join the encoder's map of the same size, convolve twice; until the image's size."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ConcatSkip, DoubleConv, Nearest, build, step_up
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, size_of


class UNetBlock(nn.Module):
    """One step up: x to `size`, joined with the encoder's feature there (if there is one), then two convolutions."""

    features: int
    hidden: int | None = None
    skip: ModuleDef = ConcatSkip
    upsample: ModuleDef = Nearest
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h2 w2 d"] | None, size: Size, *, train: bool = False
    ) -> Float[Array, "b h2 w2 e"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        skip = None if feature is None else build(self.skip, name="skip", **dtypes)
        joined = step_up(build(self.upsample, name="upsample", **dtypes), skip, x, feature, size)
        return DoubleConv(self.features, self.hidden, self.norm, self.act, name="convs", **dtypes)(joined, train=train)


class UNetDecoder(nn.Module):
    """U-Net: from the coarsest map up, a block per scale, with a skip at every scale that the encoder has.

    Args (fields):
        features: channels of each block, coarse to fine: one for every skip, and then one, without a skip, for every
          doubling from the finest feature to the image. None gives the last block 16 channels, the one before 32, ...
        hidden: channels between each block's two convolutions; None means `features`.
        skip: how the encoder's map joins: `ConcatSkip` as in the paper, or `LateralAdd`.
        upsample: factory of the upsampler; the default samples like segmentation_models_pytorch's "nearest".
        center: two more convolutions on the coarsest map, which segmentation_models_pytorch has over VGG.
        norm: factory of the normalisation, None for none.
        act: activation.

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
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        *skips, x = pyramid.features
        beyond = None if self.features is None else len(self.features) - len(skips)
        if beyond is not None and beyond < 0:
            raise ValueError(
                f"the encoder has {len(skips)} skips, and UNetDecoder needs a block for each; got only"
                f" {len(self.features or ())} in features={self.features}"
            )
        sizes = [size_of(skip) for skip in reversed(skips)] + sizes_beyond(pyramid, beyond)
        features = self.features or [16 * 2**step for step in reversed(range(len(sizes)))]
        hidden = self.hidden or [None] * len(features)
        if len(hidden) != len(features):
            raise ValueError(
                f"hidden has an entry for each of the {len(features)} blocks, or is None; got {self.hidden}"
            )
        if self.center:
            x = DoubleConv(
                x.shape[-1], None, self.norm, self.act, dtype=self.dtype, param_dtype=self.param_dtype, name="center"
            )(x, train=train)
        joined = [*reversed(skips), *[None] * (len(features) - len(skips))]
        for index, (channels, inner, feature, size) in enumerate(zip(features, hidden, joined, sizes, strict=True)):
            x = UNetBlock(
                channels,
                inner,
                self.skip,
                self.upsample,
                self.norm,
                self.act,
                self.dtype,
                self.param_dtype,
                name=f"block{index}",
            )(x, feature, size, train=train)
        return x


def sizes_beyond(pyramid: Pyramid, count: int | None) -> list[Size]:
    """Sizes of `count` doublings beyond the finest feature, the finest last; None means as many as reach the image."""
    height, width = size_of(pyramid.features[0])
    if pyramid.reductions is None or pyramid.image_size is None:
        return [(height * 2**step, width * 2**step) for step in range(1, (count or 0) + 1)]
    to_image = math.ceil(math.log2(pyramid.reductions[0]))
    if count is None:
        count = to_image
    if count > to_image:
        raise ValueError(
            f"the finest feature is at 1/{pyramid.reductions[0]} of the image, {to_image} doublings away from it; the"
            f" decoder has {count} blocks for them: give it {count - to_image} fewer entries in features"
        )
    # Rounded up, as every strided convolution here rounds; the last of them is exactly the image.
    steps = range(to_image - 1, to_image - 1 - count, -1)
    return [(-(-pyramid.image_size[0] // 2**step), -(-pyramid.image_size[1] // 2**step)) for step in steps]
