"""Masks of individual objects, cut from a map of object numbers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from densezoo.ops.checks import check_boxes, check_whole


def crop_instances(
    instances: Integer[Array, "h w"], numbers: Integer[Array, " n"], boxes: Float[Array, "n 4"], size: int
) -> Float[Array, "n size size"]:
    """Cuts the mask of one object for each box, resized to a square: the training targets of Mask R-CNN's masks.

    This is `roi_align` of the object's mask with one sample per pixel that a bin covers (`sampling_ratio=0`), computed
    as a product of a matrix for the rows and one for the columns.

    Args:
        instances: the object's number at each pixel.
        numbers: the object's number for each box.
        boxes: x0, y0, x1, y1 in pixels.
        size: side length of the squares.

    Returns:
        Values from 0 to 1, float32.

    Raises:
        ValueError: if shapes do not match, or `size` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> instances = jnp.zeros((8, 8), jnp.int32).at[:, 4:].set(3)
        >>> crop_instances(instances, jnp.array([3]), jnp.array([[0.0, 0.0, 7.0, 7.0]]), 2)[0].tolist()
        [[0.015625, 0.984375], [0.015625, 0.984375]]
    """
    check_boxes(2, boxes=boxes)
    check_whole(1, size=size)
    if instances.ndim != 2 or numbers.shape != boxes.shape[:1]:
        raise ValueError(f"expected (h, w) numbers and one for each box; got {instances.shape} and {numbers.shape}")
    height, width = instances.shape
    boxes = boxes.astype(jnp.float32)

    def crop(number_and_box):
        number, box = number_and_box
        rows = _samples(box[1], box[3], size, height)
        columns = _samples(box[0], box[2], size, width)
        mask = (instances == number).astype(jnp.float32)
        return jnp.matmul(jnp.matmul(rows, mask, precision="highest"), columns.T, precision="highest")

    # In small chunks: the full-size masks of all objects could exhaust memory.
    return jax.lax.map(crop, (numbers, boxes), batch_size=min(16, max(boxes.shape[0], 1)))


def _samples(low: jax.Array, high: jax.Array, bins: int, side: int) -> Float[Array, "bins side"]:
    """The weight of each pixel in each bin, along one axis."""
    step = jnp.maximum(high - low, 1) / bins
    count = jnp.clip(jnp.ceil(step), 1, -(-side // bins))
    starts = low + jnp.arange(bins, dtype=jnp.float32) * step
    pixels = jnp.arange(side, dtype=jnp.float32)[None]

    def add(sample, total):
        position = starts + (sample.astype(jnp.float32) + 0.5) * step / count
        counts = (position >= -1) & (position <= side) & (sample < count)
        taps = jnp.maximum(1 - jnp.abs(jnp.clip(position, 0, side - 1)[:, None] - pixels), 0)
        return total + jnp.where(counts[:, None], taps / count, 0)

    return jax.lax.fori_loop(0, -(-side // bins), add, jnp.zeros_like(starts, shape=(bins, side)))
