"""Output of a training run: a log of JSON lines, timings, and a progress line."""

import contextlib
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from densezoo.extras import require
from densezoo.files import replace

Record = dict[str, Any]


class Log:
    """A run's records, in memory and in `log.jsonl`.

    Args:
        directory: the run's directory, or None to write no file.
        done: the step from which the run continues. Records of later steps are dropped, because they will be repeated.
    """

    def __init__(self, directory: Path | None, done: int):
        self.history: list[Record] = []
        self._path = None
        if directory is None:
            return
        path = directory / "log.jsonl"
        if path.exists():
            self.history = [record for record in _records(path) if record["step"] <= done]
        if jax.process_index() == 0:
            self._path = path
            text = "".join(json.dumps(record) + "\n" for record in self.history)
            replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write(self, record: Record) -> Record:
        """Adds a record and returns it as written."""
        record = _json(record)
        self.history.append(record)
        if self._path is not None:
            try:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:  # its message does not name the file if the disk is full
                raise OSError(error.errno, error.strerror, str(self._path)) from error
        return record


class Meter:
    """Means of metrics, and timings.

    The clock starts when the first step, which compiles, is complete. It is paused during evaluations.

    Args:
        unlogged: metrics of steps after the last record of a previous run, as returned by its meter.
    """

    def __init__(self, unlogged: Mapping[str, Sequence[float | str]]):
        self._start: float | None = None
        self._recompilations = 0
        self._paused = self._waited = self._window_start = 0.0
        self._columns = {name: [float(value) for value in values] for name, values in unlogged.items()}
        self._completed = self._images = 0

    @contextlib.contextmanager
    def waiting(self, unread: Any) -> Iterator[None]:
        """Times the fetching of a batch. `unread` are the metrics of the previous step, which may still be running."""
        begin = time.perf_counter()
        yield
        # If the device is still busy when the batch arrives, no time was lost.
        idle = all(x.is_ready() for x in jax.tree.leaves(unread) if hasattr(x, "is_ready"))
        if idle and self._start is not None:
            self._waited += time.perf_counter() - begin

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes time that is not training."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    @contextlib.contextmanager
    def stepping(self) -> Iterator[None]:
        """Monitors a call of the step, which may compile it."""
        compiled, caller = [], threading.get_ident()

        def listen(event: str, duration_secs: float, **_: Any) -> None:
            if event == "/jax/core/compile/backend_compile_duration" and threading.get_ident() == caller:
                compiled.append(duration_secs)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)
        self._recompilations += bool(compiled and self._start is not None)

    def dispatched(self, metrics: Any) -> None:
        """Registers a dispatched step and its future metrics."""
        if self._start is None:  # The only time that the loop waits, so that the clock starts between two steps.
            jax.block_until_ready(metrics)
            self._start = self._window_start = time.perf_counter()

    def completed(self, values: Mapping[str, float], images: int) -> None:
        """Registers a completed step and its metrics."""
        for name, value in values.items():
            self._columns.setdefault(name, []).append(value)
        if self._completed:  # The first step is not timed.
            self._images += images
        self._completed += 1

    def record(self) -> Record:
        """Means and timings since the last call."""
        now = time.perf_counter() - self._paused
        total = now - (self._start or now)
        record: Record = {name: _mean(column) for name, column in self._columns.items()}
        record["images_per_second"] = self._images / (now - self._window_start) if self._images else None
        record["input_wait"] = self._waited / total if total > 0 else 0.0
        record["recompilations"] = self._recompilations
        self._columns, self._images, self._window_start = {}, 0, now
        return record

    @property
    def unlogged(self) -> dict[str, list[float | str]]:
        """The metrics of the steps since the last record as JSON values, with non-finite numbers as text."""
        return {
            name: [value if math.isfinite(value) else str(value) for value in column]
            for name, column in self._columns.items()
        }


@contextlib.contextmanager
def display(enabled: bool, done: int, steps: int) -> Iterator[Callable[[int, Record], None]]:
    """Yields a function that shows a record on stderr, in a progress line if it is a terminal, else on its own line."""
    if not enabled:
        yield lambda step, record: None
        return
    if done:
        print(f"continuing after step {done} of {steps}", file=sys.stderr, flush=True)
    try:
        console, bars = require("rich.console").Console(stderr=True), require("rich.progress")
    except ModuleNotFoundError:
        console = bars = None
    if console is None or bars is None or not console.is_terminal:
        if done < steps:  # compiling may take a minute
            print("compiling the train step", file=sys.stderr, flush=True)
        yield lambda step, record: print(f"step {step}/{steps}  {_words(record)}", file=sys.stderr, flush=True)
        return
    columns = bars.BarColumn(), bars.MofNCompleteColumn(), bars.TimeRemainingColumn()
    with bars.Progress(*columns, bars.TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("compiling", total=steps, completed=done)
        shown = {"metrics": "", "scores": ""}

        def show(step: int, record: Record) -> None:
            shown["scores" if "scores" in record else "metrics"] = _words(record)
            progress.update(task, completed=step, description="  ".join(filter(None, shown.values())))

        yield show


def _words(record: Record) -> str:
    if "scores" in record:
        known = [f"{name} {value:.4g}" for name, value in record["scores"].items() if value is not None]
        return "  ".join(known[:12] + ["..."] * (len(known) > 12))
    shown = {"loss {:.4g}": record.get("loss"), "{:.4g} images/s": record["images_per_second"]}
    return "  ".join(words.format(value) for words, value in shown.items() if value is not None)


def _records(path: Path) -> Iterator[Record]:
    """The records of a log, without an incomplete last line of a killed process."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not the log of a run, which is UTF-8 text ({error}); move it away") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            whole = isinstance(record, dict) and isinstance(record.get("step"), int)
        except (ValueError, RecursionError):  # also numbers of thousands of digits
            whole = False
        if whole:
            yield record
        elif line.strip() and number < len(lines):  # Only the last line may be incomplete.
            raise ValueError(f"{path}: line {number} is not a record of a log; repair or remove the line")


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except (ValueError, OverflowError):  # infinities of both signs, or a sum that is too large
        return math.nan


def _json(value: Any) -> Any:
    """The value without NaN and infinity, which JSON does not support."""
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
