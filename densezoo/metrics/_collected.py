"""Results that cannot be reduced to counts, such as detections, and are stored for each picture."""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct


@struct.dataclass
class Collected:
    """Collected results of batches. `+` concatenates them.

    Average precision depends on the ranking of all scores, so it cannot be computed from sums of counts. A task whose
    `measure` returns this is evaluated like any other: a batch's detections have a fixed size on the device, and `+`
    moves them to the host.

    Attributes:
        parts: the arrays of each batch, by name.
        shrink: reduces one part on the host, for example to run lengths of masks. None keeps the arrays.

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
        """The results of one batch, arrays (b, ...)."""
        return cls((arrays,), shrink)

    def __add__(self, other: "Collected") -> "Collected":
        """The results of both, on the host."""
        return Collected((*self.kept(), *other.kept()), self.shrink, True)

    def kept(self) -> tuple[Any, ...]:
        """The stored results of each batch, on the host."""
        if self.shrunk:
            return self.parts
        parts = jax.device_get(self.parts)
        return parts if self.shrink is None else tuple(map(self.shrink, parts))
