"""Detection: boxes with classes, and optionally masks, for every detector of the zoo."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo import metrics, ops
from densezoo.data import transforms
from densezoo.heads import AnchorOutputs, PointOutputs
from densezoo.messages import option
from densezoo.tasks import _targets
from densezoo.types import Detections

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Detection:
    """Object detection: batches contain `image` (b, h, w, c), `boxes` (b, n, 4) and `labels` (b, n).

    Boxes are x0, y0, x1, y1 in pixels. Rows without an object have the label -1. Labels start at 0 in the sources of
    `densezoo.data`. A model's classes start at 1 if its class 0 is the background, which is always the case for Faster
    and Mask R-CNN and for torchvision's weights. `first_label` is the class of label 0. With `masks`, `instances`
    (b, h, w) has the value k at the pixels of the object in row k - 1. `size` (b, 2) is the height and width of each
    picture without padding, which limits anchors, boxes and losses.

    An object of a class that the model does not have, or of the class of its background, makes the loss NaN. Then
    `first_label` is probably wrong.

    The losses are torchvision's. The step's key determines their random samples. Average precision ranks the detections
    of all pictures together, so it cannot be counted batch by batch. `measure` therefore returns the detections and
    objects of a batch as `metrics.Collected`, whose sum keeps all pictures, and `scores` evaluates them on the host.

    Attributes:
        num_classes: the model's number of classes, including the background if it has one.
        masks: whether to train masks, for a model that predicts them.
        class_names: a name for each class, including the background. Empty for numbers.
        first_label: the model's class for the label 0 of a batch.
        anchor_samples: number of anchors per picture in the loss of the proposals.
        anchor_positives: largest share of these anchors that have an object.
        region_samples: number of boxes per picture in the loss of the second stage.
        region_positives: largest share of these boxes that have an object. Only these contribute to the mask loss.
        size_limits: as in `metrics.average_precision`, for the scores of small, medium and large objects.

    Raises:
        ValueError: if options are invalid or contradict each other. The message names them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> task = Detection(num_classes=3)
        >>> model = dz.create_model("retinanet", dz.PlainEncoder((4, 8, 8)), task.num_classes, features=8)
        >>> batch = {"image": jnp.zeros((1, 32, 32, 3)), "boxes": jnp.array([[[4.0, 4.0, 20.0, 28.0], [0.0] * 4]])}
        >>> batch["labels"] = jnp.array([[2, -1]])
        >>> variables = jax.jit(model.init)(jax.random.key(0), batch["image"])
        >>> def apply(*inputs, **options):  # as train.make_train_step does, which keeps the statistics too
        ...     outputs, _ = model.apply(variables, *inputs, train=True, mutable=["batch_stats"], **options)
        ...     return outputs
        >>> loss, parts = jax.jit(lambda batch: task.loss(apply, batch, jax.random.key(1)))(batch)
        >>> sorted(parts), bool(loss > 0)
        (['box', 'classification'], True)
    """

    num_classes: int
    masks: bool = False
    class_names: tuple[str, ...] = ()
    first_label: int = 0
    anchor_samples: int = 256
    anchor_positives: float = 0.5
    region_samples: int = 512
    region_positives: float = 0.25
    size_limits: tuple[float, float] = (32.0, 96.0)

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    best: ClassVar[str] = "box_ap"
    method: ClassVar[str] = "detect"
    """The model's method whose results `predict` takes."""

    def __post_init__(self):
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {self.num_classes}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"class_names needs {self.num_classes} entries, one per class; got {self.class_names}")
        if not 0 <= self.first_label < self.num_classes:
            raise ValueError(f"first_label must be a class, 0 to {self.num_classes - 1}, got {self.first_label}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names contains duplicates: {self.class_names}")
        for name in ("anchor_samples", "region_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("anchor_positives", "region_positives"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share above 0 and at most 1, got {getattr(self, name)}")
        if not 0 < self.size_limits[0] < self.size_limits[1] < float("inf"):
            raise ValueError(f"size_limits must be two increasing numbers above 0, got {self.size_limits}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return ("image", "boxes", "labels", *(("instances",) if self.masks else ()), "size")

    @property
    def scored_fields(self) -> tuple[str, ...]:
        """Entries of a batch that `measure` also reads if the source has them: areas of objects, and crowds."""
        return ("areas", "boxes_crowd", "labels_crowd", *(("instances_crowd",) if self.masks else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each class, or its number if it has none."""
        return self.class_names or tuple(map(str, range(self.num_classes)))

    @property
    def fill(self) -> int:
        """The value of label maps in the padding."""
        return -1

    def loss(
        self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the sum of the model's losses, and the individual losses.

        `apply` runs the model with `train=True`, as that of `train.make_train_step` does.
        """
        boxes, labels = self._objects(batch)
        outputs = apply(batch["image"], batch.get("size"))
        if isinstance(outputs, AnchorOutputs):
            self._check_classes(outputs.logits)
            parts = _targets.of_anchors(outputs, boxes, labels)
        elif isinstance(outputs, PointOutputs):
            self._check_classes(outputs.logits)
            parts = _targets.of_points(outputs, boxes, labels)
        else:
            parts = self._of_two_stages(apply, outputs, batch, boxes, labels, key)
        has_background = not isinstance(outputs, AnchorOutputs | PointOutputs)
        return self._total(parts, labels, has_background), parts

    def _total(self, parts: _targets.Losses, labels: Any, has_background: bool) -> Float[Array, ""]:
        # Values cannot be checked here. An object of a class that the model does not have, or of the class of its
        # background, gives NaN, as in the pixel losses.
        total = jnp.sum(jnp.stack(list(parts.values())))
        wrong = (labels >= self.num_classes) | ((labels == 0) & has_background)
        return jnp.where(wrong.any(), jnp.nan, total)

    def _check_classes(self, logits: Any) -> None:
        if logits.shape[-1] != self.num_classes:
            raise ValueError(
                f"the task has {option('num_classes', self.num_classes)} and the model gives logits of"
                f" {logits.shape[-1]} classes: make both with the same number, which counts the background if the model"
                " has one"
            )

    def _of_two_stages(
        self, apply: Callable[..., Any], outputs: Any, batch: Mapping[str, Any], boxes: Any, labels: Any, key: Any
    ) -> _targets.Losses:
        anchor_key, region_key = jax.random.split(key)
        parts = _targets.of_proposals(
            outputs.anchors, boxes, labels, anchor_key, self.anchor_samples, self.anchor_positives
        )
        share = self.region_positives
        drawn = _targets.draw_regions(
            outputs.boxes, outputs.valid, boxes, labels, region_key, self.region_samples, share
        )
        regions, classes, _, wanted = drawn
        logits, deltas = apply(outputs.pyramid, regions, method="box_outputs")
        self._check_classes(logits)
        parts |= _targets.of_regions(logits, deltas, regions, classes, wanted)
        if self.masks:
            # Boxes with an object come first.
            regions, classes, rows, _ = (x[:, : max(1, int(self.region_samples * share))] for x in drawn)
            masks = apply(outputs.pyramid, regions, method="mask_logits")
            parts |= _targets.of_masks(masks, regions, classes, rows, batch["instances"])
        return parts

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.Collected:
        """Returns the detections and the objects of a batch."""
        found: Detections = apply(batch["image"], batch.get("size"), method=self.method)
        return metrics.Collected.of(in_coco_format, **self._measured(found, batch))

    def _measured(self, found: Detections, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays of a batch that `in_coco_format` reads."""
        boxes, labels = self._objects(batch)
        arrays = {name: value for name, value in vars(found).items() if value is not None}
        height, width = batch["image"].shape[1:3]
        arrays["size"] = batch["size"] if "size" in batch else jnp.full((boxes.shape[0], 2), jnp.array([height, width]))
        arrays |= {"true_boxes": boxes, "true_labels": labels}
        arrays |= {"instances": batch["instances"]} if self.masks else {}
        arrays |= {name: batch[name] for name in self.scored_fields if name in batch}
        if "labels_crowd" in batch:
            crowds = batch["labels_crowd"]
            arrays["labels_crowd"] = jnp.where(crowds >= 0, crowds + self.first_label, -1)
        return arrays

    def scores(self, counts: metrics.Collected) -> dict[str, float]:
        """Returns COCO's average precision: `box_ap`, `box_ap50`, ..., and with `masks` also `mask_ap`, ...

        See `metrics.average_precision` for the other names. Areas are in pixels of the evaluated pictures; they are the
        annotated ones (`areas`) where the source has them. Detections in crowds do not count. Of masks that overlap,
        the visible parts are compared; `detect.py --data` compares whole masks at the pictures' own sizes.
        """
        dataset: dict[str, Any] = {"images": [], "annotations": []}
        named = list(enumerate(self.names))[self.first_label :]  # without the background
        dataset["categories"] = [{"id": number + 1, "name": name} for number, name in named]
        results = []
        for images, annotations, detections in counts.kept():
            first, number = len(dataset["images"]), len(dataset["annotations"])
            dataset["images"] += [image | {"id": image["id"] + first} for image in images]
            dataset["annotations"] += [
                annotation | {"id": number + place + 1, "image_id": annotation["image_id"] + first}
                for place, annotation in enumerate(annotations)
            ]
            results += [result | {"image_id": result["image_id"] + first} for result in detections]
        scores = {}
        for kind, masks in (("box", False), ("mask", True)) if self.masks else (("box", False),):
            found = metrics.average_precision(dataset, results, masks=masks, size_limits=self.size_limits)
            scores |= {f"{kind}_{name}": value for name, value in found.items()}
        return scores

    def predict(self, outputs: Detections) -> Detections:
        """Returns the detections unchanged."""
        return outputs

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips and colour changes."""
        steps = [transforms.random_flip(horizontal=recipe.flip_horizontal, vertical=recipe.flip_vertical)]
        if recipe.rotate:
            steps.append(transforms.random_rot90())
        if recipe.color_jitter:
            strength = recipe.color_jitter
            steps.append(transforms.color_jitter(brightness=strength, contrast=strength, saturation=strength))
        return transforms.compose(*steps)

    def _objects(self, batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """Boxes and labels, without rows that have no object, no area or NaN."""
        if missing := [name for name in self.fields if name not in batch and name != "size"]:
            needed = tuple(name for name in self.fields if name != "size")
            raise ValueError(f"detection needs {needed}, but the batch has no {missing}; it has {sorted(batch)}")
        boxes, labels = jnp.asarray(batch["boxes"]), jnp.asarray(batch["labels"])
        if boxes.ndim != 3 or boxes.shape[-1] != 4 or labels.shape != boxes.shape[:2]:
            raise ValueError(f"expected boxes (b, n, 4) and labels (b, n), got {boxes.shape} and {labels.shape}")
        if not boxes.shape[1]:  # a batch without any object gets one row with the label -1
            boxes = jnp.zeros((boxes.shape[0], 1, 4))
            labels = jnp.full((labels.shape[0], 1), -1)
        boxes, labels = boxes.astype(jnp.float32), labels.astype(jnp.int32)
        area = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1]) & jnp.isfinite(boxes).all(-1)
        labels = jnp.where(area & (labels >= 0), labels + self.first_label, -1)
        return jnp.where(area[..., None], boxes, 0), labels


_Records = list[dict[str, Any]]


def in_coco_format(batch: dict[str, Any]) -> tuple[_Records, _Records, _Records]:
    """Images, annotations and results of a batch, without the rows of size 0 that only fill up the batch."""
    images, annotations, results = [], [], []
    for row in np.flatnonzero(batch["size"].min(-1) > 0):
        height, width = batch["size"][row].tolist()
        number = len(images) + 1
        images.append({"id": number, "height": height, "width": width})
        sample = {"boxes": batch["true_boxes"][row], "labels": batch["true_labels"][row]}
        sample |= {name: batch[name][row] for name in ("areas", "boxes_crowd", "labels_crowd") if name in batch}
        maps = ("instances", "instances_crowd")
        sample |= {name: batch[name][row, :height, :width] for name in maps if name in batch}
        annotations += metrics.coco_annotations(sample, number)
        rows = np.flatnonzero(batch["valid"][row])
        boxes, masks = batch["boxes"][row, rows], None
        if "masks" in batch and "instances" in batch:
            whole = batch["instances"].shape[1:3]
            masks = np.asarray(_paste(batch["masks"][row], batch["boxes"][row], whole))[rows, :height, :width]
        labels = batch["labels"][row, rows]
        results += metrics.coco_results(number, boxes, batch["scores"][row, rows], labels, masks=masks)
    return images, annotations, results


_paste = jax.jit(ops.paste_masks, static_argnums=2)
