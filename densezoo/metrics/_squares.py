"""Mean squared errors and the peak signal-to-noise ratio."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Integer

from densezoo.metrics._tally import Tally


@struct.dataclass
class SquaredErrors:
    """Sums of squared errors, which add over batches.

    Attributes:
        sums: the sum of each kind of error.
        count: the number of values in each sum, (1,).
    """

    sums: Any  # Float[Array, "n"], or any other leaves that JAX puts into a pytree
    count: Tally

    def __add__(self, other: "SquaredErrors") -> "SquaredErrors":
        """Adds the errors of other images."""
        return SquaredErrors(self.sums + other.sums, self.count + other.count)

    @property
    def mean(self) -> np.ndarray:
        """The mean of each kind of error; NaN without values."""
        count = int(np.asarray(self.count)[0])
        return np.asarray(self.sums, float) / count if count else np.full(self.sums.shape, np.nan)


def squared_errors(*errors: Float[Array, "b h w c"], sizes: Integer[Array, "b 2"] | None = None) -> SquaredErrors:
    """Sums the squares of errors over the pixels of images.

    Args:
        *errors: differences of images, one array for each kind of error.
        sizes: height and width of each image without padding; None if there is no padding.

    Returns:
        The sums, for means over all batches.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.metrics import psnr, squared_errors
        >>> found = squared_errors(jnp.full((1, 4, 4, 1), 0.2)) + squared_errors(jnp.zeros((1, 4, 4, 1)))
        >>> found.mean.round(3).tolist(), psnr(found.mean, data_range=1.0).round(2).tolist()
        ([0.02], [16.99])
    """
    batch, height, width, channels = errors[0].shape
    inside = jnp.ones((batch, height, width), bool)
    if sizes is not None:
        rows, columns = (
            jnp.arange(side)[None] < jnp.asarray(sizes)[:, axis, None] for axis, side in enumerate((height, width))
        )
        inside = rows[:, :, None] & columns[:, None]
    squares = [jnp.where(inside[..., None], jnp.square(error.astype(jnp.float32)), 0).sum() for error in errors]
    return SquaredErrors(jnp.stack(squares), Tally.of(inside.sum()[None] * channels))


def psnr(mean_square: float | np.ndarray, data_range: float) -> np.ndarray:
    """The peak signal-to-noise ratio in decibels, 10 log10(data_range^2 / mean_square). Infinite without errors.

    Args:
        mean_square: mean squared error.
        data_range: difference of the largest and smallest possible value, such as 2 for images from -1 to 1.
    """
    if not data_range > 0 or not math.isfinite(data_range):
        raise ValueError(f"data_range must be above 0, such as 1 for images in 0..1; got {data_range}")
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(data_range**2 / np.asarray(mean_square, float)))
