"""Cross entropy and focal loss: sums of independent pixel losses."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from densezoo.losses._pixels import ClassWeights, Pixels, check_class_weights, prepare, times, weighted_mean


def cross_entropy(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, ""]:
    """Mean cross entropy over all pixels that are not ignored, as in `torch.nn.functional.cross_entropy`.

    With class weights v and smoothing s, a pixel of class y costs (1 - s) v_y (-log p_y) + s/k sum_j v_j (-log p_j),
    and the mean divides the sum of the costs by the sum of v_y. One channel x is the same as the two channels (0, x):
    binary cross entropy with k = 2 classes, for the weights and the smoothing too.

    It differs from torch where torch returns NaN: if all pixels are ignored or all weights are zero, the loss is zero,
    and a class of weight zero may have a logit of -inf.

    A logit of -inf excludes a class: it has no effect on pixels of other classes, and makes the loss infinite for its
    own. With label smoothing, it makes the loss infinite everywhere, because every class is part of the target.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        class_weights: One weight a class; two (background, foreground) for one channel.
        ignore_index: Label of pixels that do not count.
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1].

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes of logits, labels or class_weights do not match.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import cross_entropy
        >>> logits = jnp.zeros((1, 2, 2, 4))
        >>> labels = jnp.array([[[0, 1], [3, 255]]])
        >>> round(float(cross_entropy(logits, labels, ignore_index=255)), 4)  # log(4)
        1.3863
    """
    pixels = prepare(logits, labels, ignore_index)
    log_p, costs, weights = log_likelihoods(pixels, class_weights)
    class_weights = check_class_weights(class_weights, log_p.shape[-1]).reshape(1, 1, 1, -1)
    costs = times((1.0 - label_smoothing) * weights, costs)
    if not isinstance(label_smoothing, int | float) or label_smoothing != 0:  # it may be traced
        # each class's share is scaled before the sum over classes, which could overflow
        spread = jnp.sum(times(label_smoothing / log_p.shape[-1] * class_weights, log_p), axis=-1)
        costs = costs - jnp.where(pixels.counted, spread, 0.0)
    total = jnp.sum(weights)
    return pixels.finish(jnp.sum(costs) / jnp.where(total > 0, total, 1.0))


def log_likelihoods(
    pixels: Pixels, class_weights: ClassWeights | None
) -> tuple[Float[Array, "b h w k"], Float[Array, "b h w"], Float[Array, "b h w"]]:
    """Log probabilities of the classes (two for one channel), and each label's cost and weight, zero where ignored."""
    logits = pixels.logits
    if logits.shape[-1] == 1:
        log_p = jnp.concatenate([jax.nn.log_sigmoid(-logits), jax.nn.log_sigmoid(logits)], axis=-1)
    else:
        log_p = jax.nn.log_softmax(logits)
    weights = check_class_weights(class_weights, log_p.shape[-1]).reshape(1, 1, 1, -1)
    # a sum over a one-hot mask fuses with the softmax and needs no scatter in the gradient, unlike a gather
    targets = jax.nn.one_hot(pixels.labels, log_p.shape[-1], dtype=bool) & pixels.counted[..., None]
    costs = -jnp.sum(jnp.where(targets, log_p, 0.0), axis=-1)
    return log_p, costs, jnp.sum(jnp.where(targets, weights, 0.0), axis=-1)


def focal_loss(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    gamma: float = 2.0,
    alpha: float | None = None,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
) -> Float[Array, ""]:
    """Mean focal loss: -(1 - p_t)^gamma log p_t, which reduces the weight of correctly classified pixels.

    Every channel is a separate binary problem with a sigmoid, also with several classes (one class against the rest,
    without softmax), as in RetinaNet and segmentation_models_pytorch. The mean is over pixels and channels.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        gamma: How fast the weight of correct pixels decreases; 0 gives binary cross entropy.
        alpha: Weight of the positives; the negatives have 1 - alpha. None gives both the weight 1.
        class_weights: One weight a class for the mean over channels. Not for one channel; use `alpha`.
        ignore_index: Label of pixels that do not count.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match, or if class_weights are given for one channel.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import focal_loss
        >>> labels = jnp.ones((1, 4, 4), jnp.int32)
        >>> round(float(focal_loss(jnp.zeros((1, 4, 4, 1)), labels, gamma=2.0)), 4)  # 0.5**2 * log(2)
        0.1733

    References:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017 (equation 5).
    """
    pixels = prepare(logits, labels, ignore_index)
    classes = logits.shape[-1]
    if classes == 1 and class_weights is not None:
        raise ValueError("class_weights do not apply to one channel: omit them, and weight the foreground with alpha")
    targets = pixels.targets
    margins = jnp.where(targets, pixels.logits, -pixels.logits)
    # (1 - p_t)^gamma through its logarithm: a power of zero has an infinite gradient if gamma < 1
    costs = -jnp.exp(times(gamma, jax.nn.log_sigmoid(-margins))) * jax.nn.log_sigmoid(margins)
    if alpha is not None:
        costs = times(jnp.where(targets, alpha, 1.0 - alpha), costs)
    sums = jnp.sum(jnp.where(pixels.counted[..., None], costs, 0.0), axis=(0, 1, 2))
    means = sums / jnp.maximum(jnp.sum(pixels.counted), 1).astype(jnp.float32)
    return pixels.finish(weighted_mean(means, check_class_weights(class_weights, classes)))
