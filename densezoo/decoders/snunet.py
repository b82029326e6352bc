"""SNUNet's decoder: a U-Net++ on the concatenated maps of two images, with channel attention over its finest maps."""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Conv, ResidualDoubleConv, TransposedConv, build, he_uniform, upsampled
from densezoo.decoders.steps import check_count, one_scale, upsampler_to
from densezoo.encoders import Encoder
from densezoo.encoders.plain import residual_rules
from densezoo.naming import SNUNET, Naming, Rule
from densezoo.ops import global_avg_pool
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, size_of


class ChannelAttention(nn.Module):
    """A factor from 0 to 1 for each channel, from its mean and its maximum: `x * ChannelAttention(8)(x)`.

    Attributes:
        hidden: channels between the two 1x1 convolutions, which the mean and the maximum share.

    References:
        Woo et al., CBAM: Convolutional block attention module, 2018. https://arxiv.org/abs/1807.06521 (equation 2)
    """

    hidden: int
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        conv = partial(
            Conv,
            kernel_size=1,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        reduce, expand = conv(self.hidden, name="reduce"), conv(x.shape[-1], name="expand")
        pooled = global_avg_pool(x), x.max((1, 2), keepdims=True)
        mean, largest = (expand(nn.relu(reduce(each))) for each in pooled)
        return nn.sigmoid(mean + largest)


class EnsembleAttention(nn.Module):
    """ECAM: concatenates maps and weighs the channels, those of each map by the sum of the maps, then all together."""

    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "b h w c"]]) -> Float[Array, "b h w d"]:
        hidden = max(1, maps[0].shape[-1] // 4)
        attention = partial(ChannelAttention, hidden, dtype=self.dtype, param_dtype=self.param_dtype)
        of_each = attention(name="of_each")(functools.reduce(jnp.add, maps))
        x = jnp.concatenate(maps, axis=-1)
        return attention(name="of_all")(x) * (x + jnp.tile(of_each, len(maps)))


class SNUNetDecoder(nn.Module):
    """SNUNet-CD with ensemble channel attention (ECAM): nested skips between the maps of two images.

    The block `conv{i}_{j}` at scale i, counted from the finest, joins both images' maps, all earlier blocks of its
    scale, and the upsampled block `conv{i+1}_{j-1}`; for j = 1, the upsampled map of the second image. A block has as
    many channels as one image's map at its scale. The result concatenates the blocks of the finest scale and weighs
    their channels, once each block on its own and once all together.

    It reads the maps of a `SiameseModel` with `fusion="concat"`, whose second half of channels is the second image's.

    Attributes:
        upsample: factory of the upsampler.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> maps = jnp.zeros((1, 16, 17, 2 * 4)), jnp.zeros((1, 8, 8, 2 * 8)), jnp.zeros((1, 4, 4, 2 * 16))
        >>> y, variables = jax.eval_shape(SNUNetDecoder().init_with_output, jax.random.key(0), dz.Pyramid(maps))
        >>> y.shape, [name for name in variables["params"] if name.startswith("conv")]
        ((1, 16, 17, 8), ['conv0_1', 'conv0_2', 'conv1_1'])

    References:
        Fang et al., SNUNet-CD: A densely connected siamese network for change detection of VHR images, 2021.
        https://ieeexplore.ieee.org/document/9355573
    """

    upsample: ModuleDef = TransposedConv
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        count = len(pyramid.maps)
        check_count("SNUNetDecoder", 2, count, field="two images", more=True)
        widths = [x.shape[-1] // 2 for x in pyramid.maps]
        rows = [[x] for x in pyramid.maps]  # for each scale, the maps that its next block joins
        below = [x[..., width:] for x, width in zip(pyramid.maps, widths, strict=True)]  # the second image's
        for column in range(1, count):
            for level in range(count - column):
                coarser = level + 1
                upsampler = build(
                    upsampler_to(level, pyramid.reductions, self.upsample),
                    name=f"upsample{coarser}_{column - 1}",
                    **dtypes,
                )
                up = upsampled(upsampler, below[coarser], size_of(pyramid.maps[level]))
                joined = jnp.concatenate(promote_dtype(*rows[level], up, dtype=self.dtype), axis=-1)
                block = ResidualDoubleConv(
                    widths[level], norm=self.norm, act=self.act, name=f"conv{level}_{column}", **dtypes
                )
                rows[level].append(block(joined, train=train))
            below = [row[-1] for row in rows[: count - column]]
        _, *finest = rows[0]
        return EnsembleAttention(name="attention", **dtypes)(finest)

    def reference_names(self) -> list[Naming]:
        """Parameter names of the authors' code."""
        rules = [
            *residual_rules(r"(?P<block>conv\d_\d)", r"\g<block>"),
            Rule(r"upsample(\d_\d)", r"Up\1.up", "conv_transpose"),
            Rule("attention/of_all/reduce", "ca.fc1"),
            Rule("attention/of_all/expand", "ca.fc2"),
            Rule("attention/of_each/reduce", "ca1.fc1"),
            Rule("attention/of_each/expand", "ca1.fc2"),
        ]
        return [Naming(SNUNET, rules)]


def needs_scales(encoder: Encoder) -> str:
    """Why an encoder has too few maps for SNUNet."""
    return one_scale(encoder) or ("" if len(encoder.reductions) > 1 else "SNUNet needs at least two maps")
