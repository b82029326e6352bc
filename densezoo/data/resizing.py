"""Which size the pictures of a source are resized to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Resize:
    """Keeps the shape of a picture: sets its shortest or longest side, or the first as far as the second allows.

    Attributes:
        shortest: length of the shortest side in pixels.
        longest: length of the longest side; with `shortest`, what it may reach at most.

    Example:
        >>> Resize(shortest=480)(640, 960), Resize(longest=480)(640, 960), Resize(shortest=480, longest=600)(640, 960)
        ((480, 720), (320, 480), (400, 600))
    """

    shortest: int | None = None
    longest: int | None = None

    def __post_init__(self):
        sides = [side for side in (self.shortest, self.longest) if side is not None]
        if not sides or min(sides) < 1:
            raise ValueError(f"{self}; expected shortest or longest or both, 1 or more.")

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """Gives the size to which a picture of this height and width is resized."""
        # As fractions (numerator, denominator), so that the side that is set comes out exactly.
        scales = []
        if self.shortest is not None:
            scales.append((self.shortest, min(height, width)))
        if self.longest is not None:
            scales.append((self.longest, max(height, width)))
        by, over = min(scales, key=lambda scale: scale[0] / scale[1])
        return max(1, (2 * height * by + over) // (2 * over)), max(1, (2 * width * by + over) // (2 * over))


ResizeTo = tuple[int, int] | Callable[[int, int], tuple[int, int]]
"""(height, width), or a function from a picture's height and width to them, such as a `Resize`."""


def check(to: ResizeTo | None) -> None:
    """Raises a ValueError if it is no size."""
    if to is not None and not callable(to) and (len(to) != 2 or min(to) < 1):
        raise ValueError(f"resize={to}; expected a pair (height, width) of positive numbers, a Resize, or None.")


def target_size(to: ResizeTo | None, height: int, width: int) -> tuple[int, int]:
    """Gives the size to which a picture of this height and width is resized; its own for None."""
    if to is None:
        return height, width
    return to(height, width) if callable(to) else (to[0], to[1])
