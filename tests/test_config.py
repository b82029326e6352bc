"""A model by names: defaults, the file, and what is wrong with it."""

import jax
import jax.numpy as jnp
import pytest

from densezoo.config import IMAGENET_MEAN, ModelConfig


def test_defaults_follow_the_model_and_the_channels():
    assert ModelConfig("segnet").encoder == "vgg16_bn"
    assert ModelConfig("unet").mean == IMAGENET_MEAN
    assert ModelConfig("unet", channels=5).mean == (0.5,) * 5


def test_file_gives_the_same_configuration(tmp_path):
    config = ModelConfig("unet", "resnet18", 3, upsample="bilinear", skip="add", mean=(0.1, 0.2, 0.3))
    config.save(tmp_path / "new" / "model.json")
    assert ModelConfig.load(tmp_path / "new" / "model.json") == config
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.json"]


def test_builds_what_it_says():
    model = ModelConfig("unet", "resnet18", 3, skip="add", upsample="transposed_conv").build(bfloat16=True)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert {"skip", "upsample"} <= set(variables["params"]["decoder"]["block0"])
    assert jax.eval_shape(model.apply, variables, jnp.zeros((1, 32, 32, 3))).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"model": "unet3"}, ValueError, "did you mean 'unet'"),
        ({"upsample": "bilinera"}, ValueError, "unknown upsampler 'bilinera'; did you mean 'bilinear'"),
        ({"skip": "mul"}, ValueError, "there are: add, attention, concat"),
        ({"model": "fpn", "skip": "add"}, TypeError, "no argument 'skip'"),
    ],
)
def test_mistakes_are_named(fields, error, message):
    with pytest.raises(error, match=message):
        ModelConfig(**fields).build()


def test_a_file_that_is_no_configuration_is_named(tmp_path):
    path = tmp_path / "model.json"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ModelConfig.load(path)
    for text in ("{", '{"no_such_field": 1}', "[1, 2]"):
        path.write_text(text)
        with pytest.raises(ValueError, match="not the configuration of a model"):
            ModelConfig.load(path)
