"""Embeddings of time steps: `embed(t)` maps times (b,) to vectors (b, c)."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num

from densezoo.types import Dtype


class Sinusoidal(nn.Module):
    """Sines and cosines of the time at frequencies from 1 to 1/10000; no weights.

    Attributes:
        features: length of the vectors.
        shift: 1 if the last frequency is exactly 1/10000, as in the first diffusion models; 0 otherwise.
        cos_first: whether the cosines come before the sines.

    Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; for times by Ho et al., 2020,
    https://arxiv.org/abs/2006.11239.
    """

    features: int
    shift: int = 1
    cos_first: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    def __call__(self, t: Num[Array, " b"]) -> Num[Array, "b c"]:
        half = self.features // 2
        # In float32 and in this order, because the frequencies are multiplied by times of up to 1000.
        exponents = np.float32(-math.log(10_000)) * np.arange(half, dtype=np.float32)
        frequencies = np.exp(exponents / np.float32(max(half - self.shift, 1)))
        angles = t.astype(jnp.float32)[:, None] * jnp.asarray(frequencies)[None]
        return _waves(angles, self.features, self.cos_first)


class Fourier(nn.Module):
    """Sines and cosines of the logarithm of the time at random, constant frequencies; twice `features` numbers.

    For models whose time is the standard deviation of the noise. Song et al., 2021, https://arxiv.org/abs/2011.13456.

    Attributes:
        features: number of frequencies.
        scale: their standard deviation.
        cos_first: whether the cosines come before the sines.
    """

    features: int
    scale: float = 16.0
    cos_first: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Num[Array, "b c"]:
        # Not a parameter: it is never trained.
        frequencies = self.variable("constants", "weight", self._frequencies)
        turns = jnp.log(t.astype(jnp.float32))[:, None] * frequencies.value.astype(jnp.float32)[None]
        angles = turns * np.float32(2 * np.pi)
        return _waves(angles, 2 * self.features, self.cos_first)

    def _frequencies(self) -> jax.Array:
        return jax.random.normal(self.make_rng("params"), (self.features,), self.param_dtype) * self.scale


class LearnedTimes(nn.Module):
    """A learned vector for each of `steps` times, which are whole numbers."""

    features: int
    steps: int = 1000
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, t: Num[Array, " b"]) -> Num[Array, "b c"]:
        embed = nn.Embed(self.steps, self.features, param_dtype=self.param_dtype, name="table")
        return embed(t.astype(jnp.int32))


def _waves(angles: jax.Array, features: int, cos_first: bool) -> jax.Array:
    waves = [jnp.sin(angles), jnp.cos(angles)]
    waves = jnp.concatenate(waves[::-1] if cos_first else waves, axis=-1)
    return jnp.pad(waves, ((0, 0), (0, features - waves.shape[-1])))
