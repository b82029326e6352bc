"""Depthwise convolution, compared with the plain form, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops
from densezoo.ops.implementation import with_onednn

CASES = [
    (3, {"padding": 1}),
    (3, {"padding": 1, "strides": 2}),
    (5, {"padding": 4, "dilation": 2}),
    (7, {"padding": 3}),
    (3, {"padding": ((0, 1), (1, 0)), "strides": 2}),
    (2, {"padding": 0, "strides": 2}),
    (3, {"padding": 4}),
    (1, {}),
]


def run(impl, x, kernel, options):
    def compute(x, kernel):
        return ops.conv(x, kernel, groups=x.shape[3], **options)

    @jax.jit
    def values(x, kernel):
        y, vjp = jax.vjp(compute, x, kernel)
        # Whole numbers, which every type holds exactly.
        return y, *vjp((jnp.arange(y.size) % 7 - 3).astype(y.dtype).reshape(y.shape))

    with ops.implementation(impl):
        return values(x, kernel)


@pytest.mark.parametrize(("size", "options"), CASES)
@pytest.mark.parametrize("shape", [(2, 9, 8, 5), (1, 4, 7, 3)])
def test_values_and_gradients_equal_the_plain_convolution(size, options, shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(rng.standard_normal(shape)), jnp.asarray(rng.standard_normal((size, size, 1, shape[3])))
        for ours, plain in zip(run("auto", x, kernel, options), run("reference", x, kernel, options), strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-12, rtol=0)


def test_on_cpu_no_convolution_is_left_and_elsewhere_it_is():
    shapes = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32), jax.ShapeDtypeStruct((3, 3, 1, 4), jnp.float32)
    gradient = jax.grad(lambda x, k: ops.conv(x, k, padding=1, groups=4).sum(), (0, 1))
    texts = {
        platform: jax.jit(gradient).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    }
    assert "stablehlo.convolution" not in texts["cpu"]
    assert "stablehlo.convolution" in texts["tpu"]


@pytest.mark.parametrize(("size", "options"), [*CASES, (3, {"padding": 2, "strides": 3, "dilation": 2})])
@pytest.mark.parametrize("shape", [(2, 9, 8, 5), (3, 7, 10, 2)])
def test_the_form_for_onednn_has_the_same_values_and_gradients(size, options, shape):
    rng = np.random.default_rng(2)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, 1, shape[3])), jnp.float32)
    with with_onednn():
        results = run("auto", x, kernel, options)
    for ours, plain in zip(results, run("reference", x, kernel, options), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-4)


def test_the_form_for_onednn_sums_halves_in_float32():
    rng = np.random.default_rng(3)
    x, kernel = (jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in ((1, 16, 16, 4), (5, 5, 1, 4)))
    with with_onednn():
        halves = run("auto", x, kernel, {"padding": 2})
    exact = run("reference", x.astype(jnp.float32), kernel.astype(jnp.float32), {"padding": 2})
    for half, full in zip(halves, exact, strict=True):
        assert half.dtype == jnp.bfloat16
        np.testing.assert_allclose(half.astype(jnp.float32), full, atol=5e-3 * float(jnp.abs(full).max()))


def test_for_onednn_it_is_a_convolution_where_that_has_one():
    def convolutions(strides, dtype=jnp.float32):
        def gradient(x, kernel):
            y, vjp = jax.vjp(lambda *args: ops.conv(*args, padding=1, strides=strides, groups=4), x, kernel)
            return y, *vjp(y)

        shapes = jax.ShapeDtypeStruct((1, 8, 8, 4), dtype), jax.ShapeDtypeStruct((3, 3, 1, 4), dtype)
        lowered = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("cpu",))
        return lowered.as_text().count("= stablehlo.convolution")

    with jax.enable_x64(True), with_onednn():
        # oneDNN has no gradient to the input of a strided one, and nothing in float64.
        assert (convolutions(1), convolutions(2), convolutions(1, jnp.float64)) == (3, 2, 0)
    assert convolutions(1) == 0


def test_second_derivatives():
    x, kernel = jnp.linspace(-1, 1, 1 * 4 * 4 * 2).reshape(1, 4, 4, 2), jnp.linspace(1, 2, 18).reshape(3, 3, 1, 2)

    def second(impl):
        with ops.implementation(impl):

            def loss(x, k):
                return jnp.square(ops.conv(x, k, padding=1, groups=2)).sum()

            inner = jax.grad(loss, 1)
            return jax.jit(jax.grad(lambda x: jnp.square(inner(x, kernel)).sum()))(x)

    np.testing.assert_allclose(second("auto"), second("reference"), rtol=1e-4)


def test_halves_are_summed_in_float32():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 16, 16, 4)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((5, 5, 1, 4)), jnp.bfloat16)
    y, dx, dkernel = run("auto", x, kernel, {"padding": 2})
    assert {y.dtype, dx.dtype, dkernel.dtype} == {jnp.dtype(jnp.bfloat16)}
    exact = run("auto", x.astype(jnp.float32), kernel.astype(jnp.float32), {"padding": 2})
    for half, full in zip((y, dx, dkernel), exact, strict=True):
        np.testing.assert_allclose(half.astype(jnp.float32), full, atol=5e-3 * float(jnp.abs(full).max()))
