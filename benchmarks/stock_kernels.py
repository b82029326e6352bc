"""The same computations as densezoo's kernels, written only with JAX and Flax."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp


def larger(x, factor=2):
    return factor * x.shape[1], factor * x.shape[2]


def image_resize(x, size, method):
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), method, antialias=False)


def align_corners_x2(x):
    size = larger(x)
    scale = jnp.array([(o - 1) / (n - 1) for o, n in zip(size, x.shape[1:3], strict=True)], jnp.float32)
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.scale_and_translate(x, shape, (1, 2), scale, (1 - scale) / 2, "linear", antialias=False)


def conv(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def depthwise(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=x.shape[3]
    )


def transposed(padding, x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_transpose(x, jnp.flip(kernel, (0, 1)), (2, 2), padding, dimension_numbers=layout)


def pool_with_indices(x):
    batch, height, width, channels = x.shape
    windows = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    windows = windows.reshape(batch, height // 2, width // 2, channels, 4)
    index = windows.argmax(-1)
    return jnp.take_along_axis(windows, index[..., None], -1)[..., 0], index.astype(jnp.int8)


def unpool(x, indices):
    batch, height, width, channels = x.shape
    b, i, j, c = jnp.indices(x.shape, sparse=True)
    indices = indices.astype(i.dtype)
    row, column = 2 * i + indices // 2, 2 * j + indices % 2
    return jnp.zeros((batch, 2 * height, 2 * width, channels), x.dtype).at[b, row, column, c].set(x)


def concat_conv(method, x, skip, kernel):
    return conv(jnp.concatenate([image_resize(x, larger(x), method), skip], -1), kernel)


def norm_relu(x, scale, bias):
    wide = x.astype(jnp.float32)
    mean, var = wide.mean((0, 1, 2), keepdims=True), wide.var((0, 1, 2), keepdims=True)
    scale, bias = (each.astype(jnp.float32).reshape(1, 1, 1, -1) for each in (scale, bias))
    return nn.relu((wide - mean) * jax.lax.rsqrt(var + 1e-5) * scale + bias).astype(x.dtype)


def sample(x, positions):
    sample = partial(jax.scipy.ndimage.map_coordinates, order=1, mode="nearest")

    def one(image, places):
        channels = jax.vmap(lambda plane: sample(plane, [places[..., 0], places[..., 1]]), -1, -1)
        return channels(image.astype(jnp.float32)).astype(image.dtype)

    return jax.vmap(one)(x, positions)
