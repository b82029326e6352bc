"""Pooling and max-unpooling against NumPy loops, and their gradients."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops
from densezoo.ops import adaptive_avg_pool, avg_pool, max_pool, max_pool_with_indices, max_unpool


def pool_loop(x, window, stride, padding):
    x = np.pad(x, ((0, 0), (padding,) * 2, (padding,) * 2, (0, 0)), constant_values=-np.inf)
    height, width = (x.shape[1] - window) // stride + 1, (x.shape[2] - window) // stride + 1
    y = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    index = np.zeros(y.shape, np.int8)
    for b, i, j, c in np.ndindex(*y.shape):
        patch = x[b, i * stride : i * stride + window, j * stride : j * stride + window, c]
        y[b, i, j, c], index[b, i, j, c] = patch.max(), patch.argmax()
    return y, index


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 3, 0), (3, 1, 1), (2, 1, 0)])
@pytest.mark.parametrize("size", [(8, 6), (7, 9), (3, 4)])
def test_pool_equals_loop(size, window, stride, padding):
    # Few distinct values, so that ties occur: the first must win.
    x = np.random.default_rng(0).integers(0, 3, (2, *size, 3)).astype(np.float32)
    y, index = jax.jit(max_pool_with_indices, static_argnums=(1, 2, 3))(x, window, stride, padding)
    expected, expected_index = pool_loop(x, window, stride, padding)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(index, expected_index)


@pytest.mark.parametrize(
    ("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), (3, 2, 0), (2, 3, 1), (5, 3, 2)]
)
def test_pool_gradient(window, stride, padding):
    # Distinct whole numbers, so that a finite difference of 0.1 does not change the winner.
    x = jnp.asarray(np.random.default_rng(1).permutation(1 * 7 * 6 * 2).reshape(1, 7, 6, 2).astype(np.float32))
    check_grads(jax.jit(lambda x: max_pool(x, window, stride, padding)), (x,), 1, ["rev"], 1e-2, 1e-2, eps=0.1)


def test_pool_gradient_goes_to_the_first_of_equals():
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.ones((1, 3, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0], [0, 0]])


def test_pool_lets_nan_through():
    x = jnp.array([[1.0, jnp.nan], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    assert jnp.isnan(max_pool(x)).all()


@pytest.mark.parametrize(("window", "stride", "padding"), [(2, 2, 0), (3, 2, 1)])
def test_pool_finds_nan_in_its_window(window, stride, padding):
    x = jnp.full((1, 4, 4, 1), -jnp.inf).at[0, 2, 3, 0].set(jnp.nan)
    y, index = max_pool_with_indices(x, window, stride, padding)
    i, j = divmod(int(index[0, 1, 1, 0]), window)
    assert jnp.isnan(y[0, 1, 1, 0])
    assert (stride + i - padding, stride + j - padding) == (2, 3)


def test_pool_of_whole_numbers():
    x = jnp.asarray([[-128, -7], [3, 3]], jnp.int8).reshape(1, 2, 2, 1)
    y, index = inspect.unwrap(max_pool_with_indices)(x, 3, 2, 1)  # annotated for float maps
    assert (y.item(), y.dtype, index.item()) == (3, jnp.int8, 7)


def test_pool_gradient_in_one_program_takes_the_stored_positions():
    def both(x, g):
        y, vjp = jax.vjp(lambda x: max_pool(x, 3, 2, 1), x)
        return y, vjp(g)

    shapes = jax.ShapeDtypeStruct((1, 16, 16, 8), jnp.float32), jax.ShapeDtypeStruct((1, 8, 8, 8), jnp.float32)
    text = jax.jit(both).trace(*shapes).lower(lowering_platforms=("cpu",)).as_text()
    assert "dynamic_update_slice" in text


def test_unpool_equals_loop():
    x = np.random.default_rng(2).standard_normal((2, 7, 9, 3)).astype(np.float32)
    y, index = max_pool_with_indices(jnp.asarray(x))
    back = max_unpool(y, index, (7, 9))
    expected = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*y.shape):
        k = int(index[b, i, j, c])
        expected[b, 2 * i + k // 2, 2 * j + k % 2, c] = y[b, i, j, c]
    np.testing.assert_array_equal(back, expected)


def test_unpool_gradient_and_jit():
    x = jnp.asarray(np.random.default_rng(3).standard_normal((1, 4, 6, 2)).astype(np.float32))
    y, index = max_pool_with_indices(x)
    check_grads(jax.jit(lambda y: max_unpool(y, index, (5, 6))), (y,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)
    np.testing.assert_array_equal(jax.jit(max_unpool)(y, index), max_unpool(y, index))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="does not fit"):
        max_pool(jnp.zeros((1, 1, 4, 1)))
    with pytest.raises(ValueError, match="stride"):
        max_pool(jnp.zeros((1, 4, 4, 1)), 2, 0)
    y, index = max_pool_with_indices(jnp.zeros((1, 4, 4, 1)))
    with pytest.raises(ValueError, match=r"2x2 pooling of size \(7, 4\)"):
        max_unpool(y, index, (7, 4))


@pytest.mark.parametrize(("window", "stride"), [(2, None), (2, 1), (3, 2)])
def test_avg_pool_equals_loop(window, stride):
    x = np.random.default_rng(0).standard_normal((2, 5, 8, 3)).astype(np.float32)
    step = stride or window
    rows, columns = ((side - window) // step + 1 for side in x.shape[1:3])
    expected = np.zeros((2, rows, columns, 3))
    for i, j in np.ndindex(rows, columns):
        expected[:, i, j] = x[:, i * step : i * step + window, j * step : j * step + window].mean((1, 2))
    np.testing.assert_allclose(avg_pool(jnp.asarray(x), window, stride), expected, rtol=1e-5, atol=1e-6)


def test_avg_pool_sums_in_float32_and_names_bad_input():
    x = jnp.full((1, 2, 2, 1), 6e4, jnp.float16)  # four of them overflow a float16
    assert avg_pool(x).dtype == jnp.float16 and avg_pool(x).item() == 6e4
    with pytest.raises(ValueError, match="a 3x3 window does not fit into shape"):
        avg_pool(x, 3)
    with pytest.raises(ValueError, match="stride"):
        avg_pool(x, 2, 0)


@pytest.mark.parametrize("size", [(12, 18), (7, 5), (3, 1)])
@pytest.mark.parametrize("bins", [(1, 1), (3, 2), (6, 6), (7, 5)])
def test_adaptive_avg_pool_equals_loop(size, bins):
    x = np.random.default_rng(4).standard_normal((2, *size, 3)).astype(np.float32)
    expected = np.zeros((2, *bins, 3), np.float32)
    for i, j in np.ndindex(*bins):
        rows, columns = (
            slice(k * n // m, math.ceil((k + 1) * n / m)) for k, n, m in zip((i, j), size, bins, strict=True)
        )
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    found = jax.jit(adaptive_avg_pool, static_argnums=1)(x, bins)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_adaptive_avg_pool_gradients():
    x = jnp.asarray(np.random.default_rng(5).standard_normal((1, 5, 4, 2)).astype(np.float32))
    check_grads(jax.jit(lambda x: adaptive_avg_pool(x, (3, 6))), (x,), 2, ["fwd", "rev"], 1e-2, 1e-2)


def test_adaptive_avg_pool_sums_halves_in_float32():
    # In bfloat16 the sum would stop growing at 256.
    y = adaptive_avg_pool(jnp.ones((1, 64, 64, 1), jnp.bfloat16), (1, 1))
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0, 0, 0]) == 1.0


def test_adaptive_avg_pool_names_bad_input():
    with pytest.raises(ValueError, match="two whole numbers"):
        adaptive_avg_pool(jnp.zeros((1, 4, 4, 1)), (0, 2))
    with pytest.raises(TypeError, match="loat"):
        adaptive_avg_pool(jnp.zeros((1, 4, 4, 1), jnp.int32), (2, 2))


def test_the_mean_of_each_map():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 7, 3)), jnp.float32)
    expected = np.asarray(x).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(ops.global_avg_pool(x), expected, atol=1e-6)
    check_grads(jax.jit(ops.global_avg_pool), (x,), 1, modes=["rev"], rtol=1e-2)
    assert ops.global_avg_pool(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
