"""A subset of a source."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex


class Subset:
    """Selected items of a random-access source, in the given order.

    Example:
        >>> list(Subset("abcdef", range(0, 6, 2)))
        ['a', 'c', 'e']
    """

    def __init__(self, source: Any, indices: Sequence[int]):
        """Stores the source and the indices of the selected items.

        Raises:
            IndexError: if an index is out of range.
        """
        indices = tuple(operator.index(index) for index in indices)
        if indices and not -len(source) <= min(indices) <= max(indices) < len(source):
            raise IndexError(f"indices {min(indices)} to {max(indices)} of a source with {len(source)} items")
        self._source, self._indices = source, indices
        if hasattr(source, "sizes"):
            self.sizes = tuple(source.sizes[index] for index in indices)

    def __repr__(self) -> str:
        """Returns a name with source and indices that is stable between runs."""
        return f"Subset({self._source!r}, {self._indices!r})"

    def __len__(self) -> int:
        """Returns the number of selected items."""
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Reads one item."""
        return self._source[self._indices[operator.index(index)]]
