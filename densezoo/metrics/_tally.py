"""Exact pixel counters."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Integer

_BITS = 16


@struct.dataclass
class Tally:
    """Exact numbers of pixels, up to 2^48 (2.8e14, or 67 million images of 2048 x 2048).

    JAX has no 64-bit integers by default, float32 is inexact beyond 2^24 (four such images) and int32 overflows beyond
    2^31 (512 of them), so a number is stored as low + 2^16 high. `+` carries from low to high. Plain sums of the leaves
    (`jax.lax.psum`, `jax.tree.map(jnp.add, ...)`) are also correct, for up to 2^16 tallies.

    `value` is the number in float32, for formulas; `numpy.asarray(tally)` returns it exactly as int64.
    """

    low: Any  # both UInt32[Array, "*shape"], or any other leaves that JAX puts into a pytree
    high: Any

    @classmethod
    def of(cls, numbers: Integer[Array, "*shape"]) -> "Tally":
        """A tally of nonnegative integers."""
        numbers = jnp.asarray(numbers).astype(jnp.uint32)
        return cls(numbers & (2**_BITS - 1), numbers >> _BITS)

    def __add__(self, other: "Tally") -> "Tally":
        low = self.low + other.low
        return Tally(low & (2**_BITS - 1), self.high + other.high + (low >> _BITS))

    @property
    def value(self) -> Float[Array, "*shape"]:
        """The numbers, rounded to float32."""
        return self.high.astype(jnp.float32) * 2.0**_BITS + self.low.astype(jnp.float32)

    def __array__(self, dtype: np.typing.DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        numbers = (np.asarray(self.high, np.int64) << _BITS) + np.asarray(self.low, np.int64)
        return np.asarray(numbers, dtype)  # an array for a single number too
