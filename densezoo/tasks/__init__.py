"""Tasks: what a model is trained for. Each is a small frozen dataclass with the members of `Task`."""

import dataclasses
from typing import Any

from densezoo.tasks.autoencoding import Autoencoding
from densezoo.tasks.change import ChangeDetection
from densezoo.tasks.depth import Depth, Normals
from densezoo.tasks.detection import Detection
from densezoo.tasks.diffusion import Diffusion
from densezoo.tasks.panoptic import PanopticSegmentation
from densezoo.tasks.segmentation import Segmentation
from densezoo.tasks.task import Task

TASKS: dict[str, type] = {
    "segmentation": Segmentation,
    "detection": Detection,
    "panoptic": PanopticSegmentation,
    "change": ChangeDetection,
    "depth": Depth,
    "normals": Normals,
    "diffusion": Diffusion,
    "autoencoding": Autoencoding,
}
"""Tasks by their names in model files. Add your own task here so that `dz.load_predictor` can read it."""


def describe(task: Any) -> dict[str, Any]:
    """Converts a task to JSON values.

    Raises:
        ValueError: if the task's class is not among `TASKS`.

    Example:
        >>> describe(Segmentation(num_classes=3))["name"]
        'segmentation'
    """
    for name, kind in TASKS.items():
        if type(task) is kind:
            return {"name": name, "options": dataclasses.asdict(task)}
    raise ValueError(f"{type(task).__name__} is not among tasks.TASKS ({', '.join(TASKS)}): add it under a name")


def from_description(description: dict[str, Any]) -> Any:
    """Recreates a task from the result of `describe`.

    Raises:
        ValueError: if the task or an option is unknown.
    """
    name = description.get("name") if isinstance(description, dict) else description
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"unknown task {str(name)[:100]!r}; there are: {', '.join(TASKS)}")
    kind, options = TASKS[name], dict(description.get("options", {}))
    if unknown := set(options) - {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"the task {name} has no options {sorted(unknown)}: the file may be from a newer densezoo")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


__all__ = [
    "TASKS",
    "Autoencoding",
    "ChangeDetection",
    "Depth",
    "Detection",
    "Diffusion",
    "Normals",
    "PanopticSegmentation",
    "Segmentation",
    "Task",
    "describe",
    "from_description",
]
