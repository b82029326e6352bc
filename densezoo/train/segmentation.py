"""Deprecated names of the segmentation recipe, in terms of `tasks.Segmentation`, `train` and `Predictor`."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from densezoo.preprocessing import Preprocessing
from densezoo.train.recipe import Recipe, train


@dataclasses.dataclass(frozen=True)
class SegmentationRecipe(Recipe):
    """Deprecated: `Recipe`, with `ignore_index` in `tasks.Segmentation`."""

    ignore_index: int | None = 255

    def __post_init__(self):
        _warn("SegmentationRecipe(ignore_index=...)", "train.Recipe and tasks.Segmentation(ignore_index=...)")
        super().__post_init__()


def train_segmentation(
    model: Any,
    train_source: Any,
    val_source: Any,
    recipe: SegmentationRecipe,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    **options: Any,
) -> Any:
    """Deprecated: `train(tasks.Segmentation(num_classes), model, train_source, val_source, recipe)`."""
    from densezoo.tasks import Segmentation

    _warn("train_segmentation", "train.train(tasks.Segmentation(...), model, ...)")
    task = Segmentation(num_classes, ignore_index=recipe.ignore_index)
    preprocessing = Preprocessing(len(mean), tuple(mean), tuple(std))
    return train(task, model, train_source, val_source, recipe, preprocessing=preprocessing, **options)


def predictor(model: Any, variables: Any, *, mean: Sequence[float], std: Sequence[float], multiple: int = 32) -> Any:
    """Deprecated: `dz.Predictor(task, model, variables, preprocessing)`."""
    from densezoo.predictor import Predictor
    from densezoo.tasks import Segmentation

    _warn("train.predictor", "dz.Predictor(task, model, variables, preprocessing)")
    head = getattr(model, "head", None)
    task = Segmentation(getattr(head, "num_classes", 2), ignore_index=None)
    return Predictor(task, model, variables, Preprocessing(len(mean), tuple(mean), tuple(std)), pad_to=multiple)


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated: use {new}", DeprecationWarning, stacklevel=3)
