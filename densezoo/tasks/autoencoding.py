"""Autoencoding: returning the image through few latents, with or without a variational bottleneck."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import metrics
from densezoo.data import transforms
from densezoo.messages import option
from densezoo.models import Reconstruction
from densezoo.preprocessing import Preprocessing, centred

if TYPE_CHECKING:
    from densezoo.train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Autoencoding:
    """Autoencoding: batches contain `image` (b, h, w, c) from -1 to 1, which the model returns.

    The loss is the mean squared error, and for a VAE `kl_weight` times the Kullback-Leibler divergence of the latents
    from a standard normal distribution, per value of the image. A model that returns only images, such as a U-Net with
    skips, can be trained too, for comparison.

    `train` maps images to -1..1 by default, with `dz.Preprocessing(channels, mean=(0.5,) * channels, std=(0.5,) *
    channels)`.

    Attributes:
        kl_weight: weight of the divergence. 1 with a noise of deviation sigma in the images corresponds to
            `2 * sigma**2`.
        data_range: difference of the largest and the smallest value of images, for the score `psnr`.

    Raises:
        ValueError: if an option is invalid.

    Example:
        >>> import jax.numpy as jnp
        >>> task = Autoencoding()
        >>> batch = {"image": jnp.zeros((1, 8, 8, 1))}
        >>> f"{task.scores(task.measure(lambda images: images + 0.2, batch))['psnr']:.2f}"
        '20.00'
    """

    kl_weight: float = 1e-3
    data_range: float = 2.0

    inputs: ClassVar[tuple[str, ...]] = ("image",)
    fields: ClassVar[tuple[str, ...]] = ("image",)
    best: ClassVar[str] = "psnr"
    fill: ClassVar[int] = 0
    multiple: ClassVar[int] = 1  # an image with repeated edges is another image

    def __post_init__(self):
        if not self.kl_weight >= 0:
            raise ValueError(f"{option('kl_weight')} must be at least 0, got {self.kl_weight}")
        metrics.psnr(1.0, self.data_range)  # raises for an invalid range

    def default_preprocessing(self, channels: int) -> Preprocessing:
        """The preprocessing of `train` if none is given: maps integers, and floats from 0 to 1, to -1..1."""
        return centred(channels)

    def loss(
        self, apply: Callable[..., Any], batch: Mapping[str, Any], key: Any
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Returns the loss, and `mse` and `kl` (per value of the image) alone."""
        del key
        output = apply(batch["image"])
        mse = jnp.square(self._error(output, batch["image"])).mean()
        if not isinstance(output, Reconstruction) or output.log_variance is None:
            return mse, {"mse": mse}
        mean, log_variance = output.mean.astype(jnp.float32), output.log_variance.astype(jnp.float32)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).sum()
        kl = divergence / batch["image"].size
        return mse + self.kl_weight * kl, {"mse": mse, "kl": kl}

    def measure(self, apply: Callable[..., Any], batch: Mapping[str, Any]) -> metrics.SquaredErrors:
        """Returns the sum of squared errors."""
        return metrics.squared_errors(self._error(apply(batch["image"]), batch["image"]), sizes=batch.get("size"))

    def scores(self, counts: metrics.SquaredErrors) -> dict[str, float]:
        """Returns the PSNR in decibels, and the mean squared error."""
        (error,) = counts.mean
        return {"psnr": float(metrics.psnr(error, self.data_range)), "mse": float(error)}

    def predict(self, outputs: Any) -> jax.Array:
        """Returns the images of a model's output."""
        return outputs.images if isinstance(outputs, Reconstruction) else outputs

    def augment(self, recipe: "Recipe") -> Callable[[Any, Any], Any]:
        """Returns an augmentation with the recipe's random flips."""
        return transforms.random_flip(horizontal=recipe.flip_horizontal, vertical=recipe.flip_vertical)

    def _error(self, output: Any, images: jax.Array) -> jax.Array:
        restored = self.predict(output)
        if restored.shape != images.shape:
            raise ValueError(
                f"the model returns {restored.shape} for images of {images.shape}: create it with as many channels,"
                f" num_classes={images.shape[-1]}"
            )
        return restored.astype(jnp.float32) - images.astype(jnp.float32)
