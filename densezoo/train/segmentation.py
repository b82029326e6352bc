"""The recipe for segmentation: from a source of images and masks to a trained state and its scores."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo import losses, metrics
from densezoo.compiling import Jitted
from densezoo.data import Source, eval_batches, to_float, train_batches, transforms
from densezoo.inference import compile
from densezoo.train.loop import fit
from densezoo.train.optimizer import make_optimizer
from densezoo.train.state import TrainState, create_state
from densezoo.train.step import make_eval_step, make_train_step

NOT_A_CLASS = -1
"""Fills a mask where there is no image, if the data have no `ignore_index` of their own."""

FIELDS = ("image", "mask")
"""Entries of the samples that are read."""


@dataclasses.dataclass(frozen=True)
class SegmentationRecipe:
    """AdamW with a one-cycle learning rate on random crops; the fields are the options of the training script.

    Attributes:
        ignore_index: mask value of pixels without a label, None if there are none.
        crop_size: side of the random training crops, in pixels.
        batch_size: crops in a step.
        steps: steps of the whole training.
        learning_rate: peak of the one-cycle schedule.
        weight_decay: of AdamW.
        clip_norm: gradients of a larger norm are scaled down to it.
        accumulate: parts that a batch is split into, to save memory.
        ema_decay: evaluate a moving average of the parameters with this decay.
        flip_horizontal: mirror half of the crops.
        flip_vertical: turn half of the crops upside down.
        rotate: also turn by multiples of 90 degrees.
        scale: zoom by a factor drawn from this range.
        color_jitter: strength of random brightness, contrast and saturation.
        seed: of parameters, shuffling, crops and augmentation.
        evaluate_every: steps between evaluations; there is always one at the end.
        checkpoint_every: steps between checkpoints.
    """

    ignore_index: int | None = 255
    crop_size: int = 256
    batch_size: int = 8
    steps: int = 1000
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip_norm: float | None = None
    accumulate: int = 1
    ema_decay: float | None = None
    flip_horizontal: bool = True
    flip_vertical: bool = False
    rotate: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    color_jitter: float = 0.0
    seed: int = 0
    evaluate_every: int | None = None
    checkpoint_every: int = 500

    def __post_init__(self):
        for name in ("crop_size", "batch_size", "steps", "accumulate", "evaluate_every", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is at least 1, got {value}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is above 0, got {self.learning_rate}")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate={self.accumulate} does not divide batch_size={self.batch_size}")

    def augment(self, mean: Sequence[float], std: Sequence[float]) -> Callable[[jax.Array, Any], Any]:
        """The `(key, batch) -> batch` of the train step: what is drawn at random, then the normalisation."""
        steps = [transforms.random_flip(horizontal=self.flip_horizontal, vertical=self.flip_vertical)]
        if self.rotate:
            steps.append(transforms.random_rot90())
        if self.scale != (1.0, 1.0):
            steps.append(
                transforms.random_scale(
                    self.scale, ignore_index=NOT_A_CLASS if self.ignore_index is None else self.ignore_index
                )
            )
        if self.color_jitter:
            strength = self.color_jitter
            steps.append(transforms.color_jitter(brightness=strength, contrast=strength, saturation=strength))
        return transforms.compose(*steps, transforms.normalize(mean, std))


def segmentation_loss(ignore_index: int) -> Callable[[Any, Any], jax.Array]:
    """Cross-entropy of a batch's `mask`; binary for logits of one channel. Auxiliary heads count 0.4 together."""
    return losses.deep_supervision(
        lambda logits, batch: losses.cross_entropy(logits, batch["mask"], ignore_index=ignore_index)
    )


def scores_of(counts: metrics.Counts) -> dict[str, Any]:
    """The scores that training reports, from counts: `mean_iou`, `pixel_accuracy` and `iou_<class>`, as floats."""
    scores = {"mean_iou": float(metrics.mean_iou(counts)), "pixel_accuracy": float(metrics.pixel_accuracy(counts))}
    return scores | {f"iou_{index}": float(value) for index, value in enumerate(np.asarray(metrics.iou(counts)))}


