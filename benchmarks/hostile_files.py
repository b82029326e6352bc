"""Reads damaged and hostile files with every function that reads files of others, and counts what comes of them.

Usage: python -m benchmarks.hostile_files [--readers mask coco] [--files 10000] [--out hostile.jsonl]

A reader must return a result, or raise a ValueError or an OSError whose message names the file, within 20 s of the
processor, and without more than 20 warnings. A file that is not read like this is written to --kept. One line of JSON
for each reader has the counts; `at_first_check` counts the files that were refused because they are not of the format
at all, and `seconds` are the processor's. If the process crashes, the file is still in the folder that is printed at
the start.
"""

import collections
import contextlib
import dataclasses
import gc
import logging
import os
import random
import re
import shutil
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import hostile_models, hostile_readers
from benchmarks.hostile_readers import Reader
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert

LIMIT = 20
"""Seconds, and warnings, for one file."""
_FIRST_CHECK = re.compile(
    "cannot identify image file|not a TIFF|is not JSON|is not a checkpoint|[Mm]agic|is not a file of|not UTF-8|"
    "not UTF8|header too large|invalid header|no weight_map can be read|HeaderTooLarge|HeaderTooSmall|BAD_HEADER|"
    "not a \\.npy|cannot load this image|codec can't decode|no pages found|is not the log"
)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Reads damaged and hostile files."""

    readers: tuple[str, ...] = ()
    """Names of readers; none for all."""
    files: int = 10_000
    """Number of files for each reader."""
    seed: int = 0
    """Seed of the changes."""
    kept: Path = Path("out/hostile")
    """Folder for files that are not read as they should be."""
    out: Path | None = None
    """File for the results, to which a line is added for each reader."""
    docs: Path | None = None
    """Only write the table of the results in --out into this document, without reading."""


def prepare(folder: Path) -> dict[str, Reader]:
    """Writes a valid file for every reader."""
    groups = {
        "PNG, JPEG, BMP and WebP": hostile_readers.pictures(folder),
        "TIFF, whole and by windows": hostile_readers.tiffs(folder),
        "folders of masks, instances, changes, depth": hostile_readers.folders(folder / "folders"),
        "COCO's annotations": hostile_readers.annotations(folder / "annotated"),
        "model files, safetensors, .pth": hostile_models.models(folder),
        "configurations of repositories": hostile_models.repositories(folder / "repositories"),
        "logs, checkpoints, compiled programs": hostile_models.runs(folder),
    }
    return {name: reader._replace(group=group) for group, readers in groups.items() for name, reader in readers.items()}


class Fault(Exception):
    """A file was not read as it should be."""


@contextlib.contextmanager
def _within(seconds: int) -> Iterator[None]:
    """Raises a Fault after so much time of the processor, or ten times as much by the clock, on a busy machine."""

    def stop(*_: Any) -> None:
        raise Fault(f"took longer than {seconds} s")

    timers = ((signal.ITIMER_PROF, signal.SIGPROF, seconds), (signal.ITIMER_REAL, signal.SIGALRM, 10 * seconds))
    before = [signal.signal(number, stop) for _, number, _ in timers]
    for timer, _, limit in timers:
        signal.setitimer(timer, limit)
    try:
        yield
    finally:
        for (timer, number, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


class _Counter(logging.Handler):
    """Counts records of loggers."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


def outcome(reader: Reader, folder: Path, content: bytes) -> str:
    """Reads the content in place of the valid file.

    Returns:
        "read", or the type of the error, and " at the first check" behind it if the format was not recognised.

    Raises:
        Fault: if it took too long, warned too often, or an error's message does not name the file.
    """
    path = folder / reader.path
    path.write_bytes(content)
    logged = _Counter()
    found = "read"
    root = logging.getLogger()
    handlers = root.handlers
    root.handlers = [logged]
    try:
        with warnings.catch_warnings(record=True) as warned, _within(LIMIT):
            warnings.simplefilter("always")
            reader.read(path)
    except (ValueError, OSError) as error:
        found, message = type(error).__name__, str(error)
        if path.name not in message and str(path.parent) not in message:
            raise Fault(f"the message does not name the file: {error!r}") from error
        if _FIRST_CHECK.search(message):
            found += " at the first check"
    finally:
        root.handlers = handlers
    # Python shows equal warnings once, and all records of loggers.
    messages = list(dict.fromkeys(str(warning.message) for warning in warned)) + logged.records
    if len(messages) > LIMIT:
        raise Fault(f"{len(messages)} warnings, such as {messages[0]}")
    return found


