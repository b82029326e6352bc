"""Dice, Jaccard and Tversky: one minus a soft overlap of regions, a ratio of sums over the whole batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from densezoo.losses._pixels import ClassWeights, check_class_weights, prepare, weighted_mean

_EPSILON = 1e-7  # the smallest denominator and, under the logarithm, the smallest score; as in the reference


def tversky_loss(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    alpha: float = 0.5,
    beta: float = 0.5,
    gamma: float = 1.0,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    log_loss: bool = False,
) -> Float[Array, ""]:
    """Tversky loss: 1 - TP / (TP + alpha FP + beta FN) with soft counts, a mean over classes, to the power gamma.

    As in segmentation_models_pytorch 0.6, the counts are sums over the whole batch (so small images are not noisier
    than one large image). A class without labels in the batch costs zero and *stays in the mean* over all classes (so
    the loss of a batch with few classes is small). gamma applies to the mean, while Abraham & Khan apply it to each
    class. One channel is a single class, the foreground, and a batch without foreground costs zero.

    It differs from the reference where that is not finite: a mean of zero has a zero gradient for every gamma.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        alpha: Cost of false positives.
        beta: Cost of false negatives. More than alpha: recall counts for more than precision.
        gamma: Exponent of the mean, for example 0.75 (focal Tversky).
        class_weights: One weight a class for the mean over classes (0 leaves one out). Not for one channel.
        ignore_index: Label of pixels that do not count.
        smooth: Added to TP and to the denominator.
        log_loss: -log(score) instead of 1 - score.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match, or if class_weights are given for one channel.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import tversky_loss
        >>> labels = jnp.array([[[1, 1], [0, 0]]])
        >>> round(float(tversky_loss(jnp.zeros((1, 2, 2, 1)), labels, alpha=0.3, beta=0.7)), 4)  # TP = FP = FN = 1
        0.5

    References:
        Salehi et al., Tversky loss function for image segmentation using 3D fully convolutional deep networks, 2017.
        Abraham & Khan, A novel focal Tversky loss function, 2019 (gamma).
    """
    pixels = prepare(logits, labels, ignore_index)
    classes = logits.shape[-1]
    if classes == 1 and class_weights is not None:
        raise ValueError("class_weights do not apply to one channel, which is one class: omit them")
    weights = check_class_weights(class_weights, classes)

    counted = pixels.counted[..., None]
    probabilities = jnp.where(counted, pixels.probabilities, 0.0)
    targets = pixels.targets
    over_batch = (0, 1, 2)
    # separate sums, not differences of sums, so that rounding makes no term negative and no score exceed one
    true_positives = jnp.sum(jnp.where(targets, probabilities, 0.0), axis=over_batch)
    false_positives = jnp.sum(jnp.where(targets, 0.0, probabilities), axis=over_batch)
    false_negatives = jnp.sum(jnp.where(targets, 1.0 - probabilities, 0.0), axis=over_batch)
    denominators = true_positives + alpha * false_positives + beta * false_negatives + smooth
    scores = (true_positives + smooth) / jnp.maximum(denominators, _EPSILON)
    losses = -jnp.log(jnp.maximum(scores, _EPSILON)) if log_loss else 1.0 - scores
    # keep NaN here and below: a loss of zero would hide that the model's outputs are NaN
    losses = jnp.where(jnp.any(targets, axis=over_batch) | jnp.isnan(losses), losses, 0.0)

    mean = weighted_mean(losses, weights)
    power = jnp.where(mean <= 0, 1.0, mean) ** gamma
    return pixels.finish(jnp.where(mean <= 0, 0.0, power))


def dice_loss(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    log_loss: bool = False,
) -> Float[Array, ""]:
    """Dice loss: 1 - 2 TP / (2 TP + FP + FN) with soft counts over the batch, a mean over classes.

    It is `tversky_loss` with alpha = beta = 0.5, where the arguments and conventions (those of
    segmentation_models_pytorch: batch-wide sums, classes without labels) are described. The probabilities are not
    squared, unlike in V-Net.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        class_weights: One weight a class for the mean over classes. Not for one channel.
        ignore_index: Label of pixels that do not count.
        smooth: Added to TP and to TP + FP / 2 + FN / 2.
        log_loss: -log(score) instead of 1 - score.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match, or if class_weights are given for one channel.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import dice_loss
        >>> labels = jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(dice_loss(jnp.zeros((1, 2, 2, 1)), labels)), 4)  # TP = FN = 0.5, FP = 1.5
        0.6667

    References:
        Milletari et al., V-Net: fully convolutional neural networks for volumetric medical image segmentation, 2016.
    """
    return tversky_loss(
        logits, labels, class_weights=class_weights, ignore_index=ignore_index, smooth=smooth, log_loss=log_loss
    )


def jaccard_loss(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    class_weights: ClassWeights | None = None,
    ignore_index: int | None = None,
    smooth: float = 0.0,
    log_loss: bool = False,
) -> Float[Array, ""]:
    """Jaccard (IoU) loss: 1 - TP / (TP + FP + FN) with soft counts over the batch, a mean over classes.

    It is `tversky_loss` with alpha = beta = 1, where the arguments and conventions are described.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        class_weights: One weight a class for the mean over classes. Not for one channel.
        ignore_index: Label of pixels that do not count.
        smooth: Added to TP and to TP + FP + FN.
        log_loss: -log(score) instead of 1 - score.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match, or if class_weights are given for one channel.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import jaccard_loss
        >>> labels = jnp.array([[[1, 0], [0, 0]]])
        >>> round(float(jaccard_loss(jnp.zeros((1, 2, 2, 1)), labels)), 4)  # TP = FN = 0.5, FP = 1.5
        0.8

    References:
        Rahman & Wang, Optimizing intersection-over-union in deep neural networks for image segmentation, 2016.
    """
    return tversky_loss(
        logits,
        labels,
        alpha=1.0,
        beta=1.0,
        class_weights=class_weights,
        ignore_index=ignore_index,
        smooth=smooth,
        log_loss=log_loss,
    )
