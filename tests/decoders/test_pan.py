"""PAN: the maps that it reads, small and odd sizes, options."""

import runpy
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import weights
from densezoo.decoders.pan import _halve

KEY = jax.random.key(0)
PARITY = Path(__file__).parents[1] / "weights" / "test_parity.py"


def pyramid_of(reductions, size=(33, 50), told=True):
    """Shapes of maps, whose number of channels is their index in the pyramid."""
    sizes = [(-(-size[0] // r), -(-size[1] // r)) for r in reductions]
    maps = [jax.ShapeDtypeStruct((2, *size, level), jnp.float32) for level, size in enumerate(sizes, start=1)]
    return dz.Pyramid(tuple(maps), None, tuple(reductions) if told else None, size)


@pytest.mark.parametrize(
    ("reductions", "told", "steps", "result"),
    [
        ((1, 2, 4, 8, 16), True, 2, (9, 13)),
        ((2, 4, 8, 16, 16), True, 3, (9, 13)),
        ((4, 8, 16, 32), True, 3, (9, 13)),
        ((2, 4, 8), True, 1, (9, 13)),
        ((2, 4, 8), False, 2, (17, 25)),
        ((1, 2), True, 0, (17, 25)),
    ],
)
def test_maps_from_a_quarter_on_take_part(reductions, told, steps, result):
    pyramid = pyramid_of(reductions, told=told)
    y, variables = jax.eval_shape(dz.PANDecoder(features=8).init_with_output, KEY, pyramid)
    assert set(variables["params"]) == {"fpa", *(f"gau{step + 1}" for step in range(steps))}
    assert y.shape == (2, *result, 8)


def test_halving_leaves_out_an_odd_row_unless_it_is_the_only_one():
    x = jnp.arange(15.0).reshape(1, 5, 3, 1)
    np.testing.assert_array_equal(jax.jit(_halve)(x)[0, :, :, 0], [[4], [10]])
    np.testing.assert_array_equal(jax.jit(_halve)(x[:, :, :1])[0, :, :, 0], [[3], [9]])


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (65, 47)])
def test_any_size_has_the_same_weights(size):
    decoder = dz.PANDecoder(features=8, upsample=dz.TransposedConv, attention_upsample=dz.PixelShuffle)
    _, expected = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((2, 4, 8, 16, 16), (64, 64)))
    y, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((2, 4, 8, 16, 16), size))
    assert variables == expected
    assert y.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 8)
    # Both at 1/16: nothing to upsample.
    assert "upsample" not in expected["params"]["gau3"]
    assert "upsample" in expected["params"]["gau2"]


def test_a_norm_that_leaves_nothing_of_one_channel_is_named():
    with pytest.raises(ValueError, match="which LayerNorm makes constant: use BatchNorm or GroupNorm"):
        jax.eval_shape(dz.create_model("pan", "resnet18", norm=dz.LayerNorm).init, KEY, jnp.zeros((1, 64, 64, 3)))


@pytest.mark.parametrize("norm", [None, partial(dz.GroupNorm, num_groups=2), partial(nn.GroupNorm, num_groups=2)])
def test_other_norms(norm):
    pyramid = pyramid_of((4, 8, 16))
    decoder = dz.PANDecoder(features=8, norm=norm)
    _, variables = jax.eval_shape(decoder.init_with_output, KEY, pyramid)
    assert set(variables) == {"params"}
    assert ("norm" in variables["params"]["fpa"]["down1"]) == (norm is not None)


def test_an_upsampler_may_divide_the_channels():
    decoder = dz.PANDecoder(features=8, upsample=partial(dz.TransposedConv, reduction=2))
    y, _ = jax.eval_shape(decoder.init_with_output, KEY, pyramid_of((4, 8, 16)))
    assert y.shape == (2, 9, 13, 2)


def test_an_encoder_by_its_name_is_dilated():
    assert dz.create_model("pan", "resnet18").encoder.reductions == (2, 4, 8, 16, 16)
    with pytest.raises(ValueError, match="vgg11 does not support"):
        dz.create_model("pan", "vgg11")


def repeated(**fields):
    return lambda x, size: x.repeat(size[0] // x.shape[1], 1).repeat(size[1] // x.shape[2], 2)


@pytest.mark.parity
def test_nearest_at_a_quarter():
    parity = runpy.run_path(str(PARITY))
    arrays, image, outputs = parity["load"]("smp_pan_resnet50_nearest")
    model = dz.create_model("pan", "resnet50", 2, upsample=partial(dz.Nearest, half_pixel=False))
    model = model.clone(head=model.head.clone(upsample=repeated))
    apply = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0})
    parity["assert_close"](apply(weights.from_torch(model, arrays), image)[:, ::4, ::4], outputs["quarter"])