def attack(
    name: str, reader: Reader, folder: Path, count: int, kept: Path | None = None, seed: int = 0
) -> collections.Counter[str]:
    """The outcomes of changed files.

    Args:
        name: name of the reader.
        reader: the reader.
        folder: the folder of `prepare`.
        count: number of files.
        kept: folder for the files of faults; None to raise an AssertionError at the first one.
        seed: seed of the changes.
    """
    path = folder / reader.path
    valid = path.read_bytes()
    outcome(reader, folder, valid)
    rng, outcomes = random.Random(seed), collections.Counter()
    try:
        for number in range(count):
            content = rng.choice(reader.damage)(valid, rng)
            try:
                outcomes[outcome(reader, folder, content)] += 1
            except BaseException as error:
                if kept is None or isinstance(error, KeyboardInterrupt):
                    raise AssertionError(f"{name}, file {number}: {error!r}") from error
                kind = f"FAULT {error!r:.120}"
                outcomes[kind] += 1
                if outcomes[kind] <= 3:
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / f"{name.replace('/', ' ')}-{number}").write_bytes(content)
    finally:
        path.write_bytes(valid)
    return outcomes


def _memory() -> tuple[float, float]:
    """The memory of this process in MiB, now and at most since `_forget_peak`; zeros if the system does not say."""
    try:
        found = dict(re.findall(r"(VmRSS|VmHWM):\s+(\d+) kB", Path("/proc/self/status").read_text()))
    except OSError:
        return 0.0, 0.0
    return int(found["VmRSS"]) / 1024, int(found["VmHWM"]) / 1024


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def row(name: str, outcomes: collections.Counter[str], seed: int, seconds: float) -> dict[str, Any]:
    """The counts of a reader as a line of the results."""
    errors = collections.Counter[str]()
    for kind, count in outcomes.items():
        if kind != "read" and not kind.startswith("FAULT"):
            errors[kind.split()[0]] += count
    return {
        "reader": name,
        "files": outcomes.total(),
        "results": outcomes["read"],
        "errors": dict(errors),
        "at_first_check": sum(count for kind, count in outcomes.items() if kind.endswith("at the first check")),
        "faults": {kind[6:]: count for kind, count in outcomes.items() if kind.startswith("FAULT")},
        "seconds": round(seconds, 1),
        "seed": seed,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The results by group, as a Markdown table."""
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        read, results, at_once = (sum(row[key] for row in own) for key in ("files", "results", "at_first_check"))
        refused, faults = (sum(sum(row[key].values()) for row in own) for key in ("errors", "faults"))
        peak = round(max(0, *(row["memory_peak_mib"] for row in own)))
        counts = (read, results, refused, at_once, peak, faults)
        lines.append((group, f"{len(own)}", *(f"{count:,}" for count in counts)))
    heads = ("files", "readers", "read", "a result", "refused", "of these at once", "most memory, MiB", "faults")
    return markdown_table(heads, lines)


def main(arguments: Arguments) -> None:
    if arguments.docs is not None:
        if arguments.out is None:
            raise ValueError("--docs needs --out, the file of the results")
        insert(arguments.docs, {"hostile": table(read_lines(arguments.out))})
        return
    folder = Path(tempfile.mkdtemp(prefix="hostile"))
    print(f"reading in {folder}", flush=True)
    readers = prepare(folder)
    if unknown := [name for name in arguments.readers if name not in readers]:
        raise ValueError(f"there are no readers {', '.join(unknown)}; there are: {', '.join(readers)}")
    for name in arguments.readers or readers:
        attack(name, readers[name], folder, min(20, arguments.files), arguments.kept, -1)  # loads what it needs
        gc.collect()
        _forget_peak()
        before, start = _memory()[0], time.process_time()
        found = attack(name, readers[name], folder, arguments.files, arguments.kept, arguments.seed)
        result = {"group": readers[name].group} | row(name, found, arguments.seed, time.process_time() - start)
        gc.collect()
        after, peak = _memory()
        result |= {"memory_grown_mib": round(after - before, 1), "memory_peak_mib": round(peak - before, 1)}
        if arguments.out is None:
            print(result, flush=True)
        else:
            append_line(arguments.out, result)
    shutil.rmtree(folder)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(tyro.cli(Arguments, description=__doc__))
