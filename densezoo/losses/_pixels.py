"""Shared steps of all losses: checks, ignored pixels and targets, and averages and labels outside the classes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

ClassWeights = Float[Array, " k"] | Float[np.ndarray, " k"] | Sequence[float]


class Pixels(NamedTuple):
    """Sanitised logits and labels, and the mask of pixels that are not ignored."""

    logits: Float[Array, "b h w c"]  # float32; 0 where ignored, so that not even a NaN there reaches the gradient
    labels: Integer[Array, "b h w"]  # int32
    counted: Bool[Array, "b h w"]
    valid: Bool[Array, ""]  # False if a counted label lies outside the classes

    @property
    def targets(self) -> Bool[Array, "b h w c"]:
        """One channel per class, or only the foreground for binary logits. Ignored pixels belong to no class."""
        classes = self.logits.shape[-1]
        if classes == 1:
            return ((self.labels == 1) & self.counted)[..., None]
        return jax.nn.one_hot(self.labels, classes, dtype=bool) & self.counted[..., None]

    @property
    def probabilities(self) -> Float[Array, "b h w c"]:
        """Sigmoid of one channel, softmax of more."""
        return jax.nn.sigmoid(self.logits) if self.logits.shape[-1] == 1 else jax.nn.softmax(self.logits)

    def finish(self, loss: Float[Array, ""]) -> Float[Array, ""]:
        """The loss, or NaN if a label is outside the classes."""
        return jnp.where(self.valid, loss, jnp.nan)


def prepare(logits: Float[Array, "b h w c"], labels: Integer[Array, "b h w"], ignore_index: int | None) -> Pixels:
    """Checks shapes and dtypes, and masks ignored pixels."""
    if isinstance(logits, tuple):
        raise TypeError(
            "logits are a tuple, as returned by a model with auxiliary heads in training: wrap the loss in"
            " densezoo.losses.deep_supervision"
        )
    if logits.ndim != 4 or labels.shape != logits.shape[:3]:
        raise ValueError(
            f"logits {logits.shape} and labels {labels.shape} do not match: expected (b, h, w, c) and (b, h, w); "
            "pass class indices, not one-hot labels, with a batch axis"
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"logits are {logits.dtype}: expected a float dtype, before any sigmoid, softmax or argmax")
    counted = counted_pixels(labels, ignore_index)
    labels = labels.astype(jnp.int32)
    valid = jnp.all(~counted | ((labels >= 0) & (labels < max(logits.shape[-1], 2))))
    logits = jnp.where(counted[..., None], logits.astype(jnp.float32), 0.0)
    return Pixels(logits, labels, counted, valid)


def counted_pixels(labels: Integer[Array, "*shape"], ignore_index: int | None) -> Bool[Array, "*shape"]:
    """Where labels are not ignore_index."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels are {labels.dtype}: expected class indices of an integer dtype")
    if ignore_index is None:
        return jnp.ones(labels.shape, bool)
    return labels.astype(jnp.int32) != ignore_index  # int32 first: uint8 labels cannot equal -1 or -100


def check_class_weights(class_weights: ClassWeights | None, classes: int) -> Float[Array, " k"]:
    """Float32 weights, one per class; ones if None."""
    if class_weights is None:
        return jnp.ones((classes,), jnp.float32)
    weights = jnp.asarray(class_weights, jnp.float32)
    if weights.shape != (classes,):
        raise ValueError(f"class_weights have shape {weights.shape}: expected ({classes},), one weight per class")
    return weights


def times(weights: Float[Array, "..."] | float, values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Weights times values, where a weight of zero also removes an infinite value. NaN is kept."""
    return jnp.where((jnp.asarray(weights) == 0) & jnp.isinf(values), 0.0, weights * values)


def weighted_mean(values: Float[Array, "*shape"], weights: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Sum of weights * values over the sum of weights; zero, with a zero gradient, if all weights are zero."""
    total = jnp.sum(weights)
    return jnp.sum(times(weights, values)) / jnp.where(total > 0, total, 1.0)
