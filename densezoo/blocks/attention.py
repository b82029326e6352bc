"""Attention: gates between 0 and 1 for channels or pixels, and dot-product attention between tokens."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks.conv import Conv
from densezoo.blocks.factories import register_blocks
from densezoo.blocks.initializers import he_uniform
from densezoo.ops import global_avg_pool
from densezoo.ops.implementation import whole
from densezoo.types import Dtype, Initializer, accumulator_dtype


class ChannelGate(nn.Module):
    """The gate of squeeze-and-excitation: a factor per channel, computed from all means: `x * ChannelGate(16)(x)`.

    Attributes:
        hidden: channels between the two 1x1 convolutions.
        act: activation between them.
        gate: activation that maps their result to 0..1.

    Hu et al., Squeeze-and-excitation networks, 2017. https://arxiv.org/abs/1709.01507
    """

    hidden: int
    act: Callable[[jax.Array], jax.Array] = nn.relu
    gate: Callable[[jax.Array], jax.Array] = nn.sigmoid
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        mean = global_avg_pool(x)
        y = self.act(Conv(self.hidden, 1, name="reduce", **fields)(mean))
        return self.gate(Conv(x.shape[-1], 1, name="expand", **fields)(y))


class SCSE(nn.Module):
    """Concurrent spatial and channel squeeze and excitation: a gate per channel and a gate per pixel.

    Roy et al., 2018. https://arxiv.org/abs/1808.08127
    """

    reduction: int = 16
    kernel_init: Initializer = he_uniform
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        channels = ChannelGate(max(1, x.shape[-1] // self.reduction), name="channels", **fields)(x)
        return x * channels + x * nn.sigmoid(Conv(1, 1, name="pixels", **fields)(x))


_softmax = whole(nn.softmax)


@jax.named_scope("attend")
def attend(
    query: Float[Array, "b q h d"],
    key: Float[Array, "b k h d"],
    value: Float[Array, "b k h d"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "b q h d"]:
    """Scaled dot-product attention with the softmax in float32. `bias`, (b, h, q, k), is added to the scores.

    The heads are moved before the tokens, so that both products are plain batched matrix products. For other layouts,
    or a bias over five axes, oneDNN uses a reference loop that is up to 90 times slower.
    """
    wide = accumulator_dtype(query.dtype)
    query, key, value = (x.swapaxes(1, 2) for x in (query * query.shape[-1] ** -0.5, key, value))
    # In contrast to `jnp.matmul`, which drops axes of length 1, the program is the same for every shape.
    product = partial(jax.lax.dot_general, dimension_numbers=(((3,), (2,)), ((0, 1), (0, 1))))
    scores = product(query, key.swapaxes(2, 3), preferred_element_type=wide)
    scores = scores if bias is None else scores + bias
    return product(_softmax(scores).astype(value.dtype), value).swapaxes(1, 2)


register_blocks("attention", scse=SCSE, none=None)
