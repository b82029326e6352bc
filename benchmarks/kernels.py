"""The compared kernels: densezoo's function, the stock JAX equivalent, and the minimum work."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import pallas_kernels
from benchmarks import stock_kernels as stock
from densezoo import ops

Shape = tuple[int, int, int, int]
"""Batch, height, width, channels of the kernel's input."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel of the benchmark.

    Attributes:
        op: densezoo's function. Traced under `ops.implementation("reference")`, it is the plain form.
        inputs: creates NumPy inputs for a shape. float32 inputs are cast and differentiated; float64 inputs
                are float32 in every dtype (positions, for which bfloat16 is too coarse).
        flops: minimum known FLOPs of the forward and of the backward pass.
        stock: the call with only JAX and Flax; None if they have no such function.
        pallas: the kernel for TPUs; its last argument selects interpret mode.
        stock_differs: the reason, if stock's values differ by definition; it is then timed without a check.
        rereads: bytes that the backward pass reads besides the cotangent: a function of input and output bytes.
    """

    op: Callable[..., Any]
    inputs: Callable[[np.random.Generator, Shape], tuple[np.ndarray, ...]]
    flops: Callable[[Shape], tuple[float, float]]
    stock: Callable[..., Any] | None = None
    pallas: Callable[..., Any] | None = None
    stock_differs: str = ""
    rereads: Callable[[Sequence[jax.Array], Sequence[jax.Array]], int] = lambda inputs, outputs: 0


def make_inputs(name: str, shape: Shape, dtype: str, seed: int) -> tuple[jax.Array, ...]:
    """The inputs of a kernel, equal for every form."""
    generator = np.random.default_rng([seed, zlib.crc32(name.encode()), *shape])

    def place(x: np.ndarray) -> jax.Array:
        if x.dtype == np.float64:
            return jnp.asarray(x, jnp.float32)
        return jnp.asarray(x, dtype if x.dtype == np.float32 else x.dtype)

    return tuple(place(x) for x in KERNELS[name].inputs(generator, shape))


def is_float(x: Any) -> bool:
    """Whether an input is differentiated."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def least_bytes(kernel: Kernel, inputs: Sequence[Any], outputs: Sequence[Any], *, backward: bool) -> int:
    """Minimum bytes to move: inputs and outputs once; backward, the cotangent, repeated reads, and the gradients."""
    forward = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
    if not backward:
        return forward
    floats = [x for x in (*inputs, *outputs) if is_float(x)]
    return forward + sum(map(_bytes, floats)) + kernel.rereads(inputs, outputs)


def _bytes(x: Any) -> int:
    return math.prod(x.shape) * x.dtype.itemsize


def _reads_inputs(inputs, outputs):
    return sum(map(_bytes, inputs))


def _maps(generator, shape):
    return (generator.standard_normal(shape, np.float32),)


def _with_kernel(size, out, channels=1.0, skip=0.0):
    """Maps, optionally a skip of twice their size, and a kernel; out, channels and skip are shares of the channels."""

    def make(generator, shape):
        batch, height, width, c = shape
        d, f = round(skip * c), max(1, round(out * c))
        kernel = generator.standard_normal((size, size, round(channels * c) + d, f), np.float32)
        kernel /= np.float32(size * math.sqrt(c + d))
        x = generator.standard_normal(shape, np.float32)
        if not d:
            return x, kernel
        return x, generator.standard_normal((batch, 2 * height, 2 * width, d), np.float32), kernel

    return make


def _depthwise_inputs(size, generator, shape):
    kernel = generator.standard_normal((size, size, 1, shape[3]), np.float32) / np.float32(size)
    return generator.standard_normal(shape, np.float32), kernel


def _norm_inputs(generator, shape):
    # The bias is so large that the ReLU passes everything: at its kink, rounding would change the gradient.
    scale = generator.uniform(0.5, 1.5, shape[3]).astype(np.float32)
    return generator.standard_normal(shape, np.float32), scale, np.full(shape[3], 12, np.float32)


def _unpool_inputs(generator, shape):
    return generator.standard_normal(shape, np.float32), generator.integers(0, 4, shape, np.int8)


def _carafe_inputs(generator, shape):
    batch, height, width, _ = shape
    masks = np.exp(generator.standard_normal((batch, 2 * height, 2 * width, 25), np.float32))
    return generator.standard_normal(shape, np.float32), masks / masks.sum(-1, keepdims=True)


