"""Linear layers of maps of several sizes, resized, concatenated and fused by one more linear layer."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.implementation import chosen
from densezoo.types import Size

Resize = Callable[[Any, Size], Any]
"""Resizes a map to the given size, or returns it unchanged if it already has that size."""


def resize_concat_linear(
    maps: Sequence[Float[Array, "b _ _ _"]],
    layers: Sequence[tuple[Float[Array, "_ d"], Float[Array, " d"] | None]],
    kernel: Float[Array, "n_d e"],
    bias: Float[Array, " e"] | None,
    resizes: Sequence[Resize],
    size: Size,
) -> Float[Array, "b _ _ e"]:
    """`concat([resize(x @ K + k) for x, (K, k) in ...]) @ kernel + bias`, without building the concatenation.

    The kernel consists of one kernel F per map, and the result is the sum of `resize(x @ K + k) @ F`. All of this is
    linear if the resizes interpolate (with weights that add up to 1). So the products are computed at the coarser of
    the map's and the result's size. If a map has more pixels than channels, they are merged into one by `K @ F`. The
    biases are merged into `sum(k @ F) + bias`. The result equals the plain form's up to rounding.

    Args:
        maps: NHWC maps.
        layers: for each map the kernel, (channels, d), and bias of its linear layer.
        kernel: kernel of the last layer, (number of maps times d, e).
        bias: bias of the last layer.
        resizes: for each map, the function that resizes it to `size` by interpolation.
        size: (height, width) of the result.

    Raises:
        ValueError: if the numbers of maps, layers and resizes differ, or the kernel has the wrong shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.ops import resize_nearest
        >>> maps = jnp.ones((1, 2, 2, 1)), jnp.full((1, 1, 1, 1), 10.0)
        >>> layers = [(jnp.ones((1, 1)), jnp.ones(1)), (jnp.ones((1, 1)), None)]
        >>> kernel = jnp.array([[1.0], [2.0]])
        >>> resize_concat_linear(maps, layers, kernel, None, [resize_nearest] * 2, (2, 2))[0, :, :, 0].tolist()
        [[22.0, 22.0], [22.0, 22.0]]

    References:
        Xie et al., SegFormer, 2021, equation 4. https://arxiv.org/abs/2105.15203
    """
    width = layers[0][0].shape[1]
    if not len(maps) == len(layers) == len(resizes) or kernel.shape[0] != len(maps) * width:
        raise ValueError(
            f"expected a layer and a resize for each of {len(maps)} maps and a kernel of {len(maps)} x {width} rows; "
            f"got {len(layers)} layers, {len(resizes)} resizes and a kernel of shape {kernel.shape}"
        )
    if chosen() == "reference":
        return reference.resize_concat_linear(maps, layers, kernel, bias, resizes, size)
    results, shifts = [], [] if bias is None else [bias]
    parts = kernel.reshape(-1, width, kernel.shape[1])
    for x, (layer, shift), part, resize in zip(maps, layers, parts, resizes, strict=True):
        if shift is not None:
            shifts.append(shift @ part)
        x = resize(x, size) if x.shape[1] > size[0] or x.shape[2] > size[1] else x
        merge = not isinstance(x.size, int) or x.size // x.shape[-1] > x.shape[-1]  # a symbolic size may be any
        x = reference.linear(x, layer @ part) if merge else reference.linear(reference.linear(x, layer), part)
        results.append(resize(x, size))
    total = reduce(jnp.add, results)
    return total + jnp.expand_dims(reduce(jnp.add, shifts).astype(total.dtype), (0, 1, 2)) if shifts else total
