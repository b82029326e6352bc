"""Command-line options that the benchmarks share."""

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

PAUSE = 0.1  # seconds; after their work, onnxruntime's threads spin for up to 50 ms and torch's for 10


class Mismatch(Exception):
    """Two implementations disagree, so timing them is pointless; the message says which and by how much."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of every benchmark."""

    platform: Literal["cpu", "gpu", "tpu"] | None = None
    """Where to run; by default jax's choice."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of maps and weights. CPUs without AVX512-BF16 or AMX emulate bfloat16."""
    quick: bool = False
    """Few rounds and one small shape, for a quick look."""
    against: tuple[Literal["torch", "torch.compile", "onnxruntime", "openvino", "all"], ...] = ()
    """Also time these, in turn, in another process."""
    peer_python: str = sys.executable
    """The Python interpreter that has them installed."""
    peer_setup: str | None = None
    """A module that this interpreter imports first."""
    out: Path = Path("out/benchmarks")
    """Folder of the results. Comparisons that a file there already contains are not measured again."""
    again: bool = False
    """Also measure those again."""
    label: str = ""
    """A word in the names of the result files, for another machine of the same kind that is not as fast."""
    malloc: Literal["hugetlb", "default"] = "hugetlb"
    """On Linux CPUs: restart with glibc's huge pages for large arrays, or keep malloc's default."""
    rounds: int | None = None
    """Samples of each candidate; 30 by default, 7 with --quick."""
    max_seconds: float = 60.0
    """Time limit in seconds for the samples of one comparison; slow comparisons have fewer rounds."""
    seed: int = 0
    """Seed of the data and of the order in each round."""

    def check(self) -> str:
        """Rejects invalid options, chooses the platform and returns its name."""
        if self.rounds is not None and self.rounds < 1:
            raise Refused(f"--rounds must be at least 1, got {self.rounds}")
        if self.max_seconds <= 0:
            raise Refused("--max-seconds must be positive")
        if self.out.exists() and not self.out.is_dir():
            raise Refused(f"--out {self.out} is a file; expected a folder")
        return choose_platform(self.platform, beside_others=bool(self.against))

    def times(self) -> dict[str, Any]:
        """Arguments of `measure`."""
        rounds = self.rounds or (7 if self.quick else 30)
        seconds = 0.005 if self.quick else 0.02
        limit = min(self.max_seconds, 4.0) if self.quick else self.max_seconds
        pause = PAUSE if self.against else 0.0
        return {"rounds": rounds, "min_seconds": seconds, "max_seconds": limit, "pause": pause, "seed": self.seed}

    def forms(self, possible: Sequence[str]) -> list[str]:
        """The requested forms of peers; torch.compile stands for all its forms."""
        return [form for form in possible if {form.split(",")[0], "all"} & set(self.against)]


class PeerForm:
    """A form in the worker, timed in turn with those of this process."""

    def __init__(self, worker: Worker, form: str):
        self._worker, self._form = worker, form

    def sample(self, calls: int) -> float:
        """Seconds per call."""
        return self._worker.ask("sample", form=self._form, calls=calls)["seconds"]


@contextlib.contextmanager
def peers(arguments: Options, platform: str) -> Iterator[tuple[Worker | None, dict[str, Any]]]:
    """The worker of the other libraries and its description; None and an empty one if none is requested.

    Raises:
        Refused: if it does not start, or its torch cannot compute on the platform.
    """
    if not arguments.against:
        yield None, {}
        return
    if platform == "tpu":
        raise Refused("--against: torch is not supported on TPUs here; omit it")
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
            raise Refused("--against: this torch sees no GPU, but jax uses one; pass --platform cpu")
        yield worker, facts


def parse_shape(text: str, names: str) -> tuple[int, ...]:
    """Parses a shape such as 4x64x64x64.

    Raises:
        Refused: if it is invalid, or the number of sizes differs from `names`, such as BxHxWxC.

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
    """The maximum difference over the maximum magnitude of the truth; infinite for different shapes or NaNs."""
    value, truth = np.asarray(value, np.float32), np.asarray(truth, np.float32)
    if value.shape != truth.shape:
        return float("inf")
    with np.errstate(invalid="ignore"):
        difference = np.abs(value - truth).max()
    largest = np.abs(truth).max()
    return float(difference / largest if largest else difference) if np.isfinite(difference) else float("inf")


def tolerance(dtype: str, platform: str, *, gradient: bool = False) -> float:
    """The allowed relative error: float32 products are rounded to TF32 on GPUs, to bfloat16 on TPUs."""
    if dtype == "bfloat16" or platform == "tpu":
        return 3e-2
    if platform == "gpu":
        return 5e-3
    return 1e-4 if gradient else 1e-5


def progress_bar() -> Progress:
    """A progress bar on stderr that says what is being measured."""
    columns = (SpinnerColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    return Progress(*columns, console=console, transient=True)


def machine_of(platform: str, peer_facts: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the machine; warns on stderr if other processes use it too."""
    machine = describe() | {"jax_backend": platform, "matmul_precision": _matmul_precision()}
    if peer_facts:
        machine |= {"peers": dict(peer_facts), "versions": machine["versions"] | peer_facts["versions"]}
    if (busy := machine["busy_cores"] or 0) > 0.3:
        console.print(
            f"other programs use {busy:.1f} of {machine['cores']} cores: times will be too long;"
            " repeat this on an idle machine for reliable results"
        )
    return machine


def open_results(arguments: Options, head: Mapping[str, Any]) -> ResultFile:
    """The result file in --out to which a run adds its rows; `head` has all other fields.

    Raises:
        Refused: if a file of this name is not a result.
    """
    try:
        label = {"label": arguments.label} if arguments.label else {}
        return ResultFile(arguments.out, {**head, "machine": head["machine"] | label})
    except ValueError as error:
        raise Refused(f"--out: {error}") from error


def run_command(main: Callable[[Any, str], int], arguments: type[Options], argv: Sequence[str] | None = None) -> int:
    """Parses a command line and runs a benchmark; returns the exit code. Errors are one line on stderr.

    Args:
        main: called with the options and the platform's name.
        arguments: class of the options.
        argv: arguments; None for this program's own, which may then restart with another malloc.
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
