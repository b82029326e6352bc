"""Geometry of depth maps: points and normals of a pinhole camera, and alignment by scale and shift.

The camera's axes are x to the right, y down and z forward, as in OpenCV. Depth is the z of a point, not its distance
from the camera. The middle of the pixel in row i and column j is at (j + 1/2, i + 1/2). Holes, which are pixels without
a measurement, are 0, negative, infinite or NaN.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

Focal = float | Sequence[float]


def measured(depth: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
    """Where a depth is a measurement: finite and above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> measured(jnp.array([2.0, 0.0, -1.0, jnp.inf, jnp.nan])).tolist()
        [True, False, False, False, False]
    """
    return jnp.isfinite(depth) & (depth > 0)


def points_from_depth(
    depth: Float[Array, "*b h w"], focal: Focal, center: Sequence[float] | None = None
) -> Float[Array, "*b h w 3"]:
    """Converts a depth map to points (x, y, z) in the camera's axes: x right, y down, z forward.

    Args:
        depth: z of each pixel, in any unit.
        focal: focal length in pixels, or two: along x and along y.
        center: the principal point (x, y) in pixels; None for the middle of the picture.

    Returns:
        Points in the unit of the depth, float32; zeros in holes.

    Raises:
        ValueError: if the depth has fewer than two axes, or a focal length is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> points_from_depth(jnp.full((1, 2), 4.0), focal=2.0).tolist()  # half a pixel to both sides, times 4 / 2
        [[[-1.0, 0.0, 4.0], [1.0, 0.0, 4.0]]]
    """
    rays = _rays(depth, focal, center)
    z = jnp.where(measured(depth), depth, 0).astype(jnp.float32)
    return z[..., None] * rays.reshape((1,) * (depth.ndim - 2) + rays.shape)


def normals_from_depth(
    depth: Float[Array, "*b h w"], focal: Focal, center: Sequence[float] | None = None
) -> Float[Array, "*b h w 3"]:
    """Computes the unit normals of the surface that a depth map shows. They face the camera.

    The normal is the cross product of two tangents, each a mean of the steps to the two neighbours in a row or column.
    The smaller step in depth has the greater weight, so that a normal beside an edge belongs to one surface (unless the
    pixel has no other neighbour). The result
    is exact on planes.

    Args:
        depth: z of each pixel, in any unit.
        focal: focal length in pixels, or two: along x and along y.
        center: the principal point (x, y) in pixels; None for the middle of the picture.

    Returns:
        Unit vectors in the camera's axes, x right, y down and z forward, float32: a wall in front of the camera has
        (0, 0, -1). Zeros in holes, and where both neighbours in the row or the column are holes or outside.

    Raises:
        ValueError: if the depth has fewer than two axes, or a focal length is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> depth = 1 / jnp.arange(4.0, 0.0, -1.0)[:, None] * jnp.ones((4, 4))  # the lower, the farther: a ceiling
        >>> bool((normals_from_depth(depth, focal=2.0)[..., 1] > 0).all())  # it faces down, along y
        True
    """
    points = points_from_depth(depth, focal, center)
    across, beside = _tangent(points, depth, -2)
    down, above = _tangent(points, depth, -3)
    known = measured(depth) & beside & above
    normals = jnp.where(known[..., None], jnp.cross(down, across), 0)
    square = (normals * normals).sum(-1, keepdims=True)
    return jnp.where(square > 0, normals / jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def align_scale_shift(
    values: Float[Array, "b h w"], target: Float[Array, "b h w"], valid: Bool[Array, "b h w"]
) -> Float[Array, "b h w"]:
    """Scales and shifts the values of each image to fit a target by least squares.

    Args:
        values: predictions up to an unknown scale and shift.
        target: the true values.
        valid: the pixels to fit. Values and targets elsewhere have no effect.

    Returns:
        scale * values + shift, float32; for each image, the mean square error of the valid pixels is the smallest. The
        scale is 0 if the values of an image are constant, and so is the result without valid pixels.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> target = jnp.array([[[1.0, 3.0], [5.0, jnp.nan]]])
        >>> align_scale_shift(jnp.array([[[0.0, 1.0], [2.0, 3.0]]]), target, measured(target)).tolist()
        [[[1.0, 3.0], [5.0, 7.0]]]

    References:
        Ranftl et al., Towards robust monocular depth estimation, 2019, equation 4. https://arxiv.org/abs/1907.01341
    """
    if not values.shape == target.shape == valid.shape:
        raise ValueError(f"values {values.shape}, target {target.shape} and valid {valid.shape} must have one shape")
    values = values.astype(jnp.float32)
    x, y = (jnp.where(valid, array.astype(jnp.float32), 0) for array in (values, target))
    count = jnp.maximum(valid.sum((1, 2), keepdims=True), 1).astype(jnp.float32)
    mean_x, mean_y = (array.sum((1, 2), keepdims=True) / count for array in (x, y))
    # Around the means, because the plain normal equations lose most digits for large depths in float32.
    x, y = jnp.where(valid, x - mean_x, 0), jnp.where(valid, y - mean_y, 0)
    variance = (x * x).sum((1, 2), keepdims=True)
    varies = ~(variance <= 0)  # NaN stays
    scale = jnp.where(varies, (x * y).sum((1, 2), keepdims=True) / jnp.where(varies, variance, 1), 0)
    return scale * (values - mean_x) + mean_y


def _rays(depth: Float[Array, "*b h w"], focal: Focal, center: Sequence[float] | None) -> Float[Array, "h w 3"]:
    """The point at depth 1 of each pixel."""
    if depth.ndim < 2:
        raise ValueError(f"depth must be (..., height, width), got the shape {depth.shape}")
    height, width = depth.shape[-2:]
    fx, fy = (focal, focal) if isinstance(focal, int | float | np.number) else focal
    if not (fx > 0 and fy > 0):
        raise ValueError(f"the focal length must be a number of pixels above 0, or two of them; got {focal}")
    cx, cy = (width / 2, height / 2) if center is None else center
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5 - cx) / fx
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5 - cy) / fy
    x, y = jnp.meshgrid(x, y)
    return jnp.stack([x, y, jnp.ones_like(x)], -1)


def _tangent(points: Float[Array, "*b h w 3"], depth: Float[Array, "*b h w"], axis: int) -> tuple[Array, Array]:
    """The mean step to the next pixel along an axis of the points, and where there is one."""

    def neighbour(array, step, axis):
        side = array.shape[axis]
        edge = jnp.zeros_like(jnp.take(array, jnp.array([0]), axis))
        kept = jnp.take(array, jnp.arange(side - 1) + max(step, 0), axis)
        return jnp.concatenate([kept, edge] if step > 0 else [edge, kept], axis)

    total, weights = jnp.zeros_like(points), jnp.zeros_like(points[..., 0])
    for step in (-1, 1):
        there = neighbour(measured(depth), step, axis + 1)
        difference = step * (neighbour(points, step, axis) - points)
        relative = difference[..., 2] / jnp.where(points[..., 2] > 0, points[..., 2], 1)
        weight = jnp.where(there, 1 / (relative * relative + 1e-6), 0)
        total, weights = total + weight[..., None] * difference, weights + weight
    return total / jnp.where(weights > 0, weights, 1)[..., None], weights > 0
