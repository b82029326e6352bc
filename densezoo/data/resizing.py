"""Target sizes for resizing the pictures of a source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from densezoo.messages import option


@dataclasses.dataclass(frozen=True)
class Resize:
    """Sets the shortest or longest side of a picture and keeps its aspect ratio.

    Attributes:
        shortest: length of the shortest side in pixels.
        longest: length of the longest side; with `shortest`, its upper limit.

    Example:
        >>> Resize(shortest=480)(640, 960), Resize(longest=480)(640, 960), Resize(shortest=480, longest=600)(640, 960)
        ((480, 720), (320, 480), (400, 600))
    """

    shortest: int | None = None
    longest: int | None = None

    def __post_init__(self):
        sides = {name: side for name, side in vars(self).items() if side is not None}
        if not sides or min(sides.values()) < 1:
            came = " and ".join(option(name, side) for name, side in sides.items()) or "no side was given"
            raise ValueError(f"{came}; expected {option('shortest')} or {option('longest')} or both, 1 or more.")

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size to which a picture of this height and width is resized."""
        # As fractions (numerator, denominator), so that the given side is exact.
        scales = []
        if self.shortest is not None:
            scales.append((self.shortest, min(height, width)))
        if self.longest is not None:
            scales.append((self.longest, max(height, width)))
        by, over = min(scales, key=lambda scale: scale[0] / scale[1])
        return max(1, (2 * height * by + over) // (2 * over)), max(1, (2 * width * by + over) // (2 * over))


@dataclasses.dataclass(frozen=True)
class ScaleJitter:
    """A random size for each picture, for training: it keeps the aspect ratio, and a factor of 1 fits it into `size`.

    Followed by crops of `size`, it is the large-scale jitter of "Simple copy-paste" and of torchvision's recipe.

    Attributes:
        size: height and width in pixels.
        scales: minimum and maximum factor, drawn uniformly.

    Example:
        >>> import numpy as np
        >>> ScaleJitter((100, 200), (0.5, 0.5)).draw(50, 50, np.random.default_rng(0))
        (50, 50)

    References:
        Ghiasi et al., Simple copy-paste is a strong data augmentation method, 2021. https://arxiv.org/abs/2012.07177
    """

    size: tuple[int, int]
    scales: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self):
        least, greatest = self.scales
        if min(self.size) < 1 or not 0 < least <= greatest < float("inf"):
            raise ValueError(
                f"{option('size', self.size)} and {option('scales', self.scales)}; expected a size of 1 or more, and"
                " scales with 0 < least <= greatest."
            )

    def __call__(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size without jitter, for evaluation: the largest that fits into `size`."""
        return self._scaled(height, width, 1.0)

    def draw(self, height: int, width: int, rng: np.random.Generator) -> tuple[int, int]:
        """Returns a random size for a picture of this height and width."""
        return self._scaled(height, width, rng.uniform(*self.scales))

    def _scaled(self, height: int, width: int, factor: float) -> tuple[int, int]:
        scale = factor * min(self.size[0] / height, self.size[1] / width)
        return max(1, int(height * scale)), max(1, int(width * scale))


ResizeTo = tuple[int, int] | Callable[[int, int], tuple[int, int]]
"""(height, width), or a function from a picture's height and width to them, such as a `Resize`."""


def check(to: ResizeTo | None) -> None:
    """Raises a ValueError if the value is not a size."""
    if to is not None and not callable(to) and (len(to) != 2 or min(to) < 1):
        raise ValueError(
            f"{option('resize', to)}; expected a pair (height, width) of positive numbers, a Resize, or None."
        )


def target_size(to: ResizeTo | None, height: int, width: int) -> tuple[int, int]:
    """Returns the size to which a picture of this height and width is resized; its own for None."""
    if to is None:
        return height, width
    return to(height, width) if callable(to) else (to[0], to[1])
