"""One program computes images of all sizes up to its own, with the numbers of a program for each size."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.sharding import CASES
from densezoo.inference import compile
from densezoo.inspect.corner import Corner
from densezoo.inspect.matching import GlobalOperations, Misfit, trace

KERNEL: Any = np.random.default_rng(0).standard_normal((3, 3, 2, 2)).astype(np.float32)
NHWC = ("NHWC", "HWIO", "NHWC")


def convolution(x, padding: Any = "SAME", stride=1, **options):
    return jax.lax.conv_general_dilated(x, KERNEL, (stride, stride), padding, dimension_numbers=NHWC, **options)


def pooling(x, start, operation, padding="SAME"):
    return jax.lax.reduce_window(x, start, operation, (1, 3, 3, 1), (1, 2, 2, 1), padding)


def spread(y, x):
    """A map of the image's size that depends on all of `y`, at its own positions."""
    rows, columns = (x.shape[axis] - y.shape[axis] for axis in (1, 2))
    return jnp.pad(y, ((0, 0), (0, rows), (0, columns), (0, 0)))


def upsampled(y, x):
    """`y`, of half the image's size, with each position repeated."""
    return jnp.repeat(jnp.repeat(y, 2, 1), 2, 2)[:, : x.shape[1], : x.shape[2]]


def tokens(x):
    return x.reshape(1, -1, x.shape[-1])


def attention(x):
    query = tokens(x)
    weights = jax.nn.softmax(query @ query.swapaxes(1, 2))
    return (weights @ query).reshape(x.shape)


def windows(x, side=2):
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    parts = padded.reshape(batch, rows, side, columns, side, channels).swapaxes(2, 3)
    parts = parts.reshape(-1, side**2, channels)
    parts = (parts + parts.mean(1, keepdims=True)).reshape(batch, rows, columns, side, side, channels)
    return parts.swapaxes(2, 3).reshape(padded.shape)[:, :height, :width]


def with_class_token(x):
    joined = jnp.concatenate([jnp.ones((1, 1, 2)), tokens(x)], 1)
    return (joined * joined.sum(1, keepdims=True))[:, 1:].reshape(x.shape)


def table_for_each_size(x):
    """As a resized position embedding, whose numbers are known when the program is traced."""
    height, width = x.shape[1:3]
    return x + np.random.default_rng(height * 100 + width).standard_normal((1, height, width, 1)).astype(np.float32)


def gain(x):
    """Known numbers that are all the same for some sizes only."""
    height, width = x.shape[1:3]
    rows = jnp.linspace(-1, 1, height)[:, None]
    factor = jnp.ones((height, width)) if height % 8 == 0 else jnp.broadcast_to(rows, (height, width))
    return x * factor[None, :, :, None]


def picked(x, mode):
    """Rows whose numbers depend on the image, some of them outside."""
    rows = (x[0, :, 0, 0] * 20).astype(jnp.int32)[:, None]
    numbers = jax.lax.GatherDimensionNumbers((0, 2, 3), (1,), (1,))
    found = jax.lax.gather(x, rows, numbers, (1, 1, *x.shape[2:]), mode=mode)
    return jnp.nan_to_num(found, nan=7.0)


