"""The detection task: its options, training by its loss, and what it measures and predicts."""

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
    encoder = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8)
    return dz.create_model("faster_rcnn", encoder, 3, features=8, hidden=(16,)).clone(
        candidates=(50, 60), proposals=(20, 30), max_detections=6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes is at least 1, got 0"),
        ({"num_classes": 3, "class_names": ("a", "b")}, "class_names needs 3 entries"),
        ({"num_classes": 2, "class_names": ("a", "a")}, "class_names repeat"),
        ({"num_classes": 2, "anchor_samples": 0}, "anchor_samples is at least 1"),
        ({"num_classes": 2, "region_positives": 1.5}, "region_positives is a share"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Detection(**options)


def test_what_a_batch_must_hold_is_said():
    task = Detection(3, masks=True)
    with pytest.raises(ValueError, match=r"the batch has no \['instances'\]"):
        task.loss(None, BATCH, KEY)
    with pytest.raises(
        ValueError, match=r"expected boxes .* got \(2, 2, 4\) and \(2, 1\)"
    ):
        Detection(3).loss(None, BATCH | {"labels": jnp.zeros((2, 1), jnp.int32)}, KEY)
    assert from_description(describe(task)) == task


def test_a_detector_of_two_stages_learns_and_repeats_itself_exactly():
    model, task = two_stages(), Detection(3, anchor_samples=32, region_samples=16)
    state = train.create_state(model, optax.adam(3e-3), KEY, BATCH["image"])
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

    measured = train.make_eval_step(task.measure)(state, BATCH)
    both = functools.reduce(operator.add, [measured, measured]).joined()
    assert both["boxes"].shape == (4, 6, 4) and both["true_labels"].tolist() == [[1, 2], [2, -1]] * 2
    found = dz.detect(model, state.variables, BATCH["image"], BATCH["size"])
    np.testing.assert_allclose(both["scores"][:2], found.scores, atol=1e-5)


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


def test_collected_measurements_of_different_shapes_are_filled_up():
    parts = [metrics.Collected.of(scores=jnp.ones((2, n)), numbers=jnp.arange(2)) for n in (1, 3)]
    joined = (parts[0] + parts[1]).joined()
    assert joined["scores"].tolist() == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2
    assert joined["numbers"].tolist() == [0, 1, 0, 1]
