"""DenseNet, beyond the contract of all encoders."""

import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights

KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"


def small(**fields):
    return dz.DenseNet(**({"depths": (2, 1, 1, 2), "width": 8, "growth": 4} | fields))


def shapes(encoder, size=(64, 96)):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))


def test_layers_add_channels_and_transitions_halve_them():
    channels = [x.shape[-1] for x in shapes(small())[0].maps]
    assert channels == [8, 8 + 2 * 4, 16 // 2 + 4, 12 // 2 + 4, 10 // 2 + 2 * 4]


@pytest.mark.parametrize("coarsest", [2, 4, 8, 16])
def test_coarsest_leaves_out_the_deeper_stages(coarsest):
    encoder = small(coarsest=coarsest)
    _, whole = shapes(small())
    pyramid, variables = shapes(encoder)
    assert encoder.reductions == pyramid.reductions == (2, 4, 8, 16, 32)[: len(pyramid.maps)]
    assert encoder.reductions[-1] == coarsest
    stages = len(encoder.reductions) - 1
    kept = {
        name: params
        for name, params in whole["params"].items()
        if int(re.findall(r"\d", name)[0]) <= stages and name not in (f"transition{stages}_conv", "norm5")
    }
    assert variables["params"] == kept


def test_impossible_strides_are_named():
    with pytest.raises(ValueError, match=r"coarsest must be .*got 3"):
        shapes(small(coarsest=3))
    with pytest.raises(TypeError, match="output_stride"):
        dz.create_encoder("densenet121", output_stride=16)


@pytest.mark.parametrize("coarsest", [4, 8, 32])
def test_the_smallest_image(coarsest):
    encoder = small(coarsest=coarsest)
    assert shapes(encoder, (encoder.min_size, 32))[0].maps[-1].shape[1] == 1
    if coarsest > 4:
        with pytest.raises(ValueError, match=f"at least {encoder.min_size}x"):
            shapes(encoder, (encoder.min_size - 1, 32))


def test_without_norm_there_are_biases():
    _, variables = shapes(small(norm=None))
    assert set(variables) == {"params"}
    assert all("bias" in leaves for leaves in variables["params"]["denseblock1_denselayer1"].values())


def test_remat_changes_neither_the_weights_nor_the_gradients():
    encoder = small(depths=(2,))
    images = np.random.default_rng(0).standard_normal((2, 17, 24, 3)).astype(np.float32)
    variables = jax.jit(encoder.init)(KEY, images)

    def gradient(remat):
        @jax.jit
        @jax.grad
        def of(params):
            pyramid, _ = encoder.clone(remat=remat).apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.square(pyramid.maps[-1] - 1).mean()

        return of(variables["params"])

    assert shapes(encoder.clone(remat=True)) == shapes(encoder)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient(False), gradient(True))


def test_names_of_older_files_are_known():
    with np.load(GOLDEN / "smp_densenet121_depth3.npz") as golden:
        named = json.loads(str(golden["shapes"]))
    seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
    first = r"features\.(conv0|norm0|denseblock1|transition1\.norm)\..*"
    arrays = {name: seeded(name, tuple(shape)) for name, shape in named.items() if re.fullmatch(first, name)}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): array for name, array in arrays.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    encoder = dz.create_encoder("densenet121", coarsest=4)
    variables = weights.from_torch(encoder, arrays)
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch(encoder, old), variables)
