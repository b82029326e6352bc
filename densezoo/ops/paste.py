"""Pastes a detector's masks, one small square per box, into the picture."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from densezoo.ops.checks import check_boxes, check_size
from densezoo.types import Size, accumulator_dtype


def paste_masks(
    masks: Float[Array, "n side side"], boxes: Float[Array, "n 4"], size: Size, *, threshold: float | None = 0.5
) -> Bool[Array, "n h w"] | Float[Array, "n h w"]:
    """Resizes each mask bilinearly to its box and pastes it into an empty picture, with torchvision's results.

    As in torchvision, a mask gets a border of zeros one pixel wide, its box grows accordingly, and the box's
    coordinates are then truncated to integers. A NaN box gives an empty mask; one without area covers at most a pixel
    or two.

    Args:
        masks: probabilities, the picture's n masks; use `jax.vmap` for a batch of pictures.
        boxes: their boxes in pixels of the picture; parts outside are cut off.
        size: (height, width) of the picture.
        threshold: a pixel belongs to a mask if its probability is greater; None returns the probabilities.

    Raises:
        ValueError: if shapes do not match, or `size` is not two positive integers.
        TypeError: if masks or boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> paste_masks(jnp.ones((1, 4, 4)), jnp.array([[1.0, 1.0, 3.0, 4.0]]), (5, 5))[0].astype(int).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]
    """
    check_boxes(2, boxes=boxes)
    if masks.ndim != 3 or masks.shape[1] != masks.shape[2] or not masks.shape[1]:
        raise ValueError(f"masks must be squares, (n, side, side), got shape {masks.shape}")
    if masks.shape[0] != boxes.shape[0]:
        raise ValueError(f"expected as many masks as boxes, got shapes {masks.shape} and {boxes.shape}")
    if not jnp.issubdtype(masks.dtype, jnp.floating):
        raise TypeError(f"masks must be of a float type, got {masks.dtype}: cast them first")
    height, width = check_size(size)
    wide = masks.astype(accumulator_dtype(masks.dtype))
    wide = jnp.pad(wide, ((0, 0), (1, 1), (1, 1)))
    boxes = boxes.astype(wide.dtype)
    rows = _weights(boxes[:, 1], boxes[:, 3], wide.shape[1], height)
    columns = _weights(boxes[:, 0], boxes[:, 2], wide.shape[1], width)
    pasted = jnp.einsum("nyi,nij,nxj->nyx", rows, wide, columns, precision="highest")
    return pasted if threshold is None else pasted > threshold


def _weights(low, high, side: int, pixels: int):
    """(n, pixels, side): the weight of each mask pixel in each pixel of the picture, along one axis."""
    centre, half = (low + high) / 2, (high - low) / 2
    # The product passes through a maximum: fused with the sums, it would be rounded differently from torch, and the
    # truncation could then give a different integer.
    half = jnp.maximum(half * (side / (side - 2)), 0)
    first, last = jnp.trunc(centre - half)[:, None], jnp.trunc(centre + half)[:, None]
    length = last - first + 1
    pixel = jnp.arange(pixels, dtype=low.dtype)[None]
    inside = (pixel >= first) & (pixel <= last)
    position = jnp.maximum((pixel - first + 0.5) * (side / length) - 0.5, 0)
    position = jnp.where(inside, position, 0)[:, :, None]
    taps = jnp.arange(side, dtype=low.dtype)[None, None]
    # Past the last pixel, the border is repeated.
    weights = jnp.maximum(1 - jnp.abs(jnp.minimum(position, side - 1) - taps), 0)
    return jnp.where(inside[:, :, None], weights, 0)
