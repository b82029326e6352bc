"""Matching of anchors to objects, and sampling of anchors for a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from densezoo.ops.checks import check_whole

BELOW = -1
"""The index from `match` for background: the anchor overlaps no object enough."""

BETWEEN = -2
"""The index from `match` for an anchor that is neither background nor an object; losses ignore it."""


def match(
    iou: Float[Array, "objects anchors"],
    high: float,
    low: float,
    *,
    valid: Bool[Array, " objects"] | None = None,
    allow_low_quality: bool = False,
) -> Int[Array, " anchors"]:
    """Matches each anchor to the object that it overlaps most, if the overlap is sufficient; ties take the first.

    Args:
        iou: `box_iou(objects, anchors)`, or another quality; there may be no objects.
        high: the minimum overlap of a match.
        low: an anchor whose best overlap is lower is background; from this to below `high`, it is neither.
        valid: which objects are real, if their number is padded. Padding matches nothing.
        allow_low_quality: for each object, also match the anchors with its highest overlap, if that is above 0. Each
            of these anchors is matched to the object that it overlaps most itself, as in torchvision.

    Returns:
        For each anchor the object's index, -1 for background, -2 for neither.

    Raises:
        ValueError: if `iou` is not (objects, anchors), `valid` is not (objects,), or `low` is greater than `high`.

    Example:
        >>> import jax.numpy as jnp
        >>> match(jnp.array([[0.8, 0.1, 0.4], [0.1, 0.3, 0.0]]), 0.5, 0.4).tolist()
        [0, -1, -2]
        >>> match(jnp.array([[0.8, 0.1, 0.4], [0.1, 0.3, 0.0]]), 0.5, 0.4, allow_low_quality=True).tolist()
        [0, 1, -2]
    """
    if iou.ndim != 2:
        raise ValueError(f"overlaps must be (objects, anchors), got shape {iou.shape}: use jax.vmap for a batch")
    objects, anchors = iou.shape
    if valid is not None and valid.shape != (objects,):
        raise ValueError(f"valid must have an entry for each of the {objects} objects, got shape {valid.shape}")
    if low > high:
        raise ValueError(f"the background threshold must not exceed the match threshold, got {low=} {high=}")
    if not objects:
        return jnp.full(anchors, BELOW, jnp.int32)
    # NaN and padding overlap less than any object.
    real = ~jnp.isnan(iou) if valid is None else valid[:, None] & ~jnp.isnan(iou)
    iou = jnp.where(real, iou, -jnp.inf)
    best, index = iou.max(0), iou.argmax(0).astype(jnp.int32)
    matched = jnp.where(best >= high, index, jnp.where(best >= low, BETWEEN, BELOW))
    if allow_low_quality:
        most = iou.max(1, keepdims=True)
        matched = jnp.where(((iou == most) & (most > 0)).any(0), index, matched)
    return matched


def sample_matches(
    key: jax.Array, labels: Shaped[Array, " anchors"], count: int, positive_fraction: float
) -> tuple[Int[Array, " count"], Bool[Array, " count"]]:
    """Draws a fixed number of anchors: up to a fraction of positive ones, and negative ones for the rest.

    Args:
        key: the same key draws the same anchors.
        labels: above 0 for a positive anchor, 0 for a negative one, below 0 for one that is never drawn.
        count: the number of anchors.
        positive_fraction: the maximum fraction of positive ones.

    Returns:
        Indices of different anchors, positive ones first, and which of the indices are real. If there are too few
        anchors, the remaining entries are 0 and False.

    Raises:
        ValueError: if `labels` does not have one axis, `count` is not a positive integer, or the fraction is outside
            [0, 1].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> labels = jnp.array([0, 1, -1, 0, 2, 3])
        >>> indices, real = sample_matches(jax.random.key(0), labels, 4, 0.5)
        >>> (labels[indices] > 0).tolist(), real.tolist()
        ([True, True, False, False], [True, True, True, True])
    """
    if labels.ndim != 1:
        raise ValueError(f"labels must be (anchors,), got shape {labels.shape}: use jax.vmap for a batch")
    check_whole(1, count=count)
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be from 0 to 1, got {positive_fraction}")
    anchors = labels.shape[0]
    order = jax.random.uniform(key, labels.shape)

    def draw(among: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
        """The first `most` of the selected anchors in random order, and which of them are real."""
        first, indices = jax.lax.top_k(jnp.where(among, order, -1), min(most, anchors))
        return indices, first >= 0

    positives, are_positive = draw(labels > 0, int(count * positive_fraction))
    negatives, are_negative = draw(labels == 0, count)
    are_negative &= jnp.arange(negatives.shape[0]) < count - are_positive.sum()
    indices, real = jnp.concatenate([positives, negatives]), jnp.concatenate([are_positive, are_negative])
    # Scatter every real one to its position; the others get a position past the end, which drops them.
    place = jnp.where(real, jnp.cumsum(real) - 1, count)
    drawn = jnp.zeros(count, jnp.int32).at[place].set(indices.astype(jnp.int32), mode="drop")
    return drawn, jnp.arange(count) < real.sum()
