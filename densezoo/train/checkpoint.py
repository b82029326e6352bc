"""Checkpoints of a training: the `last` and the `best` one, written by orbax.

A run's directory holds `last/` and `best/`, and each of them one finished checkpoint, for instance
`last/0003-step-1500` (for a moment two: the older one goes when the newer one is complete). Orbax writes into a
temporary folder and renames it at the end, so a folder with a plain name is a whole checkpoint.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from densezoo.messages import indented
from densezoo.train.state import TrainState, describe_differences

_COLLECTION = "collection:"
_FINISHED = re.compile(r"\d+-step-\d+")


class CheckpointWriter:
    """Writes states under one name of a run, in the background, and keeps the newest.

    Args:
        directory: the run's directory.
        which: `last` or `best`.
    """

    def __init__(self, directory: str | Path, which: str):
        self._folder = Path(directory).resolve() / which
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        _hide_repeated_errors()

    def save(self, state: TrainState, facts: Mapping[str, Any]) -> None:
        """Starts to write a state; returns when the state has left the device.

        Args:
            state: the state.
            facts: what is stored beside it, JSON values, among them `step`.

        Raises:
            OSError: if this or the previous checkpoint cannot be written.
        """
        self.wait()
        # A number that only ever rises says which one is newest, also if a resumed run comes to the same step again.
        number = max(map(_number, _finished(self._folder)), default=0) + 1
        with self._report_failure():
            contents = _contents(state)
            self._folder.mkdir(parents=True, exist_ok=True)
            needed, free = sum(x.nbytes for x in jax.tree.leaves(contents)), shutil.disk_usage(self._folder).free
            if needed > free:
                raise OSError(f"{needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free")
            self._orbax.save(
                self._folder / f"{number:04d}-step-{facts['step']}",
                args=ocp.args.PyTreeSave(contents),
                custom_metadata=dict(facts),
            )

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete, and removes the ones before it.

        Raises:
            OSError: if it could not be written.
        """
        with self._report_failure():
            self._orbax.wait_until_finished()
        self._remove(_finished(self._folder)[:-1] + self._unfinished())

    def close(self) -> None:
        """Waits, and gives back the threads."""
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
            raise OSError(
                f"could not write a checkpoint into {self._folder} (is the disk full?): {_first_line(error)}. "
                + (f"The one before it is whole: {kept.name}." if kept else "There is none before it.")
                + " Make room and continue with resume=True."
            ) from error

    def _unfinished(self) -> list[Path]:
        return list(self._folder.glob("*.orbax-checkpoint-tmp*"))

    def _remove(self, paths: list[Path]) -> None:
        if jax.process_index() == 0:
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)


def newest_checkpoint(directory: str | Path, which: str) -> Path | None:
    """The newest complete checkpoint of a run under that name, or None."""
    return next(reversed(_finished(Path(directory).resolve() / which)), None)


def read_facts(directory: str | Path, which: str = "last") -> dict[str, Any]:
    """What was stored beside a run's checkpoint: `step`, and for `best` the `score`.

    Args:
        directory: the run's directory.
        which: `last` or `best`.

    Returns:
        A dict of JSON values.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
    """
    return dict(_metadata(_require(directory, which))[1])


def restore_state(directory: str | Path, state: TrainState, which: str = "last") -> TrainState:
    """The state that a checkpoint holds, bit for bit, on the devices of the state at hand.

    Args:
        directory: the run's directory.
        state: a state of the same model and optimizer, as `create_state` makes it; it is not changed.
        which: `last` or `best`.

    Returns:
        The restored state.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is of another model or optimizer, or damaged.
    """
    path = _require(directory, which)
    wanted = _contents(state)
    if lines := describe_differences(wanted, _metadata(path)[0], "the checkpoint"):
        of_model = not all(line.startswith(("ema", "training")) for line in lines)
        raise ValueError(
            f"this checkpoint is of another {'model' if of_model else 'optimizer or ema_decay'}: {path}\n"
            f"{len(lines)} arrays differ.\n{indented(lines)}\n"
            "Build the model and the optimizer as for the run that wrote it; load_variables reads its model alone."
        )
    read = _read(path, wanted)
    opt_leaves, opt_structure = jax.tree.flatten_with_path(state.opt_state)
    return state.replace(
        step=read["training"]["step"],
        params=read["params"],
        collections={name: read[_stored_as(name)] for name in state.collections},
        opt_state=opt_structure.unflatten([read["training"]["optimizer"][_name(path)] for path, _ in opt_leaves]),
        ema=None if state.ema is None else read["ema"],
        key=jax.random.wrap_key_data(read["training"]["key"], impl=jax.random.key_impl(state.key)),
    )


