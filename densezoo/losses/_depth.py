"""Losses of depth and of surface normals."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from densezoo.ops.depth import align_scale_shift, measured

_SMALLEST = 1e-6  # of a prediction under the logarithm


def silog_loss(
    predictions: Float[Array, "b h w"], depth: Float[Array, "b h w"], *, focus: float = 0.5
) -> Float[Array, ""]:
    """Scale-invariant logarithmic loss: mean(d^2) - focus * mean(d)^2, with d = log(prediction) - log(depth).

    The means are over the valid pixels of one image, and the loss is the mean over the images that have some. It has no
    square root and no factor. `focus`, lambda in the paper, is the share of an image's common factor that costs
    nothing: 0 is the mean square error of the logarithms, and 1 ignores the factor, and with it the unit. The paper
    uses 0.5. Others use 0.85, the square root and a factor of 10; KITTI's score SILog is 100 times the square root
    for 1.

    Args:
        predictions: depths above 0; smaller values than 1e-6 count as 1e-6.
        depth: the true depth in the same unit; holes (0, negative, infinite, NaN) do not count.
        focus: from 0 to 1.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if the shapes differ, or focus is outside 0 to 1.

    Example:
        >>> import jax.numpy as jnp
        >>> depth = jnp.array([[[1.0, 2.0, 0.0]]])
        >>> twice = 2 * depth  # a common factor; the hole does not count
        >>> [round(float(silog_loss(twice, depth, focus=focus)), 4) for focus in (0.0, 0.5, 1.0)]  # log(2)^2 = 0.4805
        [0.4805, 0.2402, 0.0]

    References:
        Eigen et al., Depth map prediction from a single image using a multi-scale deep network, 2014, equation 4.
        https://arxiv.org/abs/1406.2283
    """
    if not 0 <= focus <= 1:
        raise ValueError(f"focus must be from 0 to 1, got {focus}")
    valid = _valid(predictions, depth)
    difference = _log(predictions, valid) - _log(depth, valid)
    first, second = _image_means(difference, valid), _image_means(difference**2, valid)
    # As a sum of two terms that are not negative: rounding cannot make the variance negative.
    variance = _image_means(jnp.where(valid, difference - first[:, None, None], 0) ** 2, valid)
    return _mean_of_images(focus * variance + (1 - focus) * second, valid)


def depth_l1_loss(predictions: Float[Array, "b h w"], depth: Float[Array, "b h w"]) -> Float[Array, ""]:
    """Mean absolute error of depth, in its unit, over the valid pixels of the batch.

    Args:
        predictions: depths.
        depth: the true depth; holes (0, negative, infinite, NaN) do not count.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> float(depth_l1_loss(jnp.array([[[1.0, 2.0, 9.0]]]), jnp.array([[[1.5, 2.0, jnp.inf]]])))
        0.25
    """
    valid = _valid(predictions, depth)
    return _mean(jnp.abs(_masked(predictions, valid) - _masked(depth, valid)), valid)


def gradient_matching_loss(
    predictions: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"] | None = None,
    *,
    scales: int = 4,
    log: bool = False,
) -> Float[Array, ""]:
    """Compares the gradients of two maps at several scales, which sharpens edges and keeps surfaces smooth.

    The sum over scales of |R(i, j + 1) - R(i, j)| + |R(i + 1, j) - R(i, j)| for the difference R of the maps, over
    pairs of valid pixels, divided by the number of valid pixels of the batch at that scale. Each scale has every second
    pixel of the finer one.

    Args:
        predictions: depths, or inverse depths.
        target: the true values of the same kind.
        valid: the pixels that count; None for where the target is finite and above 0.
        scales: number of scales.
        log: whether to compare the logarithms of the maps, for which near and far edges count alike.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if the shapes differ, or scales is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> ramp = jnp.arange(1.0, 5.0)[None, None] * jnp.ones((1, 2, 4))
        >>> float(gradient_matching_loss(ramp + 7, ramp))  # a shift costs nothing
        0.0
        >>> float(gradient_matching_loss(2 * ramp, ramp, scales=1))  # 3 steps of 1 in each row of 4 pixels
        0.75

    References:
        Li & Snavely, MegaDepth, 2018, equation 4. https://arxiv.org/abs/1804.00607
        Ranftl et al., Towards robust monocular depth estimation, 2019, equation 11. https://arxiv.org/abs/1907.01341
    """
    if scales < 1:
        raise ValueError(f"scales must be at least 1, got {scales}")
    valid = _valid(predictions, target) if valid is None else valid
    convert = _log if log else _masked
    difference = convert(predictions, valid) - convert(target, valid)
    total = jnp.zeros((), jnp.float32)
    for scale in range(scales):
        r, counts = difference[:, :: 2**scale, :: 2**scale], valid[:, :: 2**scale, :: 2**scale]
        across = jnp.where(counts[:, :, 1:] & counts[:, :, :-1], jnp.abs(r[:, :, 1:] - r[:, :, :-1]), 0)
        down = jnp.where(counts[:, 1:] & counts[:, :-1], jnp.abs(r[:, 1:] - r[:, :-1]), 0)
        total += (across.sum() + down.sum()) / _count(counts)
    return total


def scale_shift_invariant_loss(
    predictions: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    *,
    gradient_weight: float = 0.5,
    scales: int = 4,
) -> Float[Array, ""]:
    """MiDaS's loss: the error after the best scale and shift of each image, plus `gradient_matching_loss`.

    Half the mean square error of scale * prediction + shift, where scale and shift minimise it for each image
    (`ops.align_scale_shift`), over the valid pixels of the batch; plus the gradients' loss of the aligned map.
    Gradients also flow through scale and shift. Any scale is allowed, a negative one too.

    Args:
        predictions: any values; in MiDaS, the network's inverse depth.
        target: true values above 0, in MiDaS 1 / depth; holes (0, negative, infinite, NaN) do not count.
        gradient_weight: weight of the gradients' loss, alpha in the paper.
        scales: its number of scales.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: if the shapes differ, or scales is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> target = jnp.array([[[0.5, 0.25, 0.125, 0.0]]])
        >>> round(float(scale_shift_invariant_loss(3 * target - 2, target)), 6)
        0.0

    References:
        Ranftl et al., Towards robust monocular depth estimation, 2019, equations 4, 5 and 11.
        https://arxiv.org/abs/1907.01341
    """
    valid = _valid(predictions, target)
    target = _masked(target, valid)
    aligned = align_scale_shift(_masked(predictions, valid), target, valid)
    loss = 0.5 * _mean((aligned - target) ** 2, valid)
    if gradient_weight:
        loss += gradient_weight * gradient_matching_loss(aligned, target, valid, scales=scales)
    return loss


def cosine_loss(predictions: Float[Array, "b h w 3"], normals: Float[Array, "b h w 3"]) -> Float[Array, ""]:
    """1 - cosine of the angle between predicted and true normals, a mean over the valid pixels of the batch.

    Args:
        predictions: vectors of any length; of zero length, they cost 1 and have no gradient.
        normals: the true vectors; zeros, and vectors with an infinite or NaN component, do not count.

    Returns:
        The loss, a float32 scalar from 0 to 2.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> float(cosine_loss(jnp.array([[[[0.0, 3.0, 0.0]]]]), jnp.array([[[[0.0, 0.0, -1.0]]]])))  # a right angle
        1.0
    """
    if predictions.shape != normals.shape:
        raise ValueError(f"predictions {predictions.shape} and normals {normals.shape} must have one shape")
    valid = jnp.isfinite(normals).all(-1) & (normals != 0).any(-1)
    a, b = (_unit(jnp.where(valid[..., None], array, 0).astype(jnp.float32)) for array in (predictions, normals))
    return _mean(1 - (a * b).sum(-1), valid)


def _valid(predictions: Float[Array, "b h w"], target: Float[Array, "b h w"]) -> Bool[Array, "b h w"]:
    if predictions.shape != target.shape:
        raise ValueError(
            f"predictions {predictions.shape} and depth {target.shape} must have one shape (b, h, w): take the only"
            " channel of a network's outputs, outputs[..., 0]"
        )
    return measured(target)


def _masked(values: Float[Array, "b h w"], valid: Bool[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Float32, 0 where invalid, so that not even a NaN there reaches the gradient."""
    return jnp.where(valid, values.astype(jnp.float32), 0)


