"""RoIAlign against a NumPy loop over its definition, the plain form, and torchvision's numbers."""

import functools
import inspect
import math
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo import ops

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = np.load(FOLDER / "detection_ops.npz")
seeded = np.random.default_rng


@functools.cache
def golden_maps(name, height, width):
    array = runpy.run_path(str(FOLDER / "seeded.py"))["array"]
    return jnp.asarray(array(name, (2, height, width, 3)))


def align_loop(x, boxes, size, scale, ratio, aligned):
    _, height, width, channels = x.shape
    y = np.zeros((*boxes.shape[:2], *size, channels))
    for b, n, p, q in np.ndindex(*boxes.shape[:2], *size):
        left, top, right, bottom = (boxes[b, n] * np.float32(scale)).astype(np.float64) - (0.5 if aligned else 0)
        sides = [bottom - top, right - left] if aligned else [max(bottom - top, 1), max(right - left, 1)]
        counts = [ratio or max(math.ceil(np.float32(side / bins)), 0) for side, bins in zip(sides, size, strict=True)]
        for i, j in np.ndindex(*counts):
            row = top + (p + (i + 0.5) / counts[0]) * sides[0] / size[0]
            column = left + (q + (j + 0.5) / counts[1]) * sides[1] / size[1]
            if not (-1 <= row <= height and -1 <= column <= width):
                continue
            row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
            for r in {math.floor(row), math.ceil(row)}:
                for c in {math.floor(column), math.ceil(column)}:
                    y[b, n, p, q] += (1 - abs(row - r)) * (1 - abs(column - c)) * x[b, r, c] / math.prod(counts)
    return y


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
def test_a_loop_and_the_plain_form(ratio, aligned):
    x = seeded(0).standard_normal((2, 9, 12, 3)).astype(np.float32)
    corners = np.sort(seeded(1).random((2, 8, 2, 2)) * [94, 70] - 5, 2).reshape(2, 8, 4).astype(np.float32)
    # Without area, beyond the picture, all of it, at its end, inside out.
    corners[0, :5] = [[40, 40, 40, 40], [200, 200, 260, 250], [0, 0, 96, 72], [88, 64, 96, 72], [50, 50, 20, 30]]
    align = functools.partial(
        ops.roi_align, output_size=(3, 4), spatial_scale=1 / 8, sampling_ratio=ratio, aligned=aligned
    )
    y, pull_back = jax.vjp(jax.jit(lambda x: align(x, jnp.asarray(corners))), jnp.asarray(x))
    np.testing.assert_allclose(y, align_loop(x, corners, (3, 4), 1 / 8, ratio, aligned), atol=1e-5)
    g = jnp.asarray(seeded(2).standard_normal(y.shape).astype(np.float32))
    with ops.implementation("reference"):
        plain, pull_back_plainly = jax.vjp(jax.jit(lambda x: align(x, jnp.asarray(corners))), jnp.asarray(x))
    np.testing.assert_allclose(y, plain, atol=1e-5)
    np.testing.assert_allclose(pull_back(g)[0], pull_back_plainly(g)[0], atol=1e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 0])
def test_torchvision(ratio, aligned):
    x, boxes = golden_maps("features", 13, 17), jnp.asarray(GOLDEN["boxes"])
    align = jax.jit(lambda x: ops.roi_align(x, boxes, (3, 5), 1 / 8, sampling_ratio=ratio, aligned=aligned))
    y, pull_back = jax.vjp(align, x)
    np.testing.assert_allclose(y, GOLDEN[f"roi_{aligned:d}_{ratio}"], atol=1e-5)
    np.testing.assert_allclose(pull_back(2 * y)[0], GOLDEN[f"roi_gradient_{aligned:d}_{ratio}"], atol=1e-4)


