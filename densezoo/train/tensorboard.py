"""Writes a run's records for TensorBoard."""

import os
from collections.abc import Callable
from typing import Any

from densezoo.extras import require


def to_tensorboard(directory: str | os.PathLike[str]) -> Callable[[dict[str, Any]], None]:
    """Creates an `on_record` callback for `fit` and `train` that writes all numbers of a record for TensorBoard.

    Scores have their own group, such as `scores/mean_iou`. A resumed run hides TensorBoard's records of later steps.

    Args:
        directory: directory of the event files; `tensorboard --logdir DIRECTORY` shows them.

    Returns:
        A function of a record.

    Raises:
        ModuleNotFoundError: if tensorboardX is not installed. The message has the command that installs it.

    Example:
        >>> from densezoo.train import to_tensorboard
        >>> write = to_tensorboard("out/run/tensorboard")  # doctest: +SKIP
        >>> train(task, model, *sources, on_record=write)  # doctest: +SKIP
    """
    library = require("tensorboardX")
    writer: Any = None

    def write(record: dict[str, Any]) -> None:
        nonlocal writer
        step = record["step"]
        if writer is None:
            writer = library.SummaryWriter(os.fspath(directory), purge_step=step)
        numbers = {name: value for name, value in record.items() if name != "step"}
        numbers |= {f"scores/{name}": value for name, value in record.get("scores", {}).items()}
        for name, value in numbers.items():
            if isinstance(value, int | float):  # None represents a mean that is not finite
                writer.add_scalar(name, value, step)
        writer.flush()

    return write
