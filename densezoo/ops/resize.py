"""Resampling to any size. Every resize is linear in its input, so it is represented by a table of taps.

Row `i` of the output is `sum_k weights[i, k] * input[indices[i, k]]`. The gradient is the transposed table applied to
the cotangent, which is again a gather and a weighted sum: no scatter, and no dense matrix as in `jax.image.resize`.
The functions are custom VJPs: reverse mode works (any number of times), and forward mode needs
`ops.implementation("reference")`.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_fixed, check_maps, check_size
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import explicitly_sharded, per_device, sides_shared, with_borders
from densezoo.ops.taps import Taps, bicubic_taps, bilinear_taps, nearest_taps
from densezoo.types import Size, accumulator_dtype


def apply_taps(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    """Multiplies the sparse matrix `taps` with NHWC maps along axis 1 or 2, in `x`'s dtype.

    Halves are summed in float32.
    """
    if x.shape[axis] != taps.inputs:
        raise ValueError(f"the taps take {taps.inputs} rows along axis {axis}, got shape {x.shape}")

    def apply(x):
        return jax.lax.platform_dependent(
            x,
            cpu=functools.partial(_apply_taps, taps=taps, axis=axis, take=_take_within),
            default=functools.partial(_apply_taps, taps=taps, axis=axis, take=functools.partial(jnp.take, mode="clip")),
        )

    function = jax.custom_vjp(apply)
    function.defvjp(lambda x: (apply(x), None), lambda _, g: (apply_taps(jnp.asarray(g), taps.transpose(), axis),))
    return function(x)


def _of_neighbours(taps: Taps, count: int) -> tuple[Taps, int] | None:
    """The taps for one of `count` devices that share an axis, and how many pixels of each neighbour they read.

    None if the taps do not repeat from pixel to pixel, with the first and the last one repeated outside.
    """
    factor, rest = divmod(len(taps.indices), taps.inputs)
    if rest or taps.inputs % count or taps.inputs < 3:
        return None
    middle = taps.inputs // 2
    pattern = slice(middle * factor, (middle + 1) * factor)
    offsets, weights = taps.indices[pattern] - middle, taps.weights[pattern]
    own, reach = taps.inputs // count, int(np.abs(offsets).max())

    def repeated(inputs: int) -> Taps:
        indices = (np.arange(inputs)[:, None, None] + offsets).reshape(-1, offsets.shape[1])
        return Taps(indices, np.tile(weights, (inputs, 1)), inputs)

    def sums(taps: Taps) -> np.ndarray:
        matrix = np.zeros((len(taps.indices), taps.inputs))
        np.add.at(matrix, (np.arange(len(matrix))[:, None], taps.indices.clip(0, taps.inputs - 1)), taps.weights)
        return matrix

    if reach > own or not np.allclose(sums(repeated(taps.inputs)), sums(taps), rtol=0, atol=1e-6):
        return None
    indices, weights, _ = repeated(own)
    return Taps(indices + reach, weights, own + 2 * reach), reach


def _apply_taps(x: jax.Array, taps: Taps, axis: int, take: Callable[..., jax.Array]) -> jax.Array:
    if taps.indices.shape[1] == 1 and (taps.weights == 1).all():
        return take(x, taps.indices[:, 0], axis=axis)
    compute = accumulator_dtype(x.dtype)
    shape = tuple(-1 if i == axis else 1 for i in range(x.ndim))
    terms = []
    for indices, weights in zip(taps.indices.T, taps.weights.T, strict=True):
        term = take(x, indices, axis=axis).astype(compute) * jnp.asarray(weights.reshape(shape), compute)
        if not weights.all():  # an empty row reads nothing, not even NaN
            term = jnp.where(weights.reshape(shape) != 0, term, jnp.zeros((), compute))
        terms.append(term)
    return functools.reduce(jnp.add, terms).astype(x.dtype)


def _take_within(x: jax.Array, indices: np.ndarray, axis: int) -> jax.Array:
    """`jnp.take` along axis 1 or 2, within each map or row of it.

    XLA:CPU leaves the gathered axis of `jnp.take` outermost in memory, and then transposes the whole map.
    """
    batch, rest = tuple(range(axis)), tuple(range(axis + 1, x.ndim))
    numbers = jax.lax.GatherDimensionNumbers(
        offset_dims=rest,
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=batch,
        start_indices_batching_dims=batch,
    )
    starts = jnp.broadcast_to(jnp.asarray(indices, jnp.int32)[:, None], (*x.shape[:axis], len(indices), 1))
    return jax.lax.gather(x, starts, numbers, (*(1,) * (axis + 1), *x.shape[axis + 1 :]), mode="clip")


def repeat_edges(x: Float[Array, "b h w c"], missing: Size) -> Float[Array, "b _ _ c"]:
    """`x` with its last row and then its last column repeated, `missing` times each.

    Like `jnp.pad(mode="edge")`, which also reads and joins edges of zero width. For those, XLA:CPU takes ten times as
    long, and devices that share the batch communicate.
    """
    for axis, count in ((1, missing[0]), (2, missing[1])):
        if count:
            edge = jax.lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
            shape = [count if other == axis else side for other, side in enumerate(x.shape)]
            x = jnp.concatenate([x, jnp.broadcast_to(edge, shape)], axis)
    return x


def resize_nearest(x: Float[Array, "b h w c"], size: Size, *, half_pixel: bool = True) -> Float[Array, "b _ _ c"]:
    """Nearest-neighbour resize to `size`.

    Args:
        x: NHWC maps of any dtype.
        size: (height, width) of the result.
        half_pixel: True samples at pixel centres, `floor((i + 0.5) * in / out)`, torch's "nearest-exact". False is
          torch's older "nearest", `floor(i * in / out)`, which segmentation_models_pytorch uses. Both agree if the size
          grows by an integer factor.

    Raises:
        ValueError: if `x` is not NHWC or is empty, or `size` is not two positive integers.

    Example:
        >>> import jax.numpy as jnp
        >>> resize_nearest(jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1), (1, 4))[0, 0, :, 0].tolist()
        [1.0, 1.0, 2.0, 2.0]
    """
    check_maps(x, floating=False)
    size = check_size(size)
    if chosen() == "reference":
        return per_device(functools.partial(reference.resize_nearest, size=size, half_pixel=half_pixel), x)
    if size[0] % x.shape[1] == size[1] % x.shape[2] == 0 and not explicitly_sharded(x):
        return _repeat(x, (size[0] // x.shape[1], size[1] // x.shape[2]))
    check_fixed("resize_nearest by other than whole factors", *x.shape[1:3], *size)
    for axis, outputs in ((1, size[0]), (2, size[1])):
        if outputs != x.shape[axis]:
            x = apply_taps(x, nearest_taps(x.shape[axis], outputs, half_pixel), axis)
    return x


def _repeat(x: jax.Array, factors: Size) -> jax.Array:
    """Repeats every pixel as a block: a broadcast and a reshape."""
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
    """Bilinear resize to `size` without antialiasing, equal to `torch.nn.functional.interpolate`.

    Args:
        x: NHWC float maps.
        size: (height, width) of the result.
        align_corners: False samples at half-pixel centres; True maps the corner pixels onto each other, which makes the
          result depend on the size of the whole image. Some reference models need it.

    Raises:
        ValueError: if `x` is not NHWC or is empty, or `size` is not two positive integers.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
        >>> resize_bilinear(x, (1, 4))[0, 0, :, 0].tolist()
        [0.0, 0.25, 0.75, 1.0]
    """
    check_maps(x)
    size = check_size(size)
    if chosen() == "reference":
        return per_device(functools.partial(reference.resize_bilinear, size=size, align_corners=align_corners), x)
    if any(jax.export.is_symbolic_dim(side) for side in (*x.shape[1:3], *size)):
        return _bilinear_of_any_size(x, size, align_corners)
    return _by_axis(x, size, functools.partial(bilinear_taps, align_corners=align_corners))


def _bilinear_of_any_size(x: jax.Array, size: Size, align_corners: bool) -> jax.Array:
    """Resizes with taps that the program computes from symbolic sizes, for export."""
    y = x.astype(accumulator_dtype(x.dtype))
    for axis in (1, 2):
        inputs, outputs = (jnp.asarray(side, jnp.int32) for side in (x.shape[axis], size[axis - 1]))
        rows = jnp.arange(size[axis - 1], dtype=jnp.int32)
        # Whole numbers until the fraction, for the exact taps.
        if align_corners:
            numerator, denominator = rows * (inputs - 1), jnp.maximum(outputs - 1, 1)
        else:
            numerator, denominator = jnp.maximum((2 * rows + 1) * inputs - outputs, 0), 2 * outputs
        low = numerator // denominator
        fraction = (numerator - low * denominator).astype(y.dtype) / denominator.astype(y.dtype)
        fraction = jnp.expand_dims(fraction, [other for other in range(4) if other != axis])
        near, far = (jnp.take(y, jnp.minimum(index, inputs - 1), axis=axis, mode="clip") for index in (low, low + 1))
        # A tap without weight is not read, not even if it is NaN.
        y = (1 - fraction) * near + jnp.where(fraction > 0, fraction * far, jnp.zeros((), y.dtype))
    return y.astype(x.dtype)


def resize_bicubic(x: Float[Array, "b h w c"], size: Size, *, align_corners: bool = False) -> Float[Array, "b _ _ c"]:
    """Bicubic resize to `size` without antialiasing, equal to `torch.nn.functional.interpolate`.

    Args:
        x: NHWC float maps. The result overshoots at jumps.
        size: (height, width) of the result.
        align_corners: as in `resize_bilinear`.

    Raises:
        ValueError: if `x` is not NHWC or is empty, or `size` is not two positive integers.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 4, 1)
        >>> [round(value, 3) for value in resize_bicubic(x, (1, 8))[0, 0, 2:6, 0].tolist()]
        [-0.105, 0.227, 0.773, 1.105]

    References:
        Keys, Cubic convolution interpolation for digital image processing, 1981.
        https://doi.org/10.1109/TASSP.1981.1163711
    """
    check_maps(x)
    size = check_size(size)
    if chosen() == "reference":
        return per_device(functools.partial(reference.resize_bicubic, size=size, align_corners=align_corners), x)
    check_fixed("resize_bicubic", *x.shape[1:3], *size)
    return _by_axis(x, size, functools.partial(bicubic_taps, align_corners=align_corners))


def _by_axis(x: jax.Array, size: Size, taps: Callable[[int, int], Taps]) -> jax.Array:
    tables = {axis: taps(x.shape[axis], side) for axis, side in ((1, size[0]), (2, size[1])) if side != x.shape[axis]}
    borders, own = {}, dict(tables)
    for axis, (_, count) in sides_shared(x).items():
        if axis not in tables:
            if x.shape[axis] % count == 0:
                borders[axis] = (0, 0)
        elif (near := _of_neighbours(tables[axis], count)) is not None:
            own[axis], reach = near
            borders[axis] = (reach, reach)
    if tables and borders:
        steps = [(table, axis) for axis, table in own.items()]
        return with_borders(functools.partial(_apply_in_turn, steps=steps), x, borders, repeat=True)
    return _apply_in_turn(x, [(table, axis) for axis, table in tables.items()])


def _apply_in_turn(x: jax.Array, steps: list[tuple[Taps, int]]) -> jax.Array:
    def narrow(x, steps):
        return functools.reduce(lambda y, step: apply_taps(y, *step), steps, x)

    def wide(x, steps):
        return narrow(x.astype(accumulator_dtype(x.dtype)), steps).astype(x.dtype)

    def on_platform(x, steps):
        # XLA:GPU fuses both axes, which takes a quarter less time if halves are rounded only at the end.
        forms = {"cuda": functools.partial(wide, steps=steps), "default": functools.partial(narrow, steps=steps)}
        return jax.lax.platform_dependent(x, **forms)

    transposed = [(taps.transpose(), axis) for taps, axis in reversed(steps)]
    function = jax.custom_vjp(functools.partial(on_platform, steps=steps))
    function.defvjp(lambda x: (function(x), None), lambda _, g: (on_platform(jnp.asarray(g), transposed),))
    return function(x)
