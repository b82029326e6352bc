"""Resampling to any size. Every resize here is linear in its input, so each is described by a table of taps.

Row `i` of the output is `sum_k weights[i, k] * input[indices[i, k]]`. The gradient is the transposed table applied to
the cotangent, which is again a gather and a weighted sum: no scatter, and no dense matrix as in `jax.image.resize`.
It is a custom VJP, so these functions differentiate in reverse mode (any number of times); in forward mode only with
`ops.implementation("reference")`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_maps, check_size
from densezoo.ops.implementation import chosen
from densezoo.types import Size, accumulator_dtype


class Taps(NamedTuple):
    """A sparse matrix (outputs x inputs) with the same number of entries in every row."""

    indices: np.ndarray  # (outputs, taps), int
    weights: np.ndarray  # (outputs, taps), float64; unused entries have weight 0
    inputs: int

    def transpose(self) -> "Taps":
        """The table of the adjoint: for every input, the outputs that read it."""
        readers: list[list[tuple[int, float]]] = [[] for _ in range(self.inputs)]
        for row, (indices, weights) in enumerate(zip(self.indices, self.weights, strict=True)):
            for index, weight in zip(indices, weights, strict=True):
                if weight:
                    readers[index].append((row, weight))
        taps = max(1, *(len(reader) for reader in readers))
        indices = np.zeros((self.inputs, taps), self.indices.dtype)
        weights = np.zeros((self.inputs, taps), self.weights.dtype)
        for row, reader in enumerate(readers):
            for tap, (index, weight) in enumerate(reader):
                indices[row, tap], weights[row, tap] = index, weight
            # Padding entries read a row that is read anyway, which keeps the gather local.
            indices[row, len(reader) :] = reader[-1][0] if reader else 0
        return Taps(indices, weights, len(self.indices))


@functools.lru_cache(maxsize=1024)
def nearest_taps(inputs: int, outputs: int, half_pixel: bool) -> Taps:
    """Taps of nearest-neighbour resampling."""
    # Integer arithmetic: floor((i + 1/2) * inputs / outputs) and floor(i * inputs / outputs) without rounding.
    rows = np.arange(outputs)
    indices = (2 * rows + 1) * inputs // (2 * outputs) if half_pixel else rows * inputs // outputs
    return Taps(indices[:, None], np.ones((outputs, 1)), inputs)


@functools.lru_cache(maxsize=1024)
def bilinear_taps(inputs: int, outputs: int, align_corners: bool) -> Taps:
    """Taps of linear interpolation along one axis."""
    rows = np.arange(outputs, dtype=np.float64)
    if align_corners:
        positions = rows * ((inputs - 1) / (outputs - 1)) if outputs > 1 else 0 * rows
    else:
        positions = np.maximum((rows + 0.5) * (inputs / outputs) - 0.5, 0)
    low = np.minimum(np.floor(positions).astype(int), inputs - 1)
    high = np.minimum(low + 1, inputs - 1)
    fraction = positions - low
    return Taps(np.stack([low, high], 1), np.stack([1 - fraction, fraction], 1), inputs)


@functools.lru_cache(maxsize=1024)
def bicubic_taps(inputs: int, outputs: int, align_corners: bool) -> Taps:
    """Taps of cubic convolution along one axis, with a = -0.75; beyond the border the border's pixel repeats."""
    rows = np.arange(outputs, dtype=np.float64)
    if align_corners:
        positions = rows * ((inputs - 1) / (outputs - 1)) if outputs > 1 else 0 * rows
    else:
        positions = (rows + 0.5) * (inputs / outputs) - 0.5
    low = np.floor(positions).astype(int)
    distance = np.abs((positions - low)[:, None] - np.arange(-1, 3))
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    return Taps(np.clip(low[:, None] + np.arange(-1, 3), 0, inputs - 1), weights, inputs)


