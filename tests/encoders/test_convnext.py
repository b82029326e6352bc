"""ConvNeXt, beyond the contract of all encoders."""

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
from densezoo.encoders.convnext import ConvNeXtBlock, GlobalResponseNorm

KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = np.random.default_rng(0).standard_normal((2, 17, 24, 3)).astype(np.float32)


def small(**fields):
    return dz.ConvNeXt(**({"depths": (1, 1, 2, 1), "dims": (4, 8, 8, 12)} | fields))


def shallow(**fields):
    """Two stages, which cover every path and compile quickly."""
    return small(depths=(1, 1, 0, 0), coarsest=8, **fields)


def shapes(encoder, size=(64, 96)):
    return jax.eval_shape(encoder.init_with_output, KEY, jnp.zeros((1, *size, 3)))


@pytest.mark.parametrize(("stride", "reductions"), [(8, (4, 8, 8, 8)), (16, (4, 8, 16, 16)), (32, (4, 8, 16, 32))])
def test_output_stride_keeps_the_size_and_the_weights(stride, reductions):
    encoder = small(output_stride=stride)
    assert (encoder.reductions, encoder.min_size) == (reductions, stride)
    pyramid, variables = shapes(encoder)
    assert [x.shape[1:3] for x in pyramid.maps] == [(64 // r, 96 // r) for r in reductions]
    assert variables == shapes(small())[1]
    assert shapes(encoder, (stride, stride))[0].maps[-1].shape[1:3] == (1, 1)


def test_coarsest_leaves_out_the_deeper_stages():
    encoder = small(coarsest=8, drop_path=0.5)
    _, whole = shapes(small())
    pyramid, variables = shapes(encoder)
    assert [x.shape[-1] for x in pyramid.maps] == [4, 8]
    kept = {name: whole["params"][name] for name in variables["params"]}
    assert variables["params"] == kept
    assert not any(name.startswith(("stage2", "stage3")) for name in kept)


@pytest.mark.parametrize("fields", [{"coarsest": 12}, {"output_stride": 4}])
def test_impossible_strides_are_named(fields):
    with pytest.raises(ValueError, match=str(next(iter(fields.values())))):
        shapes(small(**fields))


def test_images_that_are_too_small_are_named():
    with pytest.raises(ValueError, match=r"at least 32x32 pixels, got \(31, 64\)"):
        shapes(small(), (31, 64))
    model = dz.create_model("unet", small())
    assert jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 31, 3, 3)))[0].shape == (1, 31, 3, 1)


def test_drop_path_drops_in_training_only():
    encoder = shallow(drop_path=0.5, layer_scale=1.0)
    same = np.repeat(IMAGES[:1], 8, 0)
    variables = jax.jit(encoder.init)(KEY, same)
    still, trained = (
        jax.jit(partial(encoder.apply, train=train, rngs={"dropout": KEY}))(variables, same).maps[-1]
        for train in (False, True)
    )
    np.testing.assert_allclose(still[1:], still[:-1], rtol=1e-5)
    # A branch is dropped or doubled, independently for each sample.
    kinds = {tuple(sample.ravel().round(3).tolist()) for sample in np.asarray(trained)}
    assert len(kinds) == 2
    np.testing.assert_allclose(sum(map(np.array, kinds)) / 2, np.ravel(still[0]), atol=2e-3)


@pytest.mark.parity
def test_remat_gives_the_same_gradients():
    encoder = small(coarsest=4, grn=True)
    variables = jax.jit(encoder.init)(KEY, IMAGES)

    def gradient(encoder):
        return jax.jit(jax.grad(lambda v: jnp.square(encoder.apply(v, IMAGES).maps[-1]).sum()))(variables)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradient(encoder),
        gradient(encoder.clone(remat=True)),
    )


def test_linear_layers_and_pointwise_convolutions_compute_the_same():
    block = ConvNeXtBlock(layer_scale=1.0)
    x = jnp.asarray(IMAGES)
    variables = jax.jit(block.init)(KEY, x)

    def widen(path, array):
        wide = "'fc" in jax.tree_util.keystr(path) and array.ndim == 2
        return array.reshape(1, 1, *array.shape) if wide else array

    convolved = jax.tree_util.tree_map_with_path(widen, variables)
    a, b = jax.jit(block.apply)(variables, x), jax.jit(block.clone(conv_mlp=True).apply)(convolved, x)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_response_norm_starts_as_the_identity_and_survives_channels_of_zeros():
    x = jnp.array([[3.0, 0.0], [4.0, 0.0]]).reshape(1, 2, 1, 2)
    layer = GlobalResponseNorm()
    apply = jax.jit(layer.apply)
    np.testing.assert_array_equal(apply(layer.init(KEY, x), x), x)
    # Norms are 5 and 0, their mean 2.5.
    scaled = {"params": {"scale": jnp.array([1.0, 1.0]), "bias": jnp.array([0.5, 0.25])}}
    np.testing.assert_allclose(apply(scaled, x).reshape(2, 2), [[9.5, 0.25], [12.5, 0.25]], rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.square(apply(scaled, x)).sum())(x)
    assert bool(jnp.isfinite(gradient).all())


def test_bfloat16_stays_close():
    encoder = shallow(grn=True, layer_scale=None)
    variables = jax.jit(encoder.init)(KEY, IMAGES)
    half = jax.jit(encoder.clone(dtype=jnp.bfloat16).apply)(variables, IMAGES).maps[-1]
    assert half.dtype == jnp.bfloat16
    exact = jax.jit(encoder.apply)(variables, IMAGES).maps[-1]
    assert np.corrcoef(np.ravel(half.astype(jnp.float32)), np.ravel(exact))[0, 1] > 0.99


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "encoder.model."])
@pytest.mark.parametrize("dot", [".", "_"])
def test_names_of_timm_and_of_those_who_wrap_it(prefix, dot):
    with np.load(GOLDEN / "timm_convnext_stride8.npz") as golden:
        names = json.loads(str(golden["shapes"]))
    seeded = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]
    arrays = {name: seeded(name, tuple(shape)) for name, shape in names.items()}
    encoder = dz.ConvNeXt((1, 1, 2, 1), (8, 16, 24, 32))
    expected = weights.from_torch(encoder, arrays)
    renamed = {prefix + name.replace("s_", f"s{dot}").replace("stem_", f"stem{dot}"): a for name, a in arrays.items()}
    renamed[f"{prefix}head.fc.weight"] = np.zeros((3, 32), np.float32)
    jax.tree.map(np.testing.assert_array_equal, weights.from_torch(encoder, renamed), expected)
    fewer = weights.from_torch(encoder.clone(coarsest=8), renamed)["params"]
    jax.tree.map(np.testing.assert_array_equal, fewer, {name: expected["params"][name] for name in fewer})
