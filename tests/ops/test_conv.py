"""Transposed convolution and pixel shuffle against NumPy loops, and their gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops
from densezoo.ops import conv_transpose, pixel_shuffle
from densezoo.ops.implementation import with_onednn


def conv_transpose_loop(x, kernel, stride, padding):
    batch, height, width, _ = x.shape
    size, _, _, features = kernel.shape
    y = np.zeros((batch, (height - 1) * stride + size, (width - 1) * stride + size, features))
    for i in range(height):
        for j in range(width):
            painted = np.einsum("bc,klcd->bkld", x[:, i, j], kernel)
            y[:, i * stride : i * stride + size, j * stride : j * stride + size] += painted
    return y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 1), (3, 3, 0), (3, 1, 1)])
def test_conv_transpose_equals_loop(size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, 4, 3)).astype(np.float32)
    kernel = rng.standard_normal((size, size, 3, 2)).astype(np.float32)
    compute = jax.jit(lambda x, kernel: conv_transpose(x, kernel, stride=stride, padding=padding))
    y = compute(x, kernel)
    np.testing.assert_allclose(y, conv_transpose_loop(x, kernel, stride, padding), atol=1e-5)
    check_grads(compute, (jnp.asarray(x), jnp.asarray(kernel)), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_conv_transpose_is_the_gradient_of_a_strided_convolution():
    rng = np.random.default_rng(1)
    kernel = jnp.asarray(rng.standard_normal((4, 4, 2, 3)).astype(np.float32))  # in the transposed direction: 2 -> 3
    g = jnp.asarray(rng.standard_normal((1, 5, 6, 2)).astype(np.float32))

    def convolve(x):
        return jax.lax.conv_general_dilated(
            x, kernel.transpose(0, 1, 3, 2), (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    (expected,) = jax.vjp(convolve, jnp.zeros((1, 10, 12, 3)))[1](g)
    np.testing.assert_allclose(conv_transpose(g, kernel, stride=2, padding=1), expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_pixel_shuffle_equals_loop(factor):
    x = np.random.default_rng(2).standard_normal((2, 3, 5, 2 * factor**2)).astype(np.float32)
    y = np.asarray(pixel_shuffle(jnp.asarray(x), factor))
    for b, i, j, c in np.ndindex(*y.shape):
        channel = c * factor**2 + (i % factor) * factor + j % factor
        assert y[b, i, j, c] == x[b, i // factor, j // factor, channel]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="multiples of 4"):
        pixel_shuffle(jnp.zeros((1, 2, 2, 6)))
    with pytest.raises(ValueError, match="kernel"):
        inspect.unwrap(conv_transpose)(jnp.zeros((1, 2, 2, 3)), jnp.zeros((2, 2, 4, 1)))
    with pytest.raises(ValueError, match="padding"):
        conv_transpose(jnp.zeros((1, 2, 2, 3)), jnp.zeros((2, 2, 3, 1)), padding=2)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (1, {}),
        (1, {"strides": 2}),
        (3, {"padding": 1}),
        (3, {"strides": 2, "padding": 1}),
        (3, {"padding": 2, "dilation": 2}),
        (3, {"padding": 1, "groups": 2}),
    ],
)
def test_conv_equals_the_plain_form(size, options):
    rng = np.random.default_rng(3)
    x = jnp.asarray(rng.standard_normal((2, 6, 5, 4)).astype(np.float32))
    groups = options.get("groups", 1)
    kernel = jnp.asarray(rng.standard_normal((size, size, 4 // groups, 6)).astype(np.float32))

    @jax.jit
    def both(x, kernel):
        results = []
        for impl in ("auto", "reference"):
            with ops.implementation(impl):
                y, vjp = jax.vjp(lambda x, kernel: ops.conv(x, kernel, **options), x, kernel)
                results.append((y, *vjp(jnp.cos(y))))
        return results

    for a, b in zip(*both(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [
        (3, 1, 1),
        (3, 2, 1),  # of 7 rows and 6 columns: the last column is read by no window
        (2, 1, 0),
        (1, 2, 0),
        (7, 2, 3),
        (3, 2, ((2, 0), (0, 1))),
    ],
)
def test_kernel_gradient_for_onednn(size, strides, padding):
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.standard_normal((2, 7, 6, 3)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 3, 5)), jnp.float32)

    def gradients(available):
        def run(x, kernel):
            with with_onednn(available):
                y, pull = jax.vjp(lambda x, kernel: ops.conv(x, kernel, strides=strides, padding=padding), x, kernel)
                return pull(jnp.asarray(np.random.default_rng(7).standard_normal(y.shape), jnp.float32))

        return str(jax.make_jaxpr(run)(x, kernel)), jax.jit(run)(x, kernel)

    (plain, expected), (merged, found) = gradients(False), gradients(True)
    assert plain != merged
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


def test_kernel_gradient_for_onednn_is_for_float32_and_single_groups():
    for dtype, groups, dilation in ((jnp.bfloat16, 1, 1), (jnp.float32, 2, 1), (jnp.float32, 1, 2)):
        x, kernel = jnp.ones((1, 6, 6, 4), dtype), jnp.ones((3, 3, 4 // groups, 2), dtype)

        def program(available, x=x, kernel=kernel, groups=groups, dilation=dilation):
            with with_onednn(available):
                loss = lambda kernel: ops.conv(x, kernel, groups=groups, dilation=dilation).sum()  # noqa: E731
                return str(jax.make_jaxpr(jax.grad(loss))(kernel))

        assert program(True) == program(False)
