"""Which object each anchor learns to find, and which anchors a loss looks at."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from densezoo.ops.checks import check_whole

BELOW = -1
"""`match`'s index for an anchor that overlaps no object enough: background."""

BETWEEN = -2
"""`match`'s index for an anchor that is neither background nor an object: losses leave it out."""


def match(
    iou: Float[Array, "objects anchors"],
    high: float,
    low: float,
    *,
    valid: Bool[Array, " objects"] | None = None,
    allow_low_quality: bool = False,
) -> Int[Array, " anchors"]:
    """The object that each anchor overlaps most, if it does so enough; of equal ones the first.

    Args:
        iou: `box_iou(objects, anchors)`, or another quality; there may be no objects.
        high: the least overlap of an anchor with its object.
        low: an anchor whose best overlap is less is background; at least this and less than `high`, it is neither.
        valid: which objects are real, where their number was padded. The others match nothing.
        allow_low_quality: also match the anchors that overlap some object as much as any anchor does, whatever that
          is beyond 0; each of them to the object that it overlaps most itself, as in torchvision.

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
        raise ValueError(f"overlaps are (objects, anchors), got shape {iou.shape}: use jax.vmap for a batch")
    objects, anchors = iou.shape
    if valid is not None and valid.shape != (objects,):
        raise ValueError(f"valid says which of the {objects} objects are real, got shape {valid.shape}")
    if low > high:
        raise ValueError(f"the threshold of background is at most that of a match, got {low=} {high=}")
    if not objects:
        return jnp.full(anchors, BELOW, jnp.int32)
    # A NaN, and an object that is only padding, overlaps less than any object does.
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
    """Draws a fixed number of anchors, a share of them positive where there are enough; negatives fill up.

    Args:
        key: the same key draws the same anchors.
        labels: above 0 for a positive anchor, 0 for a negative one, below 0 for one that is never drawn.
        count: how many.
        positive_fraction: the largest share of positive ones.

    Returns:
        Indices of different anchors, positive ones first, and which of the indices are real: where there are too few
        anchors, the others are 0 and False.

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
        raise ValueError(f"labels are (anchors,), got shape {labels.shape}: use jax.vmap for a batch")
    check_whole(1, count=count)
    if not 0 <= positive_fraction <= 1:
        raise ValueError(f"positive_fraction must be from 0 to 1, got {positive_fraction}")
    anchors = labels.shape[0]
    order = jax.random.uniform(key, labels.shape)

    def draw(among: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
        """The first of those, in random order, and which of them are real."""
        first, indices = jax.lax.top_k(jnp.where(among, order, -1), min(most, anchors))
        return indices, first >= 0

    positives, are_positive = draw(labels > 0, int(count * positive_fraction))
    negatives, are_negative = draw(labels == 0, count)
    are_negative &= jnp.arange(negatives.shape[0]) < count - are_positive.sum()
    indices, real = jnp.concatenate([positives, negatives]), jnp.concatenate([are_positive, are_negative])
    # Every real one to its place; the others to a place beyond the last, which drops them.
    place = jnp.where(real, jnp.cumsum(real) - 1, count)
    drawn = jnp.zeros(count, jnp.int32).at[place].set(indices.astype(jnp.int32), mode="drop")
    return drawn, jnp.arange(count) < real.sum()