def load_variables(directory: str | Path, which: str = "best") -> dict[str, Any]:
    """A trained model's variables, for `model.apply`; neither model nor optimizer is needed to read them.

    The averaged parameters if the training kept an average, else the parameters.

    Args:
        directory: the run's directory.
        which: `best` or `last`.

    Returns:
        Variables, as `model.init` returns them.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is damaged.
    """
    path = _require(directory, which)
    stored = _metadata(path)[0]
    model = {name: tree for name, tree in stored.items() if name != "training"}
    read = _read(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model))
    params = read.pop("params") | read.pop("ema", {})
    return {"params": params} | {name.removeprefix(_COLLECTION): tree for name, tree in read.items() if tree}


def _contents(state: TrainState) -> dict[str, Any]:
    """A state as nested dicts of arrays. Optimizer memory is a flat dict by path, for any optimizer's types."""
    return {
        "params": state.params,
        **{_stored_as(name): tree for name, tree in state.collections.items()},
        "ema": state.ema or {},
        "training": {
            "step": state.step,
            "key": jax.random.key_data(state.key),
            "optimizer": {_name(path): x for path, x in jax.tree.leaves_with_path(state.opt_state)},
        },
    }


def _stored_as(collection: str) -> str:
    """The name of a collection in a checkpoint, where it cannot be taken for a part of the training."""
    return collection if collection == "batch_stats" else _COLLECTION + collection


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _finished(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, newest last."""
    return sorted((path for path in folder.glob("*") if _FINISHED.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.split("-")[0])


def _require(directory: str | Path, which: str) -> Path:
    if path := newest_checkpoint(directory, which):
        return path
    others = [name for name in ("last", "best") if newest_checkpoint(directory, name)]
    hint = f"; there is which={others[0]!r}" if others else ""
    raise FileNotFoundError(f"no complete {which!r} checkpoint in {Path(directory).resolve()}{hint}")


def _metadata(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of the stored arrays, and the facts beside them."""
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            metadata = orbax.metadata(path)
        return metadata.item_metadata.tree, metadata.custom_metadata
    except Exception as error:
        raise _damaged(path, error) from error


def _read(path: Path, wanted: PyTree) -> PyTree:
    """The arrays of `wanted`; those of it that are tied to devices there, the others as plain device arrays."""

    def how(x):
        if getattr(x, "committed", False):
            return ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    _hide_repeated_errors()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            arguments = ocp.args.PyTreeRestore(wanted, restore_args=jax.tree.map(how, wanted), partial_restore=True)
            read = orbax.restore(path, args=arguments)
    except Exception as error:
        raise _damaged(path, error) from error
    # An array that is tied to a device would make the jitted step compile anew: numpy arrays become free ones.
    return jax.tree.map(lambda x: jnp.array(x) if isinstance(x, np.ndarray) else x, read)


def _hide_repeated_errors() -> None:
    """A checkpoint that cannot be written or read is one error here; orbax logs a traceback per array besides."""
    for name in ("asyncio", "absl"):
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    of_an_array = "exception was never retrieved" in text and any(word in text for word in ("orbax", "OCDBT", "Errno"))
    return not (of_an_array or "in background save thread" in text or "_SignalingThread.run() raised" in text)


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"the checkpoint {path} cannot be read; it is damaged: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
