"""Winograd's convolution against the direct one, in value and gradient."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo.ops.winograd import tile_size, winograd_conv


def direct(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("size", [(1, 1), (4, 8), (7, 5)])
def test_equals_the_direct_convolution(size, tile):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, *size, 3)).astype(np.float32))
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, 5)).astype(np.float32))
    g = jnp.asarray(rng.standard_normal((2, *size, 5)).astype(np.float32))

    def run(conv):
        y, vjp = jax.vjp(conv, x, kernel)
        return y, *vjp(g)

    ours = jax.jit(lambda: run(functools.partial(winograd_conv, tile=tile)))()
    for a, b, atol in zip(ours, run(direct), (1e-4, 2e-4, 2e-4), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_other_platforms_convolve_directly():
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    exported = jax.export.export(jax.jit(winograd_conv), platforms=["cuda"])(x, kernel)
    assert "stablehlo.convolution" in exported.mlir_module()
    assert "stablehlo.dot_general" not in exported.mlir_module()


def test_only_many_channels_and_few_pixels_are_taken():
    assert tile_size((4, 32, 32, 128), (3, 3, 128, 128)) == 4
    assert tile_size((4, 16, 16, 256), (3, 3, 256, 256)) == 2
    assert tile_size((4, 256, 256, 16), (3, 3, 16, 16)) is None
    assert tile_size((4, 32, 32, 128), (1, 1, 128, 128)) is None


def test_bad_input_is_named():
    run = inspect.unwrap(winograd_conv)
    with pytest.raises(ValueError, match="tile is 2 or 4"):
        run(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), tile=3)
    with pytest.raises(ValueError, match=r"\(3, 3, in, out\)"):
        run(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 2, 1)))


def test_halves_lose_no_more_than_in_the_direct_convolution():
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((1, 8, 8, 16)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 16, 16)), jnp.bfloat16)
    exact = direct(x.astype(jnp.float32), kernel.astype(jnp.float32))
    y = winograd_conv(x, kernel)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=1e-2 * float(jnp.abs(exact).max()))
