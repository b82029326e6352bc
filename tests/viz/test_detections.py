"""Boxes and masks over pictures."""

import numpy as np
import pytest

from densezoo import viz
from densezoo.types import Detections

IMAGE = np.full((20, 30, 3), 100, np.uint8)


def found(boxes, scores, labels, masks=None):
    return Detections(np.array(boxes, np.float32), np.array(scores), np.array(labels), np.array(scores) > 0, masks)


def test_boxes_above_the_threshold_are_drawn_with_class_and_score():
    each = found([[2, 3, 10, 12], [5, 5, 9, 9], [0, 0, 0, 0]], [0.9, 0.3, 0.0], [1, 2, -1])
    truth = (np.array([[2, 3, 10, 12], [0, 0, 0, 0]]), np.array([2, -1]))
    figure = viz.detections([IMAGE], [each], class_names=["none", "cat", "dog"], truths=[truth])
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["dog"] and left.get_title() == "truth: 1"
    assert [text.get_text() for text in right.texts] == ["cat 0.90"]
    (box,) = right.patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == (1.5, 2.5, 8, 9)


def test_masks_colour_their_pixels_alone():
    each = found([[4, 4, 12, 12]], [0.9], [1], np.ones((1, 28, 28), np.float32))
    drawn = viz.detections([IMAGE], [each]).axes[0].get_images()[0].get_array()
    changed = (np.asarray(drawn) != 100).any(-1)
    assert changed[5:11, 5:11].all() and not changed[:3].any() and not changed[14:].any()


def test_refusals():
    nothing = found(np.zeros((0, 4)), [], [])
    viz.detections([IMAGE], [nothing])
    with pytest.raises(ValueError, match="1 images, 2 detections"):
        viz.detections([IMAGE], [nothing, nothing])
    with pytest.raises(ValueError, match="label 5"):
        viz.detections([IMAGE], [found([[1, 1, 4, 4]], [0.9], [5])], class_names=["a"])
