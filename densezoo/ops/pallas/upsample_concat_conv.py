"""Convolution of an upsampled map and its skip, with neither the upsampled nor the concatenated map in memory."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float

from densezoo.ops.checks import check_maps
from densezoo.ops.pallas.launch import (
    Backend,
    after,
    before,
    by_platform,
    lane_bytes,
    rows_that_fit,
    supported,
    tpu_call,
    unravel,
)

# Beyond these a program's slice of the kernel and its pixels crowd its fast memory.
MAX_CHANNELS = 128


def upsample_concat_conv(
    x: Float[Array, "b h w c"],
    skip: Float[Array, "b h2 w2 d"] | None,
    kernel: Float[Array, "3 3 c_plus_d f"],
    *,
    plain: Callable | None = None,
    backend: Backend | None = None,
    interpret: bool = False,
) -> Float[Array, "b _ _ f"]:
    """3x3 convolution, zeros around, of `concatenate([nearest x2 of x, skip], channels)`.

    For the finest levels of a U-Net, of few channels and many pixels, which are bound by memory. Output pixels of one
    phase (row and column even or odd) see only 2x2 pixels of `x`, each through a sum of the kernel's rows and columns.
    These sums are rounded to the kernel's dtype; the products are summed in float32, and have the precision that
    products of float32 have by default on the platform (`jax.default_matmul_precision`).

    Only the forward pass is a kernel. The backward pass is XLA's, the `jax.vjp` of `plain`, and does build what `plain`
    builds. Neither has been timed on hardware, see `densezoo.ops.pallas`.

    Args:
        x: NHWC maps. The kernels take float32 and bfloat16.
        skip: maps of twice the size, or None.
        kernel: (3, 3, channels of x and then of the skip, features), in the dtype of the maps.
        plain: a function of (x, skip, kernel) with the same result, to differentiate and to compute what the kernels do
          not take: more than 128 channels or features, rows too long for a TPU's fast memory, other dtypes, other
          platforms. None takes one that builds the upsampled and concatenated maps.
        backend: None takes the platform's kernel; "tpu" or "gpu" forces one, which makes sense in interpret mode.
        interpret: runs the kernel as plain operations, on any platform and slowly, to check it.

    Returns:
        Maps of twice the height and width of `x`.

    Raises:
        ValueError: `x` is not NHWC or is empty, a skip or kernel whose shape does not fit, or an unknown backend.
        TypeError: dtypes that differ or are not float.

    Example:
        >>> import jax.numpy as jnp
        >>> x, skip = jnp.ones((1, 1, 1, 1)), jnp.zeros((1, 2, 2, 1))
        >>> upsample_concat_conv(x, skip, jnp.ones((3, 3, 2, 1)), backend="gpu", interpret=True)[0, :, :, 0].tolist()
        [[4.0, 4.0], [4.0, 4.0]]
    """
    _check(x, skip, kernel)
    return _conv(x, skip, kernel, plain or _plain, backend, interpret)


def _check(x, skip, kernel):
    check_maps(x)
    batch, height, width, channels = x.shape
    if skip is not None:
        if skip.ndim != 4 or skip.shape[:3] != (batch, 2 * height, 2 * width) or not skip.shape[3]:
            raise ValueError(
                f"expected a skip of shape {(batch, 2 * height, 2 * width)} and channels, twice the size of x"
                f" {x.shape}; got {skip.shape}: resize it, or pass None"
            )
        channels += skip.shape[3]
    if kernel.ndim != 4 or kernel.shape[:3] != (3, 3, channels) or not kernel.shape[3]:
        raise ValueError(f"expected a kernel of shape (3, 3, {channels}, features), got {kernel.shape}")
    dtypes = [a.dtype for a in (x, skip, kernel) if a is not None]
    if len(set(dtypes)) > 1:
        raise TypeError(f"expected maps and kernel of one dtype, got {', '.join(map(str, dtypes))}: cast them")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _conv(x, skip, kernel, plain, backend, interpret):
    rows = _rows(x, skip, kernel)
    widest = max(x.shape[3], _depth(skip), kernel.shape[3])
    elements = 4 * x.size // x.shape[3] * widest
    fits = widest <= MAX_CHANNELS and supported(elements, x, skip, kernel)
    tpu = functools.partial(_conv_tpu, rows=rows, interpret=interpret) if fits and rows else None
    gpu = functools.partial(_conv_gpu, interpret=interpret) if fits else None
    return by_platform(plain, tpu, gpu, backend, x, skip, kernel)


_conv.defvjp(
    lambda x, skip, kernel, *static: (_conv(x, skip, kernel, *static), (x, skip, kernel)),
    lambda plain, backend, interpret, saved, g: jax.vjp(plain, *saved)[1](g),
)


def _depth(skip):
    return 0 if skip is None else skip.shape[3]


def _plain(x, skip, kernel):
    batch, height, width, channels = x.shape
    y = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    y = y.reshape(batch, 2 * height, 2 * width, channels)
    if skip is not None:
        y = jnp.concatenate([y, skip], 3)
    return jax.lax.conv_general_dilated(y, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _phase_kernels(kernel):
    """(3, 3, c, f) -> (p, q, 3, 3, c, f): what the 3x3 pixels around one of `x` give to its output of phase (p, q).

    Along rows, output 2i sees pixel i - 1 through the kernel's first row and pixel i through the two others; output
    2i + 1 sees pixel i through the first two rows and i + 1 through the last. Columns likewise.
    """
    sums = jnp.array(
        [[[1, 0, 0], [0, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 0], [0, 0, 1]]],  # phase, pixel, row of the kernel
        jnp.float32,
    )
    wide = kernel.astype(jnp.float32)
    summed = jnp.einsum("pak,qbl,klcf->pqabcf", sums, sums, wide, precision=jax.lax.Precision.HIGHEST)
    return summed.astype(kernel.dtype)


def _rows(x, skip, kernel):
    """Rows of `x` that a TPU program takes; 0 if not even one fits."""
    _, height, width, channels = x.shape
    features = kernel.shape[3]
    # Blocks are buffered twice, and the pixels are shifted, multiplied and merged besides. The factors come from what
    # libtpu allocated for several shapes: smaller ones overflowed.
    row = 6 * lane_bytes(width, channels) + 3 * lane_bytes(width, 4 * features) + 7 * lane_bytes(2 * width, features)
    if skip is not None:
        row += 7 * lane_bytes(2 * width, skip.shape[3])
    return rows_that_fit(height, row)


def _convolve(lines, kernel, rows):
    """3x3 convolution, zeros on both sides: ((rows + 2), w, c) and (3, 3, c, f) -> (rows, w, f) in float32."""
    _, width, channels = lines.shape
    side = jnp.zeros((rows + 2, 1, channels), lines.dtype)
    shifted = (before(lines, side, 1), lines, after(lines, side, 1))
    total = jnp.zeros((rows * width, kernel.shape[3]), jnp.float32)
    for row in range(3):
        for column in range(3):
            pixels = shifted[column][row : row + rows].reshape(rows * width, channels)
            total = total + jnp.dot(pixels, kernel[row, column], preferred_element_type=jnp.float32)
    return total.reshape(rows, width, -1)


def _conv_tpu(x, skip, kernel, *, rows, interpret):
    batch, height, width, channels = x.shape
    features = kernel.shape[3]
    # The four phases side by side, as 4f features: a matrix unit multiplies with 128 columns at the price of one.
    phases = jnp.moveaxis(_phase_kernels(kernel[:, :, :channels]), (0, 1), (3, 4)).reshape(3, 3, channels, 4 * features)

    def with_halo(above, lines, below):
        """Lines of successive rows, the first one row above this block; zeros where the map has ended."""
        lines = jnp.concatenate([above, lines, below], 0)
        per_row = (lines.shape[0] - 2) // rows
        row = pl.program_id(1) * rows * per_row - 1 + jax.lax.broadcasted_iota(jnp.int32, lines.shape, 0)
        return jnp.where((row >= 0) & (row < height * per_row), lines, jnp.zeros((), lines.dtype))

    def body(*refs):
        x_ref, x_above, x_below, *skip_refs, phases_ref, kernel_ref, y_ref = refs
        lines = with_halo(x_above[0], x_ref[0], x_below[0])
        y = _convolve(lines, phases_ref[...], rows)
        parts = [y[:, :, i * features : (i + 1) * features] for i in range(4)]
        y = [jnp.stack(parts[i : i + 2], 2).reshape(rows, 2 * width, features) for i in (0, 2)]
        if skip_refs:
            skip_ref, skip_above, skip_below = skip_refs
            lines = skip_ref[0].reshape(2 * rows, 2 * width, -1)
            lines = with_halo(skip_above[0, 0], lines, skip_below[0, 0])
            z = _convolve(lines, kernel_ref[...], 2 * rows).reshape(rows, 2, 2 * width, features)
            y = [y[0] + z[:, 0], y[1] + z[:, 1]]
        for phase in (0, 1):
            y_ref[0, :, phase] = y[phase].astype(y_ref.dtype)

    def above(i):
        return jnp.maximum(i * rows - 1, 0)

    def below(i):
        return jnp.minimum((i + 1) * rows, height - 1)

    def whole(shape):
        return pl.BlockSpec(shape, lambda b, i: (0,) * len(shape))

    line = (1, 1, width, channels)
    specs = [
        pl.BlockSpec((1, rows, width, channels), lambda b, i: (b, i, 0, 0)),
        pl.BlockSpec(line, lambda b, i: (b, above(i), 0, 0)),
        pl.BlockSpec(line, lambda b, i: (b, below(i), 0, 0)),
    ]
    operands = [x, x, x]
    if skip is not None:
        depth = skip.shape[3]
        line = (1, 1, 1, 2 * width, depth)
        specs += [
            pl.BlockSpec((1, rows, 2, 2 * width, depth), lambda b, i: (b, i, 0, 0, 0)),
            pl.BlockSpec(line, lambda b, i: (b, above(i), 1, 0, 0)),
            pl.BlockSpec(line, lambda b, i: (b, below(i), 0, 0, 0)),
        ]
        operands += 3 * [skip.reshape(batch, height, 2, 2 * width, depth)]
    rest = kernel[:, :, channels:] if skip is not None else kernel
    y = tpu_call(
        body,
        (batch, pl.cdiv(height, rows)),
        [*specs, whole(phases.shape), whole(rest.shape)],
        pl.BlockSpec((1, rows, 2, 2 * width, features), lambda b, i: (b, i, 0, 0, 0)),
        jax.ShapeDtypeStruct((batch, height, 2, 2 * width, features), x.dtype),
        interpret,
    )(*operands, phases, rest)
    return y.reshape(batch, 2 * height, 2 * width, features)


def _padded(size):
    """The next power of two, from 16 on: what Triton's products take."""
    return max(16, pl.next_power_of_2(size))


