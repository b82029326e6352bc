"""Models compiled with their variables, in memory and in files."""

import json
from functools import partial

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import densezoo as dz
from densezoo.inspect.walk import convolutions

KEY = jax.random.key(0)


def assert_close(actual, expected, relative=1e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=relative * float(jnp.abs(b).max()))


class Doubled(nn.Module):
    """A custom model: a convolution with a bias before the norm, and Flax's modules."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = dz.BatchNorm(name="norm")(dz.Conv(4, bias_init=nn.initializers.ones, name="conv")(images), train=train)
        x = dz.BatchNorm(name="again")(x, train=train)  # its input is no convolution any more
        x = nn.WeightNorm(dz.Conv(4, name="own_weights"))(x)
        x = dz.BatchNorm(name="of_own_weights")(x, train=train)
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3))(nn.relu(x)))
        return {"logits": x, "both": (2 * x, nn.Dense(2)(x))}


@pytest.mark.parametrize(
    "model",
    [
        dz.create_model("unet", dz.PlainEncoder((4, 8)), 3),
        dz.create_model("deeplabv3plus", dz.ResNet((1, 1), dz.Bottleneck, width=4, output_stride=16), 2, features=8),
        dz.SegmentationModel(
            dz.PlainEncoder((4, 8), norm=partial(dz.GroupNorm, num_groups=2)),
            dz.UNetDecoder((4,), skip=dz.LateralAdd, upsample=dz.TransposedConv),
            dz.SegmentationHead(1),
        ),
        Doubled(),
    ],
    ids=["unet", "deeplabv3plus", "composed", "of one's own"],
)
def test_a_compiled_model_equals_the_model(model, with_statistics):
    images = jax.random.normal(KEY, (2, 37, 41, 3))
    variables = with_statistics(model, images)
    expected = jax.jit(model.apply)(variables, images)
    assert_close(dz.compile(model, variables)(images), expected)


def test_a_compiled_model_is_a_part_of_the_callers_program(with_statistics):
    model, images = dz.ConvNormAct(2), jax.random.normal(KEY, (1, 8, 8, 3))
    infer = dz.compile(model, with_statistics(model, images))
    assert_close(jax.jit(lambda x: 2 * infer(x))(images), 2 * infer(images))


def test_norms_leave_nothing_but_a_bias(with_statistics):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    images = jnp.ones((1, 16, 16, 3))
    infer = dz.compile(model, with_statistics(model, images))
    program = str(jax.make_jaxpr(infer)(images))
    assert "rsqrt" not in program and " mul " not in program


def test_a_shape_is_compiled_once(compilations):
    model = dz.ConvNormAct(2)
    infer = dz.compile(model, model.init(KEY, jnp.ones((1, 8, 8, 3))))
    images = [jnp.ones((1, side, 8, 3)) for side in (8, 9)]
    for x in images:
        infer(x)
    with compilations() as compiled:
        for x in images:
            infer(x)
    assert not compiled


def test_bfloat16_computes_in_it_and_folds_before_rounding(with_statistics):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    images = jax.random.normal(KEY, (1, 24, 24, 3))
    variables = with_statistics(model, images)
    infer = dz.compile(model, variables, dtype=jnp.bfloat16)
    result = infer(images)
    assert result.dtype == jnp.bfloat16
    expected = model.apply(variables, images)
    assert float(jnp.abs(result.astype(jnp.float32) - expected).max() / jnp.abs(expected).max()) < 0.03
    equations = convolutions(jax.make_jaxpr(infer)(images).jaxpr)
    assert {equation.outvars[0].aval.dtype for equation in equations} == {jnp.dtype(jnp.bfloat16)}


def test_programs_go_to_a_file_and_back(tmp_path, recwarn, with_statistics):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    images = jax.random.normal(KEY, (1, 16, 16, 3))
    infer = dz.compile(model, with_statistics(model, images))
    path = tmp_path / "unet.compiled"
    with pytest.raises(ValueError, match="nothing to save yet"):
        infer.save(path)
    expected = infer(images)
    infer.save(path, (2, 8, 8, 3))
    assert all("oneDNN" in str(warning.message) for warning in recwarn.list)
    recwarn.clear()
    loaded = dz.load_compiled(path)
    assert_close(loaded(images), expected)
    assert loaded(np.ones((2, 8, 8, 3), np.float32)).shape == (2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"no program for images of \(1, 9, 9, 3\) float32, only for \(1, 16, 16, 3\)"):
        loaded(jnp.ones((1, 9, 9, 3)))


def test_pictures_of_float64_have_the_program_of_float32(tmp_path, recwarn):
    model = dz.PyramidModel(dz.PlainEncoder((4, 8)), dz.FPNNeck(4, 2))
    picture = np.random.default_rng(0).normal(size=(1, 8, 8, 3))
    infer = dz.compile(model, jax.jit(model.init)(KEY, picture))
    expected = infer(picture)
    infer(picture.astype(np.float32))
    infer.save(tmp_path / "maps.compiled")
    assert all("oneDNN" in str(warning.message) for warning in recwarn.list)
    with safe_open(tmp_path / "maps.compiled", "numpy") as file:
        (program,) = json.loads(file.metadata()["programs"])
    assert program["inputs"] == [[[1, 8, 8, 3], "float32"]]
    assert_close(dz.load_compiled(tmp_path / "maps.compiled")(picture), expected)


def test_a_mixed_precision_model_gives_what_it_gives(with_statistics):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8), norm=partial(dz.BatchNorm, dtype=jnp.float32)), 3)
    images = jax.random.normal(KEY, (1, 16, 16, 3))
    variables = flax.core.freeze(with_statistics(model, images))
    assert_close(dz.compile(model, variables)(images), model.apply(variables, images))


def test_a_failed_call_leaves_nothing_to_save(tmp_path):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    infer = dz.compile(model, model.init(KEY, jnp.ones((1, 8, 8, 3))))
    with pytest.raises(ValueError, match="4 channels"):
        infer(jnp.ones((1, 8, 8, 4)))
    with pytest.raises(ValueError, match="nothing to save yet"):
        infer.save(tmp_path / "unet.compiled")


def test_an_output_that_no_file_holds_is_refused(tmp_path, recwarn):
    encoder = dz.PlainEncoder((4, 8))
    infer = dz.compile(encoder, encoder.init(KEY, jnp.ones((1, 8, 8, 3))))
    with pytest.raises(ValueError, match="tuples and dictionaries can be saved"):
        infer.save(tmp_path / "encoder.compiled", (1, 8, 8, 3))
    assert not list(tmp_path.iterdir())


def test_tuples_and_dictionaries_come_back(tmp_path, recwarn):
    images = jnp.ones((1, 8, 8, 3))
    infer = dz.compile(Doubled(), Doubled().init(KEY, images))
    expected = infer(images)
    infer.save(tmp_path / "own.compiled")
    recwarn.clear()
    loaded = dz.load_compiled(tmp_path / "own.compiled")(images)
    assert jax.tree.structure(loaded) == jax.tree.structure(expected)
    assert_close(loaded, expected)


def test_a_file_for_another_machine_is_refused(tmp_path, recwarn):
    path = tmp_path / "other.compiled"
    images = jnp.ones((1, 8, 8, 3))
    model = dz.ConvNormAct(2)
    dz.compile(model, model.init(KEY, images)).save(path, images.shape)
    with safe_open(path, "np") as file:
        header = file.metadata()
    here = json.loads(header["made for"])
    save_file({"0": np.zeros(1, np.uint8)}, path, header | {"made for": json.dumps(here | {"jax": "0.1.0"})})
    with pytest.raises(ValueError, match=r"another machine \(jax: 0.1.0, here .*\): compile the model here"):
        dz.load_compiled(path)
    save_file({"0": np.zeros(1, np.uint8)}, path)
    with pytest.raises(ValueError, match="not a file of compiled programs"):
        dz.load_compiled(path)
    path.write_bytes(b"no such file")
    with pytest.raises(ValueError, match="not a file of compiled programs"):
        dz.load_compiled(path)
    with pytest.raises(FileNotFoundError):
        dz.load_compiled(tmp_path / "missing")


def test_what_does_not_fit_is_named():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    variables = model.init(KEY, jnp.ones((1, 16, 16, 3)))
    with pytest.raises(TypeError, match="the model comes first"):
        dz.compile(variables, model)
    with pytest.raises(ValueError, match=r"not the variables of the model: batch_stats/.* is missing"):
        dz.compile(model, {"params": variables["params"]})
    with pytest.raises(ValueError, match="images with 4 channels"):
        dz.compile(model, variables)(jnp.ones((1, 16, 16, 4)))
    with pytest.raises(TypeError, match="float images"):
        dz.compile(model, variables)(jnp.ones((1, 16, 16, 3), jnp.uint8))
