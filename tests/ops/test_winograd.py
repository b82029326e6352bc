"""Winograd's form of the convolution, and where `dz.compile` takes it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.compiling import onednn_options
from densezoo.ops.winograd import winograd_conv, winograd_kernel

# Odd sizes, one pixel, and more tiles than are transformed at a time.
SHAPES = ((2, 7, 9, 3, 5), (1, 1, 1, 2, 2), (1, 84, 81, 2, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_it_equals_the_convolution(shape):
    *maps, features = shape
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal(maps, np.float32))
    kernel = generator.standard_normal((3, 3, maps[-1], features), np.float32)
    found = jax.jit(winograd_conv)(x, winograd_kernel(kernel))
    expected = dz.ops.conv(x, jnp.asarray(kernel), padding=1)
    np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))


class Wide(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = dz.Conv(256, name="shared")
        y = nn.relu(dz.BatchNorm(name="norm")(dz.Conv(256, use_bias=False, name="conv")(x), train=False))
        return shared(y), shared(y[:, ::2, ::2]), dz.Conv(256, padding=0, name="valid")(y)


def test_a_compiled_model_takes_it_for_large_maps():
    x = jax.random.normal(jax.random.key(0), (1, 48, 48, 256))
    variables = jax.jit(Wide().init)(jax.random.key(1), x)
    infer = dz.compile(Wide(), variables)
    for found, expected in zip(infer(x), jax.jit(Wide().apply)(variables, x), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()))
    kernels = [line for line in infer.lower(x).as_text().splitlines() if "36x256x256" in line and "dot_general" in line]
    # `conv`, and `shared` for its two maps.
    assert len(kernels) == (3 if onednn_options() else 0)
