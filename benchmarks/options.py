"""What the benchmarks' command lines share."""

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.machine import Refused, choose_platform, console, describe, reexec_with_hugetlb


class Mismatch(Exception):
    """Two implementations do not agree, so there is nothing to time; the message says which and by how much."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every benchmark."""

    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; the default is jax's own choice."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of maps and weights. On CPU bfloat16 is emulated."""
    quick: bool = False
    """Few rounds, one shape, no torch.compile on CPU: minutes, for a look."""
    sweep: bool = False
    """Cost against size instead: 128 to 2048 pixels a side and batches of 1 to 64, as far as the memory goes."""
    against: Literal["torch"] | None = None
    """Time PyTorch too, in the same process, in turn."""
    out: Path = Path("out/benchmarks")
    """Folder of the results."""
    malloc: Literal["hugetlb", "default"] = "hugetlb"
    """On Linux CPUs: start again with glibc's huge pages for large arrays, or leave malloc as it is."""
    rounds: int | None = None
    """Samples of each candidate; 30, with --quick 7."""
    max_seconds: float = 60.0
    """Longest time for the samples of one comparison; fewer rounds are done where they would take longer."""
    memory_gib: float | None = None
    """What a sweep may use; the default is 40% of what is free."""
    seed: int = 0
    """Of the data and of the order in each round."""

    def check(self) -> str:
        """Refuses what cannot be followed, chooses the platform and gives its name."""
        if self.rounds is not None and self.rounds < 1:
            raise Refused(f"--rounds is at least 1, got {self.rounds}")
        if self.max_seconds <= 0 or (self.memory_gib is not None and self.memory_gib <= 0):
            raise Refused("--max-seconds and --memory-gib are positive numbers")
        if self.out.exists() and not self.out.is_dir():
            raise Refused(f"--out {self.out} is a file: name a folder")
        return choose_platform(self.platform, beside_torch=self.against is not None)

    def times(self) -> dict[str, Any]:
        """Arguments of `measure`."""
        rounds = self.rounds or (7 if self.quick else 30)
        seconds = 0.005 if self.quick else 0.02
        limit = min(self.max_seconds, 4.0) if self.quick else self.max_seconds
        return {"rounds": rounds, "min_seconds": seconds, "max_seconds": limit, "seed": self.seed}


def check_torch(platform: str) -> None:
    """Refuses --against torch where torch is not there, or not for this platform."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        raise Refused(f"--against torch: torch cannot be imported here ({_first_line(error)})") from error
    if platform == "tpu":
        raise Refused("--against torch: there is no torch for TPUs here; leave it out")
    if platform == "gpu" and not torch.cuda.is_available():
        raise Refused("--against torch: this torch sees no GPU, and jax computes on one; use --platform cpu")


def parse_shape(text: str, names: str) -> tuple[int, ...]:
    """The sizes of a shape such as 4x64x64x64.

    Raises:
        Refused: it is none, or has another number of sizes than `names` such as BxHxWxC.

    Example:
        >>> parse_shape("4x256x256", "BxHxW")
        (4, 256, 256)
    """
    count = names.count("x") + 1
    if not re.fullmatch(rf"[1-9]\d*(x[1-9]\d*){{{count - 1}}}", text):
        example = "x".join(("4", "64", "64", "32")[:count])
        raise Refused(f"--shapes {text}: a shape is {names}, {count} whole numbers of at least 1, such as {example}")
    return tuple(map(int, text.split("x")))


def relative_error(value: Any, truth: Any) -> float:
    """The largest difference, over the largest magnitude of the truth; infinite for other shapes or stray NaNs."""
    value, truth = np.asarray(value, np.float32), np.asarray(truth, np.float32)
    if value.shape != truth.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.abs(value - truth).max()
    largest = np.abs(truth).max()
    return float(difference / largest if largest else difference) if np.isfinite(difference) else float("inf")


def tolerance(dtype: str, platform: str, *, gradient: bool = False) -> float:
    """How large a relative error may be: float32 products are rounded to TF32 on GPUs, to bfloat16 on TPUs."""
    if dtype == "bfloat16" or platform == "tpu":
        return 3e-2
    if platform == "gpu":
        return 5e-3
    return 1e-4 if gradient else 1e-5


def progress_bar() -> Progress:
    """A bar on stderr that says what is being measured."""
    columns = (SpinnerColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)


def machine_of(platform: str) -> dict[str, Any]:
    """The description of the machine; a word on stderr if others compute on it too."""
    machine = describe() | {"jax_backend": platform, "matmul_precision": _matmul_precision()}
    if (busy := machine["busy_cores"] or 0) > 0.3:
        console.print(
            f"other programs keep {busy:.1f} of {machine['cores']} cores busy: times will be too long, torch's most,"
            " whose threads wait for each other; repeat this on an idle machine before you believe it"
        )
    return machine


def sweep_sizes(smallest: int = 128, largest: int = 2048, batches: int = 64) -> list[tuple[str, tuple[int, int, int]]]:
    """(series, (batch, height, width)): sizes doubled at batch 1, then batches doubled at the smallest size."""
    sizes = [("pixels", (1, side, side)) for side in _doublings(smallest, largest)]
    return sizes + [("batch", (batch, smallest, smallest)) for batch in _doublings(1, batches)]


def sweep_fields(series: str, batch: int, height: int, width: int) -> dict[str, Any]:
    """What a sweep's row has besides: its series, the pixels in all, and the number that grows; nothing outside one."""
    size = height if series == "pixels" else batch
    return {"series": series, "pixels": batch * height * width, "size": size} if series else {}


def run_command(main: Callable[[Any, str], None], arguments: type[Options], argv: Sequence[str] | None = None) -> int:
    """Parses a command line and runs a benchmark; gives the exit code. Mistakes are one line on stderr.

    Args:
        main: takes the options and the platform's name.
        arguments: the options' class.
        argv: None for this program's own, which may start it again with another malloc.
    """
    chosen = tyro.cli(arguments, args=argv)
    try:
        platform = chosen.check()
        if argv is None:
            reexec_with_hugetlb(chosen.malloc)
        if chosen.against == "torch":
            check_torch(platform)
        main(chosen, platform)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except Mismatch as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _doublings(first: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] * 2 <= last:
        sizes.append(sizes[-1] * 2)
    return sizes


def _matmul_precision() -> str | None:
    return getattr(jax.config, "jax_default_matmul_precision", None)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
