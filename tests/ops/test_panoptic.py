"""Merging of objects and stuff against the loop over objects that detectron2's rules describe."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops

SIZE = (24, 30)


def merged(masks, scores, logits, valid, inside, *, score_threshold, overlap, stuff_area):
    """One object after the other, from the best on, then one class of stuff after the other."""
    segments = np.zeros(SIZE, int)
    for row in sorted(np.flatnonzero(valid & (scores >= score_threshold)), key=lambda row: (-scores[row], row)):
        mask = masks[row] & inside
        covered = mask & (segments > 0)
        if mask.sum() == 0 or covered.sum() / mask.sum() > overlap:
            continue
        segments[mask & (segments == 0)] = row + 1
    kinds = logits.argmax(-1)
    for kind in range(1, logits.shape[-1]):
        left = (kinds == kind) & (segments == 0) & inside
        if left.sum() >= stuff_area:
            segments[left] = len(masks) + kind
    return segments


@functools.partial(jax.jit, static_argnames=("score_threshold", "overlap", "stuff_area"))
def ours(masks, boxes, scores, logits, valid, inside, **rules):
    return ops.merge_segments(masks, boxes, scores, logits, valid=valid, inside=inside, **rules)


@pytest.mark.parametrize("rules", [(0.5, 0.5, 60), (0.25, 0.2, 1), (0.75, 0.0, 200)])
def test_the_loop(rules):
    rules = dict(zip(("score_threshold", "overlap", "stuff_area"), rules, strict=True))
    numbers, covers, drops = set(), 0, 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        corners, sides = rng.integers(-3, 20, (9, 2)), rng.integers(2, 14, (9, 2))
        boxes = np.concatenate([corners, corners + sides], 1).astype(np.float32)
        boxes[7] = boxes[0]  # covered completely by an object with the same score
        boxes[8] = 0, 0, 0, 0
        masks = rng.uniform(0.3, 1, (9, 6, 6)).astype(np.float32)
        scores = rng.choice([0.2, 0.25, 0.5, 0.75, 0.9], 9).astype(np.float32)  # ties, and scores at the threshold
        scores[[0, 7]] = 0.9
        scores[6] = np.nan if seed == 0 else scores[6]
        valid = rng.random(9) < 0.9
        logits = rng.standard_normal((6, 6, 4)).repeat(4, 0).repeat(5, 1).astype(np.float32)
        inside = np.ones(SIZE, bool)
        inside[18 + seed :, :] = inside[:, 25 + seed :] = False
        pasted = np.asarray(ops.paste_masks(jnp.asarray(masks), jnp.asarray(boxes), SIZE))
        expected = merged(pasted, scores, logits, valid, inside, **rules)
        found = np.asarray(ours(masks, boxes, scores, logits, valid, inside, **rules))
        np.testing.assert_array_equal(found, expected)
        numbers |= set(np.unique(expected).tolist())
        covers += (pasted & (expected > 0)).any(0).sum() - sum((expected == row + 1).sum() for row in range(9)) > 0
        drops += sum((pasted[row] & inside).any() and not (expected == row + 1).any() for row in range(9))
    # The cases have objects on others, objects that are left out, stuff, and pixels without a segment.
    assert {0, 10, 11} & numbers and covers and drops


def test_a_fraction_that_is_met_exactly_stays():
    # A third of the second object is covered. 1/3 is no float, and the counts are not either side of it by chance.
    boxes = jnp.array([[0.0, 0.0, 9.0, 3.0], [6.0, 0.0, 15.0, 3.0]])
    options = {"stuff_area": 1, "score_threshold": 0.5}
    masks, scores, logits = jnp.ones((2, 28, 28)), jnp.array([0.9, 0.8]), jnp.zeros((8, 20, 1))
    pasted = np.asarray(ops.paste_masks(masks, boxes, (8, 20)))
    share = (pasted[0] & pasted[1]).sum() / pasted[1].sum()
    for overlap, there in ((share, True), (np.nextafter(np.float32(share), np.float32(0)), False)):
        segments = ops.merge_segments(masks, boxes, scores, logits, overlap=float(overlap), **options)
        assert bool((segments == 2).any()) == there


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"scores must have the shape \(2,\), got \(3,\)"):
        inspect.unwrap(ops.merge_segments)(jnp.ones((2, 4, 4)), jnp.ones((2, 4)), jnp.ones(3), jnp.ones((5, 5, 2)))
