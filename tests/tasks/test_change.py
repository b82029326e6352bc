"""The task of change detection: its scores, its augmentation, and a training run that ends in a predictor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import viz
from densezoo.data import ChangeScenes
from densezoo.tasks import ChangeDetection
from densezoo.train import Recipe, train


def batch_of(change):
    images = jnp.zeros((*change.shape, 3))
    return {"image_before": images, "image_after": images + 1, "change": jnp.asarray(change)}


def one_hot(classes, count):
    return lambda before, after: 9.0 * jax.nn.one_hot(jnp.asarray(classes), count)


def test_scores_are_those_of_changed_pixels():
    truth, guess = np.array([[[1, 1, 1, 0, 0, 0]]]), np.array([[[1, 1, 0, 1, 0, 0]]])
    task = ChangeDetection()
    scores = task.scores(task.measure(one_hot(guess, 2), batch_of(truth)))
    expected = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "iou": 0.5, "pixel_accuracy": 4 / 6}
    assert scores == pytest.approx(expected) and task.names == ("unchanged", "changed")
    # Two kinds of change count as change together, and each for itself.
    kinds = ChangeDetection(3, ignore_index=255)
    truth, guess = np.array([[[1, 2, 0, 0, 255]]]), np.array([[[2, 2, 2, 0, 0]]])
    scores = kinds.scores(kinds.measure(one_hot(guess, 3), batch_of(truth)))
    assert scores["precision"] == pytest.approx(2 / 3) and scores["recall"] == 1
    assert scores["iou_2"] == pytest.approx(1 / 3) and scores["iou_1"] == 0
    nothing = task.scores(task.measure(one_hot(0 * guess, 2), batch_of(0 * guess)))
    assert np.isnan(nothing["f1"]) and nothing["pixel_accuracy"] == 1


def test_what_is_missing_or_contradicts_is_named():
    batch = batch_of(np.zeros((1, 2, 2), np.int32))
    del batch["image_after"]
    with pytest.raises(ValueError, match=r"ChangeDetection needs .*, but the batch has no \['image_after'\]"):
        ChangeDetection().loss(one_hot(0, 2), batch, None)
    with pytest.raises(ValueError, match="one class per pixel"):
        ChangeDetection(multilabel=True)


def test_both_pictures_move_with_the_labels_and_each_has_its_own_light():
    recipe = Recipe(flip_vertical=True, rotate=True, color_jitter=0.3)
    change = jnp.asarray(np.random.default_rng(0).integers(0, 2, (8, 6, 6)))
    image = jnp.repeat(1.0 + change[..., None].astype(jnp.float32), 3, -1)
    batch = {"image_before": image, "image_after": image, "change": change}
    found = jax.jit(ChangeDetection().augment(recipe))(jax.random.key(0), batch)
    assert (found["change"] != change).any()
    for name in ("image_before", "image_after"):
        light = found[name][..., 0] > found[name][..., 0].mean((1, 2), keepdims=True)
        np.testing.assert_array_equal(light, found["change"] == 1)
    assert not np.allclose(found["image_before"], found["image_after"])


def test_a_training_ends_in_a_predictor_of_pairs(tmp_path):
    task = ChangeDetection(criterion="cross_entropy+dice")
    model = dz.create_model("siamese_unet", dz.PlainEncoder((4, 8)), task.num_classes)
    scenes = [ChangeScenes(4, size=(40, 40), split=split) for split in ("train", "val")]
    recipe = Recipe(crop_size=32, batch_size=2, steps=2)
    _, history = train(task, model, *scenes, recipe, directory=tmp_path, progress=False)
    assert {"precision", "recall", "f1", "iou"} <= set(history[-1]["scores"])
    predict = dz.load_predictor(tmp_path)
    assert predict.task == task
    before, after = (scenes[1][0][name] for name in task.inputs)
    found = predict.probabilities(before, after)
    np.testing.assert_allclose(predict.probabilities(after, before), found, atol=1e-5)  # a difference has no order
    assert predict(before, after).shape == (40, 40) and found.shape == (40, 40, 2)
    with pytest.raises(TypeError, match=r"ChangeDetection needs 2 images \(image_before, image_after\); got 1"):
        predict(before)
    with pytest.raises(ValueError, match=r"differ in size \(height, width\): \(40, 40\), \(39, 40\)"):
        predict(before, after[1:])

    figure = viz.changes([before], [after], [scenes[1][0]["change"]], [found[..., 1]])
    assert figure.axes[3].get_title().startswith("probability of change, F1")
    with pytest.raises(ValueError, match="as many of each"):
        viz.changes([before], [], None, [found[..., 1]])
    with pytest.raises(ValueError, match="pair 0 has different sizes"):
        viz.changes([before], [after[1:]], None, [found[..., 1]])
