import numpy as np
import pytest

from densezoo import viz


def test_rows_are_shares_of_the_true_class():
    figure = viz.confusion_matrix([[90, 10, 0], [1, 399, 0], [0, 0, 0]], ["sky", "road", "car"])
    axes = figure.axes[0]
    shares = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shares, [[90, 10, 0], [0.25, 99.75, 0], [np.nan] * 3])
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (0, 0): "90",
        (1, 0): "10",
        (0, 1): "<1",
        (1, 1): ">99",
    }
    assert [label.get_text() for label in axes.get_xticklabels()] == ["sky", "road", "car"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_many_classes_have_no_numbers_in_their_cells():
    assert not viz.confusion_matrix(np.eye(30)).axes[0].texts


def test_what_is_no_matrix_of_the_classes_is_named():
    with pytest.raises(ValueError, match=r"\(classes, classes\), got shape \(2, 3\)"):
        viz.confusion_matrix(np.ones((2, 3)))
    with pytest.raises(ValueError, match="2 classes and 1 class_names"):
        viz.confusion_matrix(np.eye(2), ["sky"])
