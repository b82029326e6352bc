"""The arrays of a checkpoint by their names, without containers and prefixes around them."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from densezoo.messages import shortened
from densezoo.weights._containers import is_array, open_containers
from densezoo.weights._files import read_with_metadata


class Names(dict[str, Any]):
    """A checkpoint's arrays by name.

    Attributes:
        source: where they came from, for messages.
        wrapper: the prefix that was removed.
        beside: the arrays without the prefix, by their full names.
    """

    def __init__(self, arrays: Mapping[str, Any], source: str):
        super().__init__(arrays)
        self.source, self.wrapper = source, ""
        self.beside: dict[str, Any] = {}

    def take_off(self, wrapper: str) -> None:
        """Removes a prefix. Arrays without it are moved to `beside`."""
        if not wrapper:
            return
        arrays = dict(self)
        self.clear()
        for name, array in arrays.items():
            inside = name.startswith(wrapper)
            (self if inside else self.beside)[name.removeprefix(wrapper)] = array
        self.wrapper = wrapper

    def warn_of_others(self) -> None:
        """Warns of skipped arrays without the prefix."""
        if self.beside:
            warnings.warn(
                f"{self.source}: names begin with {self.wrapper!r}, and {len(self.beside)} do not; these were left out:"
                f" {shortened(list(self.beside), ', ')}",
                stacklevel=4,
            )


def read_names(checkpoint: str | os.PathLike[str] | Mapping[str, Any], entry: str | None = None) -> Names:
    """The arrays of a file or mapping by their names, without containers around them."""
    source = "the checkpoint"
    if isinstance(checkpoint, (str, os.PathLike)):
        source = os.fspath(checkpoint)
        read, metadata = read_with_metadata(checkpoint, entry)
        arrays: dict[str, Any] = dict(read)
        if metadata is not None:
            raise ValueError(f"{source} is a file of dz.save: load it with dz.load(path, model=model)")
    elif isinstance(checkpoint, Mapping):
        source = getattr(checkpoint, "source", source)
        arrays = {str(name): array for name, array in open_containers(checkpoint, entry).items() if is_array(array)}
    else:
        hint = "; give its state_dict()" if hasattr(checkpoint, "state_dict") else ""
        raise TypeError(
            f"checkpoint must be a path or a mapping of names to arrays, got a {type(checkpoint).__name__}{hint}"
        )
    if not arrays:
        raise ValueError(f"{source} contains no arrays")
    return Names(arrays, source)


def as_numpy(array: Any) -> np.ndarray:
    """Converts an array of torch, JAX or NumPy to NumPy."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        try:
            return array.numpy()
        except TypeError:  # bfloat16, which NumPy itself does not have
            return array.float().numpy()
    return np.asarray(array)
