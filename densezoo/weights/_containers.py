"""Finds the weights in a checkpoint, which may be a dictionary of dictionaries with several copies of them."""

import warnings
from collections.abc import Mapping
from typing import Any

from densezoo.messages import shortened
from densezoo.weights._unpickle import Opaque, Tensor

_USUAL = ("state_dict", "model_state_dict", "model")


class NoWeights(ValueError):
    """A readable checkpoint in which no weights are found."""


def is_array(value: Any) -> bool:
    """Whether a value is an array of torch, JAX or NumPy, or a file's record of a tensor."""
    return isinstance(value, Tensor) or hasattr(value, "shape")


def open_containers(contents: Any, entry: str | None = None) -> Mapping[Any, Any]:
    """Returns the weights in a checkpoint's contents. Opens the dictionaries that training scripts put around them.

    Warns of a second copy, such as averaged weights, that is not used.

    Args:
        contents: contents of the file.
        entry: selects the weights, by their key or by the prefix of their names.

    Raises:
        NoWeights: if there are none, or the choice is ambiguous.
    """
    if entry is not None:
        contents = _entry(contents, entry)
    for _ in range(4):  # a dictionary could contain itself, so this has an end
        if not isinstance(contents, Mapping):
            what = str(contents) if isinstance(contents, Opaque) else f"a {type(contents).__name__}"
            hint = "; pass its state_dict()" if hasattr(contents, "state_dict") else ""
            raise NoWeights(f"expected it to contain a dictionary of tensors, found {what}{hint}")
        found = [key for key in _USUAL if isinstance(contents.get(key), Mapping)]
        others = [key for key, value in contents.items() if key not in found[:1] and _has_arrays(value)]
        if not found and (any(map(is_array, contents.values())) or not contents):
            return contents
        if not found and len(others) != 1:
            having = f"these have some, choose one by entry=...: {_listed(others)}" if others else "none has any"
            raise NoWeights(
                f"it has no tensors by their names but the entries {_listed(list(contents))}; of these, {having}"
            )
        chosen = found[0] if found else others[0]
        copies = [key for key in others if key != chosen and _same_names(contents[key], contents[chosen])]
        if copies and entry is None:
            warnings.warn(
                f"the checkpoint has weights with the same names in {_listed([chosen, *copies])}; {chosen!r} is taken."
                f" For the others: entry={copies[0]!r}",
                stacklevel=2,
            )
        contents = contents[chosen]
    raise NoWeights("its dictionaries are within each other, and none of the outer ones has tensors")


def _entry(contents: Any, entry: str) -> Any:
    """The value of a key, also inside the usual dictionaries; or the entries with this prefix, without the prefix."""
    for _ in range(4):
        if not isinstance(contents, Mapping):
            break
        if entry in contents:
            return contents[entry]
        before = entry.removesuffix(".") + "."
        within = {k.removeprefix(before): v for k, v in contents.items() if isinstance(k, str) and k.startswith(before)}
        if within:
            return within
        found = [key for key in _USUAL if isinstance(contents.get(key), Mapping)]
        if not found:
            raise NoWeights(f"it has no entry {entry!r}; there are: {_listed(list(contents))}")
        contents = contents[found[0]]
    raise NoWeights(f"it has no entry {entry!r}, but a {type(contents).__name__}")


def _has_arrays(value: Any) -> bool:
    """Whether a value is a dictionary of arrays by name, or such a dictionary inside another one."""
    for _ in range(3):
        if not isinstance(value, Mapping):
            return False
        if any(isinstance(name, str) and is_array(array) for name, array in value.items()):
            return True
        inner = [inner for inner in value.values() if isinstance(inner, Mapping)]
        if len(inner) != 1:
            return False
        value = inner[0]
    return False


def _same_names(copy: Mapping[Any, Any], weights: Mapping[Any, Any]) -> bool:
    """Whether most of the weights' names are suffixes of the other dictionary's names, which may have prefixes."""

    def ends(value: Mapping[Any, Any]) -> set[str]:
        while not any(map(is_array, value.values())) and len(value) == 1:
            inner = next(iter(value.values()))
            if not isinstance(inner, Mapping):
                break
            value = inner
        return {".".join(str(name).split(".")[-3:]) for name, array in value.items() if is_array(array)}

    mine, other = ends(weights), ends(copy)
    return bool(mine) and len(mine & other) > len(mine) // 2


def _listed(names: list[Any]) -> str:
    return shortened([repr(name)[:80] for name in names], ", ", 20)
