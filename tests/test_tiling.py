"""Prediction by tiles equals one pass, and blending is close to it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.compiling import onednn_options

ENCODER = dz.PlainEncoder((4, 8))
SIZE = (75, 101)  # odd, so that resizes are not by whole factors
MODELS = {
    "unet nearest": dz.create_model("unet", ENCODER, 3),
    "unet aligned": dz.create_model("unet", ENCODER, 3, upsample="bilinear_align_corners"),
    "unet transposed": dz.create_model("unet", ENCODER, 3, upsample="transposed_conv_4x4"),
    "unet pixel_shuffle": dz.create_model("unet", ENCODER, 3, upsample="pixel_shuffle"),
    "segnet": dz.create_model("segnet", ENCODER, 3),
    "fpn": dz.create_model("fpn", ENCODER, 3, features=4, norm=dz.BatchNorm),
}


@functools.cache
def picture():
    return np.random.default_rng(0).normal(size=(*SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables_of(with_statistics):
    return functools.cache(lambda name: with_statistics(MODELS[name], picture()[None]))


@functools.cache
def one_pass(name, variables_of):
    return np.asarray(jax.jit(MODELS[name].apply)(variables_of(name), picture()[None]))[0]


@pytest.mark.parametrize("name", MODELS)
def test_tiles_equal_one_pass(name, variables_of, compilations):
    expected = one_pass(name, variables_of)
    onednn_options()  # which compiles a probe
    with compilations() as compiled:
        logits = dz.predict_tiled(MODELS[name], variables_of(name), picture(), max_pixels=6500)
    # Borders, corners and the inside have the same program.
    assert len(compiled) == 1
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_memory_maps_and_classes(tmp_path, variables_of, recorder):
    name = "unet nearest"
    image = np.memmap(tmp_path / "image", np.uint8, "w+", shape=(*SIZE, 3))
    image[:] = np.random.default_rng(0).integers(0, 256, image.shape)
    preprocessing = dz.Preprocessing(mean=(0.2, 0.5, 0.6), std=(0.25, 0.5, 0.2))
    normalized = (np.asarray(image, np.float32) / 255 - preprocessing.mean) / preprocessing.std
    logits = jax.jit(MODELS[name].apply)(variables_of(name), normalized.astype(np.float32)[None])[0]
    mask = np.memmap(tmp_path / "mask", np.uint8, "w+", shape=SIZE)
    reader = recorder(image)
    predict = functools.partial(dz.predict_tiled, MODELS[name], variables_of(name), max_pixels=6500)
    assert predict(reader, reduce="classes", out=mask, preprocessing=preprocessing) is mask
    assert 0 < reader.largest <= 6500 < image.shape[0] * image.shape[1]
    np.testing.assert_array_equal(mask, np.asarray(logits).argmax(-1))
    # A picture within the limit takes one pass, and a function of logits any form.
    one = dz.predict_tiled(MODELS[name], variables_of(name), picture()[:20, :30], reduce=lambda logits: logits.max(-1))
    assert one.shape == (20, 30)


def test_turned_pictures_are_averaged(variables_of):
    name = "unet nearest"
    apply = jax.jit(MODELS[name].apply)
    predict = functools.partial(dz.predict_tiled, MODELS[name], variables_of(name), picture(), max_pixels=6500)
    total = 0
    for quarters in range(4):
        for mirrored in (False, True):
            turned = np.rot90(picture()[:, ::-1] if mirrored else picture(), quarters)
            logits = apply(variables_of(name), np.ascontiguousarray(turned)[None])[0]
            back = np.rot90(jax.nn.softmax(logits), -quarters)
            total = total + (back[:, ::-1] if mirrored else back)
    np.testing.assert_allclose(predict(reduce="probabilities", augment=True), total / 8, atol=1e-5)
    np.testing.assert_array_equal(predict(reduce="classes", augment=True), total.argmax(-1))
    # A single way that changes the size, and its sides.
    turned = np.ascontiguousarray(np.rot90(picture()))
    logits = np.rot90(apply(variables_of(name), turned[None])[0], -1)
    np.testing.assert_allclose(predict(augment=[(1, False)]), logits, atol=1e-5 * np.abs(logits).max())


class Global(nn.Module):
    """Subtracts a little of the mean of all pixels."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(2, (3, 3), name="conv")(images)
        return x - 0.1 * nn.relu(Mean(name="gate")(x))


class Mean(nn.Module):
    """The mean of all pixels."""

    @nn.compact
    def __call__(self, x):
        return x.mean((1, 2), keepdims=True)


def test_global_operations_are_named_and_blended():
    model = Global()
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(
        ValueError, match=r"Global cannot .* whole image: gate. blend=True .* max_pixels of at least 7575"
    ):
        dz.predict_tiled(model, variables, picture(), max_pixels=2048)
    expected = np.asarray(model.apply(variables, picture()[None]))[0]
    blended = dz.predict_tiled(model, variables, picture(), max_pixels=2048, blend=True)
    assert blended.shape == expected.shape
    assert np.abs(blended - expected).mean() < 0.1 * np.abs(expected).mean()
    # Of equal pixels, every tile and every blend of tiles is equal.
    even = dz.predict_tiled(model, variables, np.ones_like(picture()), max_pixels=2048, blend=True)
    np.testing.assert_allclose(even[5:-5, 5:-5], np.broadcast_to(even[35, 50], even[5:-5, 5:-5].shape), atol=0.05)


def test_bad_input_is_reported(variables_of):
    name = "unet nearest"
    predict = functools.partial(dz.predict_tiled, MODELS[name], variables_of(name))
    with pytest.raises(ValueError, match="max_pixels must be at least") as report:
        predict(picture(), max_pixels=1000)
    smallest = int(str(report.value).split()[-1])
    with pytest.raises(ValueError, match=f"at least {smallest}"):
        predict(picture(), max_pixels=smallest - 1)
    assert predict(picture()[:70, :70], max_pixels=smallest).shape == (70, 70, 3)
    with pytest.raises(ValueError, match="expected one image of shape"):
        predict(picture()[None])
    with pytest.raises(ValueError, match='must be "logits", "probabilities", "classes" or a function'):
        predict(picture(), reduce="masks")
    with pytest.raises(TypeError, match=r"pass preprocessing=dz.Preprocessing"):
        predict(np.zeros((8, 8, 3), np.uint8))
