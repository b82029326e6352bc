"""The plain form of every operation, which the fast forms are compared with.

Plain JAX without custom gradients, so everything can be differentiated in forward and reverse mode, repeatedly.
`densezoo.ops.implementation("reference")` makes the operations trace these. Input is validated there, not here.

Half-precision input is computed in float32 and returned in its own dtype; convolutions compute in their input's dtype.
Resizing only reads taps with nonzero weights, so an infinity or a NaN only affects outputs in which it has weight. In
torch, which multiplies by 0, it also turns other neighbours into NaN.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Shaped

from densezoo.ops.implementation import whole
from densezoo.types import Size, accumulator_dtype


@whole
def resize_nearest(x: Shaped[Array, "b h w c"], size: Size, *, half_pixel: bool) -> Shaped[Array, "b _ _ c"]:
    """Reads the pixel at floor((i + 1/2) n / m), or at floor(i n / m)."""
    rows, columns = (
        # Integers throughout, to avoid rounding errors.
        (2 * np.arange(m) + 1) * n // (2 * m) if half_pixel else np.arange(m) * n // m
        for n, m in zip(x.shape[1:3], size, strict=True)
    )
    return x[:, rows][:, :, columns]


@whole
def resize_bilinear(x: Float[Array, "b h w c"], size: Size, *, align_corners: bool) -> Float[Array, "b _ _ c"]:
    """Weights the two nearest pixels along each axis by 1 - distance; the border is repeated outside."""
    y = x.astype(accumulator_dtype(x.dtype))
    for axis in (1, 2):
        n = x.shape[axis]
        low, fraction = _positions(n, size[axis - 1], align_corners)
        weights = np.stack([1 - fraction, fraction], 1)
        y = _weigh(y, axis, np.clip(low[:, None] + np.arange(2), 0, n - 1), weights)
    return y.astype(x.dtype)


@whole
def resize_bicubic(x: Float[Array, "b h w c"], size: Size, *, align_corners: bool) -> Float[Array, "b _ _ c"]:
    """Weights the four nearest pixels along each axis by Keys's cubic kernel with a = -0.75, as torch does."""
    y, a = x.astype(accumulator_dtype(x.dtype)), -0.75
    for axis in (1, 2):
        n = x.shape[axis]
        low, fraction = _positions(n, size[axis - 1], align_corners)
        d = np.abs(fraction[:, None] - np.arange(-1, 3))
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
        y = _weigh(y, axis, np.clip(low[:, None] + np.arange(-1, 3), 0, n - 1), np.where(d <= 1, near, far))
    return y.astype(x.dtype)


def _positions(inputs: int, outputs: int, align_corners: bool) -> tuple[np.ndarray, np.ndarray]:
    """The position of each output pixel among the inputs: the integer part and the fraction, exact at integers."""
    i = np.arange(outputs)
    if align_corners:
        numerator, denominator = i * (inputs - 1), max(outputs - 1, 1)
    else:
        numerator, denominator = (2 * i + 1) * inputs - outputs, 2 * outputs
    low = numerator // denominator
    return low, (numerator - low * denominator) / denominator


def _weigh(x: jax.Array, axis: int, indices: np.ndarray, weights: np.ndarray) -> jax.Array:
    """Row i of the result is sum_k weights[i, k] x[indices[i, k]] along `axis`, without the taps of weight 0."""
    rows = jnp.moveaxis(x, axis, 0)[indices]
    factors = jnp.asarray(weights, x.dtype).reshape(*weights.shape, *(1,) * (x.ndim - 1))
    return jnp.moveaxis(jnp.where(factors != 0, factors * rows, 0).sum(1), 0, axis)