def _sample_inputs(generator, shape):
    """Positions like DySample's, within a quarter pixel of the regular grid, so never exactly on a pixel.

    There the gradient is discontinuous, and rounding would determine a form's side.
    """
    batch, height, width, _ = shape
    grid = np.stack(np.meshgrid(np.arange(2 * height), np.arange(2 * width), indexing="ij"), -1)
    positions = (grid + 0.5) / 2 - 0.5 + generator.uniform(-0.25, 0.25, (batch, *grid.shape))
    whole = np.clip(np.floor(positions), 0, [height - 2, width - 2])
    return generator.standard_normal(shape, np.float32), whole + np.clip(positions - whole, 0.05, 0.95)


def _separable_flops(taps, size):
    """A multiplication and an addition per tap, along the rows, then along the columns; likewise for the adjoint."""

    def flops(shape):
        b, h, w, c = shape
        height, width = size(h, w)
        return (b * height * w * c + b * height * width * c) * (2.0 * taps - 1), (
            2.0 * taps * (b * height * w * c + b * height * width * c) - b * height * w * c - b * h * w * c
        )

    return flops


def _products(forward):
    """FLOPs of matrix products; the backward pass has two for each."""
    return lambda shape: (2.0 * forward(*shape), 4.0 * forward(*shape))


def _plus(first, second):
    return lambda shape: tuple(a + b for a, b in zip(first(shape), second(shape), strict=True))


_double = lambda h, w: (2 * h, 2 * w)  # noqa: E731
_odd = lambda h, w: (2 * h - 1, 2 * w - 1)  # noqa: E731

