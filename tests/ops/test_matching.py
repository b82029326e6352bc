"""Matching and sampling against NumPy loops and torchvision's numbers."""

import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection_ops.npz")


def match_loop(iou, high, low, valid, low_quality):
    result = []
    for anchor in range(iou.shape[1]):
        best, index = 0.0, -1
        for i in range(iou.shape[0]):
            if valid[i] and (index < 0 or iou[i, anchor] > best):
                best, index = iou[i, anchor], i
        found = index if best >= high else -2 if best >= low else -1
        if low_quality:
            for i in range(iou.shape[0]):
                if valid[i] and iou[i, anchor] == max(iou[i]) and iou[i, anchor] > 0:
                    found = index
        result.append(found if index >= 0 else -1)
    return result


@pytest.mark.parametrize(
    ("name", "options"), [("matches", (0.3, 0.2, False)), ("matches_low", (0.6, 0.3, True))], ids=["plain", "low"]
)
def test_matches_equal_a_loop_and_torchvision(name, options):
    iou = GOLDEN["match_iou"]
    high, low, low_quality = options
    match = jax.jit(lambda iou, valid: ops.match(iou, high, low, valid=valid, allow_low_quality=low_quality))
    everything = jnp.ones(len(iou), bool)
    np.testing.assert_array_equal(match(jnp.asarray(iou), everything), GOLDEN[name])
    ties = np.round(iou * 8) / 8
    some = np.array([True, False, True, True, False])
    for valid in (np.ones(5, bool), some, np.zeros(5, bool)):
        for quality in (iou, ties):
            expected = match_loop(quality, high, low, valid, low_quality)
            assert match(jnp.asarray(quality), jnp.asarray(valid)).tolist() == expected


def test_padding_nan_and_empty_boxes_match_nothing():
    iou = jnp.asarray([[0.0, 0.0, 0.0], [0.9, jnp.nan, 0.1], [0.99, 0.99, 0.99]])
    match = ops.match(iou, 0.5, 0.0, valid=jnp.asarray([True, True, False]), allow_low_quality=True)
    assert match.tolist() == [1, -2, -2]
    assert ops.match(iou, 0.0, 0.0, valid=jnp.zeros(3, bool)).tolist() == [-1, -1, -1]
    assert ops.match(jnp.zeros((0, 3)), 0.5, 0.4, allow_low_quality=True).tolist() == [-1, -1, -1]


def test_bad_thresholds_and_shapes_are_refused():
    iou = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"low=0.5 high=0.4"):
        ops.match(iou, 0.4, 0.5)
    with pytest.raises(ValueError, match="2 objects"):
        inspect.unwrap(ops.match)(iou, 0.5, 0.4, valid=jnp.ones(3, bool))
    with pytest.raises(ValueError, match=r"\(anchors,\)"):
        inspect.unwrap(ops.sample_matches)(jax.random.key(0), iou, 4, 0.5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        ops.sample_matches(jax.random.key(0), iou[0], 4, 1.5)


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"), [(30, 60, (8, 24)), (3, 60, (3, 29)), (30, 5, (8, 5)), (0, 0, (0, 0))]
)
def test_samples_are_balanced_different_and_from_the_right_anchors(positives, negatives, expected):
    labels = jnp.asarray([2] * positives + [0] * negatives + [-1] * (100 - positives - negatives))
    labels = jax.random.permutation(jax.random.key(1), labels)
    sample = jax.jit(lambda key: ops.sample_matches(key, labels, 32, 0.25))
    indices, real = sample(jax.random.key(0))
    drawn, kinds = np.asarray(indices)[np.asarray(real)], np.asarray(labels)[np.asarray(indices)][np.asarray(real)]
    assert indices.shape == real.shape == (32,)
    assert ((kinds > 0).sum(), (kinds == 0).sum()) == expected
    assert len(set(drawn.tolist())) == len(drawn) == sum(expected)
    assert (kinds[: expected[0]] > 0).all()  # positive ones come first
    assert (np.asarray(indices)[~np.asarray(real)] == 0).all()
    again = sample(jax.random.key(0))[0]
    np.testing.assert_array_equal(indices, again)
    if positives > 8:
        assert (sample(jax.random.key(7))[0] != indices).any()


def test_every_anchor_is_drawn_as_often():
    labels = jnp.asarray([1] * 6 + [0] * 6)
    keys = jax.random.split(jax.random.key(0), 2000)
    indices, real = jax.jit(jax.vmap(lambda key: ops.sample_matches(key, labels, 4, 0.5)))(keys)
    assert bool(real.all())
    np.testing.assert_allclose(np.bincount(np.asarray(indices).ravel(), minlength=12) / 2000, 1 / 3, atol=0.04)


def test_fewer_anchors_than_are_to_be_drawn():
    indices, real = ops.sample_matches(jax.random.key(0), jnp.asarray([0, 1, 0]), 8, 0.5)
    assert sorted(indices[:3].tolist()) == [0, 1, 2] and real.tolist() == [True] * 3 + [False] * 5
