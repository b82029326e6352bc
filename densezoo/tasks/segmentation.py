"""Semantic segmentation: binary, multi-class, or with several labels per pixel."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from densezoo import losses, metrics
from densezoo.messages import option
from densezoo.tasks._augment import augmentation
from densezoo.tasks._checks import check_channels, check_inputs, spread

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe

Value = int | tuple[int, int, int]
_CHECKED = 8
"""Number of samples of each source whose labels are checked before a training."""


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """Semantic segmentation: batches contain `image` (b, h, w, c) and `mask` (b, h, w) with class numbers.

    Attributes:
        num_classes: channels of the model's logits. 1 means a binary mask of 0 and 1, predicted by a single logit.
        criterion: the loss, or a weighted sum of several, in the syntax of `losses.named_loss`: "cross_entropy+dice".
        class_weights: a weight for each class (background and foreground for `num_classes=1`). None for equal weights.
        label_smoothing: label smoothing of the cross-entropy.
        multilabel: whether a pixel may have several classes or none. Masks are then (b, h, w, num_classes) of 0 and 1,
            and each class has its own sigmoid.
        ignore_index: mask value of unlabelled pixels, which must not be a class. None if there are none.
        class_names: names for the scores and the legend. Empty for numbers.
        labels: the class of each number or colour in mask files, such as `{7: 0, 11: 1}` or `{(128, 64, 128): 1}`, for
            sources: `ImageMaskFolder(root, labels=dict(task.labels))`. Kept as pairs, and stored in model files. Empty
            if the numbers are the classes.
        auxiliary_weight: total weight of the auxiliary heads' losses, for a model with deep supervision.

    Raises:
        ValueError: if options are invalid or contradict each other. The message names them.

    Example:
        >>> import jax.numpy as jnp
        >>> task = Segmentation(num_classes=2, criterion="cross_entropy+dice", class_names=("cell", "membrane"))
        >>> batch = {"image": jnp.zeros((1, 4, 4, 3)), "mask": jnp.zeros((1, 4, 4), jnp.int32)}
        >>> apply = lambda images: jnp.zeros((*images.shape[:3], 2))
        >>> round(float(task.loss(apply, batch, None)), 4)  # log 2, and half of 1/3 for the one class that occurs
        0.8598
        >>> task.scores(task.measure(apply, batch))["iou_cell"]
        1.0
    """

    num_classes: int
    criterion: str = "cross_entropy"
    class_weights: tuple[float, ...] | None = None
    label_smoothing: float = 0.0
    multilabel: bool = False
    ignore_index: int | None = 255
    class_names: tuple[str, ...] = ()
    labels: Mapping[Value, int] | tuple[tuple[Value, int], ...] = ()
    auxiliary_weight: float = 0.4

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    target: ClassVar[str] = "mask"
    best: ClassVar[str] = "mean_iou"

    def __post_init__(self):
        pairs = self.labels.items() if isinstance(self.labels, Mapping) else self.labels
        try:
            labels = tuple((tuple(map(int, v)) if isinstance(v, (tuple, list)) else int(v), int(k)) for v, k in pairs)
        except (TypeError, ValueError):
            raise ValueError(
                f"{option('labels')} must map numbers or colours (red, green, blue) to classes, got {self.labels}"
            ) from None
        object.__setattr__(self, "labels", labels)
        if self.num_classes < 1:
            raise ValueError(f"{option('num_classes')} must be at least 1, got {self.num_classes}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"{option('label_smoothing')} must be at least 0 and below 1, got {self.label_smoothing}")
        for name, given in (("class_weights", self.class_weights), ("class_names", self.class_names or None)):
            if given is not None and len(given) != self.classes:
                raise ValueError(f"{option(name)} needs {self.classes} entries, one per class; got {given}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"{option('class_names')} contains duplicates: {self.class_names}")
        if self.class_weights is not None and (min(self.class_weights) < 0 or sum(self.class_weights) == 0):
            raise ValueError(f"{option('class_weights')} must be at least 0, and not all 0; got {self.class_weights}")
        values = 2 if self.multilabel else self.classes
        if self.ignore_index is not None and 0 <= self.ignore_index < values:
            raise ValueError(
                f"{option('ignore_index', self.ignore_index)} is one of the mask values 0 to {values - 1}, so"
                f" that class would be ignored. If every class counts, pass {option('ignore_index', None)}, or a number"
                " that is not a class, such as -1 or 65535. To ignore a class, give it a number outside 0 to"
                f" {values - 1} in the masks"
            )
        self._criterion()  # raises errors now instead of in the first step

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return (*self.inputs, self.target)

    @property
    def classes(self) -> int:
        """The number of classes in the scores, 2 for a binary mask."""
        return self.num_classes if self.multilabel else max(self.num_classes, 2)

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, or its number if it has none."""
        return self.class_names or tuple(map(str, range(self.classes)))

    @property
    def fill(self) -> int:
        """The value of masks in the padding: `ignore_index`, or -1, which is not a class."""
        return -1 if self.ignore_index is None else self.ignore_index

    def check(self, model: Any, *sources: Any) -> None:
        """Checks that a model and the labels of sources fit the task. `train` calls it before the first step.

        Of each source, at most eight evenly spread samples are read.

        Raises:
            TypeError: if the model takes another number of images.
            ValueError: if a label is not a class.
        """
        check_inputs(self, model)
        for source in sources:
            for index, sample in spread(source, _CHECKED):
                self._check_labels(index, sample.get(self.target))

    def _check_labels(self, index: int, mask: Any) -> None:
        if not isinstance(mask, np.ndarray | jax.Array):  # missing, or a large file that is read by windows
            return
        mask, largest = np.asarray(mask), 1 if self.multilabel else self.classes - 1
        wrong = ((mask < 0) | (mask > largest)) & (mask != self.fill)
        if wrong.any():
            ignored = "" if self.ignore_index is None else f", and {self.ignore_index} for unlabelled pixels"
            raise ValueError(
                f"sample {index} has {mask[wrong][0]} in {self.target!r}; {type(self).__name__} with"
                f" {option('num_classes', self.num_classes)} expects 0 to {largest}{ignored}: correct the labels, or"
                f" change {option('num_classes')} or {option('ignore_index')}"
            )

    def loss(self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any) -> Float[Array, ""]:
        """Returns the criterion of the logits, plus that of the auxiliary heads' logits."""
        mask = self._mask(batch)
        return losses.deep_supervision(self._criterion(), self.auxiliary_weight)(self._outputs(apply, batch), mask)

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.Counts:
        """Returns the confusion counts of each class."""
        mask, predictions = self._mask(batch), self.predict(self._outputs(apply, batch))
        if self.multilabel:
            return metrics.multilabel_counts(predictions, mask, ignore_index=self.fill)
        return metrics.confusion_counts(predictions, mask, num_classes=self.classes, ignore_index=self.fill)

    def scores(self, counts: metrics.Counts) -> dict[str, float]:
        """Returns `mean_iou`, `mean_dice`, `pixel_accuracy` and `iou_<class>`."""
        accuracy = metrics.class_mean(metrics.accuracy(counts)) if self.multilabel else metrics.pixel_accuracy(counts)
        scores = {
            "mean_iou": float(metrics.mean_iou(counts)),
            "mean_dice": float(metrics.mean_dice(counts)),
            "pixel_accuracy": float(accuracy),
        }
        per_class = zip(self.names, np.asarray(metrics.iou(counts)), strict=True)
        return scores | {f"iou_{name}": float(value) for name, value in per_class}

    def predict(self, outputs: Float[Array, "b h w k"]) -> Integer[Array, "b h w"] | Integer[Array, "b h w k"]:
        """Returns the most likely class of each pixel, or with `multilabel` 0 or 1 for each class."""
        if self.multilabel:
            return (outputs >= 0).astype(jnp.int32)
        return metrics.predict(outputs)

    def probabilities(self, outputs: Float[Array, "b h w k"]) -> Float[Array, "b h w k"]:
        """Returns the float32 probability of each class: softmax, or sigmoid for one channel and with `multilabel`."""
        outputs = outputs.astype(jnp.float32)
        return jax.nn.sigmoid(outputs) if self.multilabel or self.num_classes == 1 else jax.nn.softmax(outputs)

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips, rotations, scaling and colour changes."""
        return augmentation(recipe, fill=self.fill)

    def _criterion(self) -> Callable[[Any, Any], Any]:
        return losses.named_loss(
            self.criterion,
            class_weights=self.class_weights,
            label_smoothing=self.label_smoothing,
            ignore_index=self.fill,
            multilabel=self.multilabel,
        )

    def _outputs(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> Any:
        outputs = apply(*(batch[name] for name in self.inputs))
        for logits in outputs if isinstance(outputs, tuple) else (outputs,):
            check_channels(self, logits)
        return outputs

    def _mask(self, batch: Mapping[str, Any]) -> Any:
        if missing := [name for name in self.fields if name not in batch]:
            raise ValueError(
                f"{type(self).__name__} needs {self.fields}, but the batch has no {missing}; it has {sorted(batch)}"
            )
        mask, axes = batch[self.target], 4 if self.multilabel else 3
        if mask.ndim != axes or (self.multilabel and mask.shape[-1] != self.num_classes):
            shape = f"(b, h, w, {self.num_classes})" if self.multilabel else "(b, h, w)"
            raise ValueError(f"expected masks of shape {shape} with multilabel={self.multilabel}, got {mask.shape}")
        return mask
