"""Lovasz losses: the convex extension of the Jaccard loss, computed by sorting the pixels' errors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Shaped

from densezoo.losses._pixels import prepare, times, weighted_mean


def lovasz_loss(
    logits: Float[Array, "b h w c"],
    labels: Integer[Array, "b h w"],
    *,
    per_image: bool = False,
    ignore_index: int | None = None,
) -> Float[Array, ""]:
    """Lovasz-softmax for several classes, Lovasz hinge for one channel: a surrogate of the IoU.

    An error is |target - softmax| for several classes and max(0, 1 - x) (x < 0 for the background: max(0, 1 + x)) for
    one channel. As in the authors' code and segmentation_models_pytorch: the softmax form is a mean over the classes
    that have a label in the batch (or the image); the hinge costs an image without foreground its largest error.

    It differs from them in rounding (the weights of the sorted errors are computed in closed form, not as differences
    of nearly equal numbers), in supporting images that are completely ignored (they cost zero and stay in the mean over
    images), and in the gradient: pixels of one class with equal errors share it evenly, independent of their order.

    It sorts the pixels of every class, which takes several times as long as the other losses.

    Args:
        logits: Scores, (b, h, w, c).
        labels: Class indices, (b, h, w).
        per_image: Whether to average the losses of the images. Otherwise the batch is treated as one large image.
        ignore_index: Label of pixels that do not count.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: If the shapes do not match.
        TypeError: If logits are not floats or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.losses import lovasz_loss
        >>> logits = jnp.array([[[[3.0], [-0.5]]]])
        >>> labels = jnp.array([[[1, 0]]])
        >>> float(lovasz_loss(logits, labels))  # the one error, 0.5, by the IoU it costs, 1/2
        0.25

    References:
        Berman et al., The Lovasz-Softmax loss, CVPR 2018 (algorithm 1, equations 9 and 11).
    """
    pixels = prepare(logits, labels, ignore_index)
    if labels.size == 0:  # nothing to sort
        return jnp.sum(pixels.logits)
    classes = logits.shape[-1]
    targets = pixels.targets
    if classes == 1:
        errors = jnp.maximum(1.0 - jnp.where(targets, pixels.logits, -pixels.logits), 0.0)
    else:
        errors = jnp.abs(targets.astype(jnp.float32) - pixels.probabilities)

    # an error of zero has no weight and no gradient
    errors = jnp.where(pixels.counted[..., None], errors, 0.0)

    def by_class(x: Shaped[Array, "b h w c"]) -> Shaped[Array, "g c p"]:
        return jnp.swapaxes(x.reshape(logits.shape[0] if per_image else 1, -1, classes), 1, 2)

    errors, targets = by_class(errors), by_class(targets)
    losses = jax.vmap(jax.vmap(_extension))(errors, targets)
    present = jnp.ones_like(losses) if classes == 1 else jnp.any(targets, axis=-1).astype(jnp.float32)
    return pixels.finish(jnp.mean(jax.vmap(weighted_mean)(losses, present)))


def _extension(errors: Float[Array, " p"], targets: Bool[Array, " p"]) -> Float[Array, ""]:
    """The Lovasz extension of one class's Jaccard loss at the nonnegative errors."""
    # Not-negative floats sort like their bits, and the sign bit is free for the target: one integer to sort, which
    # takes a third of the time of sorting pairs. The largest error first, and of equal errors the targets first.
    keys = ~(jax.lax.bitcast_convert_type(jax.lax.stop_gradient(errors), jnp.uint32) * 2 + targets.astype(jnp.uint32))
    ordered = jax.lax.sort(keys, is_stable=False)
    is_target = (~ordered & 1).astype(jnp.int32)

    # If the first r pixels are mistakes, the intersection has lost the targets among them and the union has gained the
    # others. The r-th weight is how much it adds to 1 - intersection / union; pixels with equal keys share theirs.
    positives = jnp.sum(is_target)
    seen = jnp.cumsum(is_target)
    intersection = (positives - seen).astype(jnp.float32)
    union = positives + jnp.arange(1, errors.shape[0] + 1, dtype=jnp.int32) - seen
    last = jnp.append(ordered[1:] != ordered[:-1], True)
    after = jax.lax.cummin(jnp.where(last, union, jnp.iinfo(jnp.int32).max), reverse=True).astype(jnp.float32)
    before = (union - 1).astype(jnp.float32)
    weights = jnp.where(is_target == 1, 1.0, intersection / jnp.maximum(before, 1.0)) / jnp.maximum(after, 1.0)
    # no targets: the first mistake already reduces the IoU to zero, and further mistakes add nothing
    weights = jnp.where(positives > 0, weights, jnp.where(before == 0, 1.0 / jnp.maximum(after, 1.0), 0.0))

    # the weights are piecewise constant in the errors, so the gradient is theirs alone
    weights = weights[jnp.searchsorted(ordered, keys)]
    return jnp.sum(times(weights, errors))
