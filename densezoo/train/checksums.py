"""Checksums of a checkpoint's files, stored in the checkpoint, so that damage is detected."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NAME = "checksums.json"
# Orbax adds the time of completion after the checksums are computed, so only the facts are covered.
_FACTS = "_CHECKPOINT_METADATA"


def write_checksums(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Writes the checksums of all files of a checkpoint, and of its facts, into its folder."""
    paths = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name not in (_NAME, _FACTS))
    files = {path.relative_to(checkpoint).as_posix(): _of_file(path) for path in paths}
    (checkpoint / _NAME).write_text(json.dumps({"files": files, "facts": _of_facts(facts)}), encoding="utf-8")


def check_files(checkpoint: Path) -> None:
    """Compares the files of a checkpoint with their checksums. Checkpoints of older versions have none and pass.

    Raises:
        ValueError: if a file differs or is missing.
    """
    for name, checksum in _read(checkpoint).get("files", {}).items():
        path = checkpoint / name
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            raise ValueError(f"its {_NAME} names the file {name}, which is not in its folder")
        if not path.is_file():
            raise ValueError(f"its file {name} is missing")
        if _of_file(path) != checksum:
            raise ValueError(f"its file {name} has changed since it was written (its checksum differs)")


def check_facts(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Compares the facts with their checksum.

    Raises:
        ValueError: if they differ.
    """
    if _of_facts(facts) != _read(checkpoint).get("facts", _of_facts(facts)):
        raise ValueError(f"its file {_FACTS} has changed since it was written (its checksum differs)")


def _read(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / _NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _of_facts(facts: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(facts, sort_keys=True).encode())


def _of_file(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            checksum = zlib.crc32(part, checksum)
    return checksum
