"""HRNet's head: all maps at the finest one's size, and the encoder that it needs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)


def pyramid_of(*sizes):
    rng = np.random.default_rng(0)
    maps = [
        jnp.asarray(rng.standard_normal((2, *size, level)), jnp.float32) for level, size in enumerate(sizes, start=1)
    ]
    return dz.Pyramid(tuple(maps))


@pytest.mark.parametrize("upsample", [dz.Bilinear, partial(dz.Bilinear, align_corners=True)])
def test_maps_are_concatenated_fine_to_coarse(upsample):
    pyramid = pyramid_of((9, 13), (5, 7), (3, 4))
    decoder = dz.HRNetDecoder(upsample=upsample, norm=None, act=lambda x: x)
    params = {"conv": {"conv": {"kernel": jnp.reshape(jnp.eye(6), (1, 1, 6, 6)), "bias": jnp.arange(6.0)}}}
    y = jax.jit(decoder.apply)({"params": params}, pyramid)
    resized = jax.jit(lambda maps: [upsample().apply({}, x, (9, 13)) for x in maps])(pyramid.maps)
    np.testing.assert_allclose(y, np.concatenate(resized, -1) + np.arange(6.0), atol=1e-5)


def test_the_convolution_keeps_its_bias_before_a_norm():
    y, variables = jax.eval_shape(dz.HRNetDecoder(features=8).init_with_output, KEY, pyramid_of((9, 13), (5, 7)))
    assert y.shape == (2, 9, 13, 8)
    assert set(variables["params"]["conv"]["conv"]) == {"kernel", "bias"}


def test_dropout_only_in_training():
    decoder, pyramid = dz.HRNetDecoder(features=64, dropout=0.5), pyramid_of((8, 8), (4, 4))

    @jax.jit
    def dropped(pyramid):
        variables = decoder.init(KEY, pyramid)
        y, _ = decoder.apply(variables, pyramid, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
        return [(y == 0).all((1, 2)).mean() for y in (y, decoder.apply(variables, pyramid))]

    train, after = dropped(pyramid)
    assert 0.2 < float(train) < 0.8
    assert float(after) == 0


def test_the_model_takes_the_scales_as_they_are():
    model = dz.create_model("hrnet", "hrnet_w18_small", 3)
    assert model.encoder.reductions == (4, 8, 16, 32)
    logits, variables = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 65, 47, 3)))
    assert logits.shape == (1, 65, 47, 3)
    assert variables["params"]["decoder"]["conv"]["conv"]["kernel"].shape == (1, 1, 240, 240)
    with pytest.raises(ValueError, match="incre=False, which resnet18 does not support"):
        dz.create_model("hrnet", "resnet18")
    # Any encoder will do if it is given as a module.
    model = dz.create_model("hrnet", dz.create_encoder("resnet18"), 3)
    assert jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 65, 47, 3)))[0].shape == (1, 65, 47, 3)
