import numpy as np

from densezoo import viz
from densezoo.inspect.receptive import ReceptiveField, extent
from densezoo.viz.receptive import layer_name


def field(path, rows, columns, whole=False):
    return ReceptiveField(path, (1, 4, 4, 8), rows, columns, whole)


def test_names_and_extents():
    assert layer_name(field(("3",), (0, 1), (0, 1))) == "level 3"
    assert layer_name(field(("encoder", "3"), (0, 1), (0, 1))) == "encoder level 3"
    assert layer_name(field(("block0", "conv1"), (0, 1), (0, 1))) == "block0/conv1"
    assert layer_name(field((), (0, 1), (0, 1))) == "output"
    assert extent(field(("0",), (2, 4), (1, 5)), (8, 8)) == "3x5"
    assert extent(field(("0",), (0, 7), (0, 7)), (8, 8)) == "the whole image"
    assert extent(field(("0",), (0, 7), (0, 7), whole=True), (8, 8)) == "the whole image"


def test_squares_are_drawn_around_their_middle():
    figure = viz.receptive_fields(
        np.zeros((8, 8, 3)), [field(("0",), (2, 6), (2, 6))], [np.ones((8, 8))], squares=[(4, 3, 3)]
    )
    (axes,) = figure.axes
    assert axes.get_title() == "level 0, stride 2\nsees 5x5"
    frame, square = axes.patches
    assert frame.get_bbox().bounds == (1.5, 1.5, 5, 5) and square.get_bbox().bounds == (1.5, 2.5, 3, 3)
