"""Searches for files that a reader fails on, guided by the branches that they reach in densezoo, tifffile and Pillow.

Usage: python -m benchmarks.fuzz [--readers coco "model file"] [--seconds 60] [--kept out/fuzz]

Starts from the valid file of `benchmarks.hostile_files`, whose rules decide what is a failure. Needs atheris (`pip
install atheris`). Each reader runs in a process of its own. The file of a failure is written to --kept, and its name is
printed.
"""

import dataclasses
import importlib
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import tyro


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Searches for files that a reader fails on."""

    readers: tuple[str, ...] = ("coco", "panoptic", "plain.tif", "tiles.tif by windows", "small .pth", "old .pth")
    """Names of readers."""
    seconds: int = 60
    """Time for each reader."""
    kept: Path = Path("out/fuzz")
    """Folder for the files of failures."""
    here: bool = False
    """Search in this process, for the only reader."""


def search(name: str, seconds: int, kept: Path) -> None:
    """Searches in this process, which ends with the search."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["densezoo", "tifffile", "PIL"], enable_loader_override=False):
        from benchmarks.hostile_files import outcome, prepare

    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    reader = prepare(folder)[name]
    valid = (folder / reader.path).read_bytes()
    corpus = folder / "corpus"
    corpus.mkdir()
    rng = random.Random(0)
    for number in range(50):
        content = valid if number == 0 else rng.choice(reader.damage)(valid, rng)
        (corpus / f"{number}").write_bytes(content)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        """Changes of the format, which need a file of the format, or else libFuzzer's."""
        rng = random.Random(seed)
        if rng.random() < 0.5:
            try:
                return rng.choice(reader.damage)(data, rng)[:most]
            except Exception:
                pass
        return atheris.Mutate(data, most)

    kept.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={kept}/{name.replace('/', ' ')}-", "-timeout=0"]
    options += [f"-max_len={4 * len(valid)}", "-rss_limit_mb=8000", "-verbosity=0", "-print_final_stats=1"]
    atheris.Setup(
        [sys.argv[0], *options, str(corpus)], lambda data: outcome(reader, folder, data), custom_mutator=mutate
    )
    atheris.Fuzz()


def main(arguments: Arguments) -> None:
    if arguments.here:
        search(arguments.readers[0], arguments.seconds, arguments.kept)
        return
    failed = []
    for name in arguments.readers:
        print(f"{name}: {arguments.seconds} s", flush=True)
        options = ["--here", "--readers", name, "--seconds", f"{arguments.seconds}", "--kept", str(arguments.kept)]
        if subprocess.run([sys.executable, "-m", "benchmarks.fuzz", *options], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failures of {', '.join(failed)}: their files are in {arguments.kept}")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(tyro.cli(Arguments, description=__doc__))
