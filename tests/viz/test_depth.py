"""Pictures of depth and normals."""

import numpy as np
import pytest

from densezoo import viz

IMAGE = np.zeros((6, 8, 3), np.uint8)
DEPTH = np.arange(1.0, 49).reshape(6, 8)


def test_depth_maps_share_colours_and_leave_holes_out():
    truth = DEPTH.copy()
    truth[0, :4] = [0, -1, np.nan, np.inf]
    figure = viz.depth_maps([IMAGE], [truth], [DEPTH + 2], unit="cm")
    image, true, predicted, error = [axes.get_images()[0] for axes in figure.axes[:4]]
    assert true.get_clim() == predicted.get_clim()
    assert np.ma.getmaskarray(true.get_array()).sum() == 4
    assert np.ma.getmaskarray(error.get_array()).sum() == 4
    assert figure.axes[3].get_title() == "error: mean 2.00 cm"
    labels = [axes.get_ylabel() for axes in figure.axes[4:]]
    assert labels == ["cm"] * 3  # a bar for truth, prediction and error
    assert image.get_array().shape == (6, 8, 3)
    two = viz.depth_maps([IMAGE] * 2, None, [DEPTH] * 2, names=("before", "after"))
    assert [axes.get_title() for axes in two.axes[:4]] == ["before", "prediction", "after", ""]


def test_normals_have_the_usual_colours():
    normals = np.array([[[1.0, 0, 0], [0, -1, 0], [0, 0, -1], [0, 0, 0]]])
    assert viz.normals_to_rgb(normals).tolist() == [[[255, 128, 128], [128, 255, 128], [128, 128, 255], [0, 0, 0]]]
    tilted = np.array([[[0, 0, -1.0], [0, 0, -1], [0, -1, -1], [1, 0, 0]]])
    figure = viz.normal_maps([np.zeros((1, 4, 3))], [normals], [tilted])
    np.testing.assert_allclose(figure.axes[3].get_images()[0].get_array()[0, :3], [90, 90, 45])
    assert figure.axes[3].get_title() == "error: mean 75.00 degrees"


def test_points_are_drawn_from_the_side():
    points = np.stack([DEPTH, 2 * DEPTH, 3 * DEPTH], -1)
    points[0, 0, 2] = 0  # a hole
    figure = viz.point_clouds(IMAGE, {"truth": points, "prediction": points})
    drawn = figure.axes[1].collections[0].get_offsets()
    assert len(drawn) == 47
    np.testing.assert_allclose(sorted(drawn[:, 0]), sorted(3 * DEPTH.reshape(-1)[1:]))
    np.testing.assert_allclose(sorted(drawn[:, 1]), sorted(-2 * DEPTH.reshape(-1)[1:]))  # up is up
    with pytest.raises(ValueError, match="have the shape"):
        viz.point_clouds(IMAGE, {"truth": points[:2]})


def test_sizes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"image 0 has \(6, 8\) pixels"):
        viz.depth_maps([IMAGE], None, [DEPTH[:3]])
    with pytest.raises(ValueError, match="there are 1 images, 2 truths and 1 predictions"):
        viz.depth_maps([IMAGE], [DEPTH, DEPTH], [DEPTH])
