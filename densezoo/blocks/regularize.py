"""Regularisation in training: spatial dropout and stochastic depth."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops.sharding import explicitly_sharded, shared_like
from densezoo.types import accumulator_dtype


class Dropout(nn.Dropout):
    """Flax's dropout, which also works in a mesh with explicit axes: each device uses its samples' part of the mask."""

    def __call__(self, inputs: jax.Array, deterministic: bool | None = None, rng: Any = None) -> jax.Array:
        if not explicitly_sharded(inputs):
            return super().__call__(inputs, deterministic, rng)
        shape = [1 if axis in self.broadcast_dims else side for axis, side in enumerate(inputs.shape)]
        scales = super().__call__(jnp.ones(shape, accumulator_dtype(inputs.dtype)), deterministic, rng)
        scales = shared_like(scales, inputs)
        kept = inputs.astype(scales.dtype) * scales
        return jnp.where(scales > 0, kept, jnp.zeros((), kept.dtype)).astype(inputs.dtype)


class SpatialDropout(nn.Module):
    """Drops whole channels of each sample in training and rescales the others. Needs a `dropout` random key.

    Tompson et al., Efficient object localization using convolutional networks, 2014. https://arxiv.org/abs/1411.4280
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        return Dropout(self.rate, broadcast_dims=(1, 2))(x, deterministic=not train)


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a residual branch for whole samples and rescales it for the others.

    Needs a `dropout` random key if the rate is not 0. Huang et al., 2016, https://arxiv.org/abs/1603.09382.
    """

    rate: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"], *, train: bool = False) -> Float[Array, "b *s c"]:
        return Dropout(self.rate, broadcast_dims=tuple(range(1, x.ndim)))(x, deterministic=not train)


def drop_path_rates(rate: float, count: int) -> list[float]:
    """Rates that increase linearly from 0 for the first of `count` blocks to `rate` for the last, as in timm."""
    return [rate * index / max(count - 1, 1) for index in range(count)]


def run_block(block: nn.Module, *arrays: Any, remat: bool, **static: Any) -> jax.Array:
    """Calls `block(*arrays, **static)`, with arrays or trees. With `remat`, the backward pass recomputes inner maps."""
    if not remat:
        return block(*arrays, **static)  # pyright: ignore[reportCallIssue]
    return nn.remat(lambda module, *arrays: module(*arrays, **static))(block, *arrays)
