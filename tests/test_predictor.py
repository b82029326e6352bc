"""A predictor computes what `model.apply` computes, at the picture's own size."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.tasks import Segmentation


class Net(nn.Module):
    """A convolution, which sees zeros beyond the border."""

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Conv(2, (3, 3))(images)


def test_pictures_are_computed_at_their_own_size(tmp_path):
    model, task, preprocessing = Net(), Segmentation(2), dz.Preprocessing(channels=1)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 1), dtype=np.uint8)
    logits = model.apply(variables, (jnp.asarray(picture[None]).astype(jnp.float32) / 255 - 0.5) / 0.25)
    expected = jax.nn.softmax(logits)[0]
    predict = dz.Predictor(task, model, variables, preprocessing)
    np.testing.assert_allclose(predict.probabilities(picture), expected, atol=1e-5)
    # Padding changes what the convolution sees beyond the border, so it is for those who ask for it.
    approximate = dz.Predictor(task, model, variables, preprocessing, pad_to=4).probabilities(picture)
    assert approximate.shape == expected.shape
    np.testing.assert_allclose(approximate[:-1, :-1], expected[:-1, :-1], atol=1e-5)
    assert np.abs(approximate - expected).max() > 0.01

    path = tmp_path / "model.safetensors"
    dz.save(path, None, variables, task=task, preprocessing=preprocessing)
    with pytest.warns(DeprecationWarning, match="multiple has been renamed to pad_to"):
        predict = dz.load_predictor(path, model=model, multiple=4)
    np.testing.assert_array_equal(predict.probabilities(picture), approximate)
    with pytest.warns(DeprecationWarning, match="multiple has been renamed to pad_to"):
        dz.Predictor(task, model, variables, preprocessing, multiple=4)
    with pytest.raises(ValueError, match="pad_to must be a number of pixels, at least 1, or None; got 0"):
        dz.load_predictor(path, model=model, pad_to=0)