KERNELS: dict[str, Kernel] = {
    **{
        f"nearest_x{factor}": Kernel(
            op=lambda x, factor=factor: ops.resize_nearest(x, stock.larger(x, factor)),
            inputs=_maps,
            flops=lambda s, factor=factor: (0.0, math.prod(s) * (factor**2 - 1.0)),
            stock=lambda x, factor=factor: stock.image_resize(x, stock.larger(x, factor), "nearest"),
        )
        for factor in (2, 4)
    },
    **{
        f"bilinear_x{factor}": Kernel(
            op=lambda x, factor=factor: ops.resize_bilinear(x, stock.larger(x, factor)),
            inputs=_maps,
            flops=_separable_flops(2, lambda h, w, factor=factor: (factor * h, factor * w)),
            stock=lambda x, factor=factor: stock.image_resize(x, stock.larger(x, factor), "bilinear"),
            pallas=pallas_kernels.bilinear_x2 if factor == 2 else None,
        )
        for factor in (2, 4)
    },
    "bilinear_align_corners_x2": Kernel(
        op=lambda x: ops.resize_bilinear(x, stock.larger(x), align_corners=True),
        inputs=_maps,
        flops=_separable_flops(2, _double),
        stock=stock.align_corners_x2,
    ),
    "bilinear_odd": Kernel(
        op=lambda x: ops.resize_bilinear(x, _odd(*x.shape[1:3])),
        inputs=_maps,
        flops=_separable_flops(2, _odd),
        stock=lambda x: stock.image_resize(x, _odd(*x.shape[1:3]), "bilinear"),
    ),
    "bicubic_x2": Kernel(
        op=lambda x: ops.resize_bicubic(x, stock.larger(x)),
        inputs=_maps,
        flops=_separable_flops(4, _double),
        stock=lambda x: stock.image_resize(x, stock.larger(x), "cubic"),
        stock_differs="jax's cubic kernel has a = -0.5, torch's and densezoo's -0.75",
    ),
    "transposed_2x2": Kernel(
        op=lambda x, kernel: ops.conv_transpose(x, kernel, stride=2),
        inputs=_with_kernel(2, out=0.5),
        flops=_products(lambda b, h, w, c: b * h * w * c * max(1, round(c / 2)) * 4),
        stock=partial(stock.transposed, "VALID"),
        rereads=_reads_inputs,
    ),
    "transposed_4x4": Kernel(
        op=lambda x, kernel: ops.conv_transpose(x, kernel, stride=2, padding=1),
        inputs=_with_kernel(4, out=0.5),
        flops=_products(lambda b, h, w, c: b * h * w * c * max(1, round(c / 2)) * 16),
        stock=partial(stock.transposed, "SAME"),
        rereads=_reads_inputs,
    ),
    "resize_conv": Kernel(
        op=lambda x, kernel: ops.upsample_concat_conv(x, None, kernel),
        inputs=_with_kernel(3, out=0.5),
        # Four 2x2 convolutions of the small map: 16 taps, where one 3x3 convolution of the large one has 36.
        flops=_products(lambda b, h, w, c: b * h * w * c * max(1, round(c / 2)) * 16),
        stock=lambda x, kernel: stock.conv(stock.image_resize(x, stock.larger(x), "nearest"), kernel),
        rereads=_reads_inputs,
    ),
    "pixel_shuffle": Kernel(op=lambda x: ops.pixel_shuffle(x, 2), inputs=_maps, flops=lambda shape: (0.0, 0.0)),
    "max_pool_2x2_indices": Kernel(
        op=lambda x: ops.max_pool_with_indices(x),
        inputs=_maps,
        flops=lambda shape: (3 / 4 * math.prod(shape), 0.0),
        stock=stock.pool_with_indices,
        rereads=lambda inputs, outputs: _bytes(outputs[1]),
    ),
    "max_pool_3x3_s2": Kernel(
        op=lambda x: ops.max_pool(x, 3, 2, 1),
        inputs=_maps,
        flops=lambda shape: (8 / 4 * math.prod(shape), math.prod(shape) / 4),
        stock=lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),  # pyright: ignore[reportArgumentType]
        # One byte per maximum for its position, written and read.
        rereads=lambda inputs, outputs: 2 * math.prod(outputs[0].shape),
    ),
    "max_unpool": Kernel(
        op=lambda x, indices: ops.max_unpool(x, indices),
        inputs=_unpool_inputs,
        flops=lambda shape: (0.0, 0.0),
        stock=stock.unpool,
        pallas=pallas_kernels.max_unpool_x2,
        rereads=lambda inputs, outputs: _bytes(inputs[1]),
    ),
    "upsample_concat_conv_nearest": Kernel(
        op=lambda x, skip, kernel: ops.upsample_concat_conv(x, skip, kernel),
        inputs=_with_kernel(3, out=0.5, skip=0.5),
        flops=_products(lambda b, h, w, c: b * h * w * max(1, round(c / 2)) * (16 * c + 36 * round(c / 2))),
        stock=partial(stock.concat_conv, "nearest"),
        rereads=_reads_inputs,
    ),
    "upsample_concat_conv_bilinear": Kernel(
        op=lambda x, skip, kernel: ops.upsample_concat_conv(x, skip, kernel, method="bilinear"),
        inputs=_with_kernel(3, out=0.5, skip=0.5),
        flops=_plus(
            _products(lambda b, h, w, c: b * h * w * max(1, round(c / 2)) * 36 * (c + round(c / 2))),
            _separable_flops(2, _double),
        ),
        stock=partial(stock.concat_conv, "bilinear"),
        rereads=_reads_inputs,
    ),
    "batch_norm_relu": Kernel(
        op=lambda x, scale, bias: ops.batch_norm(x, scale, bias, epsilon=1e-5, relu=True)[0],
        inputs=_norm_inputs,
        flops=lambda shape: (6.0 * math.prod(shape), 10.0 * math.prod(shape)),
        stock=stock.norm_relu,
        rereads=_reads_inputs,
    ),
    "conv_1x1": Kernel(
        op=lambda x, kernel: ops.conv(x, kernel),
        inputs=_with_kernel(1, out=2),
        flops=_products(lambda b, h, w, c: b * h * w * c * 2 * c),
        stock=stock.conv,
        rereads=_reads_inputs,
    ),
    **{
        f"depthwise_{size}x{size}": Kernel(
            op=lambda x, kernel, size=size: ops.conv(x, kernel, padding=size // 2, groups=x.shape[3]),
            inputs=partial(_depthwise_inputs, size),
            flops=_products(lambda b, h, w, c, size=size: b * h * w * c * size**2),
            stock=stock.depthwise,
            rereads=_reads_inputs,
        )
        for size in (3, 7)
    },
    "carafe": Kernel(
        op=lambda x, masks: ops.carafe(x, masks),
        inputs=_carafe_inputs,
        flops=_products(lambda b, h, w, c: b * h * w * c * 4 * 25),
        rereads=_reads_inputs,
    ),
    "dysample": Kernel(
        op=lambda x, positions: ops.sample_bilinear(x, positions),
        inputs=_sample_inputs,
        # Three interpolations of three operations; as many for each of the two kinds of gradients.
        flops=lambda shape: (4 * 9.0 * math.prod(shape), 4 * 18.0 * math.prod(shape)),
        stock=stock.sample,
        rereads=_reads_inputs,
    ),
}
"""The kernels by name."""
