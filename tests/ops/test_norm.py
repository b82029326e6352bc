"""Batch and group normalisation against the plain forms, in value and gradient."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops


def arguments(shape, mean=3.0):
    rng = np.random.default_rng(0)
    scale, bias = rng.uniform(0.5, 1.5, shape[-1]), rng.standard_normal(shape[-1])
    x = rng.normal(mean, 2.0, shape)
    return [jnp.asarray(a.astype(np.float32)) for a in (x, scale, bias)]


def both(function, *args):
    """Value and gradients under "auto" and under "reference", for the same cotangents, in one program."""

    @jax.jit
    def run(*args):
        results = []
        for impl in ("auto", "reference"):
            with ops.implementation(impl):
                value, vjp = jax.vjp(function, *args)
                cotangents = jax.tree.map(
                    lambda y: jnp.cos(3.0 * jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape), value
                )
                results.append((value, vjp(cotangents)))
        return results

    return run(*args)


def assert_close(a, b, tolerance=1e-5):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * float(jnp.abs(y).max()))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 1, 9, 4), (6, 2), (3, 8, 2), (2, 3, 2, 3, 2)])
def test_batch_norm_equals_the_plain_form(shape, relu):
    auto, plain = both(lambda *args: ops.batch_norm(*args, epsilon=1e-3, relu=relu), *arguments(shape))
    assert_close(auto, plain)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm_equals_the_plain_form(groups, relu):
    args = arguments((2, 5, 4, 6))
    auto, plain = both(lambda *args: ops.group_norm(*args, groups=groups, epsilon=1e-5, relu=relu), *args)
    assert_close(auto, plain)


def test_gradients_by_differences():
    def batch(*args):
        return ops.batch_norm(*args, epsilon=1e-2)

    def group(*args):
        return ops.group_norm(*args, groups=2, epsilon=1e-2)

    for function in (batch, group):
        check_grads(jax.jit(function), arguments((2, 3, 3, 4)), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_gradient_of_the_gradient():
    def penalty(x, scale, bias):
        return jnp.square(jax.grad(lambda x: jnp.sin(ops.batch_norm(x, scale, bias, epsilon=1e-2)[0]).sum())(x)).sum()

    auto, plain = both(penalty, *arguments((2, 3, 4, 2)))
    assert_close(auto, plain, 1e-4)


def test_a_mean_far_from_zero_does_no_harm():
    x, scale, bias = arguments((2, 16, 16, 3), mean=1e4)
    y, mean, var = ops.batch_norm(x, scale, bias, epsilon=1e-5)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-3)
    expected = (exact - exact.mean((0, 1, 2))) / exact.std((0, 1, 2)) * np.asarray(scale) + np.asarray(bias)
    np.testing.assert_allclose(y, expected, atol=1e-2)


def test_halves_are_summed_in_float32():
    x, scale, bias = arguments((4, 32, 32, 2))
    half = x.astype(jnp.bfloat16)
    y, mean, _ = ops.batch_norm(half, scale, bias, epsilon=1e-5)
    assert y.dtype == jnp.bfloat16
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, np.asarray(half.astype(jnp.float32)).mean((0, 1, 2)), rtol=1e-5)
    gradient = jax.grad(lambda x: ops.batch_norm(x, scale, bias, epsilon=1e-5, relu=True)[0].astype(jnp.float32).sum())
    assert gradient(half).dtype == jnp.bfloat16


@pytest.mark.parametrize("extreme", [np.inf, np.nan])
def test_what_is_not_finite_stays_in_its_channel(extreme):
    x, scale, bias = arguments((2, 4, 4, 3))
    x = x.at[0, 1, 2, 1].set(extreme)
    for impl in ("auto", "reference"):
        with ops.implementation(impl):
            y, mean, _ = ops.batch_norm(x, scale, bias, epsilon=1e-5, relu=True)
        assert np.isfinite(y[..., [0, 2]]).all()
        assert not np.isfinite(y[..., 1]).all()
        assert not np.isfinite(mean[1])


def test_bad_input_is_named():
    batch, group = inspect.unwrap(ops.batch_norm), inspect.unwrap(ops.group_norm)
    x, ones = jnp.ones((1, 2, 2, 4)), jnp.ones(4)
    with pytest.raises(ValueError, match="entry for each channel"):
        batch(x, jnp.ones(3), ones, epsilon=1e-5)
    with pytest.raises(TypeError, match="float type"):
        batch(jnp.ones((1, 2, 2, 4), jnp.int32), ones, ones, epsilon=1e-5)
    with pytest.raises(ValueError, match="must divide"):
        group(x, ones, ones, groups=3, epsilon=1e-5)
    with pytest.raises(ValueError, match="at least 1"):
        group(x, ones, ones, groups=0, epsilon=1e-5)