def _conv_gpu(x, skip, kernel, *, interpret):
    batch, height, width, channels = x.shape
    features, depth = kernel.shape[3], _depth(skip)
    size = batch * 4 * height * width * features
    block = 64

    def body(*refs):
        x_ref, *skip_refs, phases_ref, kernel_ref, y_ref = refs
        # Programs of the same pixels and another phase run side by side, so that the caches answer their reads.
        phase = pl.program_id(0)
        p, q = jax.lax.div(phase, jnp.int32(2)), jax.lax.rem(phase, jnp.int32(2))
        pixel = pl.program_id(1) * block + jnp.arange(block, dtype=jnp.int32)
        image, row, column = unravel(pixel, (batch, height, width))
        feature = jnp.arange(_padded(features), dtype=jnp.int32)

        def product(map_ref, scale, channels, i, j, weights_ref, weights_at):
            """The pixels at (i, j) times one (c, f) slice of the kernel; outside the map, zeros."""
            inside = (image < batch) & (i >= 0) & (i < scale * height) & (j >= 0) & (j < scale * width)
            channel = jnp.arange(_padded(channels), dtype=jnp.int32)
            at = ((image * scale * height + i) * scale * width + j)[:, None] * channels + channel[None, :]
            pixels = _load(map_ref, at, inside[:, None] & (channel < channels)[None, :])
            at = (weights_at * channels + channel)[:, None] * features + feature[None, :]
            weights = _load(weights_ref, at, (channel < channels)[:, None] & (feature < features)[None, :])
            return jnp.dot(pixels, weights, preferred_element_type=jnp.float32)

        total = jnp.zeros((block, _padded(features)), jnp.float32)
        for a in (0, 1):
            for b in (0, 1):
                weights_at = (phase * 3 + p + a) * 3 + q + b
                total += product(x_ref, 1, channels, row + p + a - 1, column + q + b - 1, phases_ref, weights_at)
        if skip_refs:
            for a in range(3):
                for b in range(3):
                    i, j = 2 * row + p + a - 1, 2 * column + q + b - 1
                    total += product(skip_refs[0], 2, depth, i, j, kernel_ref, 3 * a + b)
        inside = (image < batch)[:, None] & (feature < features)[None, :]
        at = ((image * 2 * height + 2 * row + p) * 2 * width + 2 * column + q)[:, None] * features + feature[None, :]
        # Masked elements point past the end: interpret mode drops what lies there.
        pltriton.store(y_ref.at[jnp.where(inside, at, size)], total.astype(y_ref.dtype), mask=inside)

    rest = kernel[:, :, channels:] if skip is not None else kernel
    operands = [a for a in (x, skip, _phase_kernels(kernel[:, :, :channels]), rest) if a is not None]
    y = pl.pallas_call(
        body,
        grid=(4, pl.cdiv(batch * height * width, block)),
        out_shape=jax.ShapeDtypeStruct((size,), x.dtype),
        compiler_params=pltriton.CompilerParams(num_warps=4),
        interpret=interpret,
    )(*(a.reshape(-1) for a in operands))
    return y.reshape(batch, 2 * height, 2 * width, features)


def _load(ref, at, mask):
    return pltriton.load(ref.at[at], mask=mask, other=0.0)
