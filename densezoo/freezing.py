"""Parts of a model that are not trained, by the names of their submodules.

A name such as "encoder" or "encoder/layer1_0" is a path of submodules, and covers everything inside. Wildcards match
within one step of the path: "encoder/layer1_*".
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict


def is_frozen(path: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a submodule or parameter of this path is in one of the named parts."""
    parts = [name.split("/") for name in names]
    return any(len(part) <= len(path) and all(map(fnmatch.fnmatchcase, path, part)) for part in parts)


def trainable(params: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The parameters without those of the named parts."""
    flat = flatten_dict(dict(params))
    return unflatten_dict({path: array for path, array in flat.items() if not is_frozen(path, names)})


def merged(params: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters, those of `trained` in place of the others."""
    return unflatten_dict(flatten_dict(dict(params), keep_empty_nodes=True) | flatten_dict(dict(trained)))


def check_names(params: Mapping[str, Any], names: Sequence[str], where: str = "model.frozen") -> None:
    """Raises a ValueError for names that no parameter has. `where` is what the message calls the names."""
    if isinstance(names, str):
        raise ValueError(f"{where} must be a tuple of names; got the string {names!r}: write ({names!r},)")
    paths = list(flatten_dict(dict(params)))
    for name in names:
        if any(is_frozen(path, (name,)) for path in paths):
            continue
        inside = name.split("/")[:-1]
        near = {path[len(inside)] for path in paths if len(path) > len(inside) and list(path[: len(inside)]) == inside}
        raise ValueError(f"{where} contains {name!r}, but the parameter subtrees are {sorted(near or set(params))}")
