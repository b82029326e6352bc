"""Pasted masks against a NumPy loop over the definition, and torchvision's numbers."""

import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "detection_ops.npz")


def paste_loop(mask, box, size):
    mask = np.pad(mask, 1)
    side, result = len(mask), np.zeros(size)
    centre, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    half = half * np.float32(side / (side - 2))
    (left, top), (right, bottom) = np.trunc(centre - half).astype(int), np.trunc(centre + half).astype(int)
    for y in range(max(top, 0), min(bottom + 1, size[0])):
        for x in range(max(left, 0), min(right + 1, size[1])):
            at = [(y - top + 0.5) * side / (bottom - top + 1) - 0.5, (x - left + 0.5) * side / (right - left + 1) - 0.5]
            row, column = (min(max(c, 0), side - 1) for c in at)
            for r in {math.floor(row), math.ceil(row)}:
                for c in {math.floor(column), math.ceil(column)}:
                    result[y, x] += (1 - abs(row - r)) * (1 - abs(column - c)) * mask[r, c]
    return result


def test_pasted_masks_equal_a_loop_and_torchvision():
    masks, boxes = jnp.asarray(GOLDEN["masks"]), jnp.asarray(GOLDEN["where"])
    paste = jax.jit(lambda masks, boxes: ops.paste_masks(masks, boxes, (33, 41), threshold=None))
    pasted = paste(masks, boxes)
    np.testing.assert_allclose(pasted, GOLDEN["pasted"], atol=1e-5)
    # Whole sides, after which a rounding error would move a border by a pixel, and less than a pixel.
    odd = jnp.asarray(
        [[4, 3, 18, 24], [0, 0, 7, 14], [3, 3, 3, 3], [5.2, 5.2, 5.9, 5.9], [-9, -9, 50, 50], [1, 8, 8, 8]]
    )
    pasted = paste(masks, odd.astype(jnp.float32))
    for mask, box, result in zip(GOLDEN["masks"], np.asarray(odd, np.float32), pasted, strict=True):
        np.testing.assert_allclose(result, paste_loop(mask, box, (33, 41)), atol=1e-5)


def test_the_threshold_and_odd_boxes():
    masks, boxes = jnp.asarray(GOLDEN["masks"]), jnp.asarray(GOLDEN["where"])
    boxes = boxes.at[1, 2].set(math.nan).at[2].set(jnp.asarray([900.0, 900.0, 950.0, 950.0]))
    result = ops.paste_masks(masks, boxes, (33, 41), threshold=0.4)
    assert result.dtype == bool
    expected = GOLDEN["pasted"] > 0.4
    assert expected[[0, 3, 4, 5]].any((1, 2)).all()
    expected[1:3] = False
    assert (np.asarray(result) != expected).sum() <= 1  # one value may be exactly at the threshold
    assert ops.paste_masks(masks[:0], boxes[:0], (5, 6)).shape == (0, 5, 6)


def test_bad_arguments_are_refused():
    paste = inspect.unwrap(ops.paste_masks)  # without the tests' own check of shapes
    with pytest.raises(ValueError, match="as many masks as boxes"):
        paste(jnp.zeros((2, 7, 7)), jnp.zeros((3, 4)), (9, 9))
    with pytest.raises(ValueError, match="squares"):
        paste(jnp.zeros((2, 7, 6)), jnp.zeros((2, 4)), (9, 9))
