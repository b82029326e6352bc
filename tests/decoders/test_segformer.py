"""SegFormer's decoder: its size, and that its fused products equal the reference's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import ops

KEY = jax.random.key(0)


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


def pyramid_of(reductions, size=(33, 50), told=True):
    """Maps whose number of channels is their index in the pyramid."""
    rng = np.random.default_rng(0)
    sizes = [(-(-size[0] // r), -(-size[1] // r)) for r in reductions]
    maps = [rng.standard_normal((2, *side, level)).astype(np.float32) for level, side in enumerate(sizes, start=1)]
    maps = tuple(map(jnp.asarray, maps))
    return dz.Pyramid(maps, None, tuple(reductions), size) if told else dz.Pyramid(maps)


@pytest.mark.parametrize(
    ("reductions", "told", "result"),
    [
        ((1, 2, 4, 8, 16), True, (9, 13)),
        ((4, 8, 16, 32), True, (9, 13)),
        ((8, 16), True, (9, 13)),
        ((2, 8), True, (9, 13)),
        ((8, 16), False, (5, 7)),
    ],
)
def test_the_result_is_a_quarter_of_the_image(reductions, told, result):
    pyramid = pyramid_of(reductions, told=told)
    y, variables = jax.eval_shape(dz.SegFormerDecoder(features=8).init_with_output, KEY, pyramid)
    assert y.shape == (2, *result, 8)
    assert variables["params"]["mlp_stage_0"]["kernel"].shape == (len(reductions), 8)
    assert variables["params"]["fuse_conv"]["kernel"].shape == (1, 1, 8 * len(reductions), 8)


def test_the_feature_at_a_quarter_says_how_it_is_rounded():
    maps = (jnp.zeros((1, 8, 11, 4)), jnp.zeros((1, 4, 5, 4)))
    pyramid = dz.Pyramid(maps, None, (4, 8), (35, 47))
    y, _ = jax.eval_shape(dz.SegFormerDecoder(features=8).init_with_output, KEY, pyramid)
    assert y.shape == (1, 8, 11, 8)


@pytest.mark.parametrize("norm", [dz.BatchNorm, None])
@pytest.mark.parametrize("upsample", [dz.Bilinear, dz.Nearest, dz.Bicubic])
def test_one_product_for_each_feature_is_what_the_reference_does(upsample, norm):
    decoder = dz.SegFormerDecoder(features=8, upsample=upsample, norm=norm)
    pyramid = pyramid_of((2, 4, 8, 16))
    variables = filled(decoder, pyramid)

    def value(variables):
        return decoder.apply(variables, pyramid)

    fused = quick(value)(variables)
    with ops.implementation("reference"):
        reference = quick(lambda variables: value(variables))(variables)
    np.testing.assert_allclose(fused, reference, rtol=1e-4, atol=1e-4 * float(jnp.abs(reference).max()))
    # No map has the channels of the concatenation.
    assert "x32xf32" not in jax.jit(value).lower(variables).as_text().replace("1x1x32x8xf32", "")


def test_a_learned_upsampler_enlarges_the_coarser_features():
    decoder = dz.SegFormerDecoder(features=8, upsample=dz.TransposedConv)
    for size in ((33, 50), (64, 64), (1, 1)):
        y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((2, 4, 8, 16), size))
        assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)
    assert {"upsample_0", "upsample_1"} <= set(variables["params"]) or size == (1, 1)


def test_dropout_drops_whole_channels_in_training():
    pyramid = pyramid_of((4, 8))
    decoder = dz.SegFormerDecoder(features=64, dropout=0.5, act=jnp.exp)
    variables = filled(decoder, pyramid)
    apply = quick(partial(decoder.apply, train=True, mutable=["batch_stats"], rngs={"dropout": KEY}))
    y, _ = apply(variables, pyramid)
    dropped = np.asarray((y == 0).all((1, 2)))
    assert 30 < dropped.sum() < 98
    assert float(jnp.abs(y).min((1, 2))[~dropped].min()) > 0


def test_an_encoder_of_one_scale_is_named():
    with pytest.raises(ValueError, match=r"1/16 of the image.*use dpt"):
        dz.create_model("segformer", "vit_tiny_patch16_224")


def test_learned_upsamplers_have_the_same_weights_at_every_size():
    decoder = dz.SegFormerDecoder(8, upsample=dz.TransposedConv)
    shapes = [jax.eval_shape(decoder.init, KEY, pyramid_of((2, 4, 8, 16), size)) for size in ((1, 1), (4, 4), (33, 50))]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {name for name in shapes[0]["params"] if "upsample" in name} == {"upsample_0", "upsample_1"}
