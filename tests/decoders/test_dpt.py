"""DPT's decoder: readouts, scales, odd sizes, and incompatible encoders."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.decoders.dpt import Readout

KEY = jax.random.key(0)
NARROW = {"intermediate_features": (4, 4, 6, 8), "features": 8}
FLAT = {"intermediate_features": (4, 4), "features": 4}  # which compiles quickly


def quick(function):
    """`jax.jit` for functions that run once or twice, without the compiler's optimisation."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def filled(module, *arguments):
    """Variables with random numbers, which are faster than those of `init`."""
    shapes = jax.eval_shape(module.init, KEY, *arguments)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-0.5, 0.5, leaf.shape), leaf.dtype), shapes)
    # Variances are positive.
    return {kind: jax.tree.map(jnp.abs, tree) if kind == "batch_stats" else tree for kind, tree in variables.items()}


def pyramid_of(size=(33, 50), reductions=(16,) * 4, tokens=True):
    rng = np.random.default_rng(0)
    shapes = [(2, -(-size[0] // r), -(-size[1] // r), 6) for r in reductions]
    maps = tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)
    classes = tuple(jnp.asarray(rng.standard_normal((2, 2, 6)), jnp.float32) for _ in shapes) if tokens else None
    return dz.Pyramid(maps, None, reductions, size, classes)


@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
@pytest.mark.parametrize("reductions", [(16,) * 4, (8,) * 4, (4, 8, 16, 32)])
def test_the_result_is_half_of_the_image(size, reductions):
    decoder = dz.DPTDecoder(**NARROW, upsample=dz.Bilinear)
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of(size, reductions))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 8)
    assert variables == jax.eval_shape(decoder.init, KEY, pyramid_of((32, 32), reductions))
    steps = {k: set(v) - {"project", "output"} for k, v in variables["params"].items() if k.startswith("reassemble")}
    expected = {16: [{"enlarge"}, {"enlarge"}, set(), {"reduce"}], 8: [{"enlarge"}, set(), {"reduce"}, {"reduce"}]}
    assert list(steps.values()) == expected.get(reductions[0], [set()] * 4)


def test_a_padded_image_is_cut_and_not_squeezed():
    """The image's pixels give the same outputs as in the padded image."""
    decoder = dz.DPTDecoder(**FLAT)
    padded = pyramid_of((64, 64), (16, 16))
    variables = filled(decoder, padded)
    whole, part = (
        quick(decoder.apply)(variables, pyramid) for pyramid in (padded, padded.replace(image_size=(49, 62)))
    )
    # The last convolution sees zeros beyond the border.
    np.testing.assert_allclose(part[:, :-1, :-1], whole[:, :24, :30], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_what_the_readouts_read(readout):
    pyramid = pyramid_of()
    x, tokens = pyramid.maps[0], pyramid.tokens[0]
    module = Readout(readout)
    variables = filled(module, x, tokens)
    assert bool(variables) == (readout == "cat")
    gradient = quick(jax.grad(lambda tokens: module.apply(variables, x, tokens).sum()))(tokens)
    used = {"cat": [True, False], "add": [True, True], "ignore": [False, False]}[readout]
    assert [bool(jnp.abs(gradient[:, n]).max() > 0) for n in range(2)] == used
    decoder = dz.DPTDecoder(**NARROW, readout=readout)
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of(tokens=False))
    assert y.shape == (2, 17, 25, 8)
    assert ("readout0" in variables["params"]) == (readout == "cat")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"readout": "mean"}, "got 'mean'"),
        ({"intermediate_features": (4, 4)}, r"needs 2 .* for intermediate_features=\(4, 4\), .* gives 4"),
    ],
)
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(dz.DPTDecoder(**fields).init, KEY, pyramid_of())


def test_dropout_and_statistics_in_training_only():
    decoder = dz.DPTDecoder(**FLAT)
    pyramid = pyramid_of(reductions=(16, 16))
    variables = filled(decoder, pyramid)
    still, _ = quick(partial(decoder.apply, mutable=["batch_stats"]))(variables, pyramid)
    assert still.shape == (2, 17, 25, 4)
    train = partial(decoder.apply, train=True, mutable=["batch_stats"])
    apply = quick(lambda key: train(variables, pyramid, rngs={"dropout": key}))
    (first, updated), (second, _) = apply(jax.random.key(1)), apply(jax.random.key(2))
    assert float(jnp.abs(first - second).max()) > 0
    same = jax.tree.map(lambda a, b: bool((a == b).all()), variables["batch_stats"], updated["batch_stats"])
    assert not any(jax.tree.leaves(same))


@pytest.mark.parametrize("norm", [None, dz.GroupNorm])
def test_norms_and_upsamplers(norm):
    fields = {"intermediate_features": (4, 4, 4, 4), "features": 32}
    decoder = dz.DPTDecoder(**fields, norm=norm, upsample=dz.PixelShuffle)
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of())
    assert y.shape == (2, 17, 25, 32)
    assert set(variables) == {"params"}


def test_misfits_are_named():
    with pytest.raises(ValueError, match="a single scale, such as vit_base_patch16_224"):
        dz.create_model("dpt", "resnet18")
    with pytest.raises(ValueError, match=r"all of its maps are at 1/16.*use dpt"):
        dz.create_model("unet", "vit_tiny_patch16_224")
    encoder = dz.ViT(embed_dim=8, depth=2, num_heads=2, levels=2)
    model = dz.create_model("dpt", encoder, 3, intermediate_features=(4, 4), features=8)
    assert jax.eval_shape(model.init_with_output, KEY, jnp.zeros((1, 35, 18, 3)))[0].shape == (1, 35, 18, 3)


def test_patches_whose_side_is_no_power_of_two():
    # The fused maps have 8 rows for each patch; those of the padding of 3 x 3 patches are left out.
    encoder = dz.ViT(embed_dim=8, depth=4, num_heads=2, grid=4, patch_size=14)
    model = dz.create_model("dpt", encoder, 3, intermediate_features=(4, 4, 4, 4), features=8)
    images = jnp.zeros((1, 30, 37, 3))
    assert jax.eval_shape(model.init_with_output, KEY, images)[0].shape == (1, 30, 37, 3)
    pyramid = jax.eval_shape(encoder.init_with_output, KEY, images)[0]
    decoder = dz.DPTDecoder((4, 4, 4, 4), 8)
    assert jax.eval_shape(decoder.init_with_output, KEY, pyramid)[0].shape == (1, 18, 22, 8)


def test_wrong_factors_are_refused():
    with pytest.raises(ValueError, match=r"factors must be 4 integers or their inverses, got \(4, 2, 1.5, 1\)"):
        jax.eval_shape(dz.DPTDecoder(factors=(4, 2, 1.5, 1)).init, KEY, pyramid_of())
