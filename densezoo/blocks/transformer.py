"""The block of transformers over a sequence of tokens: attention, then two linear layers."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks.attention import attend
from densezoo.blocks.initializers import truncated_normal as kernel_init
from densezoo.blocks.norm import LayerNorm
from densezoo.blocks.regularize import DropPath
from densezoo.blocks.rotary import Rotation, rotated
from densezoo.ops.sharding import reshape
from densezoo.types import Dtype

gelu = partial(nn.gelu, approximate=False)


class Attention(nn.Module):
    """Self-attention between all tokens."""

    num_heads: int
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], rotation: Rotation | None = None) -> Float[Array, "b n c"]:
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        channels = x.shape[-1]
        qkv = dense(3 * channels, use_bias=self.qkv_bias, name="qkv")(x)
        qkv = reshape(qkv, *x.shape[:2], 3, self.num_heads, channels // self.num_heads)
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if rotation is not None:
            query, key = rotated(query, rotation), rotated(key, rotation)
        y = attend(query, key, value)
        return dense(channels, name="proj")(reshape(y, *x.shape))


class Mlp(nn.Module):
    """Two linear layers, applied to each token.

    With `gated`, the first layer computes gates and values of `hidden` channels each, and the second takes
    act(gates) * values. Shazeer, GLU variants improve transformer, 2020. https://arxiv.org/abs/2002.05202
    """

    hidden: int
    gated: bool = False
    act: Callable[[jax.Array], jax.Array] = gelu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        dense = partial(nn.Dense, kernel_init=kernel_init, dtype=self.dtype, param_dtype=self.param_dtype)
        y = dense(2 * self.hidden if self.gated else self.hidden, name="fc1")(x)
        y = self.act(y[..., : self.hidden]) * y[..., self.hidden :] if self.gated else self.act(y)
        return dense(x.shape[-1], name="fc2")(y)


class Block(nn.Module):
    """Attention, then the two linear layers, each with a norm before it and a shortcut around it.

    The fields are those of `ViT`.
    """

    num_heads: int
    mlp_features: int
    gated: bool = False
    act: Callable[[jax.Array], jax.Array] = gelu
    qkv_bias: bool = True
    layer_scale: float | None = None
    epsilon: float = 1e-6
    drop_path: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], rotation: Rotation | None = None, *, train: bool = False
    ) -> Float[Array, "b n c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        y = LayerNorm(self.epsilon, name="norm1", **dtypes)(x)
        y = Attention(self.num_heads, self.qkv_bias, name="attn", **dtypes)(y, rotation)
        x = x + DropPath(self.drop_path)(self._scaled(y, "gamma_1"), train=train)
        y = LayerNorm(self.epsilon, name="norm2", **dtypes)(x)
        y = Mlp(self.mlp_features, self.gated, self.act, name="mlp", **dtypes)(y)
        return x + DropPath(self.drop_path)(self._scaled(y, "gamma_2"), train=train)

    def _scaled(self, y: jax.Array, name: str) -> jax.Array:
        if self.layer_scale is None:
            return y
        gamma = self.param(name, nn.initializers.constant(self.layer_scale), y.shape[-1:], self.param_dtype)
        return y * jnp.expand_dims(gamma.astype(y.dtype), (0, 1))
