"""Anchor boxes: a detector's reference boxes, several around every pixel of each map."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops.checks import check_size
from densezoo.types import Size


def grid_anchors(
    map_size: Size, strides: Size, sizes: Sequence[float | int], ratios: Sequence[float | int]
) -> Float[Array, "n 4"]:
    """Computes boxes of every size and aspect ratio around every pixel of a map, equal to torchvision's.

    The boxes of a map pixel are centred at its top left corner in the image. Their sides are rounded so that half of
    each is an integer or half-integer number of pixels.

    Args:
        map_size: (height, width) of the map.
        strides: image pixels per map pixel, vertically and horizontally.
        sizes: square roots of the boxes' areas, in pixels.
        ratios: height over width.

    Returns:
        (height * width * ratios * sizes, 4): row by row; for each pixel, all sizes of the first ratio come first.

    Raises:
        ValueError: if `map_size` or `strides` is not two positive integers, or a size or ratio is not positive.


    Example:
        >>> grid_anchors((1, 2), (8, 8), (16,), (1.0,)).tolist()
        [[-8.0, -8.0, 8.0, 8.0], [0.0, -8.0, 16.0, 8.0]]
    """
    (height, width), (down, right) = check_size(map_size), check_size(strides)
    base = jnp.asarray(_around_origin(sizes, ratios))
    y, x = (jnp.arange(side, dtype=jnp.float32) * step for side, step in ((height, down), (width, right)))
    y, x = jnp.broadcast_to(y[:, None], (height, width)), jnp.broadcast_to(x, (height, width))
    corners = jnp.stack([x, y, x, y], -1)
    return (corners[:, :, None] + base[None, None]).reshape(-1, 4)


def pyramid_anchors(
    image_size: Size,
    map_sizes: Sequence[Size],
    sizes: Sequence[Sequence[float | int]],
    ratios: Sequence[float | int],
) -> tuple[jax.Array, ...]:
    """Computes `grid_anchors` for each map of a pyramid. A map's strides are image size // map size, as in torchvision.

    Args:
        image_size: (height, width) of the images, padding included.
        map_sizes: (height, width) of each map.
        sizes: for each map, the sizes of its boxes.
        ratios: height over width, equal for all maps.

    Returns:
        (n, 4) boxes for each map.

    Raises:
        ValueError: if the numbers of sizes and maps differ, or a map is larger than the image. See also `grid_anchors`.

    Example:
        >>> fine, coarse = pyramid_anchors((64, 96), [(8, 12), (4, 6)], [(32,), (64,)], (0.5, 1.0, 2.0))
        >>> fine.shape, coarse.shape
        ((288, 4), (72, 4))
    """
    if len(map_sizes) != len(sizes):
        raise ValueError(f"expected sizes for each of the {len(map_sizes)} maps, got {len(sizes)}")
    height, width = check_size(image_size)
    return tuple(
        grid_anchors(map_size, (height // map_size[0], width // map_size[1]), each, ratios)
        for map_size, each in zip(map_sizes, sizes, strict=True)
    )


def _around_origin(sizes: Sequence[float | int], ratios: Sequence[float | int]) -> np.ndarray:
    """(ratios * sizes, 4) boxes around 0; in float32 as in torchvision, so that sides are rounded in the same way."""
    size, ratio = np.asarray(sizes, np.float32).reshape(-1), np.asarray(ratios, np.float32).reshape(-1, 1)
    if not (size.size and ratio.size and (size > 0).all() and (ratio > 0).all()):
        raise ValueError(f"sizes and ratios of anchors must be positive, got {tuple(sizes)} and {tuple(ratios)}")
    tall = np.sqrt(ratio)
    widths, heights = ((1 / tall) * size).reshape(-1), (tall * size).reshape(-1)
    return np.round(np.stack([-widths, -heights, widths, heights], 1) / 2)
