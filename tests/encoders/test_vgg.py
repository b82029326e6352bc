"""VGG, beyond the contract of all encoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights

KEY = jax.random.key(0)


def small(**fields):
    return dz.VGG((1, 2, 1), (4, 8, 8), **fields)


def shapes(encoder):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, 32, 48, 3)))


def test_coarsest_leaves_out_the_deeper_stages():
    _, whole = shapes(small())
    pyramid, variables = shapes(small(coarsest=2))
    assert pyramid.reductions == (2,)
    assert [x.shape for x in pyramid.maps] == [(1, 16, 24, 8)]
    assert [x.shape for x in pyramid.pool_indices] == [(1, 16, 24, 4)]
    assert variables["params"] == {name: whole["params"][name] for name in ("features_0", "features_3", "features_5")}
    assert small(coarsest=4, full_resolution=True).reductions == (1, 2, 4)
    # At full depth, the last map is pooled.
    assert len(shapes(small(coarsest=8))[0].pool_indices) == 3
    with pytest.raises(ValueError, match=r"coarsest must be .*got 1"):
        shapes(small(coarsest=1))


def test_deeper_layers_of_a_checkpoint_are_ignored():
    arrays = {}
    for layer, (channels, before) in {0: (4, 3), 3: (8, 4), 5: (8, 8), 8: (8, 8)}.items():
        arrays[f"features.{layer}.weight"] = np.ones((channels, before, 3, 3), np.float32)
        arrays[f"features.{layer}.bias"] = np.zeros(channels, np.float32)
    assert set(weights.from_torch(small(coarsest=2), arrays)["params"]) == {"features_0", "features_3", "features_5"}
    with pytest.raises(ValueError, match=r"unexpected.*features\.11"):
        weights.from_torch(small(), arrays | {"features.11.weight": np.ones((8, 8, 3, 3), np.float32)})
