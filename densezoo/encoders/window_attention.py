"""Attention within windows of a map, with relative positions, as in Swin."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.blocks import attend, truncated_normal
from densezoo.ops.sharding import repeat_for, reshape
from densezoo.types import Dtype, Size, accumulator_dtype


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias for each offset between two pixels of a window.

    Attributes:
        num_heads: number of attention heads.
        table_window: size of the windows for which the table of biases is made; smaller windows resample it.
        qkv_bias: whether queries, keys and values have a bias.
    """

    num_heads: int
    table_window: Size = (7, 7)
    qkv_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, windows: Float[Array, "b n h w c"], regions: np.ndarray | None = None
    ) -> Float[Array, "b n h w c"]:
        """Applies attention. `regions` numbers each pixel of each window; only equal numbers attend to each other."""
        batch, count, height, width, channels = windows.shape
        tokens = height * width
        dense = partial(nn.Dense, kernel_init=truncated_normal, dtype=self.dtype, param_dtype=self.param_dtype)
        offsets = [2 * side - 1 for side in self.table_window]
        table = self.param(
            "relative_position_bias_table",
            truncated_normal,
            (offsets[0] * offsets[1], self.num_heads),
            self.param_dtype,
        )
        qkv = dense(3 * channels, use_bias=self.qkv_bias, name="qkv")(reshape(windows, batch * count, tokens, channels))
        qkv = reshape(qkv, batch * count, tokens, 3, self.num_heads, channels // self.num_heads)
        table = table.astype(accumulator_dtype(qkv.dtype)).reshape(*offsets, self.num_heads)
        bias = _by_pair(table, (height, width))[None]
        if regions is not None:
            numbers = regions.reshape(count, tokens)
            apart = numbers[:, :, None] != numbers[:, None, :]
            masks = jnp.asarray(np.where(apart, -100.0, 0.0), bias.dtype)
            bias = repeat_for(windows, (bias + masks[:, None])[None])
            bias = reshape(bias, batch * count, *bias.shape[2:])
        y = attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], bias)
        y = dense(channels, name="proj")(reshape(y, batch * count, tokens, channels))
        return reshape(y, *windows.shape)


def _by_pair(table: jax.Array, window: Size) -> jax.Array:
    """For each head and each two pixels of a window, the bias of the offset between them: (heads, pixels, pixels)."""
    if table.shape[:2] != (2 * window[0] - 1, 2 * window[1] - 1):
        rows, columns = (
            jnp.asarray(_resampling(size, side), table.dtype)
            for size, side in zip(table.shape[:2], window, strict=True)
        )
        table = jnp.einsum("pi,qj,ijh->pqh", rows, columns, table)
    row, column = (i.ravel() for i in np.indices(window))
    rows = row[:, None] - row + window[0] - 1
    columns = column[:, None] - column + window[1] - 1
    return table[rows, columns].transpose(2, 0, 1)


def _resampling(size: int, side: int) -> np.ndarray:
    """The interpolation matrix from a table's `size` offsets along an axis to those in a window of `side` pixels.

    As in timm, it interpolates linearly between positions whose distances grow by a factor of 1.01, so that biases of
    neighbours do not change and the others change by about 1 %.
    """
    outwards = np.cumsum(1.01 ** np.arange(size // 2))
    positions = np.concatenate([-outwards[::-1], [0.0], outwards])
    return np.stack([np.interp(np.arange(1 - side, side), positions, one) for one in np.eye(size)], 1)


def regions_of(size: Size, window: Size, shift: Size) -> np.ndarray:
    """A number for each pixel of each window of a shifted map: (windows, height, width).

    The shift moves rows and columns from the other end of the image into the last windows; these are separate regions.
    """
    rows, columns = (np.zeros(side, np.int32) for side in size)
    for numbers, side, by in zip((rows, columns), window, shift, strict=True):
        if by:
            numbers[-side:] = 1
            numbers[-by:] = 2
    grid = size[0] // window[0], window[0], size[1] // window[1], window[1]
    return (3 * rows[:, None] + columns).reshape(grid).swapaxes(1, 2).reshape(-1, *window)
