"""`jax.export` with sizes that are unknown until the program runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from benchmarks.sharding import CASES
from densezoo import ops


def exported(function, shapes, *arguments):
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shapes), jnp.float32)
    return jax.export.export(jax.jit(function))(*arguments, images)


def export_model(name, shapes, **fields):
    model = CASES[name]().clone(**fields)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    return exported(model.apply, shapes, variables)


DEFAULT = ("unet", "segformer", "dpt", "unet, DySample")  # the others with the longer tests
NAMES = (*dz.list_models(task="segmentation"), "unet, Swin")
LONGER = [pytest.param(name, marks=pytest.mark.parity) for name in NAMES if name not in DEFAULT]


@pytest.mark.parametrize("name", [*DEFAULT, *LONGER])
def test_models_take_symbolic_sizes_or_say_which_are_to_be_numbers(name):
    if name not in ("dpt", "unet, Swin"):
        (logits,) = export_model(name, "b, 64*h, 64*w, 3").out_avals
        assert str(logits.shape) == "(b, 64*h, 64*w, 1)"
        return
    (logits,) = export_model(name, "b, 64, 64, 3").out_avals
    assert str(logits.shape) == "(b, 64, 64, 1)"
    with pytest.raises(ValueError, match=r"fixed height and width, but the sides 64\*h, 64\*w are symbolic"):
        export_model(name, "b, 64*h, 64*w, 3")


@pytest.mark.parametrize("name", ["unet, DySample"])
def test_the_plain_form_takes_a_symbolic_batch(name):
    (logits,) = export_model(name, "b, 64, 64, 3", impl="reference").out_avals
    assert str(logits.shape) == "(b, 64, 64, 1)"


def test_the_plain_form_needs_a_fixed_height_and_width():
    with pytest.raises(ValueError, match='impl="reference" needs maps of a fixed height and width'):
        export_model("unet", "b, 8*h, 8*w, 3", impl="reference")


@pytest.mark.parametrize(
    "resize",
    [
        lambda x: ops.resize_bilinear(x, (3 * x.shape[1], x.shape[2] + 5)),
        lambda x: ops.resize_bilinear(x, (3 * x.shape[1], x.shape[2] // 2 + 1), align_corners=True),
        lambda x: ops.adaptive_avg_pool(x, (3, 4)),
    ],
    ids=["bilinear", "align_corners", "adaptive_avg_pool"],
)
def test_symbolic_sizes_give_the_same_values(resize):
    program = exported(resize, "b, h, w, c")
    for shape in ((2, 5, 7, 3), (1, 2, 9, 1)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        x[0, 0, 0, 0] = np.inf  # is only read where it has a weight
        np.testing.assert_allclose(program.call(x), resize(jnp.asarray(x)), rtol=1e-5, atol=1e-6)


def test_a_symbolic_unet_gives_the_same_values():
    model = dz.create_model("unet", dz.PlainEncoder((2, 2)), upsample=dz.Bilinear)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    program = exported(model.apply, "b, 2*h, 2*w, 3", variables)
    images = np.random.default_rng(0).standard_normal((2, 6, 10, 3)).astype(np.float32)
    np.testing.assert_allclose(
        program.call(variables, images), jax.jit(model.apply)(variables, images), rtol=1e-4, atol=1e-5
    )
