"""Writes the training checkpoints `last` and `best` with Orbax; `restore.py` reads them.

A run's directory contains `last/` and `best/`. `last/` has the two newest checkpoints, for instance `0002-step-1000`
and `0003-step-1500`, so that one remains if the other is damaged. `best/` has one. The oldest is removed before a third
is written. Orbax writes into a temporary folder and renames it at the end, so a folder with a final name is a complete
checkpoint. The checksums in it reveal later damage.
"""

import logging
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from densezoo.messages import option
from densezoo.train.checksums import write_checksums
from densezoo.train.state import TrainState

COLLECTION = "collection:"
_FINISHED = re.compile(r"\d+-step-\d+")
UNLOGGED = "unlogged"
"""Key in the facts for metrics of steps that are not in the log yet; `read_facts` omits it."""


class CheckpointWriter:
    """Writes states as `last` or `best` of a run, in the background, and keeps the newest.

    Args:
        directory: the run's directory.
        which: `last` or `best`.
        keep: number of checkpoints to keep, 1 or 2.
    """

    def __init__(self, directory: str | Path, which: str, keep: int = 1):
        self._folder = Path(directory).resolve() / which
        self._keep = keep
        self._facts: Mapping[str, Any] = {}
        handler = ocp.PyTreeCheckpointHandler()
        finalize = handler.finalize

        def add_checksums(directory: Any) -> None:
            """Runs in the background, when all arrays are written and the directory still has its temporary name."""
            finalize(directory)
            write_checksums(Path(directory), self._facts)

        handler.finalize = add_checksums
        self._orbax = ocp.AsyncCheckpointer(handler)
        hide_repeated_errors()

    def save(self, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Starts to write a state. Returns when the state has been copied from the device.

        Args:
            state: the state.
            facts: JSON values to store with it, including `step`.

        Raises:
            OSError: if this or the previous checkpoint cannot be written.
        """
        self.wait()
        # An increasing number identifies the newest, even if a resumed run reaches the same step again.
        before = finished(self._folder)
        number = max(map(number_of, before), default=0) + 1
        self._remove(before[:-1])
        with self._report_failure():
            arrays = contents(state)
            self._folder.mkdir(parents=True, exist_ok=True)
            needed, free = sum(x.nbytes for x in jax.tree.leaves(arrays)), shutil.disk_usage(self._folder).free
            if needed > free:
                raise OSError(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
            self._facts = dict(facts)
            self._orbax.save(
                self._folder / f"{number:04d}-step-{facts['step']}",
                args=ocp.args.PyTreeSave(arrays),
                custom_metadata=dict(facts),
            )

    def wait(self) -> None:
        """Waits until the current checkpoint is complete, and removes old ones.

        Raises:
            OSError: if it could not be written.
        """
        with self._report_failure():
            self._orbax.wait_until_finished()
        self._remove(finished(self._folder)[: -self._keep] + self._unfinished())

    def close(self) -> None:
        """Waits, and releases the threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    @contextmanager
    def _report_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # tensorstore raises ValueError, RuntimeError or OSError for the same full disk.
            self._remove(self._unfinished())
            kept = newest_checkpoint(self._folder.parent, self._folder.name)
            reason = "is the disk full?" if jax.process_count() == 1 else "is the disk full, or did a process end?"
            raise OSError(
                f"could not write a checkpoint into {self._folder} ({reason}): {first_line(error)}. "
                + (f"The previous one is complete: {kept.name}." if kept else "There is no previous one.")
                + f" Free disk space and continue with {option('resume', True)}."
            ) from error

    def _unfinished(self) -> list[Path]:
        return list(self._folder.glob("*.orbax-checkpoint-tmp*"))

    def _remove(self, paths: list[Path]) -> None:
        if jax.process_index() == 0:
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(directory: str | Path, which: str) -> Path | None:
    """The newest complete checkpoint of a run under that name, or None."""
    return next(reversed(finished(Path(directory).resolve() / which)), None)


def checkpoint_of_step(directory: str | Path, which: str, step: int) -> Path | None:
    """The newest complete checkpoint of that step, or None."""
    paths = finished(Path(directory).resolve() / which)
    return next((path for path in reversed(paths) if path.name.endswith(f"-step-{step}")), None)


def contents(state: TrainState) -> dict[str, Any]:
    """A state as nested dicts of arrays. The optimizer state is a flat dict by path, for any optimizer's types."""
    return {
        "params": state.params,
        **{stored_as(name): tree for name, tree in state.collections.items()},
        "ema": state.ema or {},
        "training": {
            "step": state.step,
            "key": jax.random.key_data(state.key),
            "optimizer": {name_of(path): x for path, x in jax.tree.leaves_with_path(state.opt_state)},
        },
    }


def stored_as(collection: str) -> str:
    """The name of a collection in a checkpoint, which cannot collide with other parts of the state."""
    return collection if collection == "batch_stats" else COLLECTION + collection


def name_of(path: tuple[Any, ...]) -> str:
    """The name of an array of the optimizer state in a checkpoint."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def finished(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, newest last."""
    return sorted((path for path in folder.glob("*") if _FINISHED.fullmatch(path.name)), key=number_of)


def number_of(path: Path) -> int:
    """The number of a checkpoint; the newest has the highest."""
    return int(path.name.split("-")[0])


def hide_repeated_errors() -> None:
    """Reduces a failed read or write to one error; Orbax would also report every array."""
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_is_news)
    if not isinstance(sys.unraisablehook, _HideClosedLoop):
        sys.unraisablehook = _HideClosedLoop(sys.unraisablehook)


class _HideClosedLoop:
    """Python's hook for uncatchable errors, without those of arrays that finish after a failed write."""

    def __init__(self, report: Callable[[Any], object]):
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            self._report(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    of_an_array = "exception was never retrieved" in text and any(word in text for word in ("orbax", "OCDBT", "Errno"))
    return not (of_an_array or "in background save thread" in text or "_SignalingThread.run() raised" in text)


def first_line(error: Exception) -> str:
    """An error's first line, or its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
