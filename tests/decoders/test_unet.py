"""The U-Net's attention, dropout and deep supervision; the contract suite tests the rest."""

import json
import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights

KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"


def pyramid(reductions=(2, 4, 8), size=(40, 37)):
    rng = np.random.default_rng(0)
    shapes = [(2, -(-size[0] // r), -(-size[1] // r), 8 * (i + 1)) for i, r in enumerate(reductions)]
    features = tuple(jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return dz.Pyramid(features, reductions=reductions, image_size=size)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["unet", "unetplusplus"])
def test_attention_equals_the_reference(name):
    golden = np.load(GOLDEN / f"smp_{name}_scse.npz")
    seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
    arrays = {name: seeded(name, tuple(shape)) for name, shape in json.loads(str(golden["shapes"])).items()}
    model = dz.create_model(name, "resnet18", 2, attention=dz.SCSE)
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    logits = apply(weights.from_torch(model, arrays), seeded("image", tuple(golden["image_shape"].tolist())))
    error = np.abs(logits - golden["output_logits"]).max() / np.abs(golden["output_logits"]).max()
    assert error <= 2e-5


@pytest.mark.parametrize("reductions", [(1, 2, 4), (2, 4, 8), (4, 8)])
def test_attention_is_in_every_block_but_left_out_before_a_last_one_without_skip(reductions):
    plain = jax.eval_shape(dz.UNetDecoder().init, KEY, pyramid(reductions))["params"]
    blocks = jax.eval_shape(dz.UNetDecoder(attention=dz.SCSE).init, KEY, pyramid(reductions))["params"]
    for index in range(len(blocks)):
        bare = reductions[0] > 1 and index == len(blocks) - 1
        expected = {"convs", "attention2"} if bare else {"convs", "attention1", "attention2"}
        assert set(blocks[f"block{index}"]) == expected
        assert blocks[f"block{index}"]["convs"] == plain[f"block{index}"]["convs"]


def test_scse_weighs_channels_and_pixels():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 3, 4, 32)).astype(np.float32))
    y, variables = dz.SCSE(reduction=8).init_with_output(KEY, x)
    p = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, leaf.shape[-1]), variables["params"])
    hidden = np.maximum(np.asarray(x).mean((1, 2)) @ p["channels"]["reduce"]["kernel"], 0)
    channels = 1 / (1 + np.exp(-hidden @ p["channels"]["expand"]["kernel"]))
    pixels = 1 / (1 + np.exp(-np.asarray(x) @ p["pixels"]["kernel"]))
    np.testing.assert_allclose(y, x * (channels[:, None, None] + pixels), atol=1e-5)
    assert hidden.shape == (1, 4)


def test_attention_gate_weighs_the_encoders_pixels_by_both_maps():
    rng = np.random.default_rng(2)
    x, feature = (jnp.asarray(rng.standard_normal((1, 3, 4, c)).astype(np.float32)) for c in (5, 6))
    y, variables = dz.AttentionGate(skip_first=True).init_with_output(KEY, x, feature)
    p = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(-1, leaf.shape[-1]), variables["params"])
    assert set(p["feature"]) == {"kernel"}
    assert p["gating"]["kernel"].shape == (5, 3)
    hidden = np.maximum(np.asarray(x) @ p["gating"]["kernel"] + np.asarray(feature) @ p["feature"]["kernel"], 0)
    weight = 1 / (1 + np.exp(-hidden @ p["weight"]["kernel"]))
    np.testing.assert_allclose(y[..., :6], feature * weight, atol=1e-5)
    np.testing.assert_array_equal(y[..., 6:], x)


@pytest.mark.parametrize("fields", [{"skip": dz.AttentionGate}, {"attention": partial(dz.SCSE, reduction=1)}])
def test_attention_learns_and_does_not_depend_on_the_implementation(fields):
    decoder = dz.UNetDecoder(features=(8,), norm=None, **fields)
    maps = pyramid((1, 2), size=(8, 12))
    variables = jax.jit(decoder.init)(KEY, maps)
    results = {}
    for impl in ("auto", "reference"):

        @jax.jit
        @partial(jax.value_and_grad, has_aux=True)
        def run(variables, impl=impl):
            with dz.ops.implementation(impl):
                y = decoder.apply(variables, maps)
            return jnp.square(y - 1.0).mean(), y

        (_, y), gradient = run(variables)
        results[impl] = y
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert float(jnp.abs(leaf).max()) > 0, jax.tree_util.keystr(path)
    np.testing.assert_allclose(results["auto"], results["reference"], atol=1e-5)


def test_bfloat16_with_attention():
    decoder = dz.UNetDecoder(skip=dz.AttentionGate, attention=dz.SCSE, dtype=jnp.bfloat16)
    # The encoder may compute in float32 all the same.
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid())
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_all_scales_begin_with_the_result():
    decoder = dz.UNetDecoder(features=(8, 6), norm=None, dropout=0.5)

    @jax.jit
    def run(maps):
        apply = partial(decoder.apply, decoder.init(KEY, maps), maps, rngs={"dropout": KEY})
        return [[apply(train=train, all_scales=scales) for scales in (False, True)] for train in (False, True)]

    for train, (y, several) in enumerate(run(pyramid((2, 4)))):
        assert [x.shape[1:] for x in several] == [(40, 37, 6), (20, 19, 8)]
        np.testing.assert_allclose(several[0], y, atol=1e-6)
        dropped = [int((x == 0).all((1, 2)).sum()) for x in several]
        assert all(dropped) if train else not any(dropped)


def test_all_scales_of_a_decoder_without_blocks():
    maps = pyramid((1,))
    (only,) = dz.UNetDecoder().apply({}, maps, all_scales=True)
    np.testing.assert_array_equal(only, maps.maps[0])


def test_one_number_for_all_blocks_is_no_list_of_features():
    with pytest.raises(TypeError, match=r"features needs an entry for each block of UNetDecoder.*got 64"):
        jax.eval_shape(dz.UNetDecoder(features=64).init, KEY, pyramid())
