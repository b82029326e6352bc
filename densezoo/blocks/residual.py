"""The blocks of diffusion models: residual blocks with a condition, and self-attention between pixels."""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks.attention import attend
from densezoo.blocks.conv import Conv
from densezoo.blocks.factories import build
from densezoo.blocks.initializers import fan_average, nearly_zero
from densezoo.blocks.norm import GroupNorm, norm_act
from densezoo.types import Dtype, ModuleDef, Size


class ResidualBlock(nn.Module):
    """Twice norm, activation and 3x3 convolution, added to the input. A vector conditions the second half.

    Attributes:
        features: channels of the result.
        conditioning: "shift" adds a projection of the vector to the map before the second norm. "scale_shift" scales
            and shifts the map after that norm, `norm(x) * (1 + scale) + shift`.
        resize: factory of an upsampler or downsampler, applied to both branches before the first convolution, if a
            size is passed.
        project: whether the input passes a 1x1 convolution before the addition. None means if its channels differ.
        rescale: factor of the sum, such as `2**-0.5`, which keeps the variance.
        norm: factory of the normalisations.
        first_norm: factory of the first one, if it differs.
        act: activation, also of the vector.
        dropout: share of values dropped before the second convolution in training (needs a `dropout` random key).

    References:
        Ho et al., Denoising diffusion probabilistic models, 2020. https://arxiv.org/abs/2006.11239
        Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, 2021. https://arxiv.org/abs/2105.05233
    """

    features: int
    conditioning: Literal["shift", "scale_shift"] = "shift"
    resize: ModuleDef | None = None
    project: bool | None = None
    rescale: float = 1.0
    norm: ModuleDef | None = GroupNorm
    first_norm: ModuleDef | None = None
    act: Callable[[jax.Array], jax.Array] = nn.silu
    dropout: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        condition: Float[Array, "b e"] | None = None,
        size: Size | None = None,
        *,
        train: bool = False,
    ) -> Float[Array, "b _ _ d"]:
        if self.conditioning not in ("shift", "scale_shift"):
            raise ValueError(f"conditioning must be 'shift' or 'scale_shift', got {self.conditioning!r}")
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(Conv, self.features, kernel_init=fan_average, **dtypes)
        norm = partial(norm_act, train=train, **dtypes)
        y = norm(self.first_norm or self.norm, self.act, x, name="norm1")
        if self.resize is not None and size is not None:
            x = build(self.resize, name="resize_shortcut", **dtypes)(x, size)
            y = build(self.resize, name="resize", **dtypes)(y, size)
        y = conv(name="conv1")(y)
        scale = shift = None
        if condition is not None:
            factor = 2 if self.conditioning == "scale_shift" else 1
            dense = nn.Dense(factor * self.features, kernel_init=fan_average, name="condition", **dtypes)
            vector = jnp.expand_dims(dense(self.act(condition)).astype(y.dtype), (1, 2))
            if self.conditioning == "scale_shift":
                scale, shift = jnp.split(vector, 2, axis=-1)
            else:
                y = y + vector
        if scale is None or shift is None:
            y = norm(self.norm, self.act, y, name="norm2")
        else:
            y = self.act(norm(self.norm, None, y, name="norm2") * (1 + scale) + shift)
        if self.dropout:
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
        y = conv(kernel_init=nearly_zero, name="conv2")(y)
        if x.shape[-1] != self.features if self.project is None else self.project:
            x = conv(1, name="shortcut")(x)
        y = x.astype(y.dtype) + y
        return y if self.rescale == 1 else y * jnp.asarray(self.rescale, y.dtype)


class SelfAttention(nn.Module):
    """Multi-head attention of each pixel to all pixels, added to the input.

    Attributes:
        head_features: channels per head. None means a single head.
        norm: factory of a normalisation before it, None for none.
        rescale: factor of the sum.
    """

    head_features: int | None = None
    norm: ModuleDef | None = GroupNorm
    rescale: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        batch, height, width, channels = x.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width_of_head = min(self.head_features or channels, channels)
        heads = channels // width_of_head
        y = norm_act(self.norm, None, x, train=False, name="norm", **dtypes)
        y = y.reshape(batch, height * width, channels)
        dense = partial(nn.Dense, kernel_init=fan_average, **dtypes)
        query, key, value = (
            dense(heads * width_of_head, name=name)(y).reshape(batch, height * width, heads, width_of_head)
            for name in ("query", "key", "value")
        )
        y = attend(query, key, value).reshape(batch, height * width, heads * width_of_head)
        y = dense(channels, kernel_init=nearly_zero, name="out")(y).reshape(x.shape)
        y = x.astype(y.dtype) + y
        return y if self.rescale == 1 else y * jnp.asarray(self.rescale, y.dtype)
