"""Boxes, (x1, y1, x2, y2) in pixels: areas, overlaps, and the codes that detectors predict them in.

Computations are in float32 (float64 for float64 boxes). Invalid boxes do not affect others: a box without area overlaps
nothing, and a NaN only affects the results of its own box.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops.checks import check_boxes
from densezoo.types import accumulator_dtype


def coordinates(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """x1, y1, x2, y2 in the type to compute in."""
    wide = boxes.astype(accumulator_dtype(boxes.dtype))
    return wide[..., 0], wide[..., 1], wide[..., 2], wide[..., 3]


def centres(boxes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The widths and heights, and x and y of the centres."""
    x1, y1, x2, y2 = coordinates(boxes)
    width, height = x2 - x1, y2 - y1
    return width, height, x1 + width / 2, y1 + height / 2


def _overlap(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Areas of the intersection and of the union; `a` and `b` broadcast."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = coordinates(a), coordinates(b)
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    # The product passes through a `where`. If the compiler fused it with the subtraction, the union would be rounded
    # differently from torchvision, and a pair of boxes at a threshold could end up on the other side.
    intersection = jnp.where((width > 0) & (height > 0), width * height, 0)
    return intersection, box_area(a) + box_area(b) - intersection


def box_area(boxes: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """Width times height.

    Raises:
        ValueError: if the last axis does not have four entries.
        TypeError: if boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> box_area(jnp.array([[0.0, 0.0, 4.0, 3.0], [1.0, 1.0, 1.0, 9.0]])).tolist()
        [12.0, 0.0]
    """
    check_boxes(boxes=boxes)
    x1, y1, x2, y2 = coordinates(boxes)
    return (x2 - x1) * (y2 - y1)


def box_iou(a: Float[Array, "n 4"], b: Float[Array, "m 4"]) -> Float[Array, "n m"]:
    """The intersection over the union of every box of `a` with every box of `b`, 0 where both are empty.

    A box that is NaN or infinitely large has 0 with every other.

    Raises:
        ValueError: if the arguments are not (n, 4) and (m, 4).
        TypeError: if boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> a = jnp.array([[0.0, 0.0, 4.0, 4.0]])
        >>> box_iou(a, jnp.array([[0.0, 0.0, 4.0, 2.0], [4.0, 4.0, 8.0, 8.0]])).tolist()
        [[0.5, 0.0]]
    """
    check_boxes(2, a=a, b=b)
    intersection, union = _overlap(a[:, None], b[None])
    some = (intersection > 0) & (union < jnp.inf)
    return jnp.where(some, intersection / jnp.where(some, union, 1), 0)


def pair_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"], *, eps: float = 1e-7) -> Float[Array, "*n"]:
    """The intersection over the union of each pair, with `eps` added to the union as torchvision's losses do.

    Args:
        a: boxes.
        b: as many boxes.
        eps: square pixels, so that a pair of empty boxes has 0.

    Raises:
        ValueError: if shapes differ, or the last axis does not have four entries.
        TypeError: if boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> pair_iou(jnp.array([[0.0, 0.0, 4.0, 4.0]]), jnp.array([[0.0, 0.0, 4.0, 2.0]])).tolist()
        [0.5]
    """
    _check_pairs(a, b)
    intersection, union = _overlap(a, b)
    return intersection / (union + eps)


def generalized_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"], *, eps: float = 1e-7) -> Float[Array, "*n"]:
    """GIoU of each pair, from -1 to 1: IoU less the part of the enclosing box that neither covers.

    1 minus this is torchvision's `generalized_box_iou_loss`. For arguments and errors see `pair_iou`.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([3.0, 0.0, 4.0, 1.0])
        >>> float(generalized_iou(a, b))
        -0.5

    References:
        Rezatofighi et al., Generalized intersection over union, 2019, algorithm 1. https://arxiv.org/abs/1902.09630
    """
    _check_pairs(a, b)
    intersection, union = _overlap(a, b)
    width, height = _enclosing(a, b)
    enclosing = width * height
    return intersection / (union + eps) - (enclosing - union) / (enclosing + eps)


def distance_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"], *, eps: float = 1e-7) -> Float[Array, "*n"]:
    """DIoU of each pair: IoU less the squared distance of the centres over the enclosing box's squared diagonal.

    1 minus this is torchvision's `distance_box_iou_loss`. For arguments and errors see `pair_iou`.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 2.0, 2.0, 4.0])
        >>> round(float(distance_iou(a, b)), 6)
        -0.2

    References:
        Zheng et al., Distance-IoU loss, 2020, equation 7. https://arxiv.org/abs/1911.08287
    """
    _check_pairs(a, b)
    intersection, union = _overlap(a, b)
    width, height = _enclosing(a, b)
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = coordinates(a), coordinates(b)
    distance = jnp.square((ax1 + ax2 - bx1 - bx2) / 2) + jnp.square((ay1 + ay2 - by1 - by2) / 2)
    return intersection / (union + eps) - distance / (jnp.square(width) + jnp.square(height) + eps)


def complete_iou(a: Float[Array, "*n 4"], b: Float[Array, "*n 4"], *, eps: float = 1e-7) -> Float[Array, "*n"]:
    """CIoU of each pair: DIoU less a term for how much the aspect ratios differ, whose weight gets no gradient.

    1 minus this is torchvision's `complete_box_iou_loss`. For arguments and errors see `pair_iou`.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([0.0, 0.0, 2.0, 2.0]), jnp.array([0.0, 2.0, 2.0, 4.0])
        >>> round(float(complete_iou(a, b)), 6)  # both are squares
        -0.2

    References:
        Zheng et al., Distance-IoU loss, 2020, equations 8 to 11. https://arxiv.org/abs/1911.08287
    """
    ratio = 4 / math.pi**2 * jnp.square(_angle(b) - _angle(a))
    weight = jax.lax.stop_gradient(ratio / (1 - pair_iou(a, b, eps=eps) + ratio + eps))
    return distance_iou(a, b, eps=eps) - weight * ratio


def _angle(boxes: jax.Array) -> jax.Array:
    """The arctangent of width over height; without a gradient for boxes of zero height."""
    width, height, _, _ = centres(boxes)
    flat = height == 0
    return jnp.where(flat, jnp.where(width > 0, math.pi / 2, 0), jnp.arctan(width / jnp.where(flat, 1, height)))


def _enclosing(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Width and height of the smallest box around each pair."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = coordinates(a), coordinates(b)
    return jnp.maximum(ax2, bx2) - jnp.minimum(ax1, bx1), jnp.maximum(ay2, by2) - jnp.minimum(ay1, by1)


def _check_pairs(a: jax.Array, b: jax.Array) -> None:
    check_boxes(a=a, b=b)
    if a.shape != b.shape:
        raise ValueError(f"pairs of boxes must have the same shape, got {a.shape} and {b.shape}")


def clip_boxes(boxes: Float[Array, "*b n 4"], sizes: Any) -> Float[Array, "*b n 4"]:
    """Clips boxes to the image.

    Args:
        boxes: (n, 4), or (batch, n, 4) and so on.
        sizes: (height, width) in pixels of all pictures, or an array (batch, 2) with one for each.

    Raises:
        ValueError: if sizes do not match the boxes.
        TypeError: if boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> clip_boxes(jnp.array([[-1.0, 2.0, 9.0, 9.0]]), (4, 6)).tolist()
        [[0.0, 2.0, 6.0, 4.0]]
    """
    check_boxes(boxes=boxes)
    wide = boxes.astype(accumulator_dtype(boxes.dtype))
    limits = jnp.asarray(sizes).astype(wide.dtype)
    if limits.ndim < 1 or limits.shape[-1] != 2 or limits.shape[:-1] not in ((), boxes.shape[:-2]):
        expected = f"(2,) or {(*boxes.shape[:-2], 2)}"
        raise ValueError(f"for boxes of shape {boxes.shape}, sizes (height, width) are {expected}; got {limits.shape}")
    limits = jnp.concatenate([limits[..., ::-1]] * 2, -1)
    missing = boxes.ndim - limits.ndim
    limits = limits.reshape(*limits.shape[:-1], *(1,) * missing, 4)
    return jnp.clip(wide, np.zeros((), wide.dtype), limits)
