"""Diffusion: generating images, of given classes if there are labels."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo import metrics
from densezoo.data import transforms
from densezoo.diffusion import Process, Sampler, make_sampler
from densezoo.diffusion.processes import over_pixels
from densezoo.messages import option
from densezoo.preprocessing import Preprocessing, centred
from densezoo.tasks._checks import spread

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe

_MOMENTS = (0.125, 0.375, 0.625, 0.875)
"""The times of an evaluation, as fractions of the process."""


@dataclasses.dataclass(frozen=True)
class Diffusion:
    """Diffusion: batches contain `image` (b, h, w, c) from -1 to 1 and, for several classes, `label` (b,).

    By default, `train` maps images to -1..1, with `dz.Preprocessing(channels, mean=(0.5,) * channels, std=(0.5,) *
    channels)`, and averages the parameters (`Recipe.ema_decay`). The score `psnr` is that of images predicted from
    noisy ones, in decibels, averaged over four noise levels; `loss` is the mean of the loss at these.

    Attributes:
        num_classes: number of classes of `label`; 1 for images without labels.
        schedule: as in `diffusion.Process`.
        target: as in `diffusion.Process`.
        steps: as in `diffusion.Process`.
        start: as in `diffusion.Process`.
        end: as in `diffusion.Process`.
        zero_terminal_snr: as in `diffusion.Process`.
        clip: as in `diffusion.Process`.
        min_snr: gamma of the min-SNR weights of the loss; None for equal weights.
        label_dropout: share of labels that are replaced by the null label, which guidance needs.
        class_names: names of the classes. Empty for numbers.

    Raises:
        ValueError: if options are invalid or contradict each other. The message names them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> task = Diffusion(schedule="flow")
        >>> batch = {"image": jnp.zeros((4, 8, 8, 1))}
        >>> loss, _ = task.loss(lambda x, t, labels: x, batch, jax.random.key(0))
        >>> bool(loss > 0)
        True
    """

    num_classes: int = 1
    schedule: str = "cosine"
    target: str = ""
    steps: int = 1000
    start: float = 1e-4
    end: float = 0.02
    zero_terminal_snr: bool = False
    clip: float | None = 1.0
    min_snr: float | None = None
    label_dropout: float = 0.1
    class_names: tuple[str, ...] = ()

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    best: ClassVar[str] = "psnr"
    ema_decay: ClassVar[float] = 0.999
    fill: ClassVar[int] = 0
    multiple: ClassVar[int] = 1  # an image with repeated edges is another image

    def __post_init__(self):
        _ = self.process  # raises for invalid options
        if self.num_classes < 1:
            raise ValueError(f"{option('num_classes')} must be at least 1, got {self.num_classes}")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"{option('label_dropout')} must be at least 0 and below 1, got {self.label_dropout}")
        if self.min_snr is not None and not self.min_snr > 0:
            raise ValueError(f"{option('min_snr')} must be above 0, or None; got {self.min_snr}")
        if self.class_names and len(self.class_names) != self.num_classes:
            raise ValueError(f"{option('class_names')} needs {self.num_classes} entries; got {self.class_names}")

    @functools.cached_property
    def process(self) -> Process:
        """The process from images to noise."""
        names = ("schedule", "target", "steps", "start", "end", "zero_terminal_snr", "clip")
        return Process(**{name: getattr(self, name) for name in names})

    @property
    def fields(self) -> tuple[str, ...]:
        """Entries of a batch that the task reads."""
        return ("image", "label") if self.num_classes > 1 else ("image",)

    def default_preprocessing(self, channels: int) -> Preprocessing:
        """The preprocessing of `train` if none is given: maps integers, and floats from 0 to 1, to -1..1."""
        return centred(channels)

    def sampler(self, model: Any, **options: Any) -> Sampler:
        """A function that samples images; the options are those of `diffusion.make_sampler`."""
        return make_sampler(model, self.process, **options)

    def check(self, model: Any, *sources: Any) -> None:
        """Checks that a model and the labels of sources fit the task. `train` calls it before the first step.

        Of a large source, 256 evenly spread samples are read.

        Raises:
            ValueError: if the model has other classes, or no null label for the labels that are dropped; or if a label
                is beyond the classes. A null label that would not be trained is only a warning.
        """
        table = getattr(model, "labels_as", "table") == "table"
        if hasattr(model, "num_classes") and table and (model.num_classes or 1) != self.num_classes:
            # The null label is the number after the last class. With other classes, it would be one of them.
            raise ValueError(
                f"the task has {_classes(self.num_classes)}, but the model has {_classes(model.num_classes or 1)}:"
                f" create both with the same {option('num_classes')}"
            )
        null = table and getattr(model, "null_label", True)
        if self.num_classes > 1 and self.label_dropout and not null:
            raise ValueError(
                f"{option('label_dropout', self.label_dropout)} replaces labels by the null label, which the model does"
                f" not have: use {option('label_dropout', 0.0)}, which rules out guidance, or a model with a null"
                f" label, such as create_model('diffusion_unet', num_classes={self.num_classes})"
            )
        if self.num_classes > 1 and not self.label_dropout and getattr(model, "null_label", False):
            warnings.warn(
                f"{option('label_dropout', 0.0)} does not train the model's null label: sampling with guidance or"
                " without labels would give nonsense. model.clone(null_label=False) has none",
                stacklevel=2,
            )
        for source in sources if self.num_classes > 1 else ():
            for index, sample in spread(source, 256):
                label = sample.get("label")
                if label is not None and np.ndim(label) == 0 and not 0 <= label < self.num_classes:
                    raise ValueError(
                        f"sample {index} has the label {label}; the {self.num_classes} classes of the task have labels"
                        f" from 0 to {self.num_classes - 1}"
                    )

    def loss(
        self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the weighted squared error of the prediction at random times, and the unweighted one as `mse`."""
        images, labels = self._inputs(batch)
        time_key, noise_key, label_key = jax.random.split(key, 3)
        t = self.process.random_times(time_key, images.shape[0])
        noise = jax.random.normal(noise_key, images.shape, images.dtype)
        if labels is not None and self.label_dropout:
            dropped = jax.random.bernoulli(label_key, self.label_dropout, labels.shape)
            labels = jnp.where(dropped, self.num_classes, labels)
        errors = self._errors(apply(self.process.add_noise(images, noise, t), t, labels), images, noise, t)
        errors = jnp.square(errors).mean((1, 2, 3))
        return (errors * self.process.weights(t, self.min_snr)).mean(), {"mse": errors.mean()}

    def _errors(self, output: jax.Array, images: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        if output.shape != images.shape:
            raise ValueError(
                f"the model returns {output.shape} for images of {images.shape}: it must predict maps like the images"
            )
        target = self.process.target_of(images, noise, t)
        return output.astype(jnp.float32) - target.astype(jnp.float32)

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.SquaredErrors:
        """Returns sums of squared errors at four times, with the same noise in every evaluation and for all images."""
        images, labels = self._inputs(batch)
        # Noise of the batch's shape would make the scores depend on the number of images in a batch, and on the mesh.
        noise = jnp.broadcast_to(jax.random.normal(jax.random.key(0), images.shape[1:], images.dtype), images.shape)
        of_images, of_targets = [], []
        for moment in _MOMENTS:
            t = jnp.full(images.shape[:1], int(moment * self.steps), jnp.int32)
            noisy = self.process.add_noise(images, noise, t)
            output = apply(noisy, t, labels).astype(jnp.float32)
            factors = (over_pixels(x, output.dtype) for x in self.process.at(t))
            image, _ = self.process.split(output, noisy.astype(output.dtype), *factors)
            image = image if self.clip is None else jnp.clip(image, -self.clip, self.clip)
            of_images.append(image - images)
            weights = over_pixels(self.process.weights(t, self.min_snr), output.dtype)
            of_targets.append(self._errors(output, images, noise, t) * jnp.sqrt(weights))
        return metrics.squared_errors(*of_images, *of_targets, sizes=batch.get("size"))

    def scores(self, counts: metrics.SquaredErrors) -> dict[str, float]:
        """Returns the PSNR of predicted images at each time and on average, and the mean loss."""
        of_images, of_targets = np.split(counts.mean, 2)
        psnr = metrics.psnr(of_images, data_range=2.0)
        scores = {"psnr": float(psnr.mean()), "loss": float(of_targets.mean())}
        return scores | {f"psnr_{int(moment * self.steps)}": float(x) for moment, x in zip(_MOMENTS, psnr, strict=True)}

    def predict(self, outputs: Any) -> Any:
        """Returns the model's outputs, which are maps like the images."""
        return outputs

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips."""
        return transforms.random_flip(horizontal=recipe.flip_horizontal, vertical=recipe.flip_vertical)

    def _inputs(self, batch: Mapping[str, Any]) -> tuple[jax.Array, jax.Array | None]:
        if missing := [name for name in self.fields if name not in batch]:
            raise ValueError(f"diffusion needs {self.fields}, but the batch has no {missing}; it has {sorted(batch)}")
        if self.num_classes == 1:
            return batch["image"], None
        labels = jnp.asarray(batch["label"])
        if labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(f"expected a class number for each image, got label of {labels.shape} {labels.dtype}")
        # A label beyond the classes, such as the null label, becomes one that the model's table does not have: NaN.
        return batch["image"], jnp.where((labels >= 0) & (labels < self.num_classes), labels, self.num_classes + 1)


def _classes(count: int) -> str:
    return f"{count} classes" if count > 1 else "no classes"
