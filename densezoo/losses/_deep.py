"""A loss on the logits of several heads."""

from collections.abc import Callable
from typing import Any

import jax

Loss = Callable[[Any, Any], jax.Array]


def deep_supervision(loss: Loss, weight: float = 0.4) -> Loss:
    """Returns the `loss` of the logits plus `weight` times the mean `loss` of the auxiliary heads' logits.

    Args:
        loss: `loss(logits, targets)` returns a scalar; targets may be a whole batch.
        weight: total weight of the auxiliary heads; PSPNet uses 0.4.

    Returns:
        A function like `loss` that takes logits, or the tuple of logits of a model with auxiliary heads in training.

    Example:
        >>> import jax.numpy as jnp
        >>> squared = deep_supervision(lambda logits, target: jnp.square(logits - target).mean())
        >>> float(squared((jnp.ones(3), jnp.zeros(3), 2 * jnp.ones(3)), jnp.zeros(3)))
        1.7999999523162842

    References:
        Zhao et al., Pyramid scene parsing network, 2016. https://arxiv.org/abs/1612.01105 (section 3.3)
    """

    def supervised(logits: Any, targets: Any) -> jax.Array:
        if not isinstance(logits, tuple):
            return loss(logits, targets)
        first, *others = logits
        return loss(first, targets) + weight * sum(loss(each, targets) for each in others) / max(len(others), 1)

    return supervised