def conv_transpose(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], *, stride: int, padding: int
) -> Float[Array, "b h2 w2 d"]:
    """Convolves `x`, with stride - 1 zeros between its pixels, with the flipped kernel."""
    border = kernel.shape[0] - 1 - padding
    return jax.lax.conv_general_dilated(
        x,
        jnp.flip(kernel, (0, 1)),
        window_strides=(1, 1),
        padding=((border, border), (border, border)),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def pixel_shuffle(x: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w2 c2"]:
    """Splits the channels into (out, row, column) and moves row and column to the pixels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, channels // factor**2, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, -1)


def max_pool(x: Shaped[Array, "b h w c"], window: int, stride: int, padding: int) -> Shaped[Array, "b h2 w2 c"]:
    """Takes the maximum of every window."""
    lowest = np.asarray(-np.inf if jnp.issubdtype(x.dtype, jnp.floating) else np.iinfo(x.dtype).min, x.dtype)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, window, window, 1), (1, stride, stride, 1), pads)


@whole
def max_pool_with_indices(
    x: Shaped[Array, "b h w c"], window: int, stride: int, padding: int
) -> tuple[Shaped[Array, "b h2 w2 c"], Int8[Array, "b h2 w2 c"]]:
    """Stacks the pixels of every window and takes the first maximum; as in torch, the last NaN is the maximum."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    x = jnp.pad(x, pads, constant_values=-np.inf if floating else np.iinfo(x.dtype).min)
    rows, columns = (np.arange(0, side - window + 1, stride) for side in x.shape[1:3])
    patches = jnp.stack([x[:, rows + i][:, :, columns + j] for i in range(window) for j in range(window)], -1)
    last_nan = window**2 - 1 - jnp.isnan(patches)[..., ::-1].argmax(-1)
    index = jnp.where(jnp.isnan(patches).any(-1), last_nan, patches.argmax(-1))
    return jnp.take_along_axis(patches, index[..., None], -1)[..., 0], index.astype(jnp.int8)


def max_unpool(x: Shaped[Array, "b h w c"], indices: Int8[Array, "b h w c"], size: Size) -> Shaped[Array, "b _ _ c"]:
    """Puts each value at its index in a block of 2x2 zeros, and pads with zeros to `size`."""
    batch, height, width, channels = x.shape
    blocks = jnp.stack([jnp.where(indices == k, x, jnp.zeros((), x.dtype)) for k in range(4)], -1)
    y = pixel_shuffle(blocks.reshape(batch, height, width, 4 * channels), 2)
    return jnp.pad(y, ((0, 0), (0, size[0] - 2 * height), (0, size[1] - 2 * width), (0, 0)))


def upsample_concat_conv(
    x: Float[Array, "b h w c"],
    skip: Float[Array, "b h2 w2 s"] | None,
    kernel: Float[Array, "3 3 i o"],
    *,
    method: str,
    skip_first: bool,
) -> Float[Array, "b h2 w2 o"]:
    """Doubles `x` by "nearest", "bilinear" or "bilinear_align_corners", joins `skip`, and convolves 3x3."""
    size = (2 * x.shape[1], 2 * x.shape[2])
    if method == "nearest":
        y = resize_nearest(x, size, half_pixel=True)
    else:
        y = resize_bilinear(x, size, align_corners=method == "bilinear_align_corners")
    joined = y if skip is None else jnp.concatenate([skip, y] if skip_first else [y, skip], -1)
    return jax.lax.conv_general_dilated(joined, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(
    x: Float[Array, "*b c"], scale: Float[Array, " c"], bias: Float[Array, " c"], *, epsilon: float, relu: bool
) -> tuple[Float[Array, "*b c"], Float[Array, " c"], Float[Array, " c"]]:
    """Subtracts the mean over all axes but the last and divides by the deviation (biased), in float32; then ReLU."""
    wide, axes = x.astype(accumulator_dtype(x.dtype)), tuple(range(x.ndim - 1))
    scale, bias = (jnp.expand_dims(each.astype(wide.dtype), axes) for each in (scale, bias))
    mean = wide.mean(axes, keepdims=True)
    var = jnp.square(wide - mean).mean(axes, keepdims=True)
    y = (wide - mean) / jnp.sqrt(var + epsilon) * scale + bias
    return (jax.nn.relu(y) if relu else y).astype(x.dtype), mean.reshape(-1), var.reshape(-1)


@whole
def group_norm(
    x: Float[Array, "b h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    *,
    groups: int,
    epsilon: float,
    relu: bool,
) -> Float[Array, "b h w c"]:
    """Subtracts the mean of each sample's group of channels and divides by its deviation, in float32; then ReLU."""
    batch, height, width, channels = x.shape
    wide = x.astype(accumulator_dtype(x.dtype)).reshape(batch, height, width, groups, channels // groups)
    scale, bias = (jnp.expand_dims(each.astype(wide.dtype), (0, 1, 2)) for each in (scale, bias))
    centred = wide - wide.mean((1, 2, 4), keepdims=True)
    var = jnp.square(centred).mean((1, 2, 4), keepdims=True)
    y = (centred / jnp.sqrt(var + epsilon)).reshape(x.shape) * scale + bias
    return (jax.nn.relu(y) if relu else y).astype(x.dtype)


def carafe(
    x: Float[Array, "b h w c"], masks: Float[Array, "b h2 w2 m"], *, kernel_size: int, factor: int, groups: int
) -> Float[Array, "b h2 w2 c"]:
    """Unfolds the neighbourhood of every source pixel and sums it with the mask of each pixel of its block."""
    (batch, height, width, _), reach = x.shape, kernel_size // 2
    compute = accumulator_dtype(x.dtype)
    padded = jnp.pad(x.astype(compute), ((0, 0), (reach, reach), (reach, reach), (0, 0)))
    offsets = np.ndindex(kernel_size, kernel_size)
    unfolded = jnp.stack([padded[:, i : i + height, j : j + width] for i, j in offsets], -1)
    unfolded = unfolded.reshape(batch, height, width, groups, -1, kernel_size**2)
    masks = masks.astype(compute).reshape(batch, height, factor, width, factor, groups, kernel_size**2)
    y = jnp.einsum("bhwgck,bhiwjgk->bhiwjgc", unfolded, masks)
    return y.reshape(batch, height * factor, width * factor, -1).astype(x.dtype)


def sample_bilinear(x: Float[Array, "b h w c"], positions: Float[Array, "b h2 w2 *g 2"]) -> Float[Array, "b h2 w2 c"]:
    """Gathers the four pixels around every position, clamped to the image, and weights them by 1 - distance."""
    (batch, height, width, channels), out = x.shape, positions.shape[1:3]
    compute = accumulator_dtype(x.dtype)
    p = positions.astype(compute).reshape(batch, *out, -1, 2)
    maps = x.astype(compute).reshape(batch, height, width, p.shape[3], channels // p.shape[3])
    group = np.arange(p.shape[3]).reshape(1, 1, -1)
    read = jax.vmap(lambda map, rows, columns: map[rows, columns, group])
    row, column = (
        # Outside the border the value is constant: the gradient is 0 there, and on the border itself.
        jnp.where(c <= 0, 0, jnp.where(c >= n - 1, n - 1, c))
        for c, n in ((p[..., 0], height), (p[..., 1], width))
    )
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    y = jnp.zeros((batch, *out, *maps.shape[3:]), compute)
    for i, vertical in ((top, 1 - down), (top + 1, down)):
        for j, horizontal in ((left, 1 - right), (left + 1, right)):
            # A position in the last row has weight 0 for the next row, which does not exist.
            corner = (jnp.clip(i.astype(int), 0, height - 1), jnp.clip(j.astype(int), 0, width - 1))
            y = y + vertical * horizontal * read(maps, *corner)
    return y.reshape(batch, *out, channels).astype(x.dtype)


def linear(x: Float[Array, "b h w c"], kernel: Float[Array, "c d"], bias: Float[Array, " d"] | None = None):
    """Applies a linear layer to every pixel, in the maps' dtype."""
    y = x @ kernel.astype(x.dtype)
    return y if bias is None else y + jnp.expand_dims(bias.astype(x.dtype), (0, 1, 2))


def resize_concat_linear(maps, layers, kernel, bias, resizes, size: Size) -> Float[Array, "b _ _ e"]:
    """Applies the maps' layers, resizes, concatenates, and applies one more layer."""
    results = [linear(x, *layer) for x, layer in zip(maps, layers, strict=True)]
    results = [resize(x, size) for x, resize in zip(results, resizes, strict=True)]
    return linear(jnp.concatenate(results, axis=-1), kernel, bias)


@whole
def roi_align(features, boxes, output_size: Size, scale, sampling_ratio: int, aligned: bool):
    """Applies two small matrices per box to its whole map, which average the bins' samples along both axes."""
    compute = accumulator_dtype(features.dtype)
    x1, y1, x2, y2 = jnp.moveaxis(boxes.astype(compute) * scale, -1, 0)
    rows = _bins_of_boxes(y1, y2, output_size[0], features.shape[1], sampling_ratio, aligned)
    columns = _bins_of_boxes(x1, x2, output_size[1], features.shape[2], sampling_ratio, aligned)
    y = jnp.einsum("bnph,bhwc,bnqw->bnpqc", rows, features.astype(compute), columns, precision="highest")
    return y.astype(features.dtype)


def _bins_of_boxes(low, high, bins: int, side: int, sampling_ratio: int, aligned: bool):
    """(batch, boxes, bins, side): the weight of each pixel along an axis in the average of each bin's samples."""
    start, length = (low - 0.5, high - low) if aligned else (low, jnp.maximum(high - low, 1))
    most = sampling_ratio or -(-side // bins)
    samples = jnp.full_like(length, most) if sampling_ratio else jnp.clip(jnp.ceil(length / bins), 0, most)
    samples = jnp.expand_dims(jnp.nan_to_num(samples), (-1, -2))
    step = jnp.expand_dims(length / bins, (-1, -2))
    bin_, sample = jnp.arange(bins, dtype=step.dtype), jnp.arange(most, dtype=step.dtype)
    bin_, sample = bin_.reshape(1, 1, -1, 1), sample.reshape(1, 1, 1, -1)
    position = jnp.expand_dims(start, (-1, -2)) + bin_ * step + (sample + 0.5) * step / jnp.maximum(samples, 1)
    counts = (position >= -1) & (position <= side) & (sample < samples)
    position = jnp.clip(jnp.where(counts, position, 0), 0, side - 1)[..., None]
    weights = jnp.maximum(1 - jnp.abs(position - jnp.arange(side, dtype=step.dtype).reshape(1, 1, 1, 1, -1)), 0)
    return jnp.where(counts[..., None], weights, 0).sum(-2) / jnp.maximum(samples, 1)


def multiscale_roi_align(maps, boxes, levels, output_size: Size, scales, sampling_ratio: int, aligned: bool):
    """Reads every box from every map and selects the one of its level."""
    results = [
        roi_align(x, boxes, output_size, scale, sampling_ratio, aligned) for x, scale in zip(maps, scales, strict=True)
    ]
    of_level = [jnp.expand_dims(levels == number, (2, 3, 4)) for number in range(len(maps))]
    return jnp.select(of_level, results)