OPERATIONS = {
    "convolution": convolution,
    "convolution, SAME with stride 2": lambda x: upsampled(convolution(x, stride=2), x),
    "convolution, fixed padding": lambda x: upsampled(convolution(x, [(1, 1), (1, 1)], 2), x),
    "convolution, dilated": lambda x: convolution(x, [(2, 2), (2, 2)], rhs_dilation=(2, 2)),
    "convolution, transposed": lambda x: convolution(convolution(x, stride=2), [(1, 2), (1, 2)], lhs_dilation=(2, 2))[
        :, : x.shape[1], : x.shape[2]
    ],
    "maxima of windows": lambda x: upsampled(pooling(x, -jnp.inf, jax.lax.max), x),
    "minima of windows": lambda x: upsampled(pooling(x, jnp.inf, jax.lax.min), x),
    "sums of windows": lambda x: upsampled(pooling(x, 0.0, jax.lax.add), x),
    "mean": lambda x: x - x.mean((1, 2), keepdims=True),
    "variance": lambda x: x / x.var((1, 2), keepdims=True),
    "maximum": lambda x: x - x.max(1, keepdims=True),
    "minimum": lambda x: x - x.min((1, 2), keepdims=True),
    "position of the maximum": lambda x: x + x.argmax(2, keepdims=True).astype(x.dtype),
    "any": lambda x: jnp.where((x > 1.5).any(1, keepdims=True), x, 2 * x),
    "all": lambda x: jnp.where((x > -1.5).all(1, keepdims=True), x, 2 * x),
    "products": lambda x: jnp.einsum("bhwc,bhwd->bcd", x, x)[:, None, :1] * x,
    "attention": attention,
    "windows": windows,
    "windows, shifted": lambda x: jnp.roll(windows(jnp.roll(x, (-1, -1), (1, 2))), (1, 1), (1, 2)),
    "class token": with_class_token,
    "known numbers": table_for_each_size,
    "known numbers, the same for some sizes": gain,
    "reversed": lambda x: x + x[:, ::-1, ::-1],
    "first half": lambda x: spread(x[:, : x.shape[1] // 2], x),
    "last rows": lambda x: spread(x[:, -3:, -5:], x),
    "every second": lambda x: spread(x[:, ::2, 1::2], x),
    "padding in front": lambda x: jnp.pad(x, ((0, 0), (2, 3), (1, 0), (0, 0)), constant_values=4)[:, 1:-4, :-1],
    "joined": lambda x: jnp.concatenate([x, x + 1, x], 1)[:, 2 : 2 + x.shape[1]],
    "cumulative sum": lambda x: x.cumsum(1),
    "positions outside, clipped": lambda x: picked(x, "clip"),
    "positions outside, filled": lambda x: picked(x, "fill"),
    "resized": lambda x: jax.image.resize(jax.image.resize(x, (1, 5, 5, 2), "bilinear"), x.shape, "bilinear"),
}


def in_corner(function, size, window=(24, 20), smaller=((18, 10), (15, 12), (13, 17))):
    """The result of the program of a window for an image of a size, and that of its own program."""
    corner = Corner(*(trace(function, (1, *each, 2)) for each in (window, *smaller)))
    image = np.random.default_rng(1).standard_normal((1, *size, 2)).astype(np.float32)
    whole = np.full((1, *window, 2), 1e3, np.float32)
    whole[:, : size[0], : size[1]] = image
    found = jax.jit(corner.run)(whole, corner.numbers(trace(function, image.shape)))
    return found[:, : size[0], : size[1]], jax.jit(function)(image)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [(24, 20), (17, 13), (16, 9)])
def test_operations_ignore_what_is_beyond_the_image(name, size):
    found, expected = in_corner(OPERATIONS[name], size)
    assert float(jnp.std(expected)) > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_operations_without_a_rule_are_named():
    with pytest.raises(GlobalOperations, match="sort"):
        in_corner(lambda x: x - jnp.median(x, (1, 2), keepdims=True), (10, 10))


def test_other_operations_do_not_fit():
    """Small images take another path."""
    with pytest.raises(Misfit):
        in_corner(lambda x: x * 2 if x.shape[1] < 9 else jnp.sin(x), (8, 10))
    with pytest.raises(Misfit):  # a number that was taken to be the same for all sizes
        in_corner(lambda x: x + np.float32(1 + (x.shape[1] == 8)), (8, 10))
    with pytest.raises(Misfit):  # an output of another size
        in_corner(lambda x: x[:, ::2], (8, 10))
    with pytest.raises(Misfit):  # another result of the same operations
        in_corner(lambda x: (jnp.sin(x), 2 * jnp.sin(x))[x.shape[1] != 8], (8, 10))
    with pytest.raises(Misfit):  # every second position, and not the first ones
        in_corner(lambda x: (x[:, ::2] if x.shape[1] == 8 else x).sum(1, keepdims=True) + x, (8, 10))


def test_a_cut_that_is_extended_again_does_not_fit():
    """The larger program has one array for the uncut, the cut and the extended one, of which two differ in a row."""

    def function(x):
        y = upsampled(pooling(x, 0.0, jax.lax.add, "SAME"), x)  # cut if the number of rows is odd
        y = jnp.concatenate([y, y[:, -1:]], 1) if x.shape[1] % 2 else y
        return x + y.sum((1, 2), keepdims=True)

    with pytest.raises(Misfit):
        in_corner(function, (17, 12), smaller=((18, 10), (15, 12)))


NETWORKS = ("segformer", "dpt", "pspnet", "deeplabv3plus", "unet, Swin", "unet, SE-ResNet", "unet, GroupNorm")


@pytest.mark.parametrize("name", [*NETWORKS, "unet, EfficientNet", "unet, VGG", "unet, DySample", "linknet", "pan"])
def test_networks_that_read_the_whole_image(name, with_statistics, compilations):
    model = CASES[name]()
    variables = with_statistics(model, jnp.zeros((1, 64, 64, 3)))
    run = compile(model, variables).run
    corner = Corner(*(trace(run, (1, *size, 3)) for size in ((96, 96), (64, 32), (63, 31), (65, 33))))
    program, compiled = jax.jit(corner.run), []
    for size in ((70, 49), (47, 90)):
        image = np.random.default_rng(1).standard_normal((1, *size, 3)).astype(np.float32)
        whole = np.full((1, 96, 96, 3), 9, np.float32)
        whole[:, : size[0], : size[1]] = image
        numbers = corner.numbers(trace(run, image.shape))
        with compilations() as new:
            found = np.asarray(program(whole, numbers))[:, : size[0], : size[1]]
        compiled += new
        expected = model.apply(variables, image)
        np.testing.assert_allclose(found, expected, atol=1e-5 * float(jnp.abs(expected).max()) + 1e-6)
    assert len(compiled) == 1