def apply_taps(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    """Multiplies the sparse matrix `taps` with `x` along `axis`, in `x`'s dtype (halves are summed in float32)."""

    @jax.custom_vjp
    def apply(x):
        if x.shape[axis] != taps.inputs:
            raise ValueError(f"the taps take {taps.inputs} rows along axis {axis}, got shape {x.shape}")
        if taps.indices.shape[1] == 1 and (taps.weights == 1).all():
            return jnp.take(x, taps.indices[:, 0], axis=axis)
        compute = accumulator_dtype(x.dtype)
        shape = tuple(-1 if i == axis else 1 for i in range(x.ndim))
        total = None
        for tap in range(taps.indices.shape[1]):
            rows = jnp.take(x, taps.indices[:, tap], axis=axis).astype(compute)
            weights = taps.weights[:, tap].reshape(shape)
            term = rows * jnp.asarray(weights, compute)
            if not weights.all():  # what has no weight is not read: 0 times infinity would be NaN
                term = jnp.where(weights != 0, term, jnp.zeros((), compute))
            total = term if total is None else total + term
        assert total is not None  # a table has at least one tap
        return total.astype(x.dtype)

    apply.defvjp(lambda x: (apply(x), None), lambda _, g: (apply_taps(jnp.asarray(g), taps.transpose(), axis),))
    return apply(x)


def resize_nearest(x: Float[Array, "b h w c"], size: Size, *, half_pixel: bool = True) -> Float[Array, "b _ _ c"]:
    """Nearest-neighbour resize to `size`.

    Args:
        x: NHWC maps of any dtype.
        size: (height, width) of the result.
        half_pixel: True samples at pixel centres, `floor((i + 0.5) * in / out)`, torch's "nearest-exact"; False gives
          torch's older "nearest", `floor(i * in / out)`, which segmentation_models_pytorch uses. They agree when the
          size grows by a whole factor.

    Raises:
        ValueError: `x` is not NHWC or is empty, or `size` is not two positive whole numbers.

    Example:
        >>> import jax.numpy as jnp
        >>> resize_nearest(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1), (1, 4))[0, 0, :, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    check_maps(x, floating=False)
    size = check_size(size)
    if chosen() == "reference":
        return reference.resize_nearest(x, size, half_pixel=half_pixel)
    if size[0] % x.shape[1] == size[1] % x.shape[2] == 0:
        return _repeat(x, (size[0] // x.shape[1], size[1] // x.shape[2]))
    for axis, outputs in ((1, size[0]), (2, size[1])):
        if outputs != x.shape[axis]:
            x = apply_taps(x, nearest_taps(x.shape[axis], outputs, half_pixel), axis)
    return x


def _repeat(x: jax.Array, factors: Size) -> jax.Array:
    """Every pixel as a block: a broadcast and a reshape."""
    batch, height, width, channels = x.shape
    rows, columns = factors
    blocks = (batch, height, rows, width, columns, channels)

    @jax.custom_vjp
    def repeat(x):
        return jnp.broadcast_to(x[:, :, None, :, None], blocks).reshape(batch, height * rows, width * columns, channels)

    def backward(_, g):
        # Written as additions of strided maps, which XLA fuses, instead of as a reduction over two inner axes.
        g = jnp.asarray(g).reshape(blocks)
        wide = g.astype(accumulator_dtype(g.dtype))
        if rows * columns > 16:
            return (wide.sum((2, 4)).astype(g.dtype),)
        parts = [wide[:, :, i, :, j] for i in range(rows) for j in range(columns)]
        return (functools.reduce(jnp.add, parts).astype(g.dtype),)

    repeat.defvjp(lambda x: (repeat(x), None), backward)
    return repeat(x)


def resize_bilinear(x: Float[Array, "b h w c"], size: Size, *, align_corners: bool = False) -> Float[Array, "b _ _ c"]:
    """Bilinear resize to `size`, without antialiasing, with the numbers of `torch.nn.functional.interpolate`.

    Args:
        x: NHWC float maps.
        size: (height, width) of the result.
        align_corners: False samples at half-pixel centres; True maps the corner pixels onto each other, which makes the
          result depend on the size of the whole image. Some reference models need it.

    Raises:
        ValueError: `x` is not NHWC or is empty, or `size` is not two positive whole numbers.
        TypeError: `x` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
        >>> resize_bilinear(x, (1, 4))[0, 0, :, 0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    check_maps(x)
    size = check_size(size)
    if chosen() == "reference":
        return reference.resize_bilinear(x, size, align_corners=align_corners)
    if chosen() == "pallas" and not align_corners and size == (2 * x.shape[1], 2 * x.shape[2]):
        from densezoo.ops import pallas  # slow to import

        return pallas.bilinear_x2(x)
    return _by_axis(x, size, functools.partial(bilinear_taps, align_corners=align_corners))


def resize_bicubic(x: Float[Array, "b h w c"], size: Size, *, align_corners: bool = False) -> Float[Array, "b _ _ c"]:
    """Bicubic resize to `size`, without antialiasing, with the numbers of `torch.nn.functional.interpolate`.

    Args:
        x: NHWC float maps. The result overshoots where they jump.
        size: (height, width) of the result.
        align_corners: as in `resize_bilinear`.

    Raises:
        ValueError: `x` is not NHWC or is empty, or `size` is not two positive whole numbers.
        TypeError: `x` is not of a float type.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1)
        >>> resize_bicubic(x, (1, 8))[0, 0, 2:6, 0].round(3).tolist()
        [-0.105, 0.156, 0.844, 1.105]

    References:
        Keys, Cubic convolution interpolation for digital image processing, 1981.
        https://doi.org/10.1109/TASSP.1981.1163711
    """
    check_maps(x)
    size = check_size(size)
    if chosen() == "reference":
        return reference.resize_bicubic(x, size, align_corners=align_corners)
    return _by_axis(x, size, functools.partial(bicubic_taps, align_corners=align_corners))


def _by_axis(x: jax.Array, size: Size, taps: Callable[[int, int], Taps]) -> jax.Array:
    for axis, outputs in ((1, size[0]), (2, size[1])):
        if outputs != x.shape[axis]:
            x = apply_taps(x, taps(x.shape[axis], outputs), axis)
    return x
