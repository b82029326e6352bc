"""Resizing against NumPy loops over the definition, and its gradients."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo.ops import implementation, resize_bilinear, resize_nearest
from densezoo.ops.taps import bilinear_taps

SIZES = [((4, 6), (8, 12)), ((5, 3), (9, 7)), ((7, 8), (3, 5)), ((1, 1), (4, 3)), ((6, 5), (6, 5)), ((3, 4), (1, 1))]


def image(size, dtype=np.float32):
    return np.random.default_rng(0).standard_normal((2, *size, 3)).astype(dtype)


def nearest_loop(x, size, half_pixel):
    y = np.zeros((x.shape[0], *size, x.shape[3]), x.dtype)
    for i in range(size[0]):
        for j in range(size[1]):
            shift = 0.5 if half_pixel else 0.0
            row = int(np.floor((i + shift) * x.shape[1] / size[0]))
            column = int(np.floor((j + shift) * x.shape[2] / size[1]))
            y[:, i, j] = x[:, row, column]
    return y


def bilinear_loop(x, size, align_corners):
    def position(index, inputs, outputs):
        if align_corners:
            return index * (inputs - 1) / (outputs - 1) if outputs > 1 else 0.0
        return min(max((index + 0.5) * inputs / outputs - 0.5, 0.0), inputs - 1.0)

    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i in range(size[0]):
        for j in range(size[1]):
            row, column = position(i, x.shape[1], size[0]), position(j, x.shape[2], size[1])
            for di in (0, 1):
                for dj in (0, 1):
                    r, c = int(row) + di, int(column) + dj
                    weight = (1 - abs(row - r)) * (1 - abs(column - c))
                    if weight > 0:
                        y[:, i, j] += weight * x[:, r, c]
    return y


@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_nearest_equals_loop(before, after, half_pixel):
    x = image(before)
    y = resize_nearest(jnp.asarray(x), after, half_pixel=half_pixel)
    np.testing.assert_array_equal(y, nearest_loop(x, after, half_pixel))


@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize(("before", "after"), [(2, 25), (2, 41), (6, 37), (8, 55)])
def test_positions_of_nearest_are_exact(before, after, half_pixel):
    # In float32 some of these positions come out one too low.
    x = jnp.arange(float(before)).reshape(1, 1, before, 1)
    expected = [(2 * i + 1) * before // (2 * after) if half_pixel else i * before // after for i in range(after)]
    for form in ("auto", "reference"):
        with implementation(form):
            y = resize_nearest(x, (1, after), half_pixel=half_pixel)
        assert y[0, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_bilinear_equals_loop(before, after, align_corners):
    x = image(before)
    y = resize_bilinear(jnp.asarray(x), after, align_corners=align_corners)
    np.testing.assert_allclose(y, bilinear_loop(x, after, align_corners), atol=1e-6)


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_gradients(before, after):
    x = jnp.asarray(image(before))

    @jax.jit
    def resized(x):
        corners = resize_bilinear(x, after, align_corners=True)
        return resize_bilinear(x, after), corners, resize_nearest(x, after)

    check_grads(resized, (x,), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


def test_gradient_is_the_adjoint_exactly():
    # <resize(x), g> == <x, resize^T(g)>, with whole numbers so that no rounding hides an error.
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.integers(-8, 8, (1, 5, 4, 2)).astype(np.float32))
    g = jnp.asarray(rng.integers(-8, 8, (1, 10, 8, 2)).astype(np.float32))
    y, vjp = jax.vjp(lambda x: resize_bilinear(x, (10, 8)), x)
    assert float((y * g).sum()) == float((x * vjp(g)[0]).sum())


def test_gradient_of_the_gradient():
    # Of sum(resize(x)^2), the Hessian times v is 2 resize^T(resize(v)).
    x, v = jnp.asarray(image((4, 5))), jnp.asarray(image((4, 5)))[:, ::-1]
    gradient = jax.grad(lambda x: jnp.square(resize_bilinear(x, (7, 9))).sum())
    product = jax.grad(lambda x: (gradient(x) * v).sum())(x)
    np.testing.assert_allclose(product, gradient(v), rtol=1e-5, atol=1e-5)


def test_transposed_taps_are_the_transposed_matrix():
    taps = bilinear_taps(5, 13, False)

    def dense(taps):
        matrix = np.zeros((len(taps.indices), taps.inputs))
        for row, (indices, weights) in enumerate(zip(taps.indices, taps.weights, strict=True)):
            np.add.at(matrix[row], indices, weights)
        return matrix

    np.testing.assert_array_equal(dense(taps.transpose()), dense(taps).T)


def test_jit_vmap_and_bfloat16():
    x = jnp.asarray(image((5, 6)))
    eager = resize_bilinear(x, (11, 9))
    np.testing.assert_allclose(jax.jit(lambda x: resize_bilinear(x, (11, 9)))(x), eager, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(lambda x: resize_bilinear(x, (11, 9)))(x[None])[0], eager, atol=1e-6)
    half = resize_bilinear(x.astype(jnp.bfloat16), (11, 9))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), eager, atol=0.05)


@pytest.mark.parametrize("size", [(0, 4), (4, -1), (2.5, 4), (4,), "ab"])
@pytest.mark.parametrize("resize", [resize_bilinear, resize_nearest])
def test_bad_sizes_are_named(resize, size):
    # Without the tests' own type checks, as users call it.
    with pytest.raises(ValueError, match=r"size is \(height, width\)"):
        inspect.unwrap(resize)(jnp.zeros((1, 4, 4, 1)), size)


def test_empty_and_integer_inputs_are_named():
    with pytest.raises(ValueError, match="empty"):
        resize_nearest(jnp.zeros((1, 0, 4, 1)), (2, 2))
    with pytest.raises(TypeError, match="float type"):
        inspect.unwrap(resize_bilinear)(jnp.zeros((1, 4, 4, 1), jnp.int32), (2, 2))
