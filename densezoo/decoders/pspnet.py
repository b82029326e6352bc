"""The pyramid scene parsing network's decoder: pyramid pooling of the coarsest map."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import BatchNorm, Bicubic, Bilinear, ConvNormAct, Nearest, SpatialDropout, build, upsampled
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, Size, size_of


class PyramidPooling(nn.Module):
    """Pyramid pooling: means of a map over grids of bins, followed by a 1x1 convolution and upsampling for each grid.

    Returns a map for each grid, without the input map.

    Attributes:
        features: channels of each result.
        sizes: bins along each side, for each grid; a small map has bins that overlap.
        norm_of_mean: whether the grid of one bin, the global mean, is normalised too. A batch norm then cannot train
          with a batch of one image.
    """

    features: int
    sizes: Sequence[int] = (1, 2, 3, 6)
    norm_of_mean: bool = True
    upsample: ModuleDef = Bilinear
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> tuple[Float[Array, "b h w d"], ...]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        maps = []
        for index, bins in enumerate(self.sizes):
            norm = self.norm if bins > 1 or self.norm_of_mean else None
            conv = ConvNormAct(self.features, 1, norm=norm, act=self.act, name=f"conv{index}", **dtypes)
            pooled = conv(ops.adaptive_avg_pool(x, (bins, bins)), train=train)
            maps.append(_resized(build(self.upsample, name=f"upsample{index}", **dtypes), pooled, size_of(x)))
        return tuple(maps)


def _resized(upsampler: Any, x: jax.Array, size: Size) -> jax.Array:
    """`upsampler(x, size)`, or a reduction of a map with fewer pixels than bins: learned upsamplers only enlarge."""
    if isinstance(upsampler, (Nearest, Bilinear, Bicubic)):
        return upsampler(x, size)
    enlarged = (max(size[0], x.shape[1]), max(size[1], x.shape[2]))
    x = upsampled(upsampler, x, enlarged)
    return x if enlarged == size else ops.resize_bilinear(x, size)


class PSPNetDecoder(nn.Module):
    """PSPNet: concatenates the encoder's coarsest map with its means over grids of bins. Uses no other map.

    The result has the size of that map, so use an encoder with `coarsest=8`, or a dilated one.

    Attributes:
        features: channels of the result.
        pool_sizes: bins along each side, for each grid.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        upsample: factory of the upsampler of the means; align-corners as in the reference.
        norm: factory of the normalisation, None for none. The global mean has none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 9, 8, 128))))
        >>> jax.eval_shape(PSPNetDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 9, 8, 512)

    References:
        Zhao et al., Pyramid scene parsing network, 2016. https://arxiv.org/abs/1612.01105 (figure 3), with the details
        of segmentation_models_pytorch.
    """

    features: int = 512
    pool_sizes: Sequence[int] = (1, 2, 3, 6)
    dropout: float = 0.2
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        fields = {"norm": self.norm, "act": self.act, "dtype": self.dtype, "param_dtype": self.param_dtype}
        x = pyramid.maps[-1]
        # The means of all grids together have as many channels as the map.
        width = max(1, x.shape[-1] // len(self.pool_sizes))
        pooling = PyramidPooling(width, self.pool_sizes, False, self.upsample, name="pooling", **fields)
        maps = promote_dtype(*pooling(x, train=train), x, dtype=self.dtype)
        x = ConvNormAct(self.features, 1, name="conv", **fields)(jnp.concatenate(maps, axis=-1), train=train)
        return SpatialDropout(self.dropout)(x, train=train)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        rules = [
            Rule(r"pooling/conv(\d+)/conv", r"psp.blocks.\1.pool.1.0"),
            Rule(r"pooling/conv(\d+)/norm", r"psp.blocks.\1.pool.1.1"),
            Rule(r"conv/conv", "conv.0"),
            Rule(r"conv/norm", "conv.1"),
        ]
        return [Naming(SMP, rules, "decoder.")]


register(
    Blueprint(
        name="pspnet",
        description="Average pooling into grids of 1x1 to 6x6 bins, concatenated with the encoder's map at 1/8.",
        skip_strategy="none: only the coarsest map, at 1/8 of the image",
        excels_at="scenes in which the whole image helps to identify its parts",
        paper="Zhao et al. 2016, https://arxiv.org/abs/1612.01105",
        decoder=PSPNetDecoder,
        encoder="resnet34",
        head=SegmentationHead,
        encoder_fields={"coarsest": 8},
        misfit=one_scale,
        reads=lambda reductions: [len(reductions) - 1],
    )
)
