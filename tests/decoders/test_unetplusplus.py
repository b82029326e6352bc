"""U-Net++'s grid of blocks: their number, their inputs, and which are supervised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

KEY = jax.random.key(0)
CHANNELS = (3, 5, 7, 11)


def pyramid(reductions=(2, 4, 8, 16), size=(40, 37)):
    rng = np.random.default_rng(0)
    shapes = [(1, -(-size[0] // r), -(-size[1] // r), c) for r, c in zip(reductions, CHANNELS, strict=False)]
    features = tuple(jnp.asarray(rng.standard_normal(shape).astype(np.float32)) for shape in shapes)
    return dz.Pyramid(features, reductions=reductions, image_size=size)


def test_each_block_reads_all_before_it_and_the_one_below():
    variables = jax.eval_shape(dz.UNetPlusPlusDecoder((16, 8, 4, 2)).init, KEY, pyramid())
    shapes = {name: block["convs"]["conv1"]["conv"]["kernel"].shape for name, block in variables["params"].items()}
    assert {name: shape[2:] for name, shape in shapes.items()} == {
        "x_0_0": (11 + 7, 16),
        "x_1_1": (7 + 5, 5),
        "x_0_1": (16 + 2 * 5, 8),
        "x_2_2": (5 + 3, 3),
        "x_1_2": (5 + 2 * 3, 3),
        "x_0_2": (8 + 3 * 3, 4),
        "x_0_3": (4, 2),
    }


@pytest.mark.parametrize("skip", [dz.ConcatSkip, dz.LateralAdd, dz.AttentionGate])
@pytest.mark.parametrize("reductions", [(1, 2, 4), (2, 4, 8), (4, 8), (4, 4), (2,)])
def test_reaches_the_image_over_any_pyramid(reductions, skip):
    maps = pyramid(reductions)
    y, _ = jax.eval_shape(dz.UNetPlusPlusDecoder(skip=skip).init_with_output, KEY, maps)
    assert y.shape[:3] == (1, 40, 37)


@pytest.mark.parametrize("reductions", [(1, 2, 4), (2, 4, 8)])
def test_all_scales_are_the_result_and_every_map_at_the_finest_scale(reductions):
    decoder = dz.UNetPlusPlusDecoder(dropout=0.5, norm=None)
    maps = pyramid(reductions)
    variables = jax.jit(decoder.init)(KEY, maps)
    y, several = jax.jit(lambda v: [decoder.apply(v, maps, all_scales=scales) for scales in (False, True)])(variables)
    nested = [(40, 37, 16), (40, 37, 3)] if reductions[0] == 1 else [(40, 37, 16), (20, 19, 32), (20, 19, 3)]
    assert [x.shape[1:] for x in several] == nested
    np.testing.assert_allclose(several[0], y, atol=1e-6)


def test_too_few_features_are_named():
    with pytest.raises(ValueError, match="3 skips, and UNetPlusPlusDecoder needs a block for each"):
        jax.eval_shape(dz.UNetPlusPlusDecoder((8, 8)).init, KEY, pyramid())
