"""The square that holds a share of a gradient."""

import pathlib
import sys

import numpy as np

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

from receptive_field import square_of  # noqa: E402


def test_the_square_is_centred_and_as_small_as_its_share_allows():
    field = np.zeros((9, 9))
    field[4, 5] = 0.6
    field[3:6, 4:7] += 0.3 / 9
    field[2, 3] = field[6, 7] = 0.05  # the corners of a 5x5 square around the same middle
    assert square_of(field, 0.6) == (4, 5, 1)
    assert square_of(field, 0.8) == (4, 5, 3)
    assert square_of(field, 0.95) == (4, 5, 5)
