"""MA-Net: its attention, compared with loops; its gates; and the pyramids that it accepts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.decoders.manet import FusionBlock, PositionAttention

KEY = jax.random.key(0)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def test_position_attention_equals_loops():
    x = random(2, 3, 4, 5)
    y, variables = PositionAttention(2).init_with_output(KEY, x)

    def conv(name, x):
        params = variables["params"][name]
        features, size = params["kernel"].shape[-1], params["kernel"].shape[0]
        return np.asarray(dz.Conv(features, size).apply({"params": params}, jnp.asarray(x)))

    center, top, bottom = (conv(f"{name}_conv", x) for name in ("center", "top", "bottom"))
    expected = np.zeros_like(x)
    for sample in range(2):
        pixels = list(np.ndindex(3, 4))
        weights = np.array([[np.exp(center[sample][p] @ top[sample][q]) for q in pixels] for p in pixels])
        weights /= weights.sum()
        attended = weights @ np.array([bottom[sample][q] for q in pixels])
        expected[sample] = attended.ravel().reshape(5, 3, 4).transpose(1, 2, 0)
    np.testing.assert_allclose(y, conv("out_conv", x + expected), atol=1e-5)


@pytest.mark.parametrize("upsample", [dz.Nearest, dz.Bilinear])
def test_gates_before_a_doubling_are_those_after_it(upsample):
    x, feature = random(1, 4, 5, 6), random(1, 8, 10, 8, seed=1)
    block = FusionBlock(7, reduction=2, upsample=upsample, norm=None)
    y, variables = jax.jit(lambda: block.init_with_output(KEY, x, feature, (8, 10)))()
    params = variables["params"]

    def apply(module, name, *args):
        return module.apply({"params": params[name]}, *args)

    x = apply(dz.ConvNormAct(6, norm=None), "high_conv1", x)
    x = upsample().apply({}, apply(dz.ConvNormAct(8, 1, norm=None), "high_conv2", x), (8, 10))
    gates = apply(dz.ChannelGate(4), "high_gate", x) + apply(dz.ChannelGate(4), "low_gate", feature)
    joined = jnp.concatenate([x * gates, feature], -1)
    np.testing.assert_allclose(y, apply(dz.DoubleConv(7, norm=None), "convs", joined), atol=1e-4)


@pytest.mark.parametrize("reductions", [(1, 2, 4), (2, 4, 8), (4, 8), (4, 4)])
def test_reaches_the_image_over_any_pyramid(reductions):
    features = tuple(random(1, -(-40 // r), -(-37 // r), 8) for r in reductions)
    pyramid = dz.Pyramid(features, reductions=reductions, image_size=(40, 37))
    y, variables = jax.eval_shape(dz.MAnetDecoder().init_with_output, KEY, pyramid)
    assert y.shape == (1, 40, 37, 16)
    gated = [name for name, block in variables["params"].items() if "high_gate" in block]
    assert len(gated) == len(reductions) - 1


def test_bfloat16_and_dropout_in_training_only():
    pyramid = dz.Pyramid((random(1, 8, 8, 4), random(1, 4, 4, 8)))
    decoder = dz.MAnetDecoder((16,), dropout=0.5, norm=None, dtype=jnp.bfloat16)
    variables = jax.jit(decoder.init)(KEY, pyramid)
    y = jax.jit(decoder.apply)(variables, pyramid)
    assert y.dtype == jnp.bfloat16
    trained = jax.jit(partial(decoder.apply, train=True))(variables, pyramid, rngs={"dropout": KEY})
    assert 0 < int((trained == 0).all((0, 1, 2)).sum()) < 16
    assert not bool((y == 0).all((0, 1, 2)).any())
    exact = jax.jit(decoder.clone(dtype=None).apply)(variables, pyramid)
    assert float(jnp.abs(y.astype(jnp.float32) - exact).max() / jnp.abs(exact).max()) < 0.05


def test_too_few_features_are_named():
    pyramid = dz.Pyramid((random(1, 8, 8, 4), random(1, 4, 4, 8), random(1, 2, 2, 8)))
    with pytest.raises(ValueError, match="2 skips, and MAnetDecoder needs a block for each"):
        jax.eval_shape(dz.MAnetDecoder((8,)).init, KEY, pyramid)
