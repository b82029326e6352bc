"""The choice of implementation: part of jit's cache key, and visible in the traced program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops
from densezoo.ops.implementation import chosen


def test_a_jitted_function_is_traced_anew_for_each_choice():
    seen = []

    @jax.jit
    def function(x):
        seen.append(chosen())
        return x

    function(1.0)
    with ops.implementation("reference"):
        function(1.0)
        function(1.0)
    function(1.0)
    assert seen == ["auto", "reference"]


def test_an_unknown_choice_is_named():
    with pytest.raises(ValueError, match="auto, reference"), ops.implementation("fast"):
        pass


X = np.random.default_rng(0).standard_normal((1, 6, 4, 4)).astype(np.float32)
INDICES = np.random.default_rng(1).integers(0, 4, X.shape).astype(np.int8)
OPERATIONS = {
    "nearest": lambda x: ops.resize_nearest(x, (12, 8)),
    "nearest_odd": lambda x: ops.resize_nearest(x, (7, 9), half_pixel=False),
    "bilinear": lambda x: ops.resize_bilinear(x, (12, 8)),
    "bilinear_align_corners": lambda x: ops.resize_bilinear(x, (11, 7), align_corners=True),
    "bicubic": lambda x: ops.resize_bicubic(x, (24, 5)),
    "conv_transpose_2x2": lambda x: ops.conv_transpose(x, jnp.ones((2, 2, 4, 3))),
    "conv_transpose_4x4": lambda x: ops.conv_transpose(x, jnp.asarray(_kernel(4)), padding=1),
    "pixel_shuffle": ops.pixel_shuffle,
    "max_pool": ops.max_pool,
    "max_pool_3x3": lambda x: ops.max_pool(x, 3, 2, 1),
    "max_unpool": lambda x: ops.max_unpool(x, jnp.asarray(INDICES)),
    "max_unpool_odd": lambda x: ops.max_unpool(x, jnp.asarray(INDICES), (13, 9)),
    "upsample_concat_conv": lambda x: ops.upsample_concat_conv(x, None, jnp.asarray(_kernel(3))),
}


def _kernel(size):
    return np.random.default_rng(2).standard_normal((size, size, 4, 3)).astype(np.float32)


@functools.cache
def both_forms(name):
    """The operation's value and gradient, in the fast and the plain form, in one program."""

    @jax.jit
    def run(x):
        results = []
        for impl in ("auto", "reference"):
            with ops.implementation(impl):
                y, vjp = jax.vjp(OPERATIONS[name], x)
                g = np.random.default_rng(3).standard_normal(y.shape).astype(y.dtype)
                results.append((y, vjp(jnp.asarray(g))[0]))
        return results

    return run


@pytest.mark.parametrize("name", OPERATIONS)
def test_values_and_gradients_equal_the_plain_forms(name):
    (y, gradient), (expected, expected_gradient) = both_forms(name)(jnp.asarray(X))
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-5)


@pytest.mark.parametrize("extreme", [np.inf, -np.inf, np.nan, 1e30])
@pytest.mark.parametrize("name", [name for name in OPERATIONS if "conv" not in name])
def test_extreme_values_come_out_as_in_the_plain_forms(name, extreme):
    x = X.copy()
    x[0, 2, 1] = x[0, 5, 3] = extreme
    for dtype in (jnp.float32, jnp.bfloat16):
        (y, _), (expected, _) = both_forms(name)(jnp.asarray(x, dtype))
        y, expected = y.astype(jnp.float32), expected.astype(jnp.float32)
        # Bicubic's weights of both signs make NaN of infinities; where, depends on the order of the two axes.
        np.testing.assert_array_equal(jnp.isfinite(y), jnp.isfinite(expected))
        if name != "bicubic":
            np.testing.assert_array_equal(jnp.isnan(y), jnp.isnan(expected))
        finite = np.isfinite(expected)
        bound = 1e-5 if dtype == jnp.float32 else 5e-2  # halves are rounded once more, between the axes
        np.testing.assert_allclose(np.asarray(y)[finite], np.asarray(expected)[finite], rtol=bound, atol=bound)


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_plain_forms_differentiate_forward(name):
    @jax.jit
    def products(x, direction):
        with ops.implementation("reference"):
            y, tangent = jax.jvp(OPERATIONS[name], (x,), (direction,))
            _, vjp = jax.vjp(OPERATIONS[name], x)
            g = jnp.asarray(np.random.default_rng(5).standard_normal(y.shape).astype(np.float32))
            return jnp.vdot(g, tangent), jnp.vdot(vjp(g)[0], direction)

    forward, backward = products(X, np.random.default_rng(4).standard_normal(X.shape).astype(np.float32))
    np.testing.assert_allclose(forward, backward, rtol=1e-3)
