"""UPerNet: the maps that it reads, small and odd sizes, options."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)


def pyramid_of(reductions, size=(33, 50), told=True):
    """Noise; the number of channels is twice the map's index in the pyramid."""
    sizes = [(-(-size[0] // r), -(-size[1] // r)) for r in reductions]
    rng = np.random.default_rng(0)
    maps = [
        jnp.asarray(rng.standard_normal((2, *size, 2 * level)), jnp.float32)
        for level, size in enumerate(sizes, start=1)
    ]
    return dz.Pyramid(tuple(maps), None, tuple(reductions) if told else None, size)


@pytest.mark.parametrize(
    ("reductions", "told", "steps", "result"),
    [
        ((1, 2, 4, 8, 16), True, 2, (9, 13)),
        ((2, 4, 8, 16, 16), True, 3, (9, 13)),
        ((4, 8, 16, 32), True, 3, (9, 13)),
        ((2, 4, 8), False, 2, (17, 25)),
        ((16, 16, 16, 16), True, 3, (3, 4)),
        ((1, 2), True, 0, (17, 25)),
    ],
)
def test_maps_from_a_quarter_on_take_part(reductions, told, steps, result):
    pyramid = pyramid_of(reductions, told=told)
    y, variables = jax.eval_shape(dz.UPerNetDecoder(features=8).init_with_output, KEY, pyramid)
    params = variables["params"]
    assert {name for name in params if name.startswith("lateral")} == {f"lateral{step}" for step in range(steps)}
    assert {name for name in params if name.startswith("feature_norm")} == {
        f"feature_norm{index}" for index in range(steps + 1)
    }
    assert params["fusion"]["conv"]["kernel"].shape == (3, 3, 8 * (steps + 1), 8)
    assert y.shape == (2, *result, 8)


@pytest.mark.parametrize("upsample", [partial(dz.TransposedConv, reduction=2), dz.PixelShuffle])
def test_any_size_has_the_same_weights(upsample):
    decoder = dz.UPerNetDecoder(features=8, upsample=upsample)
    expected = jax.eval_shape(decoder.init, KEY, pyramid_of((2, 4, 8, 16, 16), (64, 64)))
    for size in ((1, 1), (7, 3), (65, 47)):
        y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((2, 4, 8, 16, 16), size))
        assert variables == expected
        assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)
    # Both coarsest are at 1/16: nothing to upsample between them.
    assert {"upsample1", "upsample2", "fusion_upsample3"} <= set(expected["params"])
    assert "upsample0" not in expected["params"]


@pytest.mark.parity
def test_every_map_and_parameter_has_an_effect():
    decoder, pyramid = dz.UPerNetDecoder(features=8), pyramid_of((4, 8), (32, 24))
    variables = jax.jit(decoder.init)(KEY, pyramid)

    @jax.jit
    @partial(jax.grad, argnums=(0, 1))
    def gradients(params, features):
        y, _ = decoder.apply(
            variables | {"params": params}, pyramid.replace(maps=features), train=True, mutable=["batch_stats"]
        )
        return (y * jax.random.normal(KEY, y.shape)).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(variables["params"], pyramid.maps)):
        assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)


def test_dropout_only_in_training():
    decoder, pyramid = dz.UPerNetDecoder(features=32, dropout=0.5), pyramid_of((4, 8), (32, 32))

    @jax.jit
    def dropped(pyramid):
        variables = decoder.init(KEY, pyramid)
        y, _ = decoder.apply(variables, pyramid, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
        return [(y == 0).all((1, 2)).mean() for y in (y, decoder.apply(variables, pyramid))]

    train, after = dropped(pyramid)
    assert 0.2 < float(train) < 0.8
    assert float(after) < 0.1


@pytest.mark.parametrize("norm", [None, partial(dz.GroupNorm, num_groups=2), partial(nn.GroupNorm, num_groups=2)])
def test_norms(norm):
    decoder = dz.UPerNetDecoder(features=8, norm=norm)
    y, variables = jax.jit(decoder.init_with_output)(KEY, pyramid_of((4, 8), (32, 32)))
    assert "batch_stats" not in variables
    assert ("bias" in variables["params"]["fusion"]["conv"]) == (norm is None)
    assert bool(jnp.isfinite(y).all())
