"""The detection task: its options, training with its loss, measurements and predictions."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import densezoo as dz
from densezoo import metrics, train
from densezoo.tasks import Detection, describe, from_description

KEY = jax.random.key(0)
BATCH = {
    "image": jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)),
    "boxes": jnp.array([[[4.0, 6, 30, 28], [20, 10, 44, 60]], [[10, 2, 33, 37], [0, 0, 0, 0]]]),
    "labels": jnp.array([[1, 2], [2, -1]]),
    "size": jnp.array([[64, 64], [64, 50]]),
}


def two_stages():
    """On one map of the encoder and a pooled one, because each map of a pyramid is compiled again."""
    encoder = dz.ResNet((1,), dz.BasicBlock, width=8)
    model = dz.create_model("faster_rcnn", encoder, 3, features=8, hidden=(16,), levels=1, sizes=((16.0, 32.0),) * 2)
    return model.clone(candidates=(20, 20), proposals=(10, 16), max_detections=6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "class_names needs 3 entries"),
        ({"num_classes": 2, "class_names": ("a", "a")}, "class_names contains duplicates"),
        ({"num_classes": 2, "first_label": 2}, "first_label must be a class, 0 to 1"),
        ({"num_classes": 2, "anchor_samples": 0}, "anchor_samples must be at least 1"),
        ({"num_classes": 2, "region_positives": 1.5}, "region_positives must be a share"),
        ({"num_classes": 2, "size_limits": (96.0, 32.0)}, "size_limits must be two increasing numbers"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Detection(**options)


def test_what_a_batch_must_hold_is_said():
    task = Detection(3, masks=True)
    with pytest.raises(ValueError, match=r"the batch has no \['instances'\]"):
        task.loss(None, BATCH, KEY)
    with pytest.raises(ValueError, match=r"expected boxes .* got \(2, 2, 4\) and \(2, 1\)"):
        Detection(3).loss(None, BATCH | {"labels": jnp.zeros((2, 1), jnp.int32)}, KEY)
    assert from_description(describe(task)) == task


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_a_model_of_other_classes_is_refused(name):
    encoder = dz.PlainEncoder((4, 8, 8, 8))
    model = dz.create_model(name, encoder, 3, features=8, **({"hidden": (16,)} if name == "faster_rcnn" else {}))
    variables = jax.eval_shape(model.init, KEY, BATCH["image"])

    def loss(variables, batch, task):
        return task.loss(functools.partial(model.apply, variables), batch, KEY)

    with pytest.raises(ValueError, match="task has num_classes=4 and the model gives logits of 3 classes"):
        jax.eval_shape(functools.partial(loss, task=Detection(4)), variables, BATCH)


def test_a_detector_of_two_stages_learns_and_repeats_itself_exactly(with_statistics):
    model, task = two_stages(), Detection(3, anchor_samples=32, region_samples=16)
    variables = with_statistics(model, BATCH["image"])
    state = train.create_state(model, optax.adam(3e-3), KEY, BATCH["image"], variables=variables)
    step = train.make_train_step(task.loss)
    first = jax.tree.map(jnp.copy, state)
    losses = []
    for _ in range(12):
        state, reported = step(state, BATCH)
        losses.append(float(reported["loss"]))
    assert {"objectness", "proposal_box", "region_class", "region_box"} <= set(reported)
    assert np.isfinite(losses).all() and losses[-1] < 0.7 * losses[0]
    again = [float(step(first, BATCH)[1]["loss"])]
    assert again == losses[:1]
    # Class 0 is the background: an object of it has a wrong first_label.
    background = BATCH | {"labels": jnp.zeros_like(BATCH["labels"])}
    assert np.isnan(step(jax.tree.map(jnp.copy, state), background)[1]["loss"])

    measured = train.make_eval_step(task.measure)(state, BATCH)
    scores = task.scores(functools.reduce(operator.add, [measured, measured]))
    assert 0 <= scores["box_ap"] <= 1 and set(scores) >= {"box_ap50", "box_ap_0", "box_ap_2"}


def test_scores_are_those_of_the_whole_set_whatever_the_batches():
    """An oracle that finds every object but one, with a worse box for another, and its mask."""
    boxes = np.array([[[4, 6, 30, 28], [20, 10, 44, 60]], [[10, 2, 33, 37], [0, 0, 0, 0]]], np.float32)
    instances = np.zeros((2, 64, 64), np.int32)
    for image, row in ((0, 0), (0, 1), (1, 0)):
        x0, y0, x1, y1 = boxes[image, row].astype(int)
        instances[image, y0:y1, x0:x1] = np.where(instances[image, y0:y1, x0:x1] == 0, row + 1, 1)
    batch = BATCH | {"labels": jnp.array([[0, 1], [1, -1]]), "instances": jnp.asarray(instances)}
    task = Detection(3, masks=True, class_names=("background", "cat", "dog"), first_label=1)

    def oracle(shift):
        def apply(images, sizes, method):
            found = boxes.copy()
            found[1, 0, 0] += shift
            return dz.Detections(
                jnp.asarray(found),
                jnp.array([[0.9, 0.8], [0.7, 0.0]]),
                jnp.array([[1, 2], [2, -1]]),
                jnp.array([[True, True], [True, False]]),
                jnp.ones((2, 2, 28, 28)),
            )

        return apply

    exact = task.measure(oracle(0), batch)
    perfect = task.scores(exact)
    assert perfect["box_ap"] == pytest.approx(1) and "box_ap_background" not in perfect
    assert perfect["mask_ap_cat"] == pytest.approx(1) and perfect["mask_ap_dog"] < 1  # cat hides a part of it
    # One of the two dogs only has an IoU of 0.78: both meet 6 of 10 thresholds, the better one meets the others.
    shifted = task.scores(task.measure(oracle(5), batch))
    assert shifted["box_ap_dog"] == pytest.approx((6 + 4 * 51 / 101) / 10, abs=1e-3)
    # Rows that only fill a batch up do not count.
    empty = jax.tree.map(jnp.zeros_like, batch) | {"labels": jnp.full((2, 2), -1)}
    parts = [exact, task.measure(oracle(0), empty), exact]
    assert task.scores(functools.reduce(operator.add, parts))["box_ap"] == pytest.approx(1)


def test_a_predictor_gives_detections_of_the_picture(tmp_path):
    model = dz.create_model("retinanet", dz.PlainEncoder((4, 8, 8)), 3, features=8)
    model = model.clone(score_threshold=0.0, max_detections=4)
    variables = jax.jit(model.init)(KEY, jnp.zeros((1, 32, 32, 3)))
    path = tmp_path / "detector.safetensors"
    dz.save(path, model, variables, task=Detection(3), preprocessing=dz.Preprocessing())
    picture = np.random.default_rng(0).integers(0, 255, (21, 40, 3)).astype(np.uint8)
    found = dz.load_predictor(path)(picture)
    assert found.boxes.shape == (4, 4) and found.valid.all() and found.masks is None
    assert found.boxes[:, 2].max() <= 40 and found.boxes[:, 3].max() <= 21


def test_collected_measurements_of_different_shapes_are_shrunk_once_each():
    def total(part):
        return float(part["scores"].sum())

    parts = [metrics.Collected.of(total, scores=jnp.ones((2, n))) for n in (1, 3, 5)]
    assert (parts[0] + parts[1] + parts[2]).kept() == (2.0, 6.0, 10.0) and parts[1].kept() == (6.0,)
