"""Depthwise convolution on CPU: a sum of shifted maps, each multiplied with its tap of the kernel.

XLA:CPU only has a general loop for grouped convolutions, which takes about 50 times longer. `ops.conv` uses this form
if every channel is a group. oneDNN is another two to five times faster if the program is compiled with it
(`ops.implementation.with_onednn`), but lacks the gradient for the input of a strided convolution.
"""

import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.types import Size, accumulator_dtype

Padding = tuple[tuple[int, int], tuple[int, int]]


# Compiled as a whole if there is no surrounding jit, because its many slices would take seconds one by one.
_compiled = functools.partial(jax.jit, static_argnames=("strides", "padding", "dilation", "onednn"))


@_compiled
def depthwise(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l 1 c"],
    strides: int,
    padding: Padding,
    dilation: int,
    onednn: bool = False,
) -> Float[Array, "b h2 w2 c"]:
    """The convolution. Half precision is summed in float32."""
    wide = accumulator_dtype(x.dtype)
    if onednn and wide == jnp.float32:  # oneDNN is slower in bfloat16 and has no float64
        return _grouped(x.astype(wide), kernel.astype(wide), strides, padding, dilation).astype(x.dtype)
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    rows, columns = (
        (side - dilation * (size - 1) - 1) // strides + 1
        for side, size in zip(padded.shape[1:3], kernel.shape[:2], strict=True)
    )
    total = None
    for i, j, tap in _taps(padded, kernel.shape[:2], (rows, columns), strides, dilation):
        if total is not None and j == 0 and kernel.shape[1] > 3:
            # A loop for each row of the kernel: one for all taps of a 7x7 kernel takes 1.5 times longer.
            total = jax.lax.optimization_barrier(total)
        product = tap.astype(wide) * jnp.expand_dims(kernel[i, j, 0].astype(wide), (0, 1, 2))
        total = product if total is None else total + product
    assert total is not None
    return total.astype(x.dtype)


@_compiled
def depthwise_gradients(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l 1 c"],
    g: Float[Array, "b h2 w2 c"],
    strides: int,
    padding: Padding,
    dilation: int,
    onednn: bool = False,
) -> tuple[Float[Array, "b h w c"], Float[Array, "k l 1 c"]]:
    """The gradients of the input and of the kernel, for the cotangent `g`."""
    by_grouped = onednn and accumulator_dtype(x.dtype) == jnp.float32
    dkernel = (_grouped_kernel_gradient if by_grouped else _kernel_gradient)(x, kernel, g, strides, padding, dilation)
    reach = [dilation * (size - 1) for size in kernel.shape[:2]]
    rows, columns = ((r - before, r - after) for r, (before, after) in zip(reach, padding, strict=True))
    if strides == 1 and min(*rows, *columns) >= 0:
        # A convolution with the flipped kernel, padded to the input's size. XLA does not use oneDNN's convolution after
        # a `jnp.flip`.
        turned = jnp.take(
            kernel.reshape(-1, *kernel.shape[2:]), np.arange(math.prod(kernel.shape[:2]))[::-1], axis=0, mode="clip"
        )
        return depthwise(g, turned.reshape(kernel.shape), 1, (rows, columns), dilation, onednn), dkernel
    (dx,) = jax.vjp(lambda x: depthwise(x, kernel, strides, padding, dilation), x)[1](g)
    return dx, dkernel


def _grouped(x, kernel, strides, padding, dilation):
    """The convolution as a single operation, for oneDNN."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _grouped_kernel_gradient(x, kernel, g, strides, padding, dilation):
    """A convolution of the input with `g`, which has few results. All maps are stacked vertically into one.

    Rows of zeros in `g` separate the maps.
    """
    wide = accumulator_dtype(x.dtype)
    (_, rows, columns, channels), size = g.shape, kernel.shape[:2]
    padded = jnp.pad(x.astype(wide), ((0, 0), *padding, (0, 0)))
    padded = jnp.pad(padded, ((0, 0), (0, -padded.shape[1] % strides), (0, 0), (0, 0)))
    between = padded.shape[1] // strides - rows
    spread = jnp.pad(g.astype(wide), ((0, 0), (0, between), (0, 0), (0, 0))).reshape(-1, columns, 1, channels)
    spread = spread[: spread.shape[0] - between]
    # The strides of the forward convolution become the dilation here.
    y = _grouped(padded.reshape(1, -1, *padded.shape[2:]), spread, dilation, ((0, 0), (0, 0)), strides)
    return y[:, : size[0], : size[1]].reshape(kernel.shape).astype(kernel.dtype)


def _kernel_gradient(x, kernel, g, strides, padding, dilation):
    """For every tap, the sum over the pixels that it reads, multiplied with `g`.

    Computed row by row, with a running sum for every tap and pixel of a row, because XLA would not vectorise sums over
    pixels.
    """
    wide = accumulator_dtype(x.dtype)
    padded, size = jnp.pad(x, ((0, 0), *padding, (0, 0))), kernel.shape[:2]

    def row(index):
        of_g = jax.lax.dynamic_slice_in_dim(g, index, 1, 1).astype(wide)
        reach = dilation * (size[0] - 1) + 1
        lines = jax.lax.dynamic_slice_in_dim(padded, index * strides, reach, 1)
        return [tap.astype(wide) * of_g for *_, tap in _taps(lines, size, (1, g.shape[2]), strides, dilation)]

    sums = jax.lax.fori_loop(
        1, g.shape[1], lambda index, sums: [a + b for a, b in zip(sums, row(index), strict=True)], row(0)
    )
    return jnp.stack([each.sum((0, 1, 2)) for each in sums]).reshape(kernel.shape).astype(kernel.dtype)


def _taps(
    x: jax.Array, size: tuple[int, ...], outputs: Size, strides: int, dilation: int
) -> Iterator[tuple[int, int, jax.Array]]:
    """For every position in the kernel, the slice of the padded maps that it reads."""
    batch, channels = x.shape[0], x.shape[3]
    ends = [(count - 1) * strides + 1 for count in outputs]
    for i in range(size[0]):
        for j in range(size[1]):
            start = (0, i * dilation, j * dilation, 0)
            limit = (batch, start[1] + ends[0], start[2] + ends[1], channels)
            yield i, j, jax.lax.slice(x, start, limit, (1, strides, strides, 1))
