"""Measurements that do not add up to a few numbers, such as detections: they are kept, picture by picture."""

from typing import Any

import jax
import numpy as np
from flax import struct


@struct.dataclass
class Collected:
    """Arrays with an entry for each picture; the sum of two has the pictures of both.

    An average precision depends on the order of all scores, so that no counts of a batch could be added. A task whose
    `measure` gives this is evaluated as every other: a batch's detections have a fixed size on the device, and `+`
    brings them to the host.

    Attributes:
        parts: for each batch its arrays by name.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = (Collected.of(scores=jnp.full((2, n), n / 10)) for n in (1, 2))
        >>> (a + b).joined()["scores"].shape  # the rows that the first lacks hold zeros
        (4, 2)
    """

    parts: tuple[dict[str, Any], ...]

    @classmethod
    def of(cls, **arrays: Any) -> "Collected":
        """Those of one batch, (b, ...) each."""
        return cls((arrays,))

    def __add__(self, other: "Collected") -> "Collected":
        """Those of both, on the host."""
        return Collected((*jax.device_get(self.parts), *jax.device_get(other.parts)))

    def joined(self) -> dict[str, np.ndarray]:
        """All pictures' arrays by name; where batches have different shapes, filled up with zeros at the end."""
        return {name: _stacked([np.asarray(part[name]) for part in self.parts]) for name in self.parts[0]}


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    widest = np.max([array.shape[1:] for array in arrays], axis=0) if arrays[0].ndim > 1 else ()
    padded = [
        np.pad(array, [(0, 0), *((0, int(most) - here) for most, here in zip(widest, array.shape[1:], strict=True))])
        for array in arrays
    ]
    return np.concatenate(padded)
