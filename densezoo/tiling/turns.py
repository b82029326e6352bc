"""Quarter turns and reflections of pictures, and of parts of them."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from densezoo.messages import option
from densezoo.types import Size

Part = tuple[int, int, int, int]
"""First row, first column, height and width of a part of a picture."""


class Turn(NamedTuple):
    """A reflection of the columns, if `mirrored`, and then `quarters` quarter turns counterclockwise.

    Example:
        >>> turn, picture = Turn(1, True), np.arange(6).reshape(2, 3)
        >>> turn(picture).tolist()
        [[0, 3], [1, 4], [2, 5]]
        >>> bool((turn.undo(turn(picture)) == picture).all())
        True
    """

    quarters: int = 0
    mirrored: bool = False

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The turned picture, (h, w, ...)."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.quarters)

    def undo(self, picture: np.ndarray) -> np.ndarray:
        """The picture that was turned."""
        back = np.rot90(picture, -self.quarters)
        return back[:, ::-1] if self.mirrored else back

    def size(self, size: Size) -> Size:
        """The size of the turned picture."""
        return (size[1], size[0]) if self.quarters % 2 else (size[0], size[1])

    def part(self, part: Part, size: Size) -> Part:
        """Where a part of a picture of this size is in the turned picture."""
        row, column, height, width = part
        rows, columns = size
        if self.mirrored:
            column = columns - column - width
        for _ in range(self.quarters % 4):
            row, column, height, width = columns - column - width, row, width, height
            rows, columns = columns, rows
        return row, column, height, width

    def source(self, part: Part, size: Size) -> Part:
        """Which part of a picture of this size a part of the turned picture is."""
        row, column, height, width = part
        rows, columns = self.size(size)
        for _ in range(self.quarters % 4):
            row, column, height, width = column, rows - row - height, width, height
            rows, columns = columns, rows
        if self.mirrored:
            column = columns - column - width
        return row, column, height, width


TURNS = tuple(Turn(quarters, mirrored) for mirrored in (False, True) for quarters in range(4))
"""The dihedral group: all eight ways to put down a square."""


def turns(augment: bool | Sequence[tuple[int, bool]]) -> tuple[Turn, ...]:
    """The turns that an argument stands for: all of them for True, none but the identity for False.

    Raises:
        ValueError: if it is neither a bool nor a sequence of (quarter turns, mirrored).
    """
    if isinstance(augment, bool):
        return TURNS if augment else TURNS[:1]
    try:
        return tuple(Turn(operator.index(quarters), bool(mirrored)) for quarters, mirrored in augment) or TURNS[:1]
    except (TypeError, ValueError):
        raise ValueError(
            f"{option('augment')} must be True, False or pairs (quarter turns, mirrored), such as ((0, False),)"
            f"; got {augment!r}"
        ) from None


def averaged(
    program: Callable[[np.ndarray], Any], pixels: np.ndarray, ways: Sequence[Turn], dtype: Any = None
) -> np.ndarray:
    """The mean of what a program computes for the turned pixels, (h, w, ...), as a batch of one, turned back.

    Results are converted to `dtype`; None keeps theirs.
    """
    found = [program(np.ascontiguousarray(way(pixels))[None]) for way in ways]
    return mean([way.undo(np.asarray(result, dtype)[0]) for way, result in zip(ways, found, strict=True)])


def mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of arrays in float32; a single one keeps its dtype."""
    if len(arrays) == 1:
        return arrays[0]
    total = arrays[0].astype(np.float32)
    for array in arrays[1:]:
        total += array.astype(np.float32)
    return total / np.float32(len(arrays))
