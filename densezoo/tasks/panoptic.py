"""Panoptic segmentation: objects with masks, and a class for every other pixel."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from densezoo import losses, metrics
from densezoo.models import Panoptic, RegionOutputs
from densezoo.tasks.detection import Detection, in_coco_format


@dataclasses.dataclass(frozen=True)
class PanopticSegmentation(Detection):
    """Panoptic segmentation: the entries of `Detection`, and `mask` (b, h, w) with the class of each pixel.

    In `mask`, a thing has the model's class number, which is its label + `first_label`, and `stuff` lists the numbers
    of the stuff classes. Pixels with other numbers do not count. This is how `data.DigitScenes`, whose only stuff class
    is 0, the background, and `data.CocoPanoptic` give it.

    The loss is the sum of Mask R-CNN's losses and the cross-entropy of the semantic branch, where all things are one
    class, with the weights of detectron2. The scores are those of `Detection` and panoptic quality: `pq`, `sq` and `rq`
    (means over all classes), `pq_things`, `pq_stuff`, and `pq_<class>`.

    Attributes:
        masks: must be True.
        first_label: 1, because class 0 of the model is the background.
        stuff: numbers of the stuff classes in `mask`, in the order of the model's.
        stuff_names: a name for each stuff class. Empty for numbers, which come after those of the things.
        instance_weight: factor of Mask R-CNN's losses.
        semantic_weight: factor of the cross-entropy.

    The other attributes are those of `Detection`.

    Raises:
        ValueError: if options are invalid or contradict each other. The message names them.

    Example:
        >>> task = PanopticSegmentation(num_classes=3, class_names=("background", "cat", "dog"), stuff=(3, 4))
        >>> task.segment_names
        ('background', 'cat', 'dog', '3', '4')

    References:
        Kirillov et al., Panoptic feature pyramid networks, 2019. https://arxiv.org/abs/1901.02446
    """

    masks: bool = True
    first_label: int = 1
    stuff: tuple[int, ...] = (0,)
    stuff_names: tuple[str, ...] = ()
    instance_weight: float = 1.0
    semantic_weight: float = 0.5

    best: ClassVar[str] = "pq"
    method: ClassVar[str] = "panoptic"

    def __post_init__(self):
        super().__post_init__()
        if not self.masks:
            raise ValueError("panoptic segmentation needs masks: leave out masks=False")
        if not self.stuff or len(set(self.stuff)) != len(self.stuff) or min(self.stuff) < 0:
            raise ValueError(f"stuff needs one or more different numbers of at least 0, got {self.stuff}")
        if things := [value for value in self.stuff if self.first_label <= value < self.num_classes]:
            raise ValueError(
                f"stuff={self.stuff} contains {things}, which are things: their numbers in the mask are"
                f" {self.first_label} to {self.num_classes - 1}"
            )
        if self.stuff_names and len(self.stuff_names) != len(self.stuff):
            raise ValueError(f"stuff_names needs {len(self.stuff)} entries, one per number; got {self.stuff_names}")
        if len(set(self.segment_names)) != len(self.segment_names):
            raise ValueError(f"class_names and stuff_names contain duplicates: {self.segment_names}")
        if not min(self.instance_weight, self.semantic_weight) > 0:
            raise ValueError(
                f"the weights must be above 0, got instance_weight={self.instance_weight} and"
                f" semantic_weight={self.semantic_weight}"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return (*super().fields, "mask")

    @property
    def segment_names(self) -> tuple[str, ...]:
        """The names of the classes of segments: those of the model's classes, then those of stuff."""
        count = self.num_classes
        return (*self.names, *(self.stuff_names or map(str, range(count, count + len(self.stuff)))))

    def loss(
        self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the weighted sum of the losses, and the individual weighted losses.

        Raises:
            TypeError: if the model has no semantic branch.
            ValueError: if the model has another number of classes, or the batch lacks an entry.
        """
        boxes, labels = self._objects(batch)
        outputs = apply(batch["image"], batch.get("size"))
        if not isinstance(outputs, RegionOutputs):
            raise TypeError(f"the model returns {type(outputs).__name__}; use a panoptic model, such as panoptic_fpn")
        parts = self._of_two_stages(apply, outputs, batch, boxes, labels, key)
        height, width = batch["image"].shape[1:3]
        logits = apply(outputs.pyramid, method="semantic")[:, :height, :width]
        if logits.shape[-1] != 1 + len(self.stuff):
            raise ValueError(
                f"the task has {len(self.stuff)} stuff classes and the model {logits.shape[-1] - 1}: create the model"
                f" with stuff_classes={len(self.stuff)}"
            )
        semantic = losses.cross_entropy(logits, self._semantic(batch["mask"]), ignore_index=-1)
        parts = {name: self.instance_weight * value for name, value in parts.items()}
        parts["semantic"] = self.semantic_weight * semantic
        return self._total(parts, labels, has_background=True), parts

    def _semantic(self, mask: Integer[Array, "b h w"]) -> Integer[Array, "b h w"]:
        """The classes of the semantic branch: 0 for things, then stuff; -1 for pixels that do not count."""
        mask = jnp.asarray(mask)
        classes = jnp.where((mask >= self.first_label) & (mask < self.num_classes), 0, -1)
        for place, value in enumerate(self.stuff):
            classes = jnp.where(mask == value, place + 1, classes)
        return classes

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.Collected:
        """Returns the detections, segments and objects of a batch."""
        found: Panoptic = apply(batch["image"], batch.get("size"), method=self.method)
        arrays = self._measured(found.detections, batch)
        arrays |= {"segments": found.segments, "classes": found.classes, "mask": batch["mask"]}
        return metrics.Collected.of(self._shrunk, **arrays)

    def _shrunk(self, batch: dict[str, Any]) -> tuple[Any, metrics.PanopticCounts]:
        """The detections of a batch in COCO's format, and the counts of its segments."""
        counts = metrics.PanopticCounts(*np.zeros((4, len(self.segment_names))))
        for row in np.flatnonzero(batch["size"].min(-1) > 0):
            height, width = batch["size"][row].tolist()
            segments, mask, instances = (
                batch[name][row, :height, :width] for name in ("segments", "mask", "instances")
            )
            classes = batch["classes"][row]
            predicted = {number: int(classes[number - 1]) for number in np.unique(segments).tolist() if number}
            truth, true_classes, crowds = self._truth(mask, instances, batch["true_labels"][row])
            counts += metrics.panoptic_counts(
                segments, predicted, truth, true_classes, len(self.segment_names), crowds=crowds
            )
        return in_coco_format(batch), counts

    def _truth(
        self, mask: np.ndarray, instances: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, dict[int, int], dict[int, int]]:
        """The true segments of a picture, their classes, and those of crowds: pixels of a thing without an instance."""
        rows = np.flatnonzero(labels >= 0)
        classes = {int(row) + 1: int(labels[row]) for row in rows}
        truth = np.where(np.isin(instances, rows + 1), instances, 0).astype(np.int64)
        crowds, free = {}, truth == 0
        for label in range(self.first_label, self.num_classes):
            truth[free & (mask == label)] = len(labels) + 1 + label
            crowds[len(labels) + 1 + label] = label
        for place, value in enumerate(self.stuff):
            number = len(labels) + 1 + self.num_classes + place
            truth[free & (mask == value)] = number
            classes[number] = self.num_classes + place
        return truth, classes, crowds

    def scores(self, counts: metrics.Collected) -> dict[str, float]:
        """Returns panoptic quality and average precision."""
        kept = counts.kept()
        scores = super().scores(metrics.Collected(tuple(detections for detections, _ in kept), shrunk=True))
        total = kept[0][1]
        for _, more in kept[1:]:
            total += more
        quality = total.quality
        scores |= {"pq": _mean(quality), "sq": _mean(total.segmentation), "rq": _mean(total.recognition)}
        scores |= {"pq_things": _mean(quality[: self.num_classes]), "pq_stuff": _mean(quality[self.num_classes :])}
        named = list(zip(self.segment_names, quality, strict=True))[self.first_label :]
        return scores | {f"pq_{name}": float(value) for name, value in named}


def _mean(values: np.ndarray) -> float:
    """The mean over the classes that occur."""
    occurring = values[~np.isnan(values)]
    return float(occurring.mean()) if len(occurring) else float("nan")