def make_evaluator(
    source: Source,
    num_classes: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ignore_index: int | None = 255,
    batch_size: int = 4,
) -> Callable[[TrainState], dict[str, Any]]:
    """A function from a state to its scores on whole images: mean_iou, pixel_accuracy, and per_class_iou's entries.

    Args:
        source: validation samples; their sizes may differ.
        num_classes: number of classes; 1 counts as a binary mask, with classes 0 and 1.
        mean: per channel, subtracted from images in 0..1.
        std: per channel, by which they are then divided.
        ignore_index: mask value of pixels without a label.
        batch_size: images at a time.

    Returns:
        A function `evaluate(state)` for `fit`, whose scores are floats: `mean_iou`, `pixel_accuracy` and `iou_<class>`.
    """
    classes = max(num_classes, 2)
    ignore_index = NOT_A_CLASS if ignore_index is None else ignore_index

    def measure(logits, batch):
        predictions = metrics.predict(logits)
        return metrics.confusion_counts(predictions, batch["mask"], num_classes=classes, ignore_index=ignore_index)

    step = make_eval_step(measure)
    normalize = jax.jit(transforms.normalize(mean, std))
    batches = eval_batches(source, batch_size=batch_size, ignore_index=ignore_index, fields=FIELDS)

    def evaluate(state: TrainState) -> dict[str, Any]:
        counts = metrics.Counts.zeros(classes)
        for batch in batches:
            counts += step(state, normalize(jax.random.key(0), batch))
        return scores_of(counts)

    return evaluate


def train_segmentation(
    model: nn.Module,
    train: Source,
    val: Source,
    recipe: SegmentationRecipe,
    *,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    variables: Any = None,
    directory: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Trains a model on crops of `train` and scores it on the whole images of `val`.

    Args:
        model: images -> logits of the images' size, with `num_classes` channels.
        train: training samples.
        val: validation samples.
        recipe: everything that can be chosen about the training.
        num_classes: channels of the logits; 1 is a binary mask.
        mean: per channel, subtracted from images in 0..1.
        std: per channel, by which they are then divided.
        variables: start from these instead of random ones.
        directory: where checkpoints and the log go; None writes nothing.
        resume: continue the run in `directory` exactly.
        progress: show a progress line on stderr.

    Returns:
        The trained state and the history, whose last record holds the final scores; see `fit`.

    Raises:
        ValueError, FileExistsError, FloatingPointError, OSError: as `fit` says.
    """
    ignore_index = NOT_A_CLASS if recipe.ignore_index is None else recipe.ignore_index
    channels = train[0]["image"].shape[-1]
    image = jax.ShapeDtypeStruct((recipe.batch_size, recipe.crop_size, recipe.crop_size, channels), jnp.float32)
    optimizer = make_optimizer(
        recipe.learning_rate, recipe.steps, weight_decay=recipe.weight_decay, clip_norm=recipe.clip_norm
    )
    state = create_state(
        model, optimizer, jax.random.key(recipe.seed), image, variables=variables, ema_decay=recipe.ema_decay
    )
    train_step = make_train_step(
        segmentation_loss(ignore_index), augment=recipe.augment(mean, std), accumulate=recipe.accumulate
    )
    batches = train_batches(
        train,
        batch_size=recipe.batch_size,
        crop_size=recipe.crop_size,
        seed=recipe.seed,
        ignore_index=ignore_index,
        fields=FIELDS,
    )
    evaluate = make_evaluator(val, num_classes, mean=mean, std=std, ignore_index=ignore_index)
    return fit(
        state,
        train_step,
        batches,
        steps=recipe.steps,
        evaluate=evaluate,
        evaluate_every=recipe.evaluate_every,
        best="mean_iou",
        directory=directory,
        resume=resume,
        checkpoint_every=recipe.checkpoint_every,
        progress=progress,
    )


def predictor(
    model: nn.Module, variables: Any, *, mean: Sequence[float], std: Sequence[float], multiple: int = 32
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from an image as a file holds it to its mask.

    Images are padded at the bottom and right to a multiple of `multiple`, as in evaluation, so that few sizes need
    to be compiled.

    Args:
        model: images -> logits of the images' size.
        variables: of the model.
        mean: per channel, subtracted from images in 0..1.
        std: per channel, by which they are then divided.
        multiple: sides are padded to multiples of this many pixels.

    Returns:
        A function from one (h, w, c) image of integers or floats to its (h, w) int32 mask.
    """
    normalize = transforms.normalize(mean, std)

    infer = compile(model, variables)

    @Jitted
    def apply(images):
        batch = normalize(jax.random.key(0), {"image": images})
        return metrics.predict(infer(batch["image"]))

    def predict(image: np.ndarray) -> np.ndarray:
        if image.ndim != 3:
            raise ValueError(f"expected one image of shape (h, w, c), got shape {image.shape}")
        height, width, _ = image.shape
        padding = [(0, -side % multiple) for side in (height, width)]
        padded = np.pad(to_float(image), (*padding, (0, 0)), mode="edge")
        return np.asarray(apply(padded[None]))[0, :height, :width]

    return predict
