"""The Pallas kernels in interpret mode against densezoo's operations and hand-computed values, and their lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import pallas_kernels
from benchmarks.pallas_kernels import bilinear_x2, max_unpool_x2
from densezoo import ops

# A batch and odd sides; one channel; channels in blocks of 128; a single pixel.
CASES = [
    ((2, 5, 7, 3), jnp.float32),
    ((2, 5, 7, 3), jnp.bfloat16),
    ((1, 6, 4, 1), jnp.float32),
    ((1, 2, 3, 256), jnp.bfloat16),
    ((1, 1, 1, 2), jnp.float32),
]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Small blocks, so that these small maps need several, the last of them partial, and haloes are read."""
    monkeypatch.setattr(pallas_kernels, "MAX_ROWS", 2)


def whole(shape, dtype=jnp.float32, seed=0):
    """Small integers: their sums, products and sixteenths are exact in float32."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), dtype)


def double(shape):
    return (shape[0], 2 * shape[1], 2 * shape[2], shape[3])


def value_and_gradient(function, x, g):
    @jax.jit
    def both(x, g):
        y, vjp = jax.vjp(function, x)
        return y, vjp(g)[0]

    return both(x, g)


def same(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(actual, np.float64), np.asarray(expected, np.float64))


def test_bilinear_by_hand():
    x = jnp.array([[0.0, 4.0], [8.0, 16.0]]).reshape(1, 2, 2, 1)
    rows = [[0, 1, 3, 4], [2, 3.25, 5.75, 7], [6, 7.75, 11.25, 13], [8, 10, 14, 16]]
    np.testing.assert_array_equal(bilinear_x2(x, True)[0, :, :, 0], rows)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_bilinear(shape, dtype):
    x, g = whole(shape, dtype), whole(double(shape), dtype, 1)
    y, gradient = value_and_gradient(functools.partial(bilinear_x2, interpret=True), x, g)
    resize = functools.partial(ops.resize_bilinear, size=double(shape)[1:3])
    wide = value_and_gradient(resize, x.astype(jnp.float32), g.astype(jnp.float32))
    # Exact in float32, and a bfloat16 is rounded once.
    same(y, wide[0].astype(dtype))
    same(gradient, wide[1].astype(dtype))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_unpool(shape, dtype):
    x, g = whole(shape, dtype).at[0, 0, 0, 0].set(jnp.inf), whole(double(shape), dtype, 1)
    # Positions in the window, and some that are outside of it.
    index = jnp.asarray(np.random.default_rng(1).integers(-1, 5, shape), jnp.int8)
    y, gradient = value_and_gradient(lambda x: max_unpool_x2(x, index, True), x, g)
    expected = value_and_gradient(lambda x: jax.jit(ops.max_unpool)(x, index), x, g)
    same(y, expected[0])
    same(gradient, expected[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (1, 4, 8, 256)])
def test_lowering_for_tpu(shape, dtype):
    """The TPU's module contains each kernel and that of its gradient."""
    x, index = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape, jnp.int8)
    for kernel, arguments in ((bilinear_x2, (x,)), (max_unpool_x2, (x, index))):

        def total(*arguments, kernel=kernel):
            return jnp.sum(kernel(*arguments).astype(jnp.float32) ** 2)

        exported = jax.export.export(jax.jit(jax.value_and_grad(total)), platforms=["tpu"])(*arguments)
        assert exported.mlir_module().count("@tpu_custom_call") == 2
