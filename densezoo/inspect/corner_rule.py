"""What a rule of `densezoo.inspect.corner` does, and what all of them need.

Every array of the larger program holds that of the smaller one at the lowest positions of each axis. What is beyond is
arbitrary, even NaN. A rule sets it to a neutral value where the operation reads it, and moves what would lie elsewhere.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from densezoo.inspect.flat import Node, Step
from densezoo.inspect.local import along, bind

Numbers = dict[str, np.ndarray]
"""What the program reads for a size, by name. Shapes do not depend on the size."""


class Rule:
    """Operations whose result at a position depends on that position only.

    Attributes:
        sized: names of the parameters that may depend on the size.
    """

    sized: tuple[str, ...] = ()

    def moved(self, step: Step, like: Step) -> bool:
        """Whether the result lies elsewhere in the larger program. `like` is the step of that program."""
        return False

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        """The numbers for the size of `step`.

        Args:
            step: the step in the program of a smaller image.
            like: the same step in the larger program.
            moved: whether `moved` holds for some sizes.

        Raises:
            Misfit: if the larger program cannot compute the step.
        """
        return {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        """The results in the larger program, from the numbers of the smaller image."""
        return bind(like, arrays)


def filled(x: Any, axes: Sequence[int], sizes: Any, value: Any) -> Any:
    """The array with another value beyond some sizes."""
    for axis, size in zip(axes, sizes, strict=True):
        places = jnp.arange(x.shape[axis], dtype=jnp.int32)
        x = jnp.where(along(places < size, axis, x.ndim), x, value)
    return x


def sizes_of(node: Node, axes: Sequence[int]) -> np.ndarray:
    """Lengths of some axes."""
    return np.array([node.shape[axis] for axis in axes], np.int32)


def varying(node: Node, axes: Sequence[int] | None = None) -> list[int]:
    """The axes, or those of some axes, whose length depends on the size of the image."""
    return [axis for axis, varies in enumerate(node.varies) if varies and (axes is None or axis in axes)]
