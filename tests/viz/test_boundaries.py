import numpy as np
import pytest

from densezoo import viz

TRUTH = np.zeros((4, 4), int)
TRUTH[:, 2:] = 1
SHIFTED = np.roll(TRUTH, -1, 1)
SHIFTED[:, -1] = 1
IMAGE = np.full((4, 4, 3), 0.3)
FOUND, MISSED, MADE_UP = (255, 255, 255), (255, 0, 255), (0, 219, 36)


def colours(picture):
    return {tuple(int(value) for value in pixel) for pixel in picture.reshape(-1, 3)}


def test_truth_predictions_and_boundaries_of_each_model(tmp_path):
    predictions = {"same": [TRUTH], "shifted": [SHIFTED]}
    figure = viz.boundaries([IMAGE], [TRUTH], predictions, class_names=("sky", "tree"))
    panels = {axes.get_title(): axes.images[0].get_array() for axes in figure.axes}
    assert list(panels) == [
        *("image", "truth"),
        *("same:\nprediction", "same:\nboundaries"),
        *("shifted:\nprediction", "shifted:\nboundaries"),
    ]
    np.testing.assert_array_equal(panels["truth"], viz.colorize(TRUTH))
    np.testing.assert_array_equal(panels["shifted:\nprediction"], viz.colorize(SHIFTED))
    assert [axes.get_xlabel() for axes in figure.axes[2::2]] == ["0.0 % of pixels wrong", "25.0 % of pixels wrong"]
    same, shifted = colours(panels["same:\nboundaries"]), colours(panels["shifted:\nboundaries"])
    assert FOUND in same and not same & {MISSED, MADE_UP}
    assert {MISSED, MADE_UP} < shifted and FOUND not in shifted
    legends = [[text.get_text() for text in legend.get_texts()] for legend in figure.legends]
    assert legends == [["sky", "tree"], ["boundary found", "boundary missed", "false boundary"]]
    assert not {FOUND, MISSED, MADE_UP} & {tuple(colour) for colour in viz.palette(20).tolist()}
    viz.save(figure, tmp_path / "a.png", dpi=40)  # A layout that does not fit would be a warning.


def test_errors():
    with pytest.raises(ValueError, match=r"each of 1 images, got 1, {'a': 2}"):
        viz.boundaries([IMAGE], [TRUTH], {"a": [TRUTH, TRUTH]})
    with pytest.raises(ValueError, match="image 0: image, mask and prediction 'a' differ in size"):
        viz.boundaries([IMAGE], [TRUTH], {"a": [TRUTH[1:]]})
    with pytest.raises(ValueError, match="1 class_names, but a mask contains the label 1"):
        viz.boundaries([IMAGE], [TRUTH], {"a": [TRUTH]}, class_names=("sky",))
