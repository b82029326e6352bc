"""Content-aware upsamplers: CARAFE predicts the weights of a neighbourhood, DySample predicts sampling positions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks.conv import Conv
from densezoo.blocks.factories import register_blocks
from densezoo.blocks.upsamplers import _by_doubling
from densezoo.types import Dtype, Initializer, Size, accumulator_dtype


class CARAFE(nn.Module):
    """Learned upsampling by 2: every output pixel is a weighted mean of a neighbourhood, with predicted weights.

    A 1x1 convolution compresses the channels, a convolution predicts `kernel_size**2` weights for each of the four
    output pixels, a softmax normalises them, and `ops.carafe` computes the means. At initialisation, it is nearly a box
    blur.

    Weights of mmcv's `CARAFEPack` have the same names: `channel_compressor` and `content_encoder`, whose `weight`
    (out, in, h, w) is `kernel` (h, w, in, out) here and whose `bias` is `bias`.

    Wang et al., CARAFE: Content-aware reassembly of features, 2019. https://arxiv.org/abs/1905.02188

    Attributes:
        kernel_size: odd side of the neighbourhood.
        groups: number of channel groups; each has its own weights.
        compressed_features: channels from which the weights are predicted.
        encoder_kernel_size: odd kernel size of the convolution that predicts them.
    """

    kernel_size: int = 5
    groups: int = 1
    compressed_features: int = 64
    encoder_kernel_size: int = 3
    compressor_init: Initializer = nn.initializers.xavier_uniform()
    encoder_init: Initializer = nn.initializers.normal(0.001)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        weights = self.kernel_size**2
        compress = Conv(
            self.compressed_features,
            1,
            kernel_init=self.compressor_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="channel_compressor",
        )
        encode = Conv(
            4 * self.groups * weights,
            self.encoder_kernel_size,
            kernel_init=self.encoder_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="content_encoder",
        )

        def double(x: jax.Array) -> jax.Array:
            logits = ops.pixel_shuffle(encode(compress(x)), 2)
            by_group = logits.astype(accumulator_dtype(logits.dtype)).reshape(*logits.shape[:3], self.groups, weights)
            masks = jax.nn.softmax(by_group).reshape(logits.shape).astype(x.dtype)
            return ops.carafe(x, masks, kernel_size=self.kernel_size, factor=2, groups=self.groups)

        return _by_doubling(x, size, double)


class DySample(nn.Module):
    """Learned upsampling by 2: bilinear sampling at predicted positions.

    At initialisation, it is nearly bilinear upsampling. This is the authors' style "lp" with a static scope, here
    called `reach`. For each of the four output pixels and each group, a 1x1 convolution predicts an offset to the
    position at which bilinear upsampling would sample, and `ops.sample_bilinear` samples there.

    Weights of the authors' `DySample` have the same name: `offset`, whose `weight` (out, in, 1, 1) is `kernel`
    (1, 1, in, out) here and whose `bias` is `bias`; their buffer `init_pos` is a constant.

    Liu et al., Learning to upsample by learning to sample, 2023. https://arxiv.org/abs/2308.15085

    Attributes:
        groups: number of channel groups, which must divide the channels; each has its own positions.
        reach: offset in pixels for a prediction of 1.
    """

    groups: int = 4
    reach: float = 0.25
    kernel_init: Initializer = nn.initializers.normal(0.001)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ c"]:
        if self.groups < 1 or x.shape[-1] % self.groups:
            raise ValueError(
                f"groups={self.groups} must divide the {x.shape[-1]} channels: pass partial(DySample, groups=...)"
            )
        predict = Conv(
            8 * self.groups,
            1,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="offset",
        )

        def double(x: jax.Array) -> jax.Array:
            _, height, width, _ = x.shape
            # In float32, because half precision is too coarse for positions.
            offsets = ops.pixel_shuffle(predict(x).astype(jnp.float32), 2)
            columns, rows = jnp.split(self.reach * offsets, 2, axis=-1)  # (batch, 2h, 2w, groups) each
            rows = rows + jnp.reshape((jnp.arange(2 * height, dtype=jnp.float32) - 0.5) / 2, (1, -1, 1, 1))
            columns = columns + jnp.reshape((jnp.arange(2 * width, dtype=jnp.float32) - 0.5) / 2, (1, 1, -1, 1))
            return ops.sample_bilinear(x, jnp.stack([rows, columns], -1))

        return _by_doubling(x, size, double)


register_blocks("upsample", carafe=CARAFE, dysample=DySample)
