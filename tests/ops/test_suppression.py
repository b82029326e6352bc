"""Non-maximum suppression, compared with the greedy loop and torchvision's numbers."""

import functools
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection_ops.npz")


def greedy(boxes, scores, labels, threshold, valid):
    """The greedy loop in float32."""
    alive = valid & ~np.isnan(scores) & ~np.isnan(boxes).any(1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    for i in sorted(np.flatnonzero(alive), key=lambda i: (-scores[i], i)):
        if not alive[i]:
            continue
        kept.append(int(i))
        sides = np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2])
        common = np.prod(np.maximum(sides, 0), 1)
        with np.errstate(invalid="ignore"):
            iou = common / (area[i] + area - common)
        alive &= ~((iou.astype(np.float64) > threshold) & (labels == labels[i]))
    return kept


def candidates(count, seed=0, kind="floats"):
    """Boxes in clusters; integer coordinates and few scores give many ties."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, 200, (max(count // 8, 1), 2))[rng.integers(0, max(count // 8, 1), count)]
    centres, sides = centres + rng.normal(0, 4, (count, 2)), rng.uniform(10, 40, (count, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).astype(np.float32)
    scores = rng.uniform(0, 1, count).astype(np.float32)
    if kind == "ties":
        boxes, scores = np.round(boxes / 4) * 4, np.round(scores * 8) / 8
    if kind == "empty":  # points, lines and copies of them, as boxes beyond the picture end up at its border
        boxes[::2, 2], boxes[::3, 3] = boxes[::2, 0], boxes[::3, 1]
        boxes[count // 2 :] = boxes[: count - count // 2]
    return boxes, scores, rng.integers(0, 3, count).astype(np.int32)


def taken(result):
    indices, real = (np.asarray(x) for x in result)
    assert (np.diff(real.astype(int)) <= 0).all() and (indices[~real] == 0).all()
    return indices[real].tolist()


@functools.partial(jax.jit, static_argnums=(4, 5))
def batched(boxes, scores, labels, valid, threshold, most):
    return ops.batched_nms(boxes, scores, labels, threshold, most, valid)


@functools.partial(jax.jit, static_argnums=(3, 4))
def plain(boxes, scores, valid, threshold, most):
    return ops.nms(boxes, scores, threshold, most, valid)


@pytest.mark.parametrize("kind", ["floats", "ties", "empty"])
@pytest.mark.parametrize(("count", "most"), [(1, 3), (60, 60), (900, 700), (900, 20)])
def test_the_greedy_loop(count, most, kind):
    for seed in range(3):
        boxes, scores, labels = candidates(count, seed, kind)
        valid = np.random.default_rng(seed).random(count) < 0.9
        expected = greedy(boxes, scores, labels, 0.5, valid)[:most]
        assert taken(batched(boxes, scores, labels, valid, 0.5, most)) == expected
        if kind == "empty" and count == most:  # all that have no area are there, copies too
            empty = (boxes[:, 2] == boxes[:, 0]) | (boxes[:, 3] == boxes[:, 1])
            assert set(np.flatnonzero(valid & empty)) <= set(expected)
        expected = greedy(boxes, scores, 0 * labels, 0.5, valid)[:most]
        assert taken(plain(boxes, scores, valid, 0.5, most)) == expected


def test_what_torchvision_keeps():
    boxes, scores = jnp.asarray(GOLDEN["candidates"]), jnp.asarray(GOLDEN["scores"])
    labels = jnp.arange(120, dtype=jnp.int32) % 3
    assert taken(ops.batched_nms(boxes, scores, labels, 0.3, 120)) == GOLDEN["kept"].tolist()
    assert taken(ops.nms(boxes, scores, 0.3, 120)) == GOLDEN["kept_all"].tolist()


def test_a_chain_in_which_every_box_waits_for_the_one_before():
    left = np.arange(600, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 3, 0 * left + 3], 1)  # neighbours overlap by 1/2, the next ones by 1/5
    scores, valid = -left, np.ones(600, bool)
    assert taken(plain(boxes, scores, valid, 0.4, 600)) == list(range(0, 600, 2))


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.3, 0.5, 0.6, 0.7])
def test_an_overlap_at_the_threshold(threshold):
    # Exactly at it: torchvision compares the overlap in float32 with a threshold in float64.
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, round(10 * threshold)]], np.float32)
    expected = [0, 1] if float(np.float32(threshold)) <= threshold else [0]
    assert taken(ops.nms(jnp.asarray(boxes), jnp.asarray([0.9, 0.8]), threshold, 2)) == expected


def test_odd_boxes_spoil_no_others():
    nan, inf = np.nan, np.inf
    boxes = np.array(
        [[0, 0, 9, 9], [0, nan, 9, 9], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, inf, inf], [0, 0, 9, 9], [0, 0, 9, 8]],
        np.float32,
    )
    scores = np.array([0.5, 0.9, 0.8, 0.8, 0.7, nan, -inf], np.float32)
    assert taken(plain(boxes, scores, np.ones(7, bool), 0.5, 7)) == [2, 3, 4, 0]
    # A score of minus infinity is still a score; invalid rows have no score.
    assert taken(plain(boxes, scores, np.arange(7) > 4, 0.5, 7)) == [6]
    assert taken(plain(boxes, scores, np.zeros(7, bool), 0.5, 7)) == []
    assert taken(ops.nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 3)) == []


def test_labels_are_compared_and_boxes_not_moved():
    # At these coordinates, float32 has whole numbers only; 90 offsets of that size would have less.
    boxes = np.array([[1e7, 1e7, 1e7 + 8, 1e7 + 8], [1e7, 1e7, 1e7 + 8, 1e7 + 3]], np.float32)
    arguments = (boxes, np.array([0.9, 0.8], np.float32), np.array([90, 90], np.int32), np.ones(2, bool))
    assert taken(batched(*arguments, 0.5, 2)) == [0, 1]
    assert taken(batched(*arguments, 0.3, 2)) == [0]


def test_a_batch_equals_each_alone():
    many = [candidates(300, seed) for seed in range(3)]
    boxes, scores, labels = (jnp.stack(parts) for parts in zip(*many, strict=True))
    results = jax.jit(jax.vmap(lambda *each: ops.batched_nms(*each, 0.5, 100)))(boxes, scores, labels)
    for number, each in enumerate(many):
        expected = greedy(*each, 0.5, np.ones(300, bool))[:100]
        assert taken(x[number] for x in results) == expected


def test_memory_grows_with_the_boxes_and_not_with_their_square():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((10_000, 4), (10_000,))]
    compiled = jax.jit(lambda boxes, scores: ops.nms(boxes, scores, 0.5, 10_000)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4e6


def test_no_gradient_flows():
    boxes, scores, _ = candidates(20)
    gradient = jax.grad(lambda boxes: boxes[ops.nms(boxes, jnp.asarray(scores), 0.5, 5)[0]].sum())(jnp.asarray(boxes))
    assert set(np.unique(gradient).tolist()) == {0.0, 1.0}


def test_bad_arguments_are_refused():
    boxes, scores = jnp.zeros((3, 4)), jnp.zeros(3)
    with pytest.raises(ValueError, match="scores needs an entry for each of the 3 boxes"):
        inspect.unwrap(ops.nms)(boxes, scores[:2], 0.5, 3)
    with pytest.raises(ValueError, match="threshold must be from 0 to 1, got 50"):
        ops.nms(boxes, scores, 50.0, 3)
    with pytest.raises(ValueError, match="max_outputs"):
        ops.nms(boxes, scores, 0.5, 0)
