"""Cross entropy with larger weights near label boundaries, and the distance transform that it needs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from densezoo.losses._cross_entropy import log_likelihoods
from densezoo.losses._pixels import ClassWeights, counted_pixels, prepare, weighted_mean

_FAR = 2**30  # a squared distance beyond every radius, to which a squared radius can be added


def boundary_weighted_cross_entropy(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    radius: int = 15,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
) -> Float[Array, ""]:
    """Mean cross entropy with pixel weights v + w0 exp(-d^2 / (2 sigma^2)), at a distance d from a label boundary.

    This differs from the U-Net paper, whose weight is w_c + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), with the distances d1
    and d2 to the borders of the nearest and the second nearest *cell*. The paper's weight is only large in the gaps
    between two cells, and needs instance labels. Here d is the distance to the nearest boundary between two *labels*,
    so the weight is large along every outline, and is computed from semantic labels on the device, inside the train
    step. v is the class weight (w_c in the paper), 1 by default. The paper sums over pixels; here the sum is divided by
    the sum of the weights, so that the loss has the scale of `cross_entropy`.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        w0: Weight that a pixel on a boundary has in addition.
        sigma: How far the weight reaches, in pixels.
        radius: The distance in pixels from which on only v is left; 3 sigma loses 1 % of w0.
        class_weights: One weight a class; two (background, foreground) for one channel.
        ignore_index: Label of pixels that do not count.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match, or if radius is below 1.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import boundary_weighted_cross_entropy
        >>> labels = jnp.array([[[0, 0, 0, 1, 1, 1]]])
        >>> right_at_the_boundary = jnp.array([0, 0, -5, 5, 0, 0.0]).reshape(1, 1, 6, 1)
        >>> loss = boundary_weighted_cross_entropy(right_at_the_boundary, labels, sigma=1.0, radius=3)
        >>> round(float(loss), 3)  # cross_entropy gives 0.464
        0.323

    References:
        Ronneberger et al., U-Net: convolutional networks for biomedical image segmentation, 2015 (equation 2).
    """
    pixels = prepare(logits, labels, ignore_index)
    _, costs, label_weights = log_likelihoods(pixels, class_weights)
    extra = _closeness(labels, pixels.counted, w0, sigma, radius)
    return pixels.finish(weighted_mean(costs, label_weights + extra))


def boundary_weights(
    labels: Integer[Array, "b h w"],
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    radius: int = 15,
    ignore_index: int | None = None,
) -> Float[Array, "b h w"]:
    """The weights of `boundary_weighted_cross_entropy`, 1 + w0 exp(-d^2 / (2 sigma^2)).

    d is the Euclidean distance between pixel centres to the nearest pixel that has a 4-neighbour with another label
    (so d is 0 on both sides of a boundary). The border of the image and the outline of an ignored region are not
    boundaries.

    Args:
        labels: Class indices, (b, h, w).
        w0: Weight that a pixel on a boundary has in addition.
        sigma: How far the weight reaches, in pixels.
        radius: The distance in pixels beyond which the weight is 1.
        ignore_index: Label of pixels that do not count; their weight is 0.

    Returns:
        Weights, (b, h, w), float32.

    Raises:
        ValueError: If labels are not (b, h, w) or radius is below 1.
        TypeError: If labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import boundary_weights
        >>> labels = jnp.array([[[0, 0, 0, 1, 1, 1]]])
        >>> print(boundary_weights(labels, w0=10.0, sigma=1.0, radius=1).round(1))
        [[[ 1.   7.1 11.  11.   7.1  1. ]]]
    """
    if labels.ndim != 3:
        raise ValueError(f"labels have shape {labels.shape}: expected (b, h, w)")
    counted = counted_pixels(labels, ignore_index)
    return jnp.where(counted, 1.0 + _closeness(labels, counted, w0, sigma, radius), 0.0)


def _closeness(
    labels: Integer[Array, "b h w"], counted: Bool[Array, "b h w"], w0: float, sigma: float, radius: int
) -> Float[Array, "b h w"]:
    if radius < 1:
        raise ValueError(f"radius is {radius}: expected at least 1 pixel")
    squared = _squared_distances(label_edges(labels, counted), radius)
    closeness = w0 * jnp.exp(-squared.astype(jnp.float32) / (2.0 * sigma**2))
    return jnp.where(counted & (squared <= radius**2), closeness, 0.0)


def label_edges(labels: Integer[Array, "b h w"], counted: Bool[Array, "b h w"]) -> Bool[Array, "b h w"]:
    """Pixels with a 4-neighbour of another label, where neither is ignored."""
    down = (labels[:, 1:] != labels[:, :-1]) & counted[:, 1:] & counted[:, :-1]
    right = (labels[:, :, 1:] != labels[:, :, :-1]) & counted[:, :, 1:] & counted[:, :, :-1]
    vertical = jnp.pad(down, ((0, 0), (1, 0), (0, 0))) | jnp.pad(down, ((0, 0), (0, 1), (0, 0)))
    horizontal = jnp.pad(right, ((0, 0), (0, 0), (1, 0))) | jnp.pad(right, ((0, 0), (0, 0), (0, 1)))
    return vertical | horizontal


def _squared_distances(mask: Bool[Array, "b h w"], radius: int) -> Integer[Array, "b h w"]:
    """Squared distance to the nearest pixel of mask: exact up to radius^2, more than that beyond.

    First along rows, then along columns: the nearest pixel of mask within a square window, in 4 radius steps.
    """
    distances = jnp.where(mask, 0, _FAR).astype(jnp.int32)
    for axis in (2, 1):
        size = distances.shape[axis]
        padding = [(0, 0)] * 3
        padding[axis] = (radius, radius)
        padded = jnp.pad(distances, padding, constant_values=_FAR)
        for step in range(1, radius + 1):
            before = padded[_slice(axis, radius - step, size)]
            after = padded[_slice(axis, radius + step, size)]
            distances = jnp.minimum(distances, jnp.minimum(before, after) + step**2)
    return distances


def _slice(axis: int, start: int, size: int) -> tuple[slice, ...]:
    return (slice(None),) * axis + (slice(start, start + size),)
