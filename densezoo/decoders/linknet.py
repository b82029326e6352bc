"""LinkNet: a lightweight decoder with learned upsampling and additive skips."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    BatchNorm,
    ConvNormAct,
    SpatialDropout,
    TransposedConv,
    build,
    norm_act,
    run_block,
    torch_uniform,
    upsampled,
)
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale, sizes_beyond, upsampler_to
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, size_of

# torch's default initialiser: segmentation_models_pytorch only sets one for its other convolutions.
_UPSAMPLE = partial(TransposedConv, kernel_size=4, kernel_init=torch_uniform)


class LinknetBlock(nn.Module):
    """One decoder block: reduces channels to a quarter, upsamples to `size`, projects the channels, adds `feature`."""

    features: int
    upsample: ModuleDef = _UPSAMPLE
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], feature: Float[Array, "b h2 w2 d"] | None, size: Size, *, train: bool = False
    ) -> Float[Array, "b h2 w2 d"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, kernel_size=1, norm=self.norm, act=self.act, **dtypes)
        x = conv(max(1, x.shape[-1] // 4), name="reduce")(x, train=train)
        x = upsampled(build(self.upsample, name="upsample", **dtypes), x, size)
        x = norm_act(self.norm, self.act, x, train=train, name="norm", **dtypes)
        x = conv(self.features, name="expand")(x, train=train)
        return x if feature is None else x + feature.astype(x.dtype)


class LinknetDecoder(nn.Module):
    """LinkNet: from coarse to fine, a narrow block per scale, with an additive skip.

    A block has as many output channels as the encoder's map that is added. Beyond the finest map, blocks keep the
    number of channels, and the last block, at the image's size, has `features`. If the encoder's finest map has the
    image's size, there is no such block, and the result has the channels of that map.

    Attributes:
        features: channels of the last block.
        upsample: factory of the upsampler. The reference uses a transposed 4x4 convolution, with a bias although a
          batch norm follows.
        norm: factory of the normalisation, None for none.
        act: activation.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> features = jnp.zeros((1, 32, 33, 8)), jnp.zeros((1, 16, 17, 16))
        >>> pyramid = dz.Pyramid(features, reductions=(2, 4), image_size=(64, 65))
        >>> jax.eval_shape(LinknetDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 64, 65, 32)

    References:
        Chaurasia and Culurciello, LinkNet, 2017. https://arxiv.org/abs/1707.03718, with the details of
        segmentation_models_pytorch.
    """

    features: int = 32
    upsample: ModuleDef = _UPSAMPLE
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        block = partial(
            LinknetBlock,
            norm=self.norm,
            act=self.act,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        take = partial(run_block, train=train, remat=self.remat)
        *skips, x = pyramid.maps
        for index, skip in enumerate(reversed(skips)):
            upsample = upsampler_to(len(skips) - 1 - index, pyramid.reductions, self.upsample)
            module = block(skip.shape[-1], upsample=upsample, name=f"block{index}")
            x = take(module, x, skip, size=size_of(skip))
        sizes = sizes_beyond(pyramid, None)
        for index, size in enumerate(sizes, len(skips)):
            last = index + 1 == len(skips) + len(sizes)
            module = block(self.features if last else x.shape[-1], upsample=self.upsample, name=f"block{index}")
            x = take(module, x, None, size=size)
        return SpatialDropout(self.dropout)(x, train=train) if self.dropout else x

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        rules = [
            Rule(r"block(\d+)/reduce/conv", r"blocks.\1.block.0.0"),
            Rule(r"block(\d+)/reduce/norm", r"blocks.\1.block.0.1"),
            Rule(r"block(\d+)/upsample", r"blocks.\1.block.1.0", "conv_transpose"),
            Rule(r"block(\d+)/norm", r"blocks.\1.block.1.1"),
            Rule(r"block(\d+)/expand/conv", r"blocks.\1.block.2.0"),
            Rule(r"block(\d+)/expand/norm", r"blocks.\1.block.2.1"),
        ]
        return [Naming(SMP, rules, "decoder.")]


register(
    Blueprint(
        name="linknet",
        description="A light decoder with the encoder's channels: transposed convolutions between 1x1 convolutions.",
        skip_strategy="adds the encoder's map unchanged",
        excels_at="fast segmentation with few parameters",
        paper="Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718",
        decoder=LinknetDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=one_scale,
    )
)
