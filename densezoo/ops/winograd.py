"""Winograd's form of the 3x3 convolution, for inference on CPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops.sharding import per_device

# Lavin and Gray's matrices for tiles of 4x4 outputs: the transforms of kernel, input and output along one axis.
_OF_KERNEL = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OF_INPUT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_OF_OUTPUT = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
_TILES = 400
"""Tiles that are transformed at a time: those of 256 channels fit into a processor's caches."""


def winograd_is_faster(shape: tuple[int, ...], kernel_shape: tuple[int, ...], *, shared: bool) -> bool:
    """Whether `winograd_conv` is faster than oneDNN's convolution for maps of this shape; see its measurements.

    The transformed kernel is four times as large as the kernel. So there must be many pixels for it, unless it is
    `shared` with another map.
    """
    pixels, (rows, columns, channels, features) = shape[0] * shape[1] * shape[2], kernel_shape
    wide = (rows, columns) == (3, 3) and min(channels, features) >= 256 and channels * features <= 2**18
    return wide and pixels >= (500 if shared else 2000)


def winograd_kernel(kernel: np.ndarray) -> np.ndarray:
    """Transforms a (3, 3, in, out) kernel to the (36, in, out) kernel that `winograd_conv` takes."""
    of_both_axes = np.kron(_OF_KERNEL, _OF_KERNEL)
    return (of_both_axes @ kernel.reshape(9, -1)).reshape(36, *kernel.shape[2:]).astype(kernel.dtype)


def winograd_conv(x: Float[Array, "b h w i"], kernel: Float[Array, "36 i o"]) -> Float[Array, "b h w o"]:
    """A 3x3 convolution with one pixel of padding, with a quarter of the multiplications.

    Each tile of 6x6 pixels gives 4x4 pixels. All transforms are matrix products, and pixels are copied by gathering
    rows of channels. It differs from the direct form by about 1e-5 of the largest output.

    With oneDNN on two cores, RetinaNet-ResNet50 takes 0.72 and Mask R-CNN-ResNet50 0.92 of their time with the direct
    form, for images of 320x480. FPN-ResNet18, whose convolutions have 128 features, takes 1.18.

    Args:
        x: NHWC maps.
        kernel: result of `winograd_kernel`.

    References:
        Lavin and Gray, Fast algorithms for convolutional neural networks, 2015. https://arxiv.org/abs/1509.09308
    """
    return per_device(_of_maps, x, weights=(kernel,), auto=True)


def _of_maps(x, kernel):
    batch, height, width, channels = x.shape
    down, across = -(-height // 4), -(-width // 4)
    tiles, rows, columns = batch * down * across, 4 * down + 2, 4 * across + 2
    padded = jnp.pad(x, ((0, 0), (1, rows - 1 - height), (1, columns - 1 - width), (0, 0))).reshape(-1, channels)
    i, j, image, y, z = np.ix_(*map(np.arange, (6, 6, batch, down, across)))
    pixels = ((image * rows + 4 * y + i) * columns + 4 * z + j).reshape(36, tiles)
    of_input, of_output = (np.kron(matrix, matrix).astype(x.dtype) for matrix in (_OF_INPUT, _OF_OUTPUT))

    def convolve(pixels):
        read = _gathered(padded, pixels).reshape(36, -1)
        inputs = jnp.dot(of_input, read).reshape(36, -1, channels)
        products = jax.lax.dot_general(inputs, kernel, (((2,), (1,)), ((0,), (0,))))
        return jnp.dot(of_output, products.reshape(36, -1)).reshape(16, pixels.shape[1], -1)

    parts = np.array_split(pixels, -(-tiles // _TILES), axis=1)
    outputs = jnp.concatenate([convolve(part) for part in parts], 1).reshape(16 * tiles, -1)
    image, y, z = np.ix_(*map(np.arange, (batch, height, width)))
    written = (y % 4 * 4 + z % 4) * tiles + (image * down + y // 4) * across + z // 4
    return _gathered(outputs, written).reshape(batch, height, width, -1)


def _gathered(table, rows):
    return table.at[rows.reshape(-1).astype(np.int32)].get(mode="promise_in_bounds")
