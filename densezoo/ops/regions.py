"""RoIAlign: a small fixed-size map for each box, averaged from bilinear samples of a map or of a pyramid."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.boxes import box_area
from densezoo.ops.checks import check_boxes, check_maps, check_size, check_whole
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import per_device
from densezoo.types import Size, accumulator_dtype, size_of


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "b n 4"],
    output_size: int | Size,
    spatial_scale: float = 1.0,
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Float[Array, "b n p q c"]:
    """Divides each box into bins and averages samples in each, with torchvision's results.

    The maps get gradients, the boxes do not. A sample more than a pixel outside the map is 0; a NaN box gives zeros.
    This is a custom VJP: forward-mode differentiation needs `ops.implementation("reference")`.

    Args:
        features: NHWC maps.
        boxes: for each map the same number of boxes, in pixels of the image.
        output_size: number of bins vertically and horizontally; one number for both.
        spatial_scale: map pixels per image pixel, such as 1/16.
        sampling_ratio: number of samples per bin along each axis. 0 takes one for each map pixel that a bin covers,
          rounded up, as torchvision does for 0 and -1. This is exact for boxes up to the map's size; the number does
          not grow beyond that.
        aligned: integer positions are pixel centres, as everywhere else in densezoo. False is the convention of the
          first version, which torchvision's detectors use: it reads half a pixel further down and right, and enlarges
          boxes to at least one map pixel.

    Returns:
        (b, n, *output_size, c), in the maps' dtype.

    Raises:
        ValueError: if shapes do not match, or an option is invalid.
        TypeError: if maps or boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(16.0).reshape(1, 4, 4, 1)
        >>> roi_align(x, jnp.array([[[0.0, 0.0, 4.0, 4.0]]]), 2, aligned=True)[0, 0, :, :, 0].tolist()
        [[2.5, 4.5], [10.5, 12.5]]

    References:
        He et al., Mask R-CNN, 2017, section 3. https://arxiv.org/abs/1703.06870
    """
    check_maps(features)
    output_size = _check(boxes, features.shape[0], output_size, sampling_ratio)

    def read(features, boxes):
        if chosen() == "reference":
            return reference.roi_align(features, boxes, output_size, spatial_scale, sampling_ratio, aligned)
        levels = jnp.zeros(boxes.shape[:2], jnp.int32)
        return _align((features,), boxes, levels, output_size, (spatial_scale,), sampling_ratio, aligned)

    # XLA would gather the maps of the batch for a table that has all of them.
    return per_device(read, features, jax.lax.stop_gradient(boxes), auto=True)


def multiscale_roi_align(
    maps: Sequence[Float[Array, "b _ _ c"]],
    boxes: Float[Array, "b n 4"],
    image_size: Size,
    output_size: int | Size,
    *,
    sampling_ratio: int = 2,
    aligned: bool = False,
    canonical_size: float | int = 224,
    canonical_level: int = 4,
) -> Float[Array, "b n p q c"]:
    """`roi_align` from a pyramid: a box's size determines the map that it reads from.

    A box of `canonical_size` reads from the map of stride 2 ** `canonical_level`, one of twice the side from the next
    coarser map. All boxes are read in one pass.

    Args:
        maps: NHWC maps of the same channels, each half as large as the one before.
        boxes: for each image the same number of boxes, in pixels of the image.
        image_size: (height, width) of the images. Its ratio to the maps' sizes, rounded to a power of two, gives the
            scales.
        output_size: number of bins vertically and horizontally; one number for both.
        sampling_ratio: as in `roi_align`; the errors are also the same.
        aligned: as in `roi_align`.
        canonical_size: the square root of a box's area, in pixels.
        canonical_level: the level that boxes of that size read from.

    Example:
        >>> import jax.numpy as jnp
        >>> maps = [jnp.full((1, 16 // n, 16 // n, 3), n, jnp.float32) for n in (1, 2, 4)]
        >>> boxes = jnp.array([[[0.0, 0.0, 60.0, 60.0], [0.0, 0.0, 30.0, 30.0]]])
        >>> y = multiscale_roi_align(maps, boxes, (64, 64), 7, canonical_size=56)
        >>> y.shape, float(y[0, 0, 0, 0, 0]), float(y[0, 1, 0, 0, 0])
        ((1, 2, 7, 7, 3), 4.0, 2.0)

    References:
        Lin et al., Feature pyramid networks, 2017, equation 1. https://arxiv.org/abs/1612.03144
    """
    for x in maps:
        check_maps(x)
    alike = {(x.shape[0], x.shape[3], x.dtype) for x in maps}
    if len(alike) != 1:
        raise ValueError(f"maps need equal batch, channels and dtype, got {[(x.shape, x.dtype.name) for x in maps]}")
    output_size = _check(boxes, maps[0].shape[0], output_size, sampling_ratio)
    height, _ = check_size(image_size)
    scales = tuple(2.0 ** round(math.log2(x.shape[1] / height)) for x in maps)
    finest, coarsest = (int(-math.log2(scale)) for scale in (scales[0], scales[-1]))

    def read(maps, boxes):
        levels = _levels(boxes, finest, coarsest, canonical_size, canonical_level)
        form = reference.multiscale_roi_align if chosen() == "reference" else _align
        return form(maps, boxes, levels, output_size, scales, sampling_ratio, aligned)

    return per_device(read, tuple(maps), jax.lax.stop_gradient(boxes), auto=True)


def _check(boxes, batch, output_size, sampling_ratio):
    """Checks the arguments and returns the size of the output."""
    check_boxes(3, boxes=boxes)
    if boxes.shape[0] != batch:
        raise ValueError(f"boxes must be (batch, n, 4) for {batch} maps, got {boxes.shape}")
    check_whole(0, sampling_ratio=sampling_ratio)
    return check_size((output_size, output_size) if isinstance(output_size, int) else output_size)


def _levels(boxes, finest, coarsest, canonical_size, canonical_level):
    """The index of the map for each box."""
    area = box_area(boxes)
    # Boxes with an area of 0 or NaN read from the finest map.
    size = jnp.sqrt(jnp.where(area > 0, area, 0))
    level = jnp.floor(canonical_level + jnp.log2(size / canonical_size) + 1e-6)
    return (jnp.clip(level, finest, coarsest) - finest).astype(jnp.int32)


class _Axis(NamedTuple):
    """The positions of all boxes' samples along an axis; arrays are (boxes,).

    Attributes:
        start: start of the box, in map pixels.
        step: length of a bin.
        samples: number of samples in a bin, an integer.
        side: side length of the map.
    """

    start: jax.Array
    step: jax.Array
    samples: jax.Array
    side: jax.Array

    def taps(self, sample, bins):
        """The two pixels around a sample of every bin, each (boxes, bins), and their weights in the bin's mean."""
        step, side = self.step[:, None], self.side[:, None]
        samples = jnp.maximum(self.samples, 1)[:, None]
        position = self.start[:, None] + jnp.arange(bins, dtype=step.dtype)[None] * step
        position = position + (sample + 0.5) * step / samples
        counts = (position >= -1) & (position <= side) & (sample < self.samples[:, None])
        position = jnp.clip(jnp.where(counts, position, 0), 0, side - 1)
        low = jnp.floor(position)
        weight = jnp.where(counts, 1 / samples, 0)
        # A sample on the last pixel has weight 0 for the next one, which does not exist.
        high = jnp.minimum(low + 1, side - 1)
        pixels = (low.astype(jnp.int32), high.astype(jnp.int32))
        return tuple(zip(pixels, (weight * (1 - (position - low)), weight * (position - low)), strict=True))


def _axis(low, high, bins, side, sampling_ratio, aligned):
    """The samples of boxes that extend from `low` to `high` in map pixels."""
    start, length = (low - 0.5, high - low) if aligned else (low, jnp.maximum(high - low, 1))
    step = length / bins
    if sampling_ratio:
        samples = jnp.full_like(step, sampling_ratio)
    else:
        samples = jnp.clip(jnp.ceil(step), 0, jnp.ceil(side / bins))
        samples = jnp.where(jnp.isnan(samples), 0, samples)
    return _Axis(start, step, samples, side)


class _Regions(NamedTuple):
    """The positions of all boxes in a table of pixels: each one's first row in it, its map's width, and its samples."""

    first: jax.Array
    width: jax.Array
    rows: _Axis
    columns: _Axis

    def corners(self, down, across, output_size):
        """Rows of the table and weights, (boxes, bins, bins), of the four pixels around one sample of each bin."""
        for i, vertical in self.rows.taps(down, output_size[0]):
            for j, horizontal in self.columns.taps(across, output_size[1]):
                index = self.first[:, None, None] + i[:, :, None] * self.width[:, None, None] + j[:, None, :]
                yield index, vertical[:, :, None] * horizontal[:, None, :]

    def most_samples(self):
        """The maximum number of samples in a bin, vertically and horizontally."""
        return self.rows.samples.max().astype(jnp.int32), self.columns.samples.max().astype(jnp.int32)


def _align(maps, boxes, levels, output_size, scales, sampling_ratio, aligned):
    """Reads all maps as one table with a row per pixel. Each box has a first row, a height and a width in it."""
    batch, channels = maps[0].shape[0], maps[0].shape[3]
    compute = accumulator_dtype(maps[0].dtype)
    sizes = np.array([size_of(x) for x in maps], np.int32)
    pixels = sizes.prod(1)
    table = jnp.concatenate([x.reshape(-1, channels) for x in maps]) if len(maps) > 1 else maps[0].reshape(-1, channels)
    levels = levels.reshape(-1)
    facts = np.stack([np.cumsum(pixels) - pixels, *sizes.T], 1).astype(np.int32)
    first, height, width = jnp.asarray(facts)[levels].T
    sample = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), boxes.shape[1])  # in JAX: the batch may be symbolic
    scale = jnp.asarray(scales, compute)[levels]
    x1, y1, x2, y2 = (boxes.astype(compute).reshape(-1, 4) * scale[:, None]).T
    regions = _Regions(
        jnp.asarray(batch, jnp.int32) * first + sample * height * width,
        width,
        _axis(y1, y2, output_size[0], height.astype(compute), sampling_ratio, aligned),
        _axis(x1, x2, output_size[1], width.astype(compute), sampling_ratio, aligned),
    )
    y = _read(table, regions, output_size, sampling_ratio, table.shape[0])
    return y.reshape(*boxes.shape[:2], *output_size, channels)


def _over_samples(regions, output_size, sampling_ratio, body, total):
    """Applies `body` to the corners of all samples of a bin at once, or in a loop if the number depends on the box."""
    if sampling_ratio:
        samples = np.ndindex(sampling_ratio, sampling_ratio)
        return body([corner for sample in samples for corner in regions.corners(*sample, output_size)], total)
    down, across = regions.most_samples()
    dtype = regions.rows.step.dtype

    def one(number, total):
        sample = (number // across).astype(dtype), (number % across).astype(dtype)
        return body(list(regions.corners(*sample, output_size)), total)

    return jax.lax.fori_loop(0, down * across, one, total)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _read(table, regions, output_size, sampling_ratio, _):
    compute = accumulator_dtype(table.dtype)

    def add(corners, total):
        for index, weight in corners:
            total = total + weight[..., None] * table.at[index].get(mode="promise_in_bounds").astype(compute)
        return total

    total = jnp.zeros_like(table, compute, (regions.first.shape[0], *output_size, table.shape[1]))
    return _over_samples(regions, output_size, sampling_ratio, add, total).astype(table.dtype)


def _forward(table, regions, *options):
    return _read(table, regions, *options), regions


def _backward(output_size, sampling_ratio, pixels, regions, g):
    total = jnp.zeros_like(g, accumulator_dtype(g.dtype), (pixels, g.shape[-1]))
    if not g.size:
        return total.astype(g.dtype), None
    wide = g.astype(total.dtype)

    def add(corners, total):
        return jax.lax.platform_dependent(total, corners, wide, cpu=_add_by_box, default=_add)

    return _over_samples(regions, output_size, sampling_ratio, add, total).astype(g.dtype), None


def _add(table, corners, g):
    """Adds every pixel of `g`, weighted, to its corners' rows of the table."""
    for index, weight in corners:
        table = table.at[index].add(weight[..., None] * g, mode="promise_in_bounds")
    return table


def _add_by_box(table, corners, g):
    """The same in a loop over boxes and corners, which takes a tenth of the time on CPU because it stays in cache."""
    boxes, bins, channels = g.shape[0], g.shape[1] * g.shape[2], g.shape[3]
    indices, weights = (jnp.stack(parts, 1).reshape(-1, bins) for parts in zip(*corners, strict=True))
    of = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)

    def add(step, table):
        weighed = of(weights, step)[:, None] * of(g.reshape(boxes, bins, channels), step // len(corners))
        return table.at[of(indices, step)].add(weighed, mode="promise_in_bounds")

    return jax.lax.fori_loop(0, boxes * len(corners), add, table)


_read.defvjp(_forward, _backward)
