"""Elementwise losses of detectors, which a task weights and sums. All compute in float32."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops


def sigmoid_focal_loss(
    logits: Float[Array, "*n"], targets: Float[Array, "*n"], *, alpha: float = 0.25, gamma: float = 2.0
) -> Float[Array, "*n"]:
    """The focal loss of dense detection: binary cross-entropy with smaller weights for confident predictions.

    Args:
        logits: logits of independent sigmoids.
        targets: values from 0 to 1.
        alpha: weight of the ones; the zeros have 1 - alpha.
        gamma: exponent that controls how fast the weight decreases.

    Returns:
        The loss of each element, float32.

    Raises:
        ValueError: if shapes differ, or `alpha` is outside [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> loss = sigmoid_focal_loss(jnp.zeros(2), jnp.array([1.0, 0.0]))
        >>> [round(float(x), 4) for x in loss]  # 1/4 and 3/4 of log 2 / 4
        [0.0433, 0.13]

    References:
        Lin et al., Focal loss for dense object detection, 2017, equation 5. https://arxiv.org/abs/1708.02002
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    logits, targets = _alike(logits, targets)
    p = jax.nn.sigmoid(logits)
    wrong = p * (1 - targets) + (1 - p) * targets
    weight = alpha * targets + (1 - alpha) * (1 - targets)
    return weight * wrong**gamma * binary_cross_entropy(logits, targets)


def binary_cross_entropy(logits: Float[Array, "*n"], targets: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The cross-entropy of sigmoids with targets from 0 to 1, for each element, float32.

    Raises:
        ValueError: if shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(binary_cross_entropy(jnp.zeros(()), jnp.ones(()))), 4)
        0.6931
    """
    logits, targets = _alike(logits, targets)
    return jax.nn.softplus(logits) - targets * logits


def smooth_l1_loss(
    predictions: Float[Array, "*n"], targets: Float[Array, "*n"], *, beta: float = 1.0
) -> Float[Array, "*n"]:
    """Smooth L1 loss: the absolute difference, replaced by a parabola below `beta`. Elementwise, float32.

    Args:
        predictions: the predictions.
        targets: the targets.
        beta: the threshold; 0 gives the absolute difference.

    Raises:
        ValueError: if shapes differ, or `beta` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> smooth_l1_loss(jnp.array([0.5, 3.0]), jnp.zeros(2)).tolist()
        [0.125, 2.5]

    References:
        Girshick, Fast R-CNN, 2015, equation 3. https://arxiv.org/abs/1504.08083
    """
    if beta < 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    predictions, targets = _alike(predictions, targets)
    distance = jnp.abs(predictions - targets)
    if beta == 0:
        return distance
    return jnp.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


def giou_loss(predictions: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n"]:
    """1 minus the generalized intersection over union of each pair of boxes (`ops.generalized_iou`), float32.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = jnp.array([0.0, 0.0, 1.0, 1.0]), jnp.array([3.0, 0.0, 4.0, 1.0])
        >>> float(giou_loss(a, b))
        1.5
    """
    return 1 - ops.generalized_iou(predictions, targets)


def _alike(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    if predictions.shape != targets.shape:
        raise ValueError(f"predictions {predictions.shape} and targets {targets.shape} have different shapes")
    return predictions.astype(jnp.float32), targets.astype(jnp.float32)
