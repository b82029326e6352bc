"""Bilinear sampling against a NumPy loop over its definition, and its gradients against the plain form."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops
from densezoo.ops import reference


def inputs(size=(5, 7), out=(4, 3), groups=None, dtype=np.float32):
    """Maps, and positions inside and far outside."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *size, 6)).astype(np.float32)
    lead = (2, *out) if groups is None else (2, *out, groups)
    positions = (rng.random((*lead, 2)) * (np.add(size, 4)) - 2.5).astype(np.float32)
    return jnp.asarray(x, dtype), jnp.asarray(positions)


def loop(x, positions):
    _, height, width, channels = x.shape
    if positions.ndim == 4:
        positions = positions[:, :, :, None]
    y = np.zeros((*positions.shape[:3], channels))
    for b, i, j, c in np.ndindex(*y.shape):
        row, column = positions[b, i, j, c // (channels // positions.shape[3])].astype(np.float64)
        row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
        for r, s in np.ndindex(height, width):
            y[b, i, j, c] += max(1 - abs(row - r), 0) * max(1 - abs(column - s), 0) * x[b, r, s, c]
    return y


@pytest.mark.parametrize("groups", [None, 1, 3, 6])
@pytest.mark.parametrize(("size", "out"), [((5, 7), (4, 3)), ((1, 1), (2, 5)), ((2, 1), (1, 1))])
def test_sampling_equals_loop(size, out, groups):
    x, positions = inputs(size, out, groups)
    expected = loop(np.asarray(x), np.asarray(positions))
    np.testing.assert_allclose(jax.jit(ops.sample_bilinear)(x, positions), expected, atol=1e-5)
    with ops.implementation("reference"):
        np.testing.assert_allclose(ops.sample_bilinear(x, positions), expected, atol=1e-5)


@pytest.mark.parametrize("groups", [None, 3])
def test_gradients_equal_those_of_the_plain_form(groups):
    x, positions = inputs(groups=groups, out=(9, 8))  # several positions read the same pixel
    # Whole positions, some of them on the border: the gradient there is the one towards the next pixel, or none.
    positions = positions.at[:, 0].set(jnp.round(positions[:, 0]))
    g = jnp.asarray(np.random.default_rng(1).standard_normal((2, 9, 8, 6)).astype(np.float32))
    pull_back = jax.jit(lambda f, *arrays: jax.vjp(f, *arrays[:2])[1](arrays[2]), static_argnums=0)
    ours = pull_back(ops.sample_bilinear, x, positions, g)
    plain = pull_back(reference.sample_bilinear, x, positions, g)
    for mine, expected in zip(ours, plain, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


def test_gradients_by_differences():
    x, _ = inputs(size=(4, 5))
    rng = np.random.default_rng(2)
    # Within pixels and beyond the border, away from where the slope changes.
    positions = rng.integers(-2, 6, (2, 3, 4, 2, 2)) + 0.25 + 0.5 * rng.random((2, 3, 4, 2, 2))
    positions = jnp.asarray(positions.astype(np.float32))
    check_grads(jax.jit(ops.sample_bilinear), (x, positions), order=2, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_positions_on_the_pixels_give_the_pixels():
    x, _ = inputs()
    grid = jnp.stack(jnp.meshgrid(jnp.arange(5.0), jnp.arange(7.0), indexing="ij"), -1)
    np.testing.assert_array_equal(ops.sample_bilinear(x, jnp.stack([grid, grid])), x)


def test_bfloat16_is_summed_in_float32():
    x, positions = inputs(dtype=jnp.bfloat16)
    y = ops.sample_bilinear(x, positions)
    assert y.dtype == jnp.bfloat16
    exact = loop(np.asarray(x, np.float64), np.asarray(positions))
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=0.005, atol=1e-6)
    to_x, to_positions = jax.grad(lambda *a: ops.sample_bilinear(*a).astype(jnp.float32).sum(), (0, 1))(x, positions)
    assert to_x.dtype == jnp.bfloat16 and to_positions.dtype == jnp.float32


def test_extreme_positions_are_clamped():
    x, _ = inputs()
    positions = jnp.asarray([[np.inf, -np.inf], [1e30, 3e9], [np.nan, 1.0]]).reshape(1, 1, 3, 2)
    y = ops.sample_bilinear(x[:1], positions)
    np.testing.assert_array_equal(y[0, 0, :2], jnp.stack([x[0, 4, 0], x[0, 4, 6]]))
    assert bool(jnp.isnan(y[0, 0, 2]).all())


def test_bad_input_is_named():
    x, positions = inputs(groups=3)
    sample = inspect.unwrap(ops.sample_bilinear)
    with pytest.raises(ValueError, match=r"positions are \(batch, H, W, 2\)"):
        sample(x, positions[..., :1])
    with pytest.raises(ValueError, match="as many maps as sets of positions"):
        sample(x, positions[:1])
    with pytest.raises(ValueError, match="4 groups must divide the 6 channels"):
        sample(x, jnp.zeros((2, 1, 1, 4, 2)))
    with pytest.raises(ValueError, match="no empty axis"):
        sample(x[:, :0], positions)
    with pytest.raises(TypeError, match="positions of a float type, got int32"):
        sample(x, positions.astype(jnp.int32))
