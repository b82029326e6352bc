"""Depth and surface normals of each pixel."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo import losses, metrics, ops
from densezoo.messages import option
from densezoo.tasks._augment import augmentation
from densezoo.tasks._checks import check_channels, check_inputs, spread

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "exp": jnp.exp,
    "softplus": jax.nn.softplus,
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "identity": lambda x: x,
}
"""Activations of `Depth`."""

_CHECKED = 64
"""Number of samples of a source that are searched for a measured pixel before a training."""


@dataclasses.dataclass(frozen=True)
class Depth:
    """Depth: batches contain `image` (b, h, w, c) and `depth` (b, h, w), 0 for pixels without a measurement.

    The model is any network of the zoo with `num_classes=1`, without an activation: the task has it. Depth is in the
    unit of the data. Holes (0, negative, infinite, NaN) count neither in the loss nor in the scores.

    Attributes:
        criterion: the loss, or a weighted sum of several, in the syntax of `losses.named_depth_loss`, such as
            "silog + 0.5*gradient(log=True)". None for "silog", or with `relative` for "scale_shift_invariant".
        activation: from the model's output to depth, a name of `ACTIVATIONS`: "exp" if the output is the logarithm of
            depth; "sigmoid" is multiplied by `max_depth`, as in metric Depth Anything; "softplus", "relu", "identity".
        relative: whether the model predicts inverse depth up to a scale and a shift that differ between images, as
            MiDaS, DPT and Depth Anything do. It is then compared with 1 / depth, and scores are computed after
            alignment; `predict` returns it unaligned, greater for nearer pixels.
        align: whether to fit a scale and a shift to the true depth of each image before the scores.
        min_depth: smallest depth in the scores; smaller predictions count as this.
        max_depth: largest depth in the scores; None for no limit.
        unit: name of the unit, for pictures.
        auxiliary_weight: total weight of the auxiliary heads' losses, for a model with deep supervision.

    Raises:
        ValueError: if an option is invalid. The message names it.

    Example:
        >>> import jax.numpy as jnp
        >>> task = Depth(criterion="l1", max_depth=10.0)
        >>> batch = {"image": jnp.zeros((1, 2, 2, 3)), "depth": jnp.array([[[1.0, 3.0], [0.0, 1.0]]])}
        >>> apply = lambda images: jnp.zeros((*images.shape[:3], 1))  # a depth of 1 everywhere
        >>> round(float(task.loss(apply, batch, None)), 4), round(task.scores(task.measure(apply, batch))["rmse"], 4)
        (0.6667, 1.1547)
    """

    criterion: str | None = None
    activation: str = "exp"
    relative: bool = False
    align: bool = False
    min_depth: float = 1e-3
    max_depth: float | None = None
    unit: str = "m"
    auxiliary_weight: float = 0.4

    num_classes: ClassVar[int] = 1
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    best: ClassVar[str] = "delta1"

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"{option('activation')} must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}")
        if not self.min_depth > 0 or (self.max_depth is not None and not self.max_depth > self.min_depth):
            raise ValueError(
                f"expected 0 < {option('min_depth')} < {option('max_depth')}, got {self.min_depth} and {self.max_depth}"
            )
        if self.activation == "sigmoid" and (self.max_depth is None or self.relative):
            raise ValueError(
                f"{option('activation', 'sigmoid')} needs {option('max_depth')}, and a depth that is not"
                f" {option('relative')}: it is multiplied by the largest depth"
            )
        self._criterion()  # raises errors now instead of in the first step

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return ("image", "depth")

    @property
    def fill(self) -> int:
        """The value of label maps in the padding."""
        return 0

    def check(self, model: Any, *sources: Any) -> None:
        """Checks that a model takes one image, and that sources have measured pixels. `train` calls it first.

        Of each source, evenly spread samples are read until one has a measured pixel, at most 64.

        Raises:
            TypeError: if the model takes several images.
            ValueError: if no pixel of these samples is measured.
        """
        _check(self, model, sources)

    def loss(self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any) -> Float[Array, ""]:
        """Returns the criterion of the predicted depth, plus that of the auxiliary heads' predictions."""
        depth = _target(self, batch)
        valid = ops.measured(depth)
        target = jnp.where(valid, 1 / jnp.where(valid, depth, 1), 0) if self.relative else depth
        criterion = self._criterion()

        def of_outputs(outputs: Any, target: Any) -> Any:
            # Before the activation, whose derivative at a NaN would make the gradient of a hole NaN.
            return criterion(self._activate(jnp.where(valid, _channels(self, outputs)[..., 0], 0)), target)

        return losses.deep_supervision(of_outputs, self.auxiliary_weight)(apply(batch["image"]), target)

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.DepthSums:
        """Returns the sums over images of the scores."""
        return self.count(self.predict(apply(batch["image"])), _target(self, batch))

    def count(self, predictions: Float[Array, "b h w"], depth: Float[Array, "b h w"]) -> metrics.DepthSums:
        """Returns the sums over images of the scores of predictions."""
        return metrics.depth_sums(
            predictions,
            depth,
            align=self.align or self.relative,
            inverse=self.relative,
            smallest=self.min_depth,
            largest=self.max_depth,
        )

    def scores(self, counts: metrics.DepthSums) -> dict[str, float]:
        """Returns `abs_rel`, `sq_rel`, `rmse`, `log10`, `delta1`, `delta2` and `delta3`."""
        return counts.scores()

    def predict(self, outputs: Float[Array, "b h w 1"]) -> Float[Array, "b h w"]:
        """Returns the depth, float32, or with `relative` the inverse depth up to scale and shift."""
        return self._activate(_channels(self, outputs)[..., 0])

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips, rotations, scaling and colour changes.

        Scaling does not change depth, although an enlarged object looks nearer.
        """
        return augmentation(recipe, fill=self.fill)

    def _activate(self, outputs: Any) -> Any:
        depth = ACTIVATIONS[self.activation](outputs)
        return depth if self.activation != "sigmoid" or self.max_depth is None else depth * self.max_depth

    def _criterion(self) -> Callable[[Any, Any], Any]:
        return losses.named_depth_loss(self.criterion or ("scale_shift_invariant" if self.relative else "silog"))


@dataclasses.dataclass(frozen=True)
class Normals:
    """Surface normals: batches contain `image` (b, h, w, c) and `normals` (b, h, w, 3), zeros without a measurement.

    The model is any network of the zoo with `num_classes=3`. Its outputs are divided by their length. The axes are
    those of the camera: x to the right, y down and z forward. The loss is `losses.cosine_loss`.

    Attributes:
        auxiliary_weight: total weight of the auxiliary heads' losses, for a model with deep supervision.

    Example:
        >>> import jax.numpy as jnp
        >>> wall = jnp.broadcast_to(jnp.array([0.0, 0.0, -1.0]), (1, 2, 2, 3))  # it faces the camera
        >>> task, batch = Normals(), {"image": jnp.zeros((1, 2, 2, 3)), "normals": wall}
        >>> apply = lambda images: jnp.broadcast_to(jnp.array([0.0, -5.0, -5.0]), (1, 2, 2, 3))
        >>> round(task.scores(task.measure(apply, batch))["mean_angle"], 2)
        45.0
    """

    auxiliary_weight: float = 0.4

    num_classes: ClassVar[int] = 3
    inputs: ClassVar[tuple[str, ...]] = ("image",)
    best: ClassVar[str] = "within_30"
    predicts: ClassVar[str] = "normals"

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return ("image", "normals")

    @property
    def fill(self) -> int:
        """The value of label maps in the padding."""
        return 0

    def check(self, model: Any, *sources: Any) -> None:
        """Checks that a model takes one image, and that sources have measured pixels, as `Depth.check` does."""
        _check(self, model, sources)

    def loss(self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any) -> Float[Array, ""]:
        """Returns the cosine loss, plus that of the auxiliary heads' predictions."""

        def of_outputs(outputs: Any, target: Any) -> Any:
            return losses.cosine_loss(_channels(self, outputs), target)

        return losses.deep_supervision(of_outputs, self.auxiliary_weight)(apply(batch["image"]), _target(self, batch))

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.AngleCounts:
        """Returns the counts of angles."""
        return self.count(self.predict(apply(batch["image"])), _target(self, batch))

    def count(self, predictions: Float[Array, "b h w 3"], normals: Float[Array, "b h w 3"]) -> metrics.AngleCounts:
        """Returns the counts of angles of predictions."""
        return metrics.angle_counts(predictions, normals)

    def scores(self, counts: metrics.AngleCounts) -> dict[str, float]:
        """Returns `mean_angle`, `median_angle`, and the shares `within_11`, `within_22` and `within_30` degrees."""
        return counts.scores()

    def predict(self, outputs: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Returns unit vectors, float32; zeros where the outputs are zero."""
        outputs = _channels(self, outputs)
        length = jnp.sqrt((outputs * outputs).sum(-1, keepdims=True))
        return outputs / jnp.where(length == 0, 1, length)

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips, rotations, scaling and colour changes."""
        return augmentation(recipe, fill=self.fill)


def _check(task: Depth | Normals, model: Any, sources: tuple[Any, ...]) -> None:
    check_inputs(task, model)
    name = task.fields[-1]
    for source in sources:
        samples = (sample for _, sample in spread(source, _CHECKED))
        if not any(name not in sample or _is_measured(np.asarray(sample[name]), name) for sample in samples):
            expected = "above 0" if name == "depth" else "other than 0"
            read = min(len(source), _CHECKED)
            raise ValueError(
                f"no pixel is measured: {name} has no finite value {expected} in any of the {read} samples that were"
                " read, so there is nothing to learn from or to score. Check the files and their scale"
            )


def _is_measured(values: np.ndarray, name: str) -> bool:
    finite = np.isfinite(values)
    return bool((finite & (values > 0)).any() if name == "depth" else (finite.all(-1) & (values != 0).any(-1)).any())


def _target(task: Depth | Normals, batch: Mapping[str, Any]) -> Any:
    name = task.fields[-1]
    if missing := [field for field in task.fields if field not in batch]:
        raise ValueError(f"{name} needs {task.fields}, but the batch has no {missing}; it has {sorted(batch)}")
    expected = batch["image"].shape[:3] + (() if name == "depth" else (3,))
    if batch[name].shape != expected:
        raise ValueError(f"expected {name} of shape {expected}, as the images' shape requires; got {batch[name].shape}")
    return batch[name]


def _channels(task: Depth | Normals, outputs: Any) -> Any:
    """The outputs in float32."""
    check_channels(task, outputs)
    return outputs.astype(jnp.float32)
