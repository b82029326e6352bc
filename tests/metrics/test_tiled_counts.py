"""Counts tile by tile equal those of the whole picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile

import densezoo as dz
from densezoo import metrics
from densezoo.data import open_tiff


def parts(counts):
    return [np.asarray(getattr(counts, name)).tolist() for name in ("tp", "fp", "fn", "tn")]


@pytest.mark.parametrize("ignore_index", [None, 255, -1])
def test_tiles_have_the_counts_of_the_whole(ignore_index):
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 2, 3, 7, -1, 255], (33, 50))  # some are no classes
    predictions = random.integers(0, 5, labels.shape)
    tiled = metrics.TiledCounts(labels, num_classes=4, ignore_index=ignore_index)
    assert tiled.shape == (33, 50)
    for row in range(0, 33, 16):
        for column in range(0, 50, 20):
            part = slice(row, row + 16), slice(column, column + 20)
            tiled[part] = predictions[part]
    options = {"num_classes": 4, "ignore_index": ignore_index}
    given = jnp.asarray(predictions), jnp.asarray(labels)
    assert parts(tiled.counts) == parts(metrics.confusion_counts(*given, **options))
    np.testing.assert_array_equal(tiled.matrix, metrics.confusion_matrix(*given, **options))
    np.testing.assert_array_equal(metrics.iou(tiled.counts), metrics.iou(metrics.confusion_counts(*given, **options)))


def test_more_pixels_than_32_bits_count():
    tiled = metrics.TiledCounts(np.zeros((1, 1), np.uint8), num_classes=2)
    tiled[:, :] = np.zeros((1, 1), np.int32)
    tiled._pairs *= 5 * 2**32
    assert parts(tiled.counts + tiled.counts)[0] == [10 * 2**32, 0]


def test_a_prediction_by_tiles_is_counted(tmp_path, recorder):
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3)
    image = np.random.default_rng(0).normal(size=(75, 101, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), image[None])
    labels = np.random.default_rng(0).integers(0, 3, image.shape[:2], np.uint8)
    tifffile.imwrite(tmp_path / "labels.tif", labels, tile=(16, 16), photometric="minisblack", compression="zlib")
    predictions = dz.predict_tiled(model, variables, image, reduce="classes")
    expected = metrics.confusion_counts(jnp.asarray(predictions), jnp.asarray(labels), num_classes=3)
    with open_tiff(tmp_path / "labels.tif") as windows:
        for given in (labels, recorder(labels), windows):
            counts = metrics.TiledCounts(given, num_classes=3)
            found = dz.predict_tiled(model, variables, image, reduce="classes", max_pixels=6500, out=counts)
            assert found is counts and parts(counts.counts) == parts(expected)
            assert getattr(given, "largest", 0) < 6500
    with pytest.raises(ValueError, match=r"out has shape \(75, 101\); expected that of the result, \(75, 101, 3\)"):
        dz.predict_tiled(model, variables, image, out=counts)


def test_labels_and_tiles_that_do_not_fit():
    with pytest.raises(ValueError, match=r"labels of shape \(height, width\), got shape \(4, 4, 3\)"):
        metrics.TiledCounts(np.zeros((4, 4, 3), np.uint8), num_classes=2)
    counts = metrics.TiledCounts(np.zeros((4, 4), np.uint8), num_classes=2)
    with pytest.raises(ValueError, match=r"predictions \(4, 4, 2\) and labels \(4, 4\) differ"):
        counts[:, :] = np.zeros((4, 4, 2))
    with pytest.raises(TypeError, match="predictions are float64: expected class indices"):
        counts[:, :] = np.zeros((4, 4))
    with pytest.raises(TypeError, match="labels are float64"):
        metrics.TiledCounts(np.zeros((4, 4)), num_classes=2)[:, :] = np.zeros((4, 4), np.int32)
    with pytest.raises(ValueError, match="num_classes must be at least 1"):
        metrics.TiledCounts(np.zeros((4, 4), np.uint8), num_classes=0)
