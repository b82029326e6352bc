"""Reads training checkpoints: the newest undamaged one."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from densezoo.messages import indented
from densezoo.train.checkpoint import (
    COLLECTION,
    UNLOGGED,
    contents,
    finished,
    first_line,
    hide_repeated_errors,
    name_of,
    newest_checkpoint,
    number_of,
    stored_as,
)
from densezoo.train.checksums import check_facts, check_files
from densezoo.train.state import TrainState, describe_differences

T = TypeVar("T")
_log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """Raised for a checkpoint whose files have changed since they were written."""


def read_facts(directory: str | Path, which: str = "last") -> dict[str, Any]:
    """Reads the values stored with a run's checkpoint: `step`, and for `best` the `score`.

    Args:
        directory: the run's directory.
        which: `last` or `best`.

    Returns:
        A dict of JSON values.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is damaged.
    """
    facts = _newest_whole(directory, which, lambda path: _metadata(path)[1])
    return {name: value for name, value in facts.items() if name != UNLOGGED}


def restore_state(directory: str | Path, state: TrainState, which: str = "last") -> TrainState:
    """Restores a checkpoint's state bit for bit, on the devices of the given state.

    If the newest checkpoint is damaged and the previous one is not, the previous one is used, and a warning is logged.

    Args:
        directory: the run's directory.
        state: a state of the same model and optimizer, from `create_state`. It is not changed.
        which: `last` or `best`.

    Returns:
        The restored state.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is of another model or optimizer, or damaged.
    """
    return _newest_whole(directory, which, lambda path: restore(path, state)[0])


def restore_newest(directory: str | Path, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and all facts of the newest undamaged `last` checkpoint.

    Newer, damaged ones are renamed, so that they are not considered again.
    """
    path, restored = _newest_whole(directory, "last", lambda path: (path, restore(path, state)))
    for newer in finished(path.parent):
        if number_of(newer) > number_of(path) and jax.process_index() == 0:
            aside = newer.with_name(f"{newer.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            newer.rename(aside)
    return restored


def restore(path: Path, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state and all facts of one checkpoint; see `restore_state`.

    Raises:
        DamagedCheckpoint: if it is damaged.
        ValueError: if it is of another model or optimizer.
    """
    wanted = contents(state)
    stored, facts = _metadata(path)
    if lines := describe_differences(wanted, stored, "the checkpoint"):
        of_model = not all(line.startswith(("ema", "training")) for line in lines)
        raise ValueError(
            f"this checkpoint belongs to another {'model' if of_model else 'optimizer or ema_decay'}: {path}\n"
            f"{len(lines)} arrays differ.\n{indented(lines)}\n"
            "Build the model and the optimizer as in the run that wrote it; load_variables only reads its model."
        )
    read = _read(path, wanted)
    opt_leaves, opt_structure = jax.tree.flatten_with_path(state.opt_state)
    restored = state.replace(
        step=read["training"]["step"],
        params=read["params"],
        collections={name: read[stored_as(name)] for name in state.collections},
        opt_state=opt_structure.unflatten([read["training"]["optimizer"][name_of(path)] for path, _ in opt_leaves]),
        ema=None if state.ema is None else read["ema"],
        key=jax.random.wrap_key_data(read["training"]["key"], impl=jax.random.key_impl(state.key)),
    )
    return restored, facts


def load_variables(directory: str | Path, which: str = "best") -> dict[str, Any]:
    """Loads a trained model's variables, for `model.apply`. Needs neither the model nor the optimizer.

    Returns the averaged parameters if the training kept an average, or else the parameters.

    Args:
        directory: the run's directory.
        which: `best` or `last`.

    Returns:
        Variables, as `model.init` returns them.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the checkpoint is damaged.
    """
    return _newest_whole(directory, which, _variables)


def _variables(path: Path) -> dict[str, Any]:
    model = {name: tree for name, tree in _metadata(path)[0].items() if name != "training"}
    read = _read(path, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model))
    params = read.pop("params") | read.pop("ema", {})
    return {"params": params} | {name.removeprefix(COLLECTION): tree for name, tree in read.items() if tree}


def _newest_whole(directory: str | Path, which: str, read: Callable[[Path], T]) -> T:
    """Returns the result of `read` for the newest undamaged checkpoint."""
    newest = _require(directory, which)
    damages: list[DamagedCheckpoint] = []
    for path in reversed(finished(newest.parent)):
        try:
            result = read(path)
        except DamagedCheckpoint as error:
            damages.append(error)
            continue
        for damage in damages:
            _log.warning("%s. Using the previous one, which is complete, instead: %s", damage, path)
        return result
    raise damages[0]


def _require(directory: str | Path, which: str) -> Path:
    if path := newest_checkpoint(directory, which):
        return path
    others = [name for name in ("last", "best") if newest_checkpoint(directory, name)]
    hint = f"; there is which={others[0]!r}" if others else ""
    raise FileNotFoundError(f"no complete {which!r} checkpoint in {Path(directory).resolve()}{hint}")


def _metadata(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Shapes and dtypes of the stored arrays, and the facts. Compares all files with their checksums."""
    try:
        check_files(path)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            metadata = orbax.metadata(path)
        check_facts(path, metadata.custom_metadata)
        tree = metadata.item_metadata.tree
        if not isinstance(tree, dict) or "params" not in tree or not all(map(_is_array, jax.tree.leaves(tree))):
            raise ValueError("its file _METADATA does not describe the arrays of a training")
        return tree, dict(metadata.custom_metadata)
    except Exception as error:
        raise _damaged(path, error) from error


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _read(path: Path, wanted: PyTree) -> PyTree:
    """The arrays of `wanted`, on its devices if they are committed, or else as uncommitted arrays."""

    def how(x):
        if getattr(x, "committed", False):
            return ocp.ArrayRestoreArgs(sharding=x.sharding, dtype=x.dtype)
        return ocp.RestoreArgs(restore_type=np.ndarray)

    hide_repeated_errors()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as orbax:
            arguments = ocp.args.PyTreeRestore(wanted, restore_args=jax.tree.map(how, wanted), partial_restore=True)
            read = orbax.restore(path, args=arguments)
    except Exception as error:
        raise _damaged(path, error) from error
    # A committed array would recompile the jitted step; NumPy arrays become uncommitted ones.
    return jax.tree.map(lambda x: jnp.array(x) if isinstance(x, np.ndarray) else x, read)


def _damaged(path: Path, error: Exception) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"the checkpoint {path} cannot be read; it is damaged: {first_line(error)}")
