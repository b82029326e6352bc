"""The panoptic task: its options, its loss beside the parts' own, and panoptic quality of known segments."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import densezoo as dz
from densezoo import train
from densezoo.tasks import PanopticSegmentation, describe, from_description

KEY = jax.random.key(0)
NAMES = ("background", "cat", "dog")
TASK = PanopticSegmentation(3, class_names=NAMES, stuff=(7, 0), stuff_names=("sky", "sea"), region_samples=16)


def batch_of(size=64):
    """Two pictures: a cat, a dog and a crowd of dogs on sky and sea; a cat on what does not count."""
    mask = np.full((2, size, size), 7, np.int32)
    mask[0, 40:] = 0
    mask[1] = 99
    instances = np.zeros_like(mask)
    instances[0, 6:28, 4:30], instances[0, 30:60, 20:44], instances[1, 2:37, 10:33] = 1, 2, 1
    labels = np.array([[0, 1], [0, -1]], np.int32)
    for image, row in ((0, 0), (0, 1), (1, 0)):
        mask[image][instances[image] == row + 1] = labels[image, row] + 1
    mask[0, :5, 50:] = 2  # without an instance
    boxes = np.array([[[4, 6, 30, 28], [20, 30, 44, 60]], [[10, 2, 33, 37], [0, 0, 0, 0]]], np.float32)
    image = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    sizes = np.array([[size, size], [size, 50]], np.int32)
    mask[1, :, 50:] = -1
    batch = {"image": image, "boxes": boxes, "labels": labels, "instances": instances, "mask": mask, "size": sizes}
    return {name: jnp.asarray(value) for name, value in batch.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": False}, "needs masks"),
        ({"stuff": ()}, "one or more different numbers"),
        ({"stuff": (0, 0)}, "one or more different numbers"),
        ({"stuff": (0, 2)}, r"contains \[2\], which are things: their numbers in the mask are 1 to 2"),
        ({"stuff_names": ("a", "b")}, "stuff_names needs 1 entries"),
        ({"class_names": ("a", "b", "c"), "stuff_names": ("a",)}, "contain duplicates"),
        ({"semantic_weight": 0.0}, "weights must be above 0"),
    ],
)
def test_options_that_cannot_be_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        PanopticSegmentation(3, **options)


def test_a_panoptic_model_learns_repeats_itself_and_keeps_frozen_layers():
    encoder = dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=8)
    fields = {"features": 8, "hidden": (16,), "stuff_classes": 2, "stuff_area": 30, "semantic_features": 8}
    model = dz.create_model("panoptic_fpn", encoder, 3, trainable_layers=3, **fields)
    model = model.clone(candidates=(50, 60), proposals=(20, 30), max_detections=6)
    batch = batch_of()
    state = train.create_state(model, optax.adam(3e-3), KEY, batch["image"])
    step = train.make_train_step(TASK.loss)
    first, before = jax.tree.map(jnp.copy, state), jax.tree.map(np.asarray, state.variables)
    history = []
    for _ in range(12):
        state, reported = step(state, batch)
        history.append({name: float(value) for name, value in reported.items()})
    assert history[-1]["loss"] < 0.7 * history[0]["loss"] and history[-1]["semantic"] < 0.7 * history[0]["semantic"]
    parts = [history[0][name] for name in history[0] if name not in ("loss", "grad_norm")]
    assert len(parts) == 6 and sum(parts) == pytest.approx(history[0]["loss"], rel=1e-5)
    assert float(step(first, batch)[1]["loss"]) == history[0]["loss"]
    for collection in ("params", "batch_stats"):
        for layer in ("conv1", "layer1_0"):
            then, now = before[collection]["encoder"][layer], state.variables[collection]["encoder"][layer]
            jax.tree.map(np.testing.assert_array_equal, now, then)
        moved = jax.tree.map(lambda x, y: bool((x != y).any()), before[collection], state.variables[collection])
        assert any(jax.tree.leaves(moved["encoder"]["layer2_0"]))

    measured = train.make_eval_step(TASK.measure)(state, batch)
    scores = TASK.scores(functools.reduce(operator.add, [measured, measured]))
    assert 0 <= scores["pq"] <= 1 and scores["pq"] <= scores["rq"] and {"box_ap", "mask_ap50", "pq_sea"} <= set(scores)
    apply = functools.partial(model.apply, state.variables)
    with pytest.raises(ValueError, match=r"task has 1 stuff classes and the model 2: .* stuff_classes=1"):
        jax.eval_shape(lambda: PanopticSegmentation(3, region_samples=16).loss(apply, batch, KEY))


def oracle(change=lambda segments: segments):
    """A model that finds what is there."""

    def apply(images, sizes, method):
        batch = batch_of()
        mask, instances = np.asarray(batch["mask"]), np.asarray(batch["instances"])
        segments = instances.copy()
        segments[(instances == 0) & (mask == 7)], segments[(instances == 0) & (mask == 0)] = 3, 4
        labels = jnp.where(batch["labels"] >= 0, batch["labels"] + 1, -1)
        valid = labels >= 0
        found = dz.Detections(batch["boxes"], jnp.where(valid, 0.9, 0.0), labels, valid, jnp.ones((2, 2, 28, 28)))
        classes = jnp.concatenate([labels, jnp.array([[3, 4]] * 2)], 1)
        return dz.models.Panoptic(jnp.asarray(change(segments)), classes, found)

    return apply


def test_panoptic_quality_of_known_segments():
    batch = batch_of()
    exact = TASK.measure(oracle(), batch)
    scores = TASK.scores(exact)
    assert scores["pq"] == scores["sq"] == scores["rq"] == scores["pq_things"] == scores["pq_stuff"] == 1
    assert {name for name in scores if name.startswith("pq_")} == {
        *("pq_things", "pq_stuff", "pq_cat", "pq_dog", "pq_sky", "pq_sea")
    }

    def changed(segments):
        segments = segments.copy()
        segments[0][segments[0] == 1] = 0  # one of two cats is missed
        segments[0, 40:50][segments[0, 40:50] == 4] = 3  # sky reaches into the sea
        segments[0, :5, 50:] = 2  # the dog covers the crowd of dogs, which does not count
        segments[1][segments[1] == 0] = 3  # sky where nothing counts, and in the padding
        return segments

    worse = TASK.scores(TASK.measure(oracle(changed), batch))
    mask, free = np.asarray(batch["mask"])[0], np.asarray(batch["instances"])[0] == 0
    sky, sea = ((mask == value) & free for value in (7, 0))
    taken = sea[40:50].sum()
    assert worse["pq_cat"] == pytest.approx(1 / 1.5)
    assert worse["pq_sky"] == pytest.approx(sky.sum() / (sky.sum() + taken))
    assert worse["pq_sea"] == pytest.approx((sea.sum() - taken) / sea.sum())
    assert worse["pq"] == pytest.approx(np.mean([worse[f"pq_{name}"] for name in ("cat", "dog", "sky", "sea")]))
    # Counts add over batches; rows that only fill a batch up do not count.
    empty = jax.tree.map(jnp.zeros_like, batch)
    total = functools.reduce(operator.add, [exact, TASK.measure(oracle(changed), empty), exact])
    assert TASK.scores(total)["pq"] == 1


def test_what_is_needed_is_said():
    assert from_description(describe(TASK)) == TASK
    assert TASK.segment_names == ("background", "cat", "dog", "sky", "sea")
    batch = batch_of()
    with pytest.raises(ValueError, match=r"the batch has no \['mask'\]"):
        TASK.loss(None, {name: value for name, value in batch.items() if name != "mask"}, KEY)
    model = dz.create_model("retinanet", dz.PlainEncoder((4, 8, 8)), 3, features=8)
    variables = jax.eval_shape(model.init, KEY, batch["image"])
    with pytest.raises(TypeError, match="the model returns AnchorOutputs; use a panoptic model"):
        jax.eval_shape(lambda variables: TASK.loss(functools.partial(model.apply, variables), batch, KEY), variables)
    with pytest.raises(TypeError, match="a SingleStage has no semantic branch"):
        dz.panoptic(model, variables, batch["image"])
