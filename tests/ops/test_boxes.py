"""Boxes and anchors, compared with NumPy loops over their definitions and with torchvision's numbers."""

import functools
import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection_ops.npz")
golden = functools.cache(lambda name: jnp.asarray(GOLDEN[name]))
WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def iou_of(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if common else 0.0


def test_overlaps_equal_a_loop_and_torchvision():
    a, b = golden("a"), golden("b")[:7]
    iou = jax.jit(ops.box_iou)(a, b)
    loop = [[iou_of(p, q) for q in np.asarray(b, np.float64)] for p in np.asarray(a, np.float64)]
    np.testing.assert_allclose(iou, loop, atol=1e-6)
    np.testing.assert_allclose(iou, golden("iou")[:, :7], atol=1e-6)
    np.testing.assert_array_equal(ops.box_iou(a, b), iou)  # jit changes nothing


def test_boxes_without_area_overlap_nothing_and_what_is_not_finite_stays_by_itself():
    inf, nan = math.inf, math.nan
    odd = [[3, 3, 3, 9], [5, 5, 5, 5], [9, 9, 1, 1], [nan, 0, 4, 4], [0, 0, inf, inf], [-inf, -inf, inf, inf]]
    boxes = jnp.asarray([*odd, [0, 0, 10, 10], [1, 1, 9, 9]], jnp.float32)
    iou = ops.box_iou(boxes, boxes)
    np.testing.assert_array_equal(iou[:6], 0)
    np.testing.assert_array_equal(iou[:, :6], 0)
    np.testing.assert_allclose(iou[6:, 6:], [[1, 0.64], [0.64, 1]], rtol=1e-6)
    assert ops.box_iou(jnp.zeros((0, 4)), boxes).shape == (0, 8)


PAIRS = {"giou": ops.generalized_iou, "diou": ops.distance_iou, "ciou": ops.complete_iou}


def pair_loop(kind, a, b):
    width, height = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    iou = iou_of(a, b)
    if kind == "giou":
        areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
        return iou - 1 + areas / (1 + iou) / (width * height)
    diou = iou - math.dist((a[:2] + a[2:]) / 2, (b[:2] + b[2:]) / 2) ** 2 / (width**2 + height**2)
    ratio = [math.atan((c[2] - c[0]) / (c[3] - c[1])) for c in (a, b)]
    v = 4 / math.pi**2 * (ratio[0] - ratio[1]) ** 2
    return diou - v * v / (1 - iou + v) * (kind == "ciou")


@pytest.mark.parametrize("kind", PAIRS)
def test_qualities_of_pairs(kind):
    a, b = golden("a"), golden("b")
    quality = jax.jit(PAIRS[kind])(a, b)
    np.testing.assert_allclose(quality, golden(kind), atol=1e-5)
    wide = [np.asarray(x, np.float64) for x in (a, b)]
    np.testing.assert_allclose(quality, [pair_loop(kind, *pair) for pair in zip(*wide, strict=True)], atol=1e-5)
    if kind != "ciou":  # the weight of its last term is not differentiated
        check_grads(jax.jit(lambda a: PAIRS[kind](a, b[:5] / 90)), (a[:5] / 90,), 1, atol=1e-2, rtol=1e-2)
    empty = jnp.zeros((3, 4)).at[1, 2].set(2.0).at[2, 3].set(2.0)
    for pair in ((empty, jnp.zeros((3, 4))), (jnp.zeros((3, 4)), empty), (empty, empty)):
        values, gradients = jax.value_and_grad(lambda x, y: PAIRS[kind](x, y).sum(), (0, 1))(*pair)
        assert all(bool(jnp.isfinite(x).all()) for x in (values, *gradients))


def test_gradient_of_complete_iou_leaves_out_the_weight():
    # Concentric boxes: only the ratio's term and the IoU change. By hand: quality = iou - alpha v, alpha held.
    def quality(width):
        return ops.complete_iou(jnp.stack([-width, -1.0, width, 1.0]), jnp.asarray([-1.0, -1.0, 1.0, 1.0]), eps=0.0)

    v = 4 / math.pi**2 * (math.atan(2) - math.pi / 4) ** 2
    alpha = v / (0.5 + v)
    slope = 8 / math.pi**2 * (math.atan(2) - math.pi / 4) / 5
    assert float(quality(jnp.float32(2))) == pytest.approx(0.5 - alpha * v, abs=1e-6)
    # IoU is 1 / width.
    assert float(jax.grad(quality)(jnp.float32(2))) == pytest.approx(-0.25 - alpha * slope, abs=1e-5)


def test_codes_equal_those_of_torchvision_and_decode_to_the_boxes():
    a, b, deltas = golden("a"), golden("b"), golden("deltas")
    codes = jax.jit(functools.partial(ops.encode_boxes, weights=WEIGHTS))(a, b)
    np.testing.assert_allclose(codes, golden("encoded"), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ops.decode_boxes(codes, b, weights=WEIGHTS), a, atol=1e-3)
    decode = jax.jit(functools.partial(ops.decode_boxes, weights=WEIGHTS))
    np.testing.assert_allclose(decode(deltas, b), golden("decoded"), rtol=1e-4, atol=1e-3)
    huge = decode(jnp.full((1, 4), 1e6), jnp.asarray([[0.0, 0.0, 16.0, 16.0]]))
    assert float(huge[0, 2] - huge[0, 0]) == pytest.approx(1000, rel=1e-3)
    distances = ops.encode_distances(a, b)
    np.testing.assert_allclose(distances, golden("distances"), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ops.decode_distances(distances, b), a, atol=1e-3)
    np.testing.assert_allclose(ops.decode_distances(deltas, b), golden("from_distances"), rtol=1e-5, atol=1e-3)
    for code, decode in ((codes, ops.decode_boxes), (distances, ops.decode_distances)):
        check_grads(jax.jit(lambda code: decode(code, b[:4] / 90)), (code[:4] / 10,), 1, atol=1e-2, rtol=1e-2)  # noqa: B023


def test_one_box_with_codes_of_several_classes():
    deltas = golden("deltas").reshape(10, 2, 4)
    boxes = ops.decode_boxes(deltas, golden("b")[:10, None])
    np.testing.assert_array_equal(boxes[:, 1], ops.decode_boxes(deltas[:, 1], golden("b")[:10]))


def test_a_box_without_area_has_finite_codes():
    empty, box = jnp.zeros((1, 4)), jnp.asarray([[2.0, 3.0, 8.0, 9.0]])
    for encode in (ops.encode_boxes, ops.encode_distances):
        for pair in ((empty, box), (box, empty), (empty, empty)):
            assert bool(jnp.isfinite(encode(*pair)).all()), (encode, pair)


def test_clipping():
    a = golden("a")
    np.testing.assert_allclose(ops.clip_boxes(a, (50, 70)), golden("clipped"))
    batch = jnp.stack([a, a])
    clipped = jax.jit(ops.clip_boxes)(batch, jnp.asarray([[50, 70], [10, 20]]))
    np.testing.assert_array_equal(clipped[0], golden("clipped"))
    np.testing.assert_array_equal(clipped[1], ops.clip_boxes(a, (10, 20)))
    with pytest.raises(ValueError, match=r"\(2,\) or \(2, 2\)"):
        ops.clip_boxes(batch, jnp.ones((3, 2)))


def test_what_is_not_boxes_is_refused():
    with pytest.raises(ValueError, match=r"a has the shape \(n, 4\), got \(4,\)"):
        inspect.unwrap(ops.box_iou)(jnp.zeros(4), jnp.zeros((1, 4)))
    with pytest.raises(TypeError, match="int32"):
        inspect.unwrap(ops.box_area)(jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ValueError, match="same shape"):
        inspect.unwrap(ops.generalized_iou)(jnp.zeros((2, 4)), jnp.zeros((1, 4)))


def test_anchors_equal_a_loop_and_torchvision():
    sizes, ratios = ((31, 45.5, 64), (63, 80, 101)), (0.5, 1.0, 2.0)
    levels = ops.pyramid_anchors((65, 96), [(9, 12), (5, 6)], sizes, ratios)
    np.testing.assert_array_equal(jnp.concatenate(levels), golden("anchors"))
    expected = []
    for y in range(5):
        for x in range(6):
            for ratio in ratios:
                for size in sizes[1]:
                    half = [round(size * math.sqrt(r) / 2) for r in (1 / ratio, ratio)]
                    centre = (16 * x, 13 * y)
                    expected.append([c + sign * h for sign in (-1, 1) for c, h in zip(centre, half, strict=True)])
    np.testing.assert_array_equal(levels[1], expected)


def test_anchors_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="positive"):
        ops.grid_anchors((2, 2), (8, 8), (32,), (0.0,))
    with pytest.raises(ValueError, match="2 maps"):
        ops.pyramid_anchors((64, 64), [(8, 8), (4, 4)], [(32,)], (1.0,))
    with pytest.raises(ValueError, match="at least 1"):
        ops.pyramid_anchors((8, 8), [(16, 16)], [(32,)], (1.0,))
