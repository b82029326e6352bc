"""Measurements that do not add up to a few numbers, such as detections: they are kept, picture by picture."""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct


@struct.dataclass
class Collected:
    """What is kept of each batch; the sum of two has that of both.

    An average precision depends on the order of all scores, so that no counts of a batch could be added. A task whose
    `measure` gives this is evaluated as every other: a batch's detections have a fixed size on the device, and `+`
    brings them to the host.

    Attributes:
        parts: for each batch its arrays by name.
        shrink: makes of one part, on the host, what is kept of it, such as run lengths of maps; None keeps the arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> a, b = (Collected.of(scores=jnp.full((2, n), n / 10)) for n in (1, 2))
        >>> [part["scores"].shape for part in (a + b).kept()]
        [(2, 1), (2, 2)]
    """

    parts: tuple[Any, ...]
    shrink: Callable[[dict[str, Any]], Any] | None = struct.field(pytree_node=False, default=None)
    shrunk: bool = struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, shrink: Callable[[dict[str, Any]], Any] | None = None, **arrays: Any) -> "Collected":
        """What one batch gives, (b, ...) each."""
        return cls((arrays,), shrink)

    def __add__(self, other: "Collected") -> "Collected":
        """That of both, on the host."""
        return Collected((*self.kept(), *other.kept()), self.shrink, True)

    def kept(self) -> tuple[Any, ...]:
        """What is kept of each batch, on the host."""
        if self.shrunk:
            return self.parts
        parts = jax.device_get(self.parts)
        return parts if self.shrink is None else tuple(map(self.shrink, parts))
