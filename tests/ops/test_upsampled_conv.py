"""Fused upsampling, concatenation and convolution, compared with the plain form, in value and gradient."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops
from densezoo.ops.upsampled_conv import METHODS


def arguments(size=(3, 5), channels=(4, 3), features=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    (height, width), (c, d) = size, channels
    shapes = (2, height, width, c), (2, 2 * height, 2 * width, d), (3, 3, c + d, features)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(3, 5), (1, 1), (4, 2)])
def test_equals_the_plain_form(size, method, skip_first):
    x, skip, kernel = arguments(size)

    @jax.jit
    def run(x, skip, kernel, g):
        def upsampled(x, skip, kernel):
            return ops.upsample_concat_conv(x, skip, kernel, method=method, skip_first=skip_first)

        y, vjp = jax.vjp(upsampled, x, skip, kernel)
        return y, *vjp(g)

    g = np.random.default_rng(1).standard_normal((*skip.shape[:3], kernel.shape[3])).astype(np.float32)
    with ops.implementation("reference"):
        expected = run(x, skip, kernel, g)
    for ours, plain in zip(run(x, skip, kernel, g), expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_without_a_skip(method):
    x, _, kernel = arguments(channels=(4, 0))
    with ops.implementation("reference"):
        expected = ops.upsample_concat_conv(x, None, kernel, method=method)
    np.testing.assert_allclose(ops.upsample_concat_conv(x, None, kernel, method=method), expected, atol=1e-5)


def test_nearest_builds_neither_the_upsampled_nor_the_concatenated_map():
    x, skip, kernel = arguments()
    for impl, built in (("auto", False), ("reference", True)):
        with ops.implementation(impl):
            text = jax.jit(lambda *args: ops.upsample_concat_conv(*args)).lower(x, skip, kernel).as_text()
        assert ("tensor<2x6x10x4xf32>" in text) == built
        assert ("tensor<2x6x10x7xf32>" in text) == built


def test_bfloat16():
    x, skip, kernel = arguments(dtype=jnp.bfloat16)
    y = ops.upsample_concat_conv(x, skip, kernel)
    assert y.dtype == jnp.bfloat16
    exact = ops.upsample_concat_conv(*(a.astype(jnp.float32) for a in (x, skip, kernel)))
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2e-2 * float(jnp.abs(exact).max()))


def test_bad_input_is_named():
    run = inspect.unwrap(ops.upsample_concat_conv)
    x, skip, kernel = arguments()
    with pytest.raises(ValueError, match="nearest, bilinear"):
        run(x, skip, kernel, method="cubic")
    with pytest.raises(ValueError, match="twice the height"):
        run(x, skip[:, 1:], kernel)
    with pytest.raises(ValueError, match=r"\(3, 3, 7, out\)"):
        run(x, skip, kernel[:, :, 1:])
    with pytest.raises(ValueError, match="empty"):
        run(x[:0], skip[:0], kernel)
    with pytest.raises(TypeError, match="float type"):
        run(x.astype(jnp.int32), skip, kernel)
