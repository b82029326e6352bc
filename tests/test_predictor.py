"""A predictor computes what `model.apply` computes, at the picture's own size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.tasks import Segmentation


def test_pictures_are_computed_at_their_own_size(tmp_path):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 2)
    preprocessing = dz.Preprocessing(channels=1)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    picture = np.random.default_rng(0).integers(0, 256, (17, 21, 1), dtype=np.uint8)
    logits = jax.jit(model.apply)(variables, (jnp.asarray(picture[None]).astype(jnp.float32) / 255 - 0.5) / 0.25)
    expected = jax.nn.softmax(logits)[0]
    task = Segmentation(2)
    predict = dz.Predictor(task, model, variables, preprocessing)
    np.testing.assert_allclose(predict.probabilities(picture), expected, atol=1e-5)
    # Padding changes what the convolutions see at the borders, so it is for those who ask for it.
    padded = dz.Predictor(task, model, variables, preprocessing, pad_to=32)
    approximate = padded.probabilities(picture)
    assert approximate.shape == expected.shape and np.abs(approximate - expected).max() > 1e-3
    dz.save(tmp_path / "model.safetensors", model, variables, task=task, preprocessing=preprocessing)
    with pytest.warns(DeprecationWarning, match="multiple is called pad_to now"):
        predict = dz.load_predictor(tmp_path / "model.safetensors", multiple=32)
    np.testing.assert_array_equal(predict.probabilities(picture), approximate)
    with pytest.warns(DeprecationWarning, match="multiple is called pad_to now"):
        dz.Predictor(task, model, variables, preprocessing, multiple=32)
    with pytest.raises(ValueError, match="pad_to is a number of pixels, at least 1, or None; got 0"):
        dz.Predictor(task, model, variables, preprocessing, pad_to=0)
