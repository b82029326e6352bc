"""Batches of pictures with different sizes: each picture gets the same maps as without the padding.

A convolution pads its input with zeros. In a padded picture, the bias and norm of the first convolution make the
padding nonzero, and the next convolution reads it. Therefore, maps are set to zero outside of each picture before every
convolution, and after it and its norm; means over a whole map exclude the padding.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from densezoo.blocks import (
    CARAFE,
    Bicubic,
    Bilinear,
    ChannelGate,
    Conv,
    ConvNormAct,
    DySample,
    GroupNorm,
    TransposedConv,
)
from densezoo.blocks.norm import default_groups
from densezoo.ops.sharding import per_device, reshape
from densezoo.types import Size, accumulator_dtype, size_of

REPEATING = (Bicubic, Bilinear, DySample)
"""Upsamplers that repeat the edges of a map. Those with convolutions pad with zeros."""


def each_alone(extents: Integer[Array, "b 2"] | None, image_size: Size) -> AbstractContextManager[Any]:
    """Modules called in this context treat each picture's padding like the outside of an image.

    This is exact for convolutions, pooling of nonnegative maps, upsampling (without aligned corners), batch and group
    norms, and squeeze-and-excitation. Attention still reads the padding.

    Args:
        extents: height and width of each picture; None for no padding.
        image_size: height and width of the images, including padding.
    """
    if extents is None:
        return nullcontext()

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or not args or not _is_map(args[0], extents):
            return call(*args, **kwargs)
        if module.is_initializing():
            return call(*args, **kwargs)
        if isinstance(module, ChannelGate):
            # The gate averages the whole map, which is zero in the padding: rescale to the mean over the picture.
            covered = _sides(args[0], extents, image_size).prod(-1).astype(args[0].dtype)
            part = math.prod(size_of(args[0])) / jnp.maximum(covered, 1)
            return call(args[0] * part[:, None, None, None], *args[1:], **kwargs)
        if isinstance(module, GroupNorm):
            return _group_norm(module, args[0], _inside(args[0], extents, image_size), kwargs.get("relu", False))
        if isinstance(module, REPEATING):
            return call(with_edges(args[0], extents, image_size), *args[1:], **kwargs)
        if isinstance(
            module, (Conv, TransposedConv, CARAFE)
        ):  # an overlapping pooling before it may have reached beyond the picture
            args = (jnp.where(_inside(args[0], extents, image_size), args[0], 0), *args[1:])
        y = call(*args, **kwargs)
        whole = isinstance(module, ConvNormAct) or (
            isinstance(module, Conv) and not isinstance(module.parent, ConvNormAct)
        )
        return jnp.where(_inside(y, extents, image_size), y, 0) if whole and _is_map(y, extents) else y

    return nn.intercept_methods(intercept)


def with_edges(
    x: Float[Array, "b h w c"], extents: Integer[Array, "b 2"] | None, image_size: Size
) -> Float[Array, "b h w c"]:
    """Replaces the padding by the last row and column of each picture, as edge padding of the single image would."""
    if extents is None:
        return x

    def extended(x: jax.Array, sides: jax.Array) -> jax.Array:
        for axis in (1, 2):
            places = jnp.minimum(jnp.arange(x.shape[axis], dtype=sides.dtype)[None], sides[:, axis - 1, None] - 1)
            x = jnp.take_along_axis(x, jnp.expand_dims(places, (2 if axis == 1 else 1, 3)), axis)
        return x

    return per_device(extended, x, jnp.maximum(_sides(x, extents, image_size), 1))


def _is_map(x: Any, extents: jax.Array) -> bool:
    return isinstance(x, jax.Array) and x.ndim == 4 and x.shape[0] == extents.shape[0]


def _sides(x: jax.Array, extents: Integer[Array, "b 2"], image_size: Size) -> Integer[Array, "b 2"]:
    """Height and width of each picture on a map. Image sides are multiples of most maps' reductions."""
    ratio = max(image / side for image, side in zip(image_size, size_of(x), strict=True))
    return -(-extents // 2 ** max(0, math.ceil(math.log2(ratio))))


def _inside(x: jax.Array, extents: jax.Array, image_size: Size) -> Bool[Array, "b h w 1"]:
    sides = _sides(x, extents, image_size)
    rows, columns = (jnp.arange(side, dtype=sides.dtype)[None] for side in size_of(x))
    return ((rows < sides[:, :1])[:, :, None] & (columns < sides[:, 1:])[:, None])[..., None]


def _group_norm(module: GroupNorm, x: jax.Array, inside: Bool[Array, "b h w 1"], relu: bool) -> jax.Array:
    """A group norm with statistics of the picture without its padding."""
    scale, bias = (module.get_variable("params", name) for name in ("scale", "bias"))
    wide = x.astype(accumulator_dtype(x.dtype))
    counted = inside.astype(wide.dtype)[..., None]
    groups = module.num_groups or default_groups(x.shape[-1])
    grouped = reshape(wide, *x.shape[:3], groups, -1)
    count = jnp.maximum(counted.sum((1, 2, 3, 4), keepdims=True) * grouped.shape[-1], 1)
    mean = (grouped * counted).sum((1, 2, 4), keepdims=True) / count
    centred = (grouped - mean) * counted
    var = jnp.square(centred).sum((1, 2, 4), keepdims=True) / count
    y = reshape(centred * jax.lax.rsqrt(var + module.epsilon), *x.shape)
    y = y * jnp.expand_dims(scale.astype(wide.dtype), (0, 1, 2)) + jnp.expand_dims(bias.astype(wide.dtype), (0, 1, 2))
    return (nn.relu(y) if relu else y).astype(x.dtype if module.dtype is None else module.dtype)
