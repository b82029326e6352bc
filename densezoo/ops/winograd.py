"""3x3 convolution by Winograd's minimal filtering: fewer multiplications for more additions and rounding.

A tile of m x m outputs is worked out from (m + 2) x (m + 2) inputs with as many multiplications per pair of channels,
where the direct way takes 9 m x m: 2.25 times fewer for m = 2, 4 times fewer for m = 4. On CPU this pays for many
channels and few pixels. The rounding errors grow some ten times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops.checks import check_maps
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import reduced_like
from densezoo.types import accumulator_dtype

# Lavin and Gray 2015, F(2x2, 3x3) and F(4x4, 3x3): of the inputs, the kernel and the outputs.
_TRANSFORMS = {
    2: (
        np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
        np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
    ),
    4: (
        np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ]
        ),
        np.array(
            [
                [1 / 4, 0, 0],
                [-1 / 6, -1 / 6, -1 / 6],
                [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 1 / 12, 1 / 6],
                [1 / 24, -1 / 12, 1 / 6],
                [0, 0, 1],
            ]
        ),
        np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]),
    ),
}


def tile_size(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...]) -> int | None:
    """The tile with which Winograd's algorithm was faster on CPU (docs/benchmarks.md); None where it was not."""
    batch, height, width, _ = x_shape
    fewest, most = min(kernel_shape[2:]), max(kernel_shape[2:])
    if kernel_shape[:2] != (3, 3) or fewest < 64 or most > 384 or height * width > 32 * 32:
        return None
    tile = 4 if fewest <= 128 else 2
    # With few tiles the transform of the kernel costs more than it saves.
    return tile if batch * -(-height // tile) * -(-width // tile) >= 128 else None


def winograd_conv(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"], *, tile: int = 4
) -> Float[Array, "b h w d"]:
    """3x3 convolution with stride 1 and one pixel of zeros around, by Winograd's algorithm on CPU.

    On other platforms it is the ordinary convolution, whose libraries choose such algorithms by themselves. An infinity
    or a NaN spoils the whole tiles that see it.

    Args:
        x: NHWC maps.
        kernel: (3, 3, in, out).
        tile: side of the tiles of outputs, 2 or 4; 4 saves more and rounds more.

    Raises:
        ValueError: shapes that do not match, or another tile.

    Example:
        >>> import jax.numpy as jnp
        >>> winograd_conv(jnp.ones((1, 2, 2, 1)), jnp.ones((3, 3, 1, 1)), tile=2)[0, :, :, 0].tolist()
        [[4.0, 4.0], [4.0, 4.0]]

    References:
        Lavin and Gray, Fast algorithms for convolutional neural networks, 2015. https://arxiv.org/abs/1509.09308
    """
    if tile not in _TRANSFORMS:
        raise ValueError(f"tile is 2 or 4, got {tile}")
    check_maps(x)
    if kernel.shape[:3] != (3, 3, x.shape[3]):
        raise ValueError(f"expected NHWC maps and a (3, 3, in, out) kernel, got {x.shape} and {kernel.shape}")
    if chosen() == "reference":
        return _direct(x, kernel)
    on_cpu = functools.partial(_forward, tile=tile)

    @jax.custom_vjp
    def conv(x, kernel):
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=_direct)

    def backward(saved, g):
        x, kernel = saved
        # With respect to the input it is a convolution again, by the kernel turned around.
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        dx = jax.lax.platform_dependent(g, turned, cpu=on_cpu, default=_direct)
        dkernel = jax.lax.platform_dependent(
            x,
            g,
            cpu=lambda x, g: reduced_like(_kernel_gradient(x, g, tile), kernel),
            default=lambda x, g: reduced_like(_direct_kernel_gradient(x, g), kernel),
        )
        return dx.astype(x.dtype), dkernel.astype(kernel.dtype)

    conv.defvjp(lambda x, kernel: (conv(x, kernel), (x, kernel)), backward)
    return conv(x, kernel)


def _direct(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _direct_kernel_gradient(x, g):
    shape = jax.ShapeDtypeStruct((3, 3, x.shape[3], g.shape[3]), x.dtype)
    (dkernel,) = jax.linear_transpose(lambda kernel: _direct(x, kernel), shape)(g)
    return dkernel


def _forward(x, kernel, tile):
    batch, height, width, _ = x.shape
    dtype, wide = x.dtype, accumulator_dtype(x.dtype)  # halves would lose too much in the transforms
    x, kernel = x.astype(wide), kernel.astype(wide)
    products = jnp.einsum("ijnc,ijcd->ijnd", _input_tiles(x, tile), _kernel_tiles(kernel, tile))
    rows, columns, features = -(-height // tile), -(-width // tile), kernel.shape[3]
    blocks = _transform(_TRANSFORMS[tile][2], products).reshape(tile, tile, batch, rows, columns, features)
    lines = [jnp.stack(list(line), axis=3) for line in blocks]  # (b, rows, columns, tile, d)
    y = jnp.stack(lines, axis=2).reshape(batch, rows * tile, columns * tile, features)
    return y[:, :height, :width].astype(dtype)


def _kernel_gradient(x, g, tile):
    _, of_kernel, of_output = _TRANSFORMS[tile]
    dtype, wide = x.dtype, accumulator_dtype(x.dtype)
    x, g = x.astype(wide), g.astype(wide)
    products = _transform_tiles(of_output.T, g, tile, before=0)
    dtiles = jnp.einsum("ijnc,ijnd->ijcd", _input_tiles(x, tile), products)
    return _transform(of_kernel.T, dtiles).astype(dtype)


def _input_tiles(x, tile):
    return _transform_tiles(_TRANSFORMS[tile][0], x, tile, before=1)


def _kernel_tiles(kernel, tile):
    return _transform(_TRANSFORMS[tile][1], kernel)


def _transform_tiles(matrix: np.ndarray, x: jax.Array, tile: int, before: int) -> jax.Array:
    """`matrix @ t @ matrix.T` of every tile t of the maps, (side, side, tiles, c).

    There is a tile every `tile` pixels, as large as the matrix has columns; the first begins `before` pixels outside.
    """
    _, height, width, channels = x.shape
    rows, columns, side = -(-height // tile), -(-width // tile), matrix.shape[1]
    after = side - tile - before
    pads = [(before, after + count * tile - size) for count, size in ((rows, height), (columns, width))]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    x = _combine(matrix, [x[:, i : i + (rows - 1) * tile + 1 : tile] for i in range(side)])
    x = _combine(matrix, [x[:, :, :, j : j + (columns - 1) * tile + 1 : tile] for j in range(side)])
    return x.swapaxes(0, 1).reshape(len(matrix), len(matrix), -1, channels)


def _transform(matrix: np.ndarray, x: jax.Array) -> jax.Array:
    """`matrix @ x @ matrix.T` over the first two axes."""
    return _combine(matrix, list(_combine(matrix, list(x)).swapaxes(0, 1))).swapaxes(0, 1)


def _combine(matrix: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    """`matrix @ parts`, as sums of few terms."""
    rows = []
    for row in matrix:
        terms = [
            part if factor == 1 else part * jnp.asarray(factor, part.dtype)
            for part, factor in zip(parts, row, strict=True)
            if factor
        ]
        rows.append(functools.reduce(jnp.add, terms))
    # The barrier keeps XLA from working this out anew for every term that reads it.
    return jax.lax.optimization_barrier(jnp.stack(rows))
