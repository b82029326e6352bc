"""Rotary position embeddings of image patches, as in DINOv3."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.types import Size, accumulator_dtype


class Rotation(NamedTuple):
    """The sine and cosine of every token's angles, one for each channel of a head."""

    sin: np.ndarray | jax.Array  # (tokens, channels)
    cos: np.ndarray | jax.Array  # (tokens, channels)


def axial_rotation(grid: Size, channels: int, *, before: int = 0, base: float = 100.0) -> Rotation:
    """The rotation of the patches of a grid: half of the angles depend on the row, half on the column.

    Positions are those of the patches' centres, from -1 to 1 along each side of the image, so the angles of an image do
    not change with its resolution. The periods are `base ** (4 i / channels)`.

    Args:
        grid: rows and columns of patches.
        channels: channels of an attention head, a multiple of 4.
        before: number of tokens before the patches, which are not rotated.
        base: the period that the longest one approaches.

    Raises:
        ValueError: if `channels` is not a multiple of 4.

    Example:
        >>> axial_rotation((1, 2), 4, before=1).cos.tolist()  # a class token, and patches at -1/2 and 1/2 of the width
        [[1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]

    References:
        Siméoni et al., DINOv3, 2025. https://arxiv.org/abs/2508.10104
    """
    if channels % 4:
        raise ValueError(f"rotary positions need attention heads with channels in multiples of 4, got {channels}")
    periods = base ** (4 * np.arange(channels // 4) / channels)
    rows, columns = (2 * (np.arange(side) + 0.5) / side - 1 for side in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = np.tile((2 * np.pi * places / periods).reshape(len(places), -1), 2)
    angles = np.concatenate([np.zeros((before, channels)), angles])
    return Rotation(np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32))


def rotated(x: Float[Array, "b n h d"], rotation: Rotation) -> Float[Array, "b n h d"]:
    """Rotates each pair of channels (i, i + d / 2) of each head by its angle."""
    wide = x.astype(accumulator_dtype(x.dtype))
    sin, cos = (jnp.expand_dims(jnp.asarray(part, wide.dtype), (0, 2)) for part in rotation)
    half = x.shape[-1] // 2
    turned = jnp.concatenate([-wide[..., half:], wide[..., :half]], -1)
    return (wide * cos + turned * sin).astype(x.dtype)
