"""Batch and group normalisation with an optional fused ReLU, and a memory-saving backward pass.

The backward pass only stores the input and the statistics. It recomputes the normalised map and the mask of the ReLU.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_maps, check_whole
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import reduced_like, sides_shared
from densezoo.types import Side, accumulator_dtype

_Sum = Callable[[jax.Array], jax.Array]


def batch_norm(
    x: Float[Array, "*b c"], scale: Float[Array, "c"], bias: Float[Array, "c"], *, epsilon: float, relu: bool = False
) -> tuple[Float[Array, "*b c"], Float[Array, "c"], Float[Array, "c"]]:
    """Normalises each channel by its mean and variance over all other axes.

    Args:
        x: maps, channels last. The result has its dtype; statistics are taken in float32 (float64 for float64).
        scale: factor of each channel.
        bias: offset of each channel.
        epsilon: constant that is added to the variance.
        relu: whether to apply a ReLU to the result.

    Returns:
        The result, and each channel's mean and (biased) variance.

    Raises:
        ValueError: if `scale` and `bias` do not have an entry for each channel.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([1.0, 3.0]).reshape(2, 1, 1, 1)
        >>> y, mean, var = batch_norm(x, jnp.ones(1), jnp.zeros(1), epsilon=0.0)
        >>> y.ravel().tolist(), mean.tolist(), var.tolist()
        ([-1.0, 1.0], [2.0], [1.0])

    References:
        Ioffe and Szegedy, Batch normalization, 2015. https://arxiv.org/abs/1502.03167
    """
    _check(x, scale, bias)
    if chosen() == "reference":
        return reference.batch_norm(x, scale, bias, epsilon=epsilon, relu=relu)
    return _batch_norm(x, scale, bias, epsilon, relu)


def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, "c"],
    bias: Float[Array, "c"],
    *,
    groups: int,
    epsilon: float,
    relu: bool = False,
) -> Float[Array, "b h w c"]:
    """Normalises each sample by the mean and variance of each group of neighbouring channels.

    Args:
        x: NHWC maps. The result has its dtype; statistics are taken in float32 (float64 for float64).
        scale: factor of each channel.
        bias: offset of each channel.
        groups: number of groups, which divides the channels.
        epsilon: constant that is added to the variance.
        relu: whether to apply a ReLU to the result.

    Raises:
        ValueError: if `scale` and `bias` do not have an entry for each channel, or `groups` does not divide them.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([1.0, 3.0, 5.0, 5.0]).reshape(1, 1, 1, 4)
        >>> group_norm(x, jnp.ones(4), jnp.zeros(4), groups=2, epsilon=1e-5)[0, 0, 0].round(3).tolist()
        [-1.0, 1.0, 0.0, 0.0]

    References:
        Wu and He, Group normalization, 2018. https://arxiv.org/abs/1803.08494
    """
    check_maps(x)
    _check(x, scale, bias)
    check_whole(1, num_groups=groups)
    batch, height, width, channels = x.shape
    if channels % groups:
        raise ValueError(f"num_groups={groups} must divide the {channels} channels")
    if chosen() == "reference":
        return reference.group_norm(x, scale, bias, groups=groups, epsilon=epsilon, relu=relu)
    count = height * width * (channels // groups)

    def pool(sums):
        grouped = sums.reshape(batch, groups, channels // groups).sum(2, keepdims=True) / count
        return jnp.broadcast_to(grouped, (batch, groups, channels // groups)).reshape(batch, channels)

    return _normalize(x, scale, bias, pixel_sum, pool, count, epsilon, relu)[0]


def pixel_sum(x: Float[Array, "b h w c"]) -> Float[Array, "b c"]:
    """The sum over the pixels of each map, `x.sum((1, 2))`.

    XLA:CPU sums all pixels in one loop on one core. Summing each row first and then the rows, separated by a barrier,
    is several times faster and more accurate. On other platforms XLA splits the sum itself.
    """
    _, devices = sides_shared(x).get(2, ("", 1))
    parts = devices if devices > 1 and x.shape[2] % devices == 0 else 1

    def by_rows(x):
        if parts > 1:  # Otherwise, devices that share the columns would add up each row over all of them.
            x = x.reshape(*x.shape[:2], parts, -1, x.shape[3])
        return jax.lax.optimization_barrier(x.sum(-2)).sum(tuple(range(1, x.ndim - 2)))

    return jax.lax.platform_dependent(x, cpu=by_rows, default=lambda x: x.sum((1, 2)))


def _batch_sum(x: Float[Array, "b h w c"]) -> Float[Array, "1 c"]:
    """The sum over all pixels of all maps. XLA:GPU takes twice as long to sum each map first, for maps of 64x64."""
    return jax.lax.platform_dependent(
        x, cpu=lambda x: pixel_sum(x).sum(0, keepdims=True), default=lambda x: x.sum((0, 1, 2))[None]
    )


# A function of its own is traced, differentiated and lowered once for all norms of the same shapes.
@functools.partial(jax.jit, static_argnames=("epsilon", "relu"))
def _batch_norm(x, scale, bias, epsilon: float, relu: bool):
    count = x.size // x.shape[-1]
    maps = x.reshape(x.shape[0], -1, x.shape[-2] if x.ndim > 2 else 1, x.shape[-1])
    y, mean, var = _normalize(maps, scale, bias, _batch_sum, lambda sums: sums / count, count, epsilon, relu)
    return y.reshape(x.shape), mean[0], var[0]


def _check(x, scale, bias):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"expected maps of a float type, got {x.dtype}: cast them first")
    if x.ndim < 2 or scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(f"scale and bias need an entry for each channel of {x.shape}; got {scale.shape}, {bias.shape}")


def _normalize(x, scale, bias, total: _Sum, pool: _Sum, count: Side, epsilon: float, relu: bool):
    """The result, and the means and variances, (b, c) or (1, c).

    `total` sums maps over their pixels, (b, c), or over the batch too, (1, c). `pool` maps these sums to means over the
    `count` values that are normalised together.
    """

    def spread(per_channel):
        return jnp.expand_dims(per_channel, (1, 2))

    def affine(wide, scale, bias, mean, var):
        factor = scale.astype(wide.dtype)[None] * jax.lax.rsqrt(var + epsilon)
        return factor, wide * spread(factor) + spread(bias.astype(wide.dtype)[None] - mean * factor)

    def forward(x, scale, bias):
        wide = x.astype(accumulator_dtype(x.dtype))
        mean = pool(total(wide))
        # Centred at the mean, which is accurate even if the mean is much larger than the deviation.
        var = pool(total(jnp.square(wide - spread(mean))))
        _, y = affine(wide, scale, bias, mean, var)
        return (jax.nn.relu(y) if relu else y).astype(x.dtype), mean, var

    def backward(saved, cotangents):
        x, scale, bias, mean, var = saved
        g, g_mean, g_var = cotangents
        wide = x.astype(accumulator_dtype(x.dtype))
        g = jnp.asarray(g).astype(wide.dtype)
        factor, y = affine(wide, scale, bias, mean, var)
        if relu:
            g = jnp.where(y > 0, g, jnp.zeros((), g.dtype))
        inverse = jax.lax.rsqrt(var + epsilon)
        centred = wide - spread(mean)
        bias_sums = total(g)
        scale_sums = total(g * centred) * inverse
        row = scale.astype(wide.dtype)[None]
        # The gradient through mean and variance is, for each channel, a constant plus a multiple of the centred input.
        constant = g_mean / count - inverse * pool(row * bias_sums)
        slope = 2 * g_var / count - jnp.square(inverse) * pool(row * scale_sums)
        dx = g * spread(factor) + centred * spread(slope) + spread(constant)
        dscale, dbias = scale_sums.sum(0).astype(scale.dtype), bias_sums.sum(0).astype(bias.dtype)
        return dx.astype(x.dtype), reduced_like(dscale, scale), reduced_like(dbias, bias)

    function = jax.custom_vjp(forward)

    def keep(x, scale, bias):
        y, mean, var = forward(x, scale, bias)
        return (y, mean, var), (x, scale, bias, mean, var)

    function.defvjp(keep, backward)
    return function(x, scale, bias)
