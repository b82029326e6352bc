"""PSPNet: the map that it reads, maps smaller than their grids, options."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.decoders.pspnet import PyramidPooling

KEY = jax.random.key(0)


def pyramid_of(size, channels=8):
    return dz.Pyramid((jnp.zeros((2, 3, 3, 5)), jax.random.normal(KEY, (2, *size, channels))))


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (9, 12)])
def test_any_size_has_the_same_weights(size):
    decoder = dz.PSPNetDecoder(features=8, upsample=dz.TransposedConv)
    _, expected = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((8, 8)))
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of(size))
    assert variables == expected
    assert y.shape == (2, *size, 8)


def test_only_the_mean_of_the_whole_map_has_no_norm():
    params = jax.eval_shape(dz.PSPNetDecoder(features=8).init, KEY, pyramid_of((8, 8)))["params"]
    assert {name: set(module) for name, module in params["pooling"].items()} == {
        "conv0": {"conv"},
        **{f"conv{index}": {"conv", "norm"} for index in (1, 2, 3)},
    }
    assert set(params["pooling"]["conv0"]["conv"]) == {"kernel", "bias"}
    # The means have as many channels as the map itself, which comes last.
    assert params["pooling"]["conv3"]["conv"]["kernel"].shape == (1, 1, 8, 2)
    assert params["conv"]["conv"]["kernel"].shape == (1, 1, 16, 8)


def test_pooling_of_a_ramp():
    # Two bins have the means of the halves; align-corners lays them on the first and the last pixel.
    x = jnp.broadcast_to(jnp.reshape(jnp.arange(8.0), (1, 8, 1, 1)), (1, 8, 8, 1))
    upsample = partial(dz.Bilinear, align_corners=True)
    pooling = PyramidPooling(1, (1, 2), upsample=upsample, norm=None)
    shared = {"conv": {"kernel": jnp.ones((1, 1, 1, 1)), "bias": jnp.zeros(1)}}
    mean, halves = pooling.apply({"params": {"conv0": shared, "conv1": shared}}, x)
    np.testing.assert_allclose(mean, np.full((1, 8, 8, 1), 3.5), atol=1e-6)
    np.testing.assert_allclose(halves[0, :, 3, 0], np.linspace(1.5, 5.5, 8), atol=1e-5)


def test_dropout_only_in_training():
    decoder = dz.PSPNetDecoder(features=64, dropout=0.5)
    pyramid = pyramid_of((8, 8))

    @jax.jit
    def dropped(pyramid):
        variables = decoder.init(KEY, pyramid)
        y, _ = decoder.apply(variables, pyramid, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
        return [(y == 0).all((1, 2)).mean() for y in (y, decoder.apply(variables, pyramid))]

    train, after = dropped(pyramid)
    assert 0.2 < float(train) < 0.8
    assert float(after) == 0


@pytest.mark.parametrize("norm", [None, partial(dz.GroupNorm, num_groups=2), partial(nn.GroupNorm, num_groups=2)])
def test_norms(norm):
    decoder = dz.PSPNetDecoder(features=8, norm=norm)
    y, variables = jax.jit(decoder.init_with_output)(KEY, pyramid_of((8, 5)))
    assert "batch_stats" not in variables
    assert bool(jnp.isfinite(y).all())


def test_the_model_has_an_encoder_to_an_eighth():
    model = dz.create_model("pspnet", "resnet18", 3)
    assert model.encoder.reductions == (2, 4, 8)
    logits, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 65, 47, 3)))
    assert logits.shape == (1, 65, 47, 3)
    assert "layer3_0" not in variables["params"]["encoder"]
