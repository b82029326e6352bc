"""The interface of tasks, used by `densezoo.train` and the predictor."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe


class Task(Protocol):
    """The interface of a task: what a model is trained for.

    `apply(*inputs)` runs the model, with `train=True` in training and without it in evaluation. Batches are dicts of
    arrays from `densezoo.data`, with normalised images. A task may have a `method`, the name of a model method whose
    outputs `predict` takes instead of those of `__call__`; `scored_fields`, further entries that `measure` reads if the
    source has them; `ema_decay`, the default of `Recipe.ema_decay`; `multiple`, to which the sides of images are padded
    in evaluations, 32 by default; `predicts`, the field by whose kind predictions are resized;
    `default_preprocessing(channels)`, the preprocessing of `train` if none is given; and `check(model, *sources)`,
    which raises an error before a training if the model or samples do not fit the task.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task uses, starting with the model's inputs."""
        ...

    inputs: ClassVar[tuple[str, ...]]
    """Entries of a batch that are the model's inputs."""
    best: ClassVar[str]
    """The score that selects the best checkpoint; greater is better."""

    @property
    def fill(self) -> int:
        """The value of label maps in the padding."""
        ...

    def loss(self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any) -> Any:
        """Returns a scalar, or a scalar and a dict of scalars to report."""
        ...

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """Returns a pytree of counts that add over batches, devices and hosts, or `metrics.Collected`."""
        ...

    def scores(self, counts: Any) -> dict[str, float]:
        """Computes the scores from the sum of all counts."""
        ...

    def predict(self, outputs: Any) -> Any:
        """Converts a model's outputs to predictions, such as masks (b, h, w)."""
        ...

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns the augmentation of training batches, `(key, batch) -> batch`."""
        ...
