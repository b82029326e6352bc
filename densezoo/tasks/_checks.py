"""Checks of the model and of a few samples before a training."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def check_inputs(task: Any, model: Any) -> None:
    """Checks that a model takes as many images as the task has.

    Raises:
        TypeError: if it takes more or fewer.
    """
    parameters = list(inspect.signature(type(model).__call__).parameters.values())[1:]
    positional = [x for x in parameters if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)]
    required = [x.name for x in positional if x.default is x.empty]
    most = math.inf if any(x.kind is x.VAR_POSITIONAL for x in parameters) else len(positional)
    count = len(task.inputs)
    if len(required) <= count <= most:
        return
    if count == 1:
        advice = "use a task for these inputs, such as ChangeDetection for two images, or a model of one image"
    else:
        advice = "use a model of two images, such as create_model('siamese_unet'), or a task for one image"
    raise TypeError(
        f"{type(task).__name__} needs a model with {count} input{'s' * (count > 1)} ({', '.join(task.inputs)}), and"
        f" {type(model).__name__} takes {len(required)} ({', '.join(required)}): {advice}"
    )


def check_channels(task: Any, outputs: Any) -> None:
    """Raises a ValueError if a model's output does not have `task.num_classes` channels."""
    if outputs.shape[-1] != task.num_classes:
        raise ValueError(
            f"{type(task).__name__} needs a model with num_classes={task.num_classes}, and this one has"
            f" {outputs.shape[-1]} output channels"
        )


def spread(source: Any, count: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Reads at most `count` samples of a source, evenly spread, with their indices."""
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)) if len(source) else ():
        yield int(index), source[int(index)]
