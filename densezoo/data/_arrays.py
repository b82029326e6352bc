"""Array operations of the kinds of fields: NumPy on the host, JAX on the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32
from PIL import Image


def namespace(array: Any) -> Any:
    """Returns the module that provides functions for the array: `numpy` or `jax.numpy`."""
    return jnp if isinstance(array, jax.Array) else np


# --- types ---


def to_float(image: np.ndarray) -> Float32[np.ndarray, "*shape"]:
    """Converts pixels to float32: integers are divided by the maximum of their type, floats keep their values.

    Args:
        image: pixels of any shape.

    Returns:
        The same shape in float32; unsigned integers are mapped to [0, 1].

    Raises:
        TypeError: if the pixels are neither integers nor floats.

    Example:
        >>> import numpy as np
        >>> to_float(np.array([0, 255], np.uint8))
        array([0., 1.], dtype=float32)
    """
    if image.dtype.kind == "f":
        return image.astype(np.float32, copy=False)
    if image.dtype.kind not in "iu":
        raise TypeError(f"pixels of type {image.dtype}; expected integers or floats.")
    return np.multiply(image, np.float32(1.0 / np.iinfo(image.dtype).max), dtype=np.float32)


def to_numbers(name: str, array: np.ndarray) -> np.ndarray:
    """Converts class or instance numbers to int32. Raises a ValueError if they are not integers."""
    with np.errstate(invalid="ignore"):
        numbers = array.astype(np.int32, copy=False)
    certain = array.dtype.kind == "b" or np.can_cast(array.dtype, np.int32)
    if not certain and not np.array_equal(numbers, array):
        raise ValueError(f"{name} of type {array.dtype} with values that are not 32-bit whole numbers.")
    return numbers


def to_measured(array: np.ndarray, fill: float | None, *, axes: tuple[int, ...] = ()) -> np.ndarray:
    """Converts measurements to float32. The fill replaces NaN and infinity, or whole vectors along `axes` with one."""
    array = array.astype(np.float32, copy=False)
    measured = np.isfinite(array).all(axis=axes, keepdims=True)
    return array if measured.all() else np.where(measured, array, np.float32(0 if fill is None else fill))


# --- host ---


def resize_nearest(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes (h, w, ...) to the pixel nearest to each centre; ties take the later pixel."""
    # In integers: floor((i + 1/2) * inputs / outputs) without rounding.
    rows, columns = (
        (2 * np.arange(outputs) + 1) * inputs // (2 * outputs)
        for inputs, outputs in zip(array.shape, size, strict=False)
    )
    return array[rows[:, None], columns]


def resize_linear(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes float32 (h, w, ...) linearly at half-pixel centres, with an antialiasing filter when it shrinks."""
    if array.shape[:2] == size:
        return array
    channels = array.reshape(*array.shape[:2], -1)
    resized = np.empty((*size, channels.shape[-1]), np.float32)
    for index in range(channels.shape[-1]):
        channel = Image.fromarray(np.ascontiguousarray(channels[..., index]))
        resized[..., index] = channel.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return resized.reshape(*size, *array.shape[2:])


# --- device ---


def channel_means(image: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    """Averages each image over its pixels; rows first, which is faster with few channels."""
    samples, _, width, channels = image.shape
    columns = image.reshape(samples, -1, width * channels).mean(axis=1, dtype=jnp.float32)
    return columns.reshape(samples, 1, width, channels).mean(axis=2, keepdims=True).astype(image.dtype)


def nearest(array: Array, position: Float[Array, "b n"], axis: int) -> Array:
    """Takes rows (axis 1) or columns (axis 2) of each sample at positions in pixels; the border is repeated."""
    index = jnp.clip(jnp.floor(position), 0, array.shape[axis] - 1).astype(jnp.int32)
    return jax.vmap(lambda sample, chosen: jnp.take(sample, chosen, axis=axis - 1, mode="clip"))(array, index)


def interpolate(array: Array, position: Float[Array, "b n"], axis: int) -> Array:
    """Interpolates rows (axis 1) or columns (axis 2) of each sample linearly, at positions in pixels."""
    before = jnp.floor(position - 0.5)
    weight = (position - 0.5 - before).astype(array.dtype)
    lead = (slice(None), slice(None), None) if axis == 1 else (slice(None), None, slice(None))
    weight = weight[(*lead, *[None] * (array.ndim - 3))]
    low = nearest(array, before, axis)
    return low + weight * (nearest(array, before + 1, axis) - low)
