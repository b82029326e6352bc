"""The members that every task has, which `densezoo.train` and the predictor call."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe


class Task(Protocol):
    """What a model is trained for.

    `apply(*inputs)` runs the model, in training with `train=True` and in evaluation without. Batches are dicts of
    arrays as `densezoo.data` makes them, their images normalised. A task may have a `method`: the name of that method
    of its models whose results `predict` takes, in place of what the models give when they are called.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads; the model's inputs come first."""
        ...

    inputs: ClassVar[tuple[str, ...]]
    """Entries of a batch that the model takes."""
    best: ClassVar[str]
    """The score by which the best checkpoint is chosen; greater is better."""

    @property
    def fill(self) -> int:
        """What a label map holds where there is no image."""
        ...

    def loss(self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any) -> Any:
        """A scalar, or a scalar and a dict of scalars to report."""
        ...

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        """A pytree of counts that add over batches, devices and hosts; or `metrics.Collected`, whose sum keeps all."""
        ...

    def scores(self, counts: Any) -> dict[str, float]:
        """The scores that the sum of all counts gives."""
        ...

    def predict(self, outputs: Any) -> Any:
        """The prediction that a model's outputs give, such as masks (b, h, w)."""
        ...

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """The random changes of a training batch, `(key, batch) -> batch`."""
        ...
