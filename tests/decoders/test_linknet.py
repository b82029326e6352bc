"""LinkNet: upsamplers, widths, and skips by addition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.zoo import UPSAMPLERS

KEY = jax.random.key(0)


def pyramid(reductions=(2, 4, 8), size=(40, 37), channels=(8, 16, 32)):
    rng = np.random.default_rng(0)
    shapes = [(1, -(-size[0] // r), -(-size[1] // r), c) for r, c in zip(reductions, channels, strict=False)]
    features = tuple(jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return dz.Pyramid(features, reductions=reductions, image_size=size)


@pytest.mark.parametrize(
    ("reductions", "channels"),
    [((1, 2, 4), [16, 8]), ((2, 4, 8), [16, 8, 32]), ((4, 8), [8, 8, 32]), ((4, 4), [8, 8, 32]), ((2,), [32])],
)
def test_blocks_are_as_wide_as_the_encoder(reductions, channels):
    y, variables = jax.eval_shape(dz.LinknetDecoder().init_with_output, KEY, pyramid(reductions))
    assert y.shape == (1, 40, 37, channels[-1])
    blocks = variables["params"]
    widths = [blocks[f"block{i}"]["expand"]["conv"]["kernel"].shape[-1] for i in range(len(blocks))]
    assert widths == channels


def test_adds_the_encoders_maps():
    maps = pyramid((1, 2), size=(9, 8))
    decoder = dz.LinknetDecoder()
    variables = jax.jit(decoder.init)(KEY, maps)
    norm = variables["params"]["block0"]["expand"]["norm"]
    norm["scale"] = jnp.zeros_like(norm["scale"])
    np.testing.assert_array_equal(jax.jit(decoder.apply)(variables, maps), maps.maps[0])


@pytest.mark.parametrize("name", sorted(UPSAMPLERS))
def test_any_upsampler_will_do(name):
    maps = pyramid(channels=(16, 16, 32))
    upsample = partial(dz.DySample, groups=2) if name == "dysample" else UPSAMPLERS[name]
    y, _ = jax.eval_shape(dz.LinknetDecoder(upsample=upsample).init_with_output, KEY, maps)
    assert y.shape == (1, 40, 37, 32)


def test_every_parameter_receives_a_gradient_without_norms_too():
    decoder = dz.LinknetDecoder(features=4, norm=None, dropout=0.25)

    @jax.jit
    def gradient(maps):
        def loss(params):
            y = decoder.apply({"params": params}, maps, train=True, rngs={"dropout": KEY})
            return jnp.square(y - 1.0).mean()

        return jax.grad(loss)(decoder.init(KEY, maps)["params"])

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(pyramid((2, 4)))):
        assert bool(leaf.any()), jax.tree_util.keystr(path)


def test_bfloat16_over_float32_features():
    y, variables = jax.eval_shape(dz.LinknetDecoder(dtype=jnp.bfloat16).init_with_output, KEY, pyramid())
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
