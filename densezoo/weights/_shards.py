"""Checkpoints in several files, with an index of the file of each array."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from densezoo.messages import shortened
from densezoo.weights._containers import open_containers

_SINGLE = ("model.safetensors", "pytorch_model.bin")
WEIGHTS = (*_SINGLE, *(f"{name}.index.json" for name in _SINGLE))
"""File names of weights in repositories of the Hugging Face hub, and of the index of several files."""


def folder_file(path: Path) -> Path:
    """Finds the checkpoint in a folder. Returns other paths unchanged.

    Raises:
        ValueError: if the folder has none of `WEIGHTS`.
    """
    if not path.is_dir():
        return path
    found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    indices = sorted(path.glob("*.index.json"))
    if found is None and len(indices) == 1:
        found = indices[0]
    if found is None:
        there = sorted(file.name for file in path.iterdir())
        raise ValueError(
            f"{path} is a folder without any of {', '.join(WEIGHTS)}: give the checkpoint file itself; there are:"
            f" {shortened(there, ', ') or 'no files'}"
        )
    return found


def shards_of(index: Path) -> dict[str, str]:
    """Reads the file of each array from an index; files are beside it or in folders there.

    Raises:
        ValueError: if it is not such an index, or a file is elsewhere.
    """
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{index} is not the index of a checkpoint: no weight_map can be read ({error})") from error
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not the index of a checkpoint: its weight_map has no names of files")
    for name in set(weight_map.values()):
        # By Windows' rules, in which both slashes are separators and a drive is absolute. Links are followed, because
        # the hub's cache consists of links.
        path = PureWindowsPath(name)
        if not path.name or path.drive or path.root or ".." in path.parts or "\0" in name:
            raise ValueError(f"{index} names the file {name[:100]!r}, which is not in its folder; nothing was read")
    return weight_map


def read_index(index: Path, read: Callable[[Path], Mapping[str, Any]], entry: str | None = None) -> dict[str, Any]:
    """Reads the arrays of all files in an index with `read`, which reads one file.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the index cannot be read, or a file lacks an array of the index.
    """
    weight_map = shards_of(index)
    files = dict.fromkeys(weight_map.values())
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise FileNotFoundError(
            f"{index} needs {len(files)} files, of which {len(missing)} are missing: {shortened(missing, ', ')}"
        )
    arrays: dict[str, Any] = {}
    for name in files:
        shard = read(index.parent / name)
        if lacking := [array for array, file in weight_map.items() if file == name and array not in shard]:
            raise ValueError(f"{index} lists arrays of {name} that are not in it: {shortened(lacking)}")
        arrays |= {array: shard[array] for array, file in weight_map.items() if file == name}
    return dict(open_containers(arrays, entry))
