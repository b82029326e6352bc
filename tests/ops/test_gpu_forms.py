"""The forms for NVIDIA GPUs, run on a CPU: they equal the plain ones, in value and gradient, and lower for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import ops


@pytest.fixture
def taken(monkeypatch):
    """Makes every operation use its form for a GPU; returns those that have one."""
    forms = []

    def cuda_or_default(*arguments, default=None, **by_platform):
        forms.extend(form for platform, form in by_platform.items() if platform == "cuda")
        return by_platform.get("cuda", default)(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", cuda_or_default)
    return forms


def assert_equal_to_the_plain_form(function, *arguments):
    def run(*arguments):
        y, pullback = jax.vjp(function, *arguments)
        return y, *pullback(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    @jax.jit
    def both(*arguments):
        found = run(*arguments)
        with ops.implementation("reference"):
            return found, run(*arguments)

    for ours, plain in zip(*both(*arguments), strict=True):
        assert ours.shape == plain.shape and ours.dtype == plain.dtype
        np.testing.assert_allclose(ours, plain, atol=2e-4)


@pytest.mark.parametrize("padding", [0, 1, 3, ((0, 1), (2, 1))])
@pytest.mark.parametrize("sides", [(16, 16), (9, 30)])
@pytest.mark.parametrize(
    ("size", "strides", "channels"), [(7, 2, 3), (3, 2, 3), (4, 4, 3), (2, 2, 1), (7, 4, 4), (2, 4, 3)]
)
def test_few_channels_in_blocks_of_pixels(taken, size, strides, channels, sides, padding):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *sides, channels)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((size, size, channels, 5)), jnp.float32)
    assert_equal_to_the_plain_form(lambda x, k: ops.conv(x, k, strides=strides, padding=padding), x, kernel)
    assert len(taken) == 3  # the value, and both passes of the gradient


@pytest.mark.parametrize("sides", [(5, 3), (1, 1)])
def test_convolutions_by_phases(taken, sides):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *sides, 4)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 4, 5)), jnp.float32)
    assert_equal_to_the_plain_form(lambda x, k: ops.upsample_concat_conv(x, None, k), x, kernel)
    assert len(taken) == 2
    transposed = jnp.asarray(rng.standard_normal((4, 4, 4, 5)), jnp.float32)
    assert_equal_to_the_plain_form(lambda x, k: ops.conv_transpose(x, k, stride=2, padding=1), x, transposed)


def test_batch_norms_that_sum_over_all_maps_at_once(taken):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5, 4, 2)), jnp.float32)
    scale, bias = jnp.array([0.5, 2.0]), jnp.array([0.1, -0.2])
    assert_equal_to_the_plain_form(lambda *x: ops.batch_norm(*x, epsilon=1e-5, relu=True)[0], x, scale, bias)


@pytest.mark.parametrize("size", [None, (11, 6), (10, 7)])
def test_unpooling_by_comparison(taken, size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 5, 3, 4)), jnp.float32)
    indices = jnp.asarray(rng.integers(0, 4, x.shape), jnp.int8)
    assert_equal_to_the_plain_form(lambda x: ops.max_unpool(x, indices, size), x)
    assert len(taken) == 1


@pytest.mark.parametrize("size", [(10, 6), (5, 9), (7, 2)])
@pytest.mark.parametrize("resize", [ops.resize_bilinear, ops.resize_bicubic])
def test_halves_are_rounded_once_after_both_axes(taken, resize, size):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 3, 4)), jnp.float32)
    assert_equal_to_the_plain_form(lambda x: resize(x, size), x)
    half = x.astype(jnp.bfloat16)
    y, pullback = jax.vjp(lambda x: resize(x, size), half)
    exact, exact_pullback = jax.vjp(lambda x: resize(x, size), half.astype(jnp.float32))
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))
    g = jnp.sin(jnp.arange(y.size)).reshape(y.shape).astype(jnp.bfloat16)
    (found,), (wide,) = pullback(g), exact_pullback(g.astype(jnp.float32))
    np.testing.assert_array_equal(found, wide.astype(jnp.bfloat16))
    assert taken


def test_the_gradient_of_a_unet_lowers_for_a_gpu():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
    images = jnp.zeros((1, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    gradient = jax.jit(jax.grad(lambda v, x: model.apply(v, x).sum()))
    text = gradient.trace(variables, images).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in text