def _log(values: Float[Array, "b h w"], valid: Bool[Array, "b h w"]) -> Float[Array, "b h w"]:
    return jnp.log(jnp.maximum(jnp.where(valid, values.astype(jnp.float32), 1), _SMALLEST))


def _count(valid: Bool[Array, "*n"]) -> Float[Array, ""]:
    return jnp.maximum(valid.sum(), 1).astype(jnp.float32)


def _mean(values: Float[Array, "b h w"], valid: Bool[Array, "b h w"]) -> Float[Array, ""]:
    return jnp.where(valid, values, 0).sum() / _count(valid)


def _image_means(values: Float[Array, "b h w"], valid: Bool[Array, "b h w"]) -> Float[Array, " b"]:
    count = jnp.maximum(valid.sum((1, 2)), 1).astype(jnp.float32)
    return jnp.where(valid, values, 0).sum((1, 2)) / count


def _mean_of_images(values: Float[Array, " b"], valid: Bool[Array, "b h w"]) -> Float[Array, ""]:
    return values.sum() / _count(valid.any((1, 2)))


def _unit(vectors: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    square = (vectors * vectors).sum(-1, keepdims=True)
    there = ~(square <= 0)  # NaN stays
    return jnp.where(there, vectors / jnp.sqrt(jnp.where(there, square, 1)), 0)
