"""Encodes boxes relative to anchors, as detectors predict them."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops.boxes import centres, coordinates
from densezoo.ops.checks import check_boxes

MAX_LOG_SCALE = math.log(1000 / 16)
"""Detectron's limit on the logarithm of the ratio between the sides of a decoded box and of its anchor."""


_LEAST_SIDE = 1e-6
"""Lower limit in pixels for sides in divisors and logarithms."""


def encode_boxes(
    boxes: Float[Array, "*n 4"],
    anchors: Float[Array, "*m 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float[Array, "*k 4"]:
    """Encodes boxes relative to anchors: the centre's offset divided by the anchor's size, and log scales.

    Sides are clipped to at least 1e-6 pixels, so that the code of an empty or padded box is finite.

    Args:
        boxes: the ground-truth boxes.
        anchors: the matched anchors; the two broadcast.
        weights: factors of (dx, dy, dw, dh).

    Raises:
        ValueError: if the last axis does not have four entries.
        TypeError: if boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> encode_boxes(jnp.array([2.0, 0.0, 6.0, 4.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
        [0.5, 0.0, 0.0, 0.0]

    References:
        Ren et al., Faster R-CNN, 2015, equation 2. https://arxiv.org/abs/1506.01497
    """
    check_boxes(boxes=boxes, anchors=anchors)
    width, height, x, y = centres(anchors)
    to_width, to_height, to_x, to_y = centres(boxes)
    width, height, to_width, to_height = (
        jnp.where(side < _LEAST_SIDE, _LEAST_SIDE, side) for side in (width, height, to_width, to_height)
    )
    codes = ((to_x - x) / width, (to_y - y) / height, jnp.log(to_width / width), jnp.log(to_height / height))
    return jnp.stack([factor * code for factor, code in zip(weights, codes, strict=True)], -1)


def decode_boxes(
    deltas: Float[Array, "*n 4"],
    anchors: Float[Array, "*m 4"],
    *,
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    clamp: float = MAX_LOG_SCALE,
) -> Float[Array, "*k 4"]:
    """Decodes the result of `encode_boxes`.

    Args:
        deltas: (dx, dy, dw, dh).
        anchors: boxes; the two broadcast, so for class-specific deltas (n, classes, 4) pass `anchors[:, None]`.
        weights: those given to `encode_boxes`.
        clamp: upper limit of the log scales, which keeps the exponential finite.

    Raises:
        ValueError: if the last axis does not have four entries.
        TypeError: if arguments are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> decode_boxes(jnp.array([0.5, 0.0, 0.0, 0.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
        [2.0, 0.0, 6.0, 4.0]
    """
    check_boxes(deltas=deltas, anchors=anchors)
    width, height, x, y = centres(anchors)
    dx, dy, dw, dh = (code / factor for code, factor in zip(coordinates(deltas), weights, strict=True))
    x, y = dx * width + x, dy * height + y
    half_width, half_height = (jnp.exp(jnp.minimum(log, clamp)) * side / 2 for log, side in ((dw, width), (dh, height)))
    return jnp.stack([x - half_width, y - half_height, x + half_width, y + half_height], -1)


def encode_distances(boxes: Float[Array, "*n 4"], anchors: Float[Array, "*m 4"]) -> Float[Array, "*k 4"]:
    """FCOS's encoding: the distances from the anchor's centre to the left, top, right and bottom side, in anchor sizes.

    They are all positive if the centre lies within the box. For arguments and errors see `encode_boxes`.

    Example:
        >>> import jax.numpy as jnp
        >>> encode_distances(jnp.array([0.0, 0.0, 8.0, 6.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
        [0.5, 0.5, 1.5, 1.0]

    References:
        Tian et al., FCOS, 2019, equation 1. https://arxiv.org/abs/1904.01355
    """
    check_boxes(boxes=boxes, anchors=anchors)
    width, height, x, y = centres(anchors)
    width, height = (jnp.where(side < _LEAST_SIDE, _LEAST_SIDE, side) for side in (width, height))
    x1, y1, x2, y2 = coordinates(boxes)
    return jnp.stack([(x - x1) / width, (y - y1) / height, (x2 - x) / width, (y2 - y) / height], -1)


def decode_distances(distances: Float[Array, "*n 4"], anchors: Float[Array, "*m 4"]) -> Float[Array, "*k 4"]:
    """Decodes the result of `encode_distances`.

    Example:
        >>> import jax.numpy as jnp
        >>> decode_distances(jnp.array([0.5, 0.5, 1.5, 1.0]), jnp.array([0.0, 0.0, 4.0, 4.0])).tolist()
        [0.0, 0.0, 8.0, 6.0]
    """
    check_boxes(distances=distances, anchors=anchors)
    width, height, x, y = centres(anchors)
    left, up, right, down = coordinates(distances)
    return jnp.stack([x - left * width, y - up * height, x + right * width, y + down * height], -1)
