"""Change detection: which pixels differ between two images of one place."""

import dataclasses
from typing import ClassVar

import numpy as np

from densezoo import metrics
from densezoo.tasks.segmentation import Segmentation


@dataclasses.dataclass(frozen=True)
class ChangeDetection(Segmentation):
    """Change detection: batches contain `image_before`, `image_after` (b, h, w, c), and `change` (b, h, w).

    In `change`, 0 means unchanged, and 1 changed. With more classes, such as new and lost buildings, all from 1 on are
    kinds of change. In training, both images and the labels are flipped, rotated and scaled together, and the colours
    of each image change independently.

    Attributes:
        num_classes: channels of the model's logits; 1 for a single logit.
        ignore_index: value of unlabelled pixels, which must not be a class. None, the default, if there are none.
        class_names: names of the classes; "unchanged" and "changed" if there are two.
        labels: the class of each number in label files. `data.ChangeFolder` reads 255 as 1 by default.

    The other attributes are those of `Segmentation`.

    Raises:
        ValueError: if options are invalid or contradict each other. The message names them.

    Example:
        >>> import jax.numpy as jnp
        >>> task = ChangeDetection()
        >>> images = jnp.zeros((1, 4, 4, 3))
        >>> batch = {"image_before": images, "image_after": images, "change": jnp.eye(4, dtype=jnp.int32)[None]}
        >>> apply = lambda before, after: jnp.ones((1, 4, 4, 1)) * jnp.array([0.0, 1.0])  # all has changed
        >>> scores = task.scores(task.measure(apply, batch))
        >>> scores["precision"], scores["recall"], round(scores["f1"], 2), scores["iou"]
        (0.25, 1.0, 0.4, 0.25)
    """

    num_classes: int = 2
    ignore_index: int | None = None

    inputs: ClassVar[tuple[str, ...]] = ("image_before", "image_after")
    target: ClassVar[str] = "change"
    best: ClassVar[str] = "f1"

    def __post_init__(self):
        if self.multilabel:
            raise ValueError("change detection has one class per pixel: leave out multilabel=True")
        super().__post_init__()

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class."""
        return self.class_names or (("unchanged", "changed") if self.classes == 2 else super().names)

    def scores(self, counts: metrics.Counts) -> dict[str, float]:
        """Returns `precision`, `recall`, `f1` and `iou` of change, as one class, and `pixel_accuracy`.

        For several kinds of change, also `iou_<class>`. A score is NaN if it is undefined, such as the recall without
        any changed pixel.
        """
        # What is positive for class 0, unchanged, is negative for change.
        change = metrics.Counts(tp=counts.tn, fp=counts.fn, fn=counts.fp, tn=counts.tp)
        functions = {"precision": metrics.precision, "recall": metrics.recall, "f1": metrics.dice, "iou": metrics.iou}
        scores = {name: float(function(change)[0]) for name, function in functions.items()}
        scores["pixel_accuracy"] = float(metrics.pixel_accuracy(counts))
        if self.classes == 2:
            return scores
        per_class = zip(self.names, np.asarray(metrics.iou(counts)), strict=True)
        return scores | {f"iou_{name}": float(value) for name, value in per_class}
