"""What `predict_tiled` accepts and refuses, before it computes anything."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

MODEL = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)


@pytest.fixture(scope="module")
def variables(with_statistics):
    return with_statistics(MODEL, jnp.zeros((1, 16, 16, 3)))


def picture(*size):
    return np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)


class Unread:
    """A picture whose pixels must not be read."""

    def __init__(self, *shape):
        self.shape = shape

    def __getitem__(self, index):
        raise AssertionError("pixels were read")


class Net(nn.Module):
    """A 1x1 convolution; with `half`, of every second pixel."""

    classes: int = 2
    half: bool = False

    @nn.compact
    def __call__(self, images, *, train=False):
        return nn.Conv(self.classes, (1, 1))(images[:, ::2, ::2] if self.half else images)


def test_an_out_that_cannot_hold_the_result_is_refused_first(tmp_path):
    model = Net(300)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    predict = functools.partial(dz.predict_tiled, model, variables, Unread(40, 50, 3), reduce="classes")
    np.zeros((40, 50), np.uint16).tofile(tmp_path / "mask")
    refused = {
        r"out has shape \(50, 40\); expected that of the result, \(40, 50\)": np.zeros((50, 40), np.int32),
        r"out has shape \(40, 50, 1\)": np.zeros((40, 50, 1), np.int32),
        r"out has dtype uint8, which cannot hold 300 classes: use uint16": np.zeros((40, 50), np.uint8),
        r"out cannot be written": np.memmap(tmp_path / "mask", np.uint16, "r", shape=(40, 50)),
    }
    for max_pixels in (1500, 2000):  # by tiles and in one pass
        for message, out in refused.items():
            with pytest.raises(ValueError, match=message):
                predict(out=out, max_pixels=max_pixels)
        with pytest.raises(ValueError, match=r"out has dtype uint8, which cannot hold the result's float32"):
            predict(out=np.zeros((40, 50, 300), np.uint8), reduce="logits", max_pixels=max_pixels)
    out = np.memmap(tmp_path / "mask", np.uint16, "r+", shape=(40, 50))
    image = picture(40, 50)
    expected = dz.predict_tiled(model, variables, image, reduce="classes")
    assert expected.max() > 255
    np.testing.assert_array_equal(dz.predict_tiled(model, variables, image, reduce="classes", out=out), expected)
    with pytest.raises(ValueError, match="result has numbers up to"):  # of a function, the numbers are not known before
        dz.predict_tiled(
            model, variables, image, reduce=lambda logits: logits.argmax(-1), out=np.zeros((40, 50), np.uint8)
        )


def test_models_and_pictures_that_do_not_fit_are_refused(variables):
    half = Net(half=True)
    halved = half.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"Net returns \(1, 20, 25, 2\) for images of shape \(1, 40, 50, 3\)"):
        dz.predict_tiled(half, halved, Unread(40, 50, 3))
    with pytest.raises(ValueError, match="do not match this encoder and images with 4 channels"):
        dz.predict_tiled(MODEL, variables, Unread(40, 50, 4))
    with pytest.raises(ValueError, match="preprocessing resizes pictures"):
        dz.predict_tiled(MODEL, variables, Unread(40, 50, 3), preprocessing=dz.Preprocessing(shortest=20))
    with pytest.raises(ValueError, match=r"augment must be True, False or pairs .* got \(0, False\)"):
        dz.predict_tiled(MODEL, variables, Unread(40, 50, 3), augment=(0, False))
    for options in ({"augment": True}, {"augment": ((0, False), (0, True))}):
        with pytest.raises(ValueError, match="reduce returns int32, and only floats can be averaged"):
            dz.predict_tiled(MODEL, variables, Unread(40, 50, 3), reduce=dz.metrics.predict, **options)
    with pytest.raises(ValueError, match=r"reduce must return \(1, 40, 50, ...\)"):
        dz.predict_tiled(MODEL, variables, Unread(40, 50, 3), reduce=lambda logits: logits.mean((1, 2)))


@pytest.mark.parametrize("size", [(5, 70), (70, 9), (33, 31)])
def test_thin_and_small_pictures(variables, size):
    image = picture(*size)
    expected = jax.jit(MODEL.apply)(variables, image[None])[0]
    least = 32 * min(min(size), 32)
    for max_pixels in (max(150 * min(size), least), size[0] * size[1]):
        found = dz.predict_tiled(MODEL, variables, image, max_pixels=max_pixels)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 301), (301, 1)])
def test_images_of_one_row_or_column_take_one_pass(variables, size):
    image = picture(*size)
    expected = jax.jit(MODEL.apply)(variables, image[None])[0]
    np.testing.assert_allclose(dz.predict_tiled(MODEL, variables, image), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"rows and columns cannot be told apart in an image of (1x301|301x1) pixels"):
        dz.predict_tiled(MODEL, variables, image, max_pixels=150)


def test_bfloat16_and_one_class():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8), dtype=jnp.bfloat16), 1, dtype=jnp.bfloat16)
    image = picture(75, 101)
    variables = jax.jit(model.init)(jax.random.key(0), image[None])
    expected = jax.jit(model.apply)(variables, image[None])[0]
    predict = functools.partial(dz.predict_tiled, model, variables, max_pixels=6500)
    logits = predict(image)
    assert logits.dtype == expected.dtype == jnp.bfloat16
    np.testing.assert_allclose(logits.astype(np.float32), np.asarray(expected, np.float32), rtol=0.02, atol=0.02)
    mask, probabilities = (predict(jnp.asarray(image), reduce=name) for name in ("classes", "probabilities"))
    np.testing.assert_array_equal(mask, probabilities[..., 0] >= 0.5)
    assert predict(image.astype(jnp.bfloat16), augment=True).dtype == np.float32


def test_progress_is_reported(variables):
    seen = []
    dz.predict_tiled(
        MODEL, variables, picture(75, 101), max_pixels=6500, on_tile=lambda done, total: seen.append((done, total))
    )
    assert len(seen) > 1 and seen[-1] == (75 * 101, 75 * 101)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


class Global(nn.Module):
    """Reads the mean of all pixels."""

    channels: int = 3

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(self.channels, (3, 3))(images)
        return x - 0.1 * x.mean((1, 2), keepdims=True)


@pytest.mark.parametrize("multilabel", [False, True])
def test_blended_predictions_are_classes(multilabel):
    """And not means of the numbers of classes."""
    image = np.random.default_rng(0).integers(0, 256, (75, 101, 3), np.uint8)
    variables = Global().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    task = dz.tasks.Segmentation(3, multilabel=multilabel)
    predict = dz.Predictor(task, Global(), variables, dz.Preprocessing())
    mask = predict.tiled(image, max_pixels=2048, blend=True)
    probabilities = predict.tiled(image, max_pixels=2048, blend=True, probabilities=True)
    assert mask.dtype == np.int32
    np.testing.assert_array_equal(mask, probabilities >= 0.5 if multilabel else probabilities.argmax(-1))
    assert (mask != predict(image)).mean() < 0.1
    with pytest.raises(ValueError, match="max_pixels=1000 is too small for a tile: it must be at least 1024"):
        predict.tiled(image, max_pixels=1000, blend=True)
    turned = predict.tiled(image, augment=True)
    assert turned.dtype == np.int32 and (turned != mask).mean() < 0.5


def test_blended_normals_have_length_one():
    variables = Global().init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    predict = dz.Predictor(dz.tasks.Normals(), Global(), variables, dz.Preprocessing())
    normals = predict.tiled(
        np.zeros((75, 101, 3), np.uint8) + np.arange(3, dtype=np.uint8), max_pixels=2048, blend=True
    )
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)


def test_wrong_pixels_are_found_with_their_place_and_warned_of_once(variables):
    predict = functools.partial(dz.predict_tiled, MODEL, variables, max_pixels=6500, preprocessing=dz.Preprocessing())
    image = 255 * np.random.default_rng(0).random((75, 101, 3), np.float32)
    image[:40] = 0  # the first tiles show nothing
    with pytest.warns(UserWarning, match=r"expected 0\.\.1") as warned:
        predict(image)
    assert len(warned) == 1
    image = image / 255
    image[70, 3] = np.nan
    with pytest.raises(ValueError, match=r"rows \d+:75, columns 0:\d+: the image has pixels that are NaN"):
        predict(image)
