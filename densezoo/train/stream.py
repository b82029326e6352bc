"""Batches of a loader or a function as one stream of arrays."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from densezoo.train.step import Batch


def stream_of(batches: Iterable[Batch] | Callable[[int], Iterator[Batch]], done: int) -> Iterator[Batch]:
    """The batches after the first `done`, of a function that makes them, or of an iterable again and again."""
    if not isinstance(batches, Iterable):
        yield from map(_as_arrays, batches(done))
        return
    while True:
        passes = iter(batches)
        empty = True
        for batch in passes:
            empty = False
            yield _as_arrays(batch)
        if empty or passes is batches:  # An iterator cannot be iterated again.
            return


def _as_arrays(batch: Batch) -> Batch:
    """The batch, with values that JAX does not accept, such as PyTorch tensors, converted to NumPy arrays."""

    def convert(path: Any, x: Any) -> Any:
        if isinstance(x, np.ndarray | np.generic | jax.Array) or not hasattr(x, "__array__"):
            return x
        try:
            return np.asarray(x)
        except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or one with a gradient
            kind = f"{type(x).__module__}.{type(x).__name__}"
            raise TypeError(
                f"batch{jax.tree_util.keystr(path)} is a {kind} that NumPy cannot read: {error} Pass NumPy arrays, for"
                " instance with the loader's collate_fn"
            ) from error

    return jax.tree_util.tree_map_with_path(convert, batch)
