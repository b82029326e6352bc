"""Subsets of a source."""

import numpy as np
import pytest

from densezoo.data import Subset


class Letters:
    sizes = ((1, 1), (2, 2), (3, 3))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return "abc"[index]


def test_shows_the_items_asked_for_in_their_order():
    part = Subset(Letters(), np.array([2, 0]))
    assert [part[index] for index in range(len(part))] == ["c", "a"]
    assert part.sizes == ((3, 3), (1, 1))
    assert len(Subset(Letters(), [])) == 0


def test_an_item_that_is_not_there_is_named():
    with pytest.raises(IndexError, match="3 items"):
        Subset(Letters(), range(4))
