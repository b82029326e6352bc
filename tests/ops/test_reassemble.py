"""CARAFE's reassembly against a NumPy loop over its definition, and its gradients against the plain form."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops
from densezoo.ops import reference

CASES = [(5, 2, 1), (3, 2, 2), (3, 3, 4), (1, 1, 1), (5, 1, 2)]


def inputs(kernel_size, factor, groups, size=(5, 3), dtype=np.float32):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 4)).astype(np.float32)
    masks = rng.random((2, factor * size[0], factor * size[1], groups * kernel_size**2)).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(masks, dtype)


def loop(x, masks, kernel_size, factor, groups):
    batch, height, width, channels = x.shape
    y = np.zeros((batch, factor * height, factor * width, channels))
    for b, i, j, c in np.ndindex(*y.shape):
        group = c // (channels // groups)
        for tap, (di, dj) in enumerate(np.ndindex(kernel_size, kernel_size)):
            row, column = i // factor + di - kernel_size // 2, j // factor + dj - kernel_size // 2
            if 0 <= row < height and 0 <= column < width:
                y[b, i, j, c] += masks[b, i, j, group * kernel_size**2 + tap] * x[b, row, column, c]
    return y


@pytest.mark.parametrize(("kernel_size", "factor", "groups"), CASES)
def test_carafe_equals_loop(kernel_size, factor, groups):
    x, masks = inputs(kernel_size, factor, groups)
    options = {"kernel_size": kernel_size, "factor": factor, "groups": groups}
    expected = loop(np.asarray(x), np.asarray(masks), kernel_size, factor, groups)
    np.testing.assert_allclose(jax.jit(lambda x, m: ops.carafe(x, m, **options))(x, masks), expected, atol=1e-5)
    with ops.implementation("reference"):
        np.testing.assert_allclose(ops.carafe(x, masks, **options), expected, atol=1e-5)


@pytest.mark.parametrize(("kernel_size", "factor", "groups"), CASES)
def test_gradients_equal_those_of_the_plain_form(kernel_size, factor, groups):
    x, masks = inputs(kernel_size, factor, groups, size=(5, 19))
    options = {"kernel_size": kernel_size, "factor": factor, "groups": groups}
    g = jnp.asarray(np.random.default_rng(1).standard_normal((2, 5 * factor, 19 * factor, 4)).astype(np.float32))

    def pull_back(carafe, x, masks, g):
        return jax.vjp(lambda x, m: carafe(x, m, **options), x, masks)[1](g)

    ours = jax.jit(lambda *arrays: pull_back(ops.carafe, *arrays))(x, masks, g)
    plain = jax.jit(lambda *arrays: pull_back(reference.carafe, *arrays))(x, masks, g)
    for mine, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_gradients_by_differences():
    x, masks = inputs(3, 2, 2, size=(2, 3))
    f = jax.jit(lambda x, m: ops.carafe(x, m, kernel_size=3, groups=2))
    check_grads(f, (x, masks), order=2, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_bfloat16_is_summed_in_float32():
    x, masks = inputs(5, 2, 1, dtype=jnp.bfloat16)
    y = ops.carafe(x, masks)
    exact = loop(np.asarray(x, np.float64), np.asarray(masks, np.float64), 5, 2, 1)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))
    to_x, to_masks = jax.grad(lambda x, m: ops.carafe(x, m).astype(jnp.float32).sum(), (0, 1))(x, masks)
    assert to_x.dtype == to_masks.dtype == jnp.bfloat16


def test_an_infinity_reaches_its_neighbourhood_only():
    x, masks = inputs(3, 2, 1, size=(7, 7))
    y = np.asarray(ops.carafe(x.at[0, 3, 3, 1].set(jnp.inf), masks, kernel_size=3))
    expected = np.zeros(y.shape, bool)
    expected[0, 4:10, 4:10, 1] = True
    np.testing.assert_array_equal(np.isinf(y), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"factor": 0}, "at least 1"),
        ({"groups": 3}, "multiples of groups=3"),
        ({"factor": 3}, r"are \(2, 15, 9, 25\); got \(2, 10, 6, 25\)"),
    ],
)
def test_bad_options_are_named(options, message):
    x, masks = inputs(5, 2, 1)
    with pytest.raises(ValueError, match=message):
        ops.carafe(x, masks, **options)


def test_bad_arrays_are_named():
    x, masks = inputs(5, 2, 1)
    with pytest.raises(ValueError, match="NHWC"):
        inspect.unwrap(ops.carafe)(x[0], masks)
    with pytest.raises(TypeError, match="masks of a float type, got int32"):
        inspect.unwrap(ops.carafe)(x, masks.astype(jnp.int32))
