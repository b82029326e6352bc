"""What the benchmarks' command lines share."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.machine import Refused, choose_platform, console, describe, reexec_with_hugetlb
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import ResultFile

PAUSE = 0.1  # seconds; onnxruntime's threads spin for up to 50 ms after their work, torch's for 10


class Mismatch(Exception):
    """Two implementations do not agree, so there is nothing to time; the message says which and by how much."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every benchmark."""

    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; the default is jax's own choice."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of maps and weights. CPUs without AVX512-BF16 or AMX emulate bfloat16."""
    quick: bool = False
    """Few rounds and one small shape, for a look."""
    against: tuple[Literal["torch", "torch.compile", "onnxruntime", "openvino", "all"], ...] = ()
    """Time these too, in another process, in turn."""
    peer_python: str = sys.executable
    """The interpreter that has them."""
    peer_setup: str | None = None
    """A module that it imports first."""
    out: Path = Path("out/benchmarks")
    """Folder of the results. What a file there already has is not measured again."""
    again: bool = False
    """Measure that again too."""
    malloc: Literal["hugetlb", "default"] = "hugetlb"
    """On Linux CPUs: start again with glibc's huge pages for large arrays, or leave malloc as it is."""
    rounds: int | None = None
    """Samples of each candidate; 30, with --quick 7."""
    max_seconds: float = 60.0
    """Longest time for the samples of one comparison; fewer rounds are done where they would take longer."""
    seed: int = 0
    """Of the data and of the order in each round."""

    def check(self) -> str:
        """Refuses what cannot be followed, chooses the platform and gives its name."""
        if self.rounds is not None and self.rounds < 1:
            raise Refused(f"--rounds is at least 1, got {self.rounds}")
        if self.max_seconds <= 0:
            raise Refused("--max-seconds is a positive number")
        if self.out.exists() and not self.out.is_dir():
            raise Refused(f"--out {self.out} is a file: name a folder")
        return choose_platform(self.platform, beside_others=bool(self.against))

    def times(self) -> dict[str, Any]:
        """Arguments of `measure`."""
        rounds = self.rounds or (7 if self.quick else 30)
        seconds = 0.005 if self.quick else 0.02
        limit = min(self.max_seconds, 4.0) if self.quick else self.max_seconds
        pause = PAUSE if self.against else 0.0
        return {"rounds": rounds, "min_seconds": seconds, "max_seconds": limit, "pause": pause, "seed": self.seed}

    def forms(self, possible: Sequence[str]) -> list[str]:
        """Those forms of peers that are asked for; torch.compile stands for all its forms."""
        return [form for form in possible if {form.split(",")[0], "all"} & set(self.against)]


class PeerForm:
    """A form in the worker, to be timed in turn with those of this process."""

    def __init__(self, worker: Worker, form: str):
        self._worker, self._form = worker, form

    def sample(self, calls: int) -> float:
        """Seconds a call."""
        return self._worker.ask("sample", form=self._form, calls=calls)["seconds"]


@contextlib.contextmanager
def peers(arguments: Options, platform: str) -> Iterator[tuple[Worker | None, dict[str, Any]]]:
    """The worker of the other libraries and its description, or None and nothing if none is asked for.

    Raises:
        Refused: it does not start, or its torch cannot compute on the platform.
    """
    if not arguments.against:
        yield None, {}
        return
    if platform == "tpu":
        raise Refused("--against: there is no torch for TPUs here; leave it out")
    try:
        worker = Worker([arguments.peer_python, "-m", "benchmarks.peers"], arguments.peer_setup)
    except OSError as error:
        raise Refused(f"--peer-python {arguments.peer_python}: {error.strerror}") from error
    with worker:
        try:
            facts = worker.ask("describe")
        except PeerError as error:
            raise Refused(f"--against: {arguments.peer_python} cannot run it ({error}); see --peer-python") from error
        if platform == "gpu" and not facts["cuda"]:
            raise Refused("--against: that torch sees no GPU, and jax computes on one; use --platform cpu")
        yield worker, facts


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


def machine_of(platform: str, peer_facts: Mapping[str, Any]) -> dict[str, Any]:
    """The description of the machine; a word on stderr if others compute on it too."""
    machine = describe() | {"jax_backend": platform, "matmul_precision": _matmul_precision()}
    if peer_facts:
        machine |= {"peers": dict(peer_facts), "versions": machine["versions"] | peer_facts["versions"]}
    if (busy := machine["busy_cores"] or 0) > 0.3:
        console.print(
            f"other programs keep {busy:.1f} of {machine['cores']} cores busy: times will be too long;"
            " repeat this on an idle machine before you believe it"
        )
    return machine


def open_results(arguments: Options, head: Mapping[str, Any]) -> ResultFile:
    """The file in --out that a run adds its rows to; `head` is all but these.

    Raises:
        Refused: there is a file of this name that is no result.
    """
    try:
        return ResultFile(arguments.out, head)
    except ValueError as error:
        raise Refused(f"--out: {error}") from error


def run_command(main: Callable[[Any, str], int], arguments: type[Options], argv: Sequence[str] | None = None) -> int:
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
        return main(chosen, platform)
    except Refused as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1


def _matmul_precision() -> str | None:
    return getattr(jax.config, "jax_default_matmul_precision", None)
