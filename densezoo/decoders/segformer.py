"""SegFormer's decoder: a linear layer for every map, a resize to a quarter of the image, then one convolution."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import (
    BatchNorm,
    Bicubic,
    Bilinear,
    Nearest,
    SpatialDropout,
    build,
    he_uniform,
    norm_act,
    upsampled,
)
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, TRANSFORMERS, Naming, Rule
from densezoo.ops import reference
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, Size, size_of


class Weights(nn.Module):
    """Creates the kernel and bias (or None) of a linear layer or convolution, which the decoder applies itself."""

    shape: tuple[int, ...]
    kernel_init: Initializer
    use_bias: bool = True
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array | None]:
        kernel = jnp.asarray(self.param("kernel", self.kernel_init, self.shape, self.param_dtype))
        if not self.use_bias:
            return kernel, None
        return kernel, jnp.asarray(self.param("bias", nn.initializers.zeros, self.shape[-1:], self.param_dtype))


class SegFormerDecoder(nn.Module):
    """SegFormer: a linear layer for each map, resized to 1/4 of the image, concatenated and fused by a 1x1 convolution.

    Maps finer than 1/4 are reduced. The result has the size of the map at 1/4 if there is one, or else a quarter of the
    image's size, rounded up. For a pyramid made by hand, it has the size of the finest map.

    Attributes:
        features: channels of each linear layer, and of the result.
        upsample: factory of the upsampler of the coarser maps.
        norm: factory of the normalisation after the convolution, None for none.
        act: activation after it.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> features = jnp.zeros((1, 17, 16, 32)), jnp.zeros((1, 9, 8, 64))
        >>> pyramid = dz.Pyramid(features, reductions=(4, 8), image_size=(65, 64))
        >>> jax.eval_shape(SegFormerDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 256)

    References:
        Xie et al., SegFormer, 2021. https://arxiv.org/abs/2105.15203 (section 3.2), with the details of
        segmentation_models_pytorch.
    """

    features: int = 256
    upsample: ModuleDef = Bilinear
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dropout: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        size = _quarter(pyramid)
        # Coarse to fine, in the order of the reference's weights.
        features = pyramid.maps[::-1]
        width, init = self.features, nn.initializers.xavier_uniform()
        stages = [
            Weights((x.shape[-1], width), init, param_dtype=self.param_dtype, name=f"mlp_stage_{stage}")()
            for stage, x in enumerate(features)
        ]
        shape = (1, 1, len(features) * width, width)
        fuse, bias = Weights(shape, he_uniform, self.norm is None, self.param_dtype, name="fuse_conv")()
        # Use the reductions if they are known, because all maps of a small image may have the same size.
        if pyramid.reductions is None:
            coarser = [size_of(x) != size and not _is_finer(x, size) for x in features]
        else:
            coarser = [reduction > 4 for reduction in pyramid.reductions[::-1]]
        upsamplers = [
            build(self.upsample, name=f"upsample_{stage}", **dtypes) if below else None
            for stage, below in enumerate(coarser)
        ]
        dtype = jnp.result_type(*features, fuse) if self.dtype is None else self.dtype
        features = [x.astype(dtype) for x in features]

        resizes = [partial(_resize, upsampler=upsampler) for upsampler in upsamplers]
        interpolate = {type(upsampler) for upsampler in upsamplers} <= {Nearest, Bilinear, Bicubic, type(None)}
        fusion = ops.resize_concat_linear if interpolate else reference.resize_concat_linear
        x = fusion(features, stages, fuse[0, 0], bias, resizes, size)
        x = norm_act(self.norm, self.act, x, train=train, name="fuse_norm", **dtypes)
        return SpatialDropout(self.dropout)(x, train=train)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and transformers."""
        rules = [
            Rule(r"mlp_stage_(\d)", r"mlp_stage.\1.linear"),
            Rule("fuse_conv", "fuse_stage.0"),
            Rule("fuse_norm", "fuse_stage.1"),
        ]
        theirs = [
            Rule(r"mlp_stage_(\d)", lambda match: f"linear_c.{3 - int(match[1])}.proj"),  # fine to coarse
            Rule("fuse_conv", "linear_fuse"),
            Rule("fuse_norm", "batch_norm"),
        ]
        return [Naming(SMP, rules, "decoder."), Naming(TRANSFORMERS, theirs, "decode_head.")]


def _is_finer(x: jax.Array, size: Size) -> bool:
    return x.shape[1] > size[0] or x.shape[2] > size[1]


def _resize(x: jax.Array, size: Size, upsampler: Callable[[jax.Array, Size], jax.Array] | None) -> jax.Array:
    if upsampler is not None:
        return upsampled(upsampler, x, size)
    return x if size_of(x) == size else ops.resize_bilinear(x, size)


def _quarter(pyramid: Pyramid) -> Size:
    """A quarter of the image, rounded like the encoder's map of that scale if there is one."""
    if pyramid.reductions is not None and 4 in pyramid.reductions:
        return size_of(pyramid.maps[pyramid.reductions.index(4)])
    if pyramid.image_size is None:
        return size_of(pyramid.maps[0])
    return -(-pyramid.image_size[0] // 4), -(-pyramid.image_size[1] // 4)


register(
    Blueprint(
        name="segformer",
        description="One linear layer per scale; all scales are resized to 1/4 and fused by one convolution.",
        skip_strategy="concatenates all of the encoder's maps at once, at 1/4 of the image",
        excels_at="transformer encoders, which already provide global context: few parameters, fast",
        paper="Xie et al. 2021, https://arxiv.org/abs/2105.15203",
        decoder=SegFormerDecoder,
        encoder="mit_b0",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=one_scale,
    )
)