def test_a_pyramid():
    maps = [golden_maps(f"level{n}", -(-26 // 2**n), -(-34 // 2**n)) for n in range(3)]
    boxes = jnp.asarray(GOLDEN["boxes"])

    def align(maps):
        return ops.multiscale_roi_align(maps, boxes, (104, 136), 3, canonical_size=60, canonical_level=3)

    y, pull_back = jax.vjp(jax.jit(align), maps)
    np.testing.assert_allclose(y, GOLDEN["multiscale"], atol=1e-5)
    with ops.implementation("reference"):
        plain, pull_back_plainly = jax.vjp(jax.jit(align), maps)
    np.testing.assert_allclose(y, plain, atol=1e-5)
    for mine, expected in zip(pull_back(y)[0], pull_back_plainly(y)[0], strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)
    # Two levels are read, none of the boxes is large enough for the last.
    assert [bool(jnp.any(expected)) for expected in pull_back_plainly(y)[0]] == [True, True, False]


def test_boxes_between_two_levels():
    # Each map holds its own number. The square root of the area is compared with 112, 224, 448.
    maps = [jnp.full((1, 64 // 2**n, 64 // 2**n, 1), float(n)) for n in range(4)]
    sides = [0, 50, 111.99, 112, 223.99, 224, 447.99, 448, 2000, math.nan]
    boxes = jnp.asarray([[[0, 0, side, side] for side in sides]], jnp.float32)
    y = jax.jit(lambda boxes: ops.multiscale_roi_align(maps, boxes, (256, 256), 1, sampling_ratio=1))(boxes)
    assert y.ravel()[:8].tolist() == [0, 0, 0, 1, 1, 2, 2, 3]
    assert y[0, 9].item() == 0


def test_gradients_by_differences_and_none_for_the_boxes():
    x = jnp.asarray(seeded(0).standard_normal((1, 4, 5, 2)).astype(np.float32))
    boxes = jnp.asarray([[[0.3, 0.2, 3.1, 2.9], [-2.0, -3.0, 9.0, 8.0]]])
    for ratio in (2, 0):
        align = jax.jit(functools.partial(ops.roi_align, boxes=boxes, output_size=2, sampling_ratio=ratio))
        check_grads(align, (x,), 1, modes=["rev"], atol=1e-2)
    gradient = jax.grad(lambda boxes: ops.roi_align(x, boxes, 2).sum())(boxes)
    np.testing.assert_array_equal(gradient, 0)


def test_a_nan_box_leaves_the_others_and_the_gradient_alone():
    x = jnp.ones((1, 4, 5, 2))
    boxes = jnp.asarray([[[0.0, 0.0, 3.0, 3.0], [math.nan, 0.0, 3.0, 3.0], [0.0, 0.0, math.inf, 3.0]]])
    for ratio in (2, 0):
        y, pull_back = jax.vjp(lambda x: ops.roi_align(x, boxes, 2, sampling_ratio=ratio), x)  # noqa: B023
        np.testing.assert_allclose(y[0, 0], 1)
        np.testing.assert_array_equal(y[0, 1], 0)
        assert bool(jnp.isfinite(y).all()) and bool(jnp.isfinite(pull_back(y)[0]).all())


def test_half_precision_and_no_boxes():
    x = jnp.asarray(seeded(0).standard_normal((1, 6, 6, 2)), jnp.bfloat16)
    boxes = jnp.asarray([[[0.0, 0.0, 5.0, 5.0]]])
    y, pull_back = jax.vjp(lambda x: ops.roi_align(x, boxes, 2), x)
    exact = ops.roi_align(x.astype(jnp.float32), boxes, 2)
    assert y.dtype == pull_back(y)[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=1e-2)
    assert ops.roi_align(x, boxes[:, :0], 7).shape == (1, 0, 7, 7, 2)


def test_bad_arguments_are_refused():
    x, boxes = jnp.zeros((2, 4, 4, 1)), jnp.zeros((1, 3, 4))
    with pytest.raises(ValueError, match=r"for 2 maps, got \(1, 3, 4\)"):
        inspect.unwrap(ops.roi_align)(x, boxes, 7)
    with pytest.raises(ValueError, match="sampling_ratio"):
        ops.roi_align(x[:1], boxes, 7, sampling_ratio=-1)
    with pytest.raises(ValueError, match="equal batch, channels and dtype"):
        inspect.unwrap(ops.multiscale_roi_align)([x[:1], jnp.zeros((1, 2, 2, 3))], boxes, (8, 8), 7)
