"""Tasks: what a model is trained for. Each is a small frozen dataclass with the members of `Task`."""

import dataclasses
from typing import Any

from densezoo.tasks.detection import Detection
from densezoo.tasks.segmentation import Segmentation
from densezoo.tasks.task import Task

TASKS: dict[str, type] = {"segmentation": Segmentation, "detection": Detection}
"""Tasks by the name that a model file has; a task of your own is added here to be read again by `dz.load_predictor`."""


def describe(task: Any) -> dict[str, Any]:
    """A task as JSON values.

    Raises:
        ValueError: the task's class is not among `TASKS`.

    Example:
        >>> describe(Segmentation(num_classes=3))["name"]
        'segmentation'
    """
    for name, kind in TASKS.items():
        if type(task) is kind:
            return {"name": name, "options": dataclasses.asdict(task)}
    raise ValueError(f"{type(task).__name__} is not among tasks.TASKS ({', '.join(TASKS)}): add it under a name")


def from_description(description: dict[str, Any]) -> Any:
    """The task that `describe` described.

    Raises:
        ValueError: an unknown task or option.
    """
    name = description.get("name")
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; there are: {', '.join(TASKS)}")
    kind, options = TASKS[name], dict(description.get("options", {}))
    if unknown := set(options) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"the task {name} has no {sorted(unknown)}: the file may be of a newer densezoo")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


__all__ = ["TASKS", "Detection", "Segmentation", "Task", "describe", "from_description"]
