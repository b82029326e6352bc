"""The inputs that a model takes."""

from typing import Any

import flax.linen as nn
import jax


def example_inputs(model: nn.Module, images: Any) -> tuple[Any, ...]:
    """Returns the shapes of inputs that a model takes together with images of a shape.

    A model that takes one batch of images needs nothing for this. Any other model has a method
    `example_inputs(images)`, which gets the shape of the images and returns the shapes of all inputs, the images first,
    in the order of its call. Whatever needs inputs of its own for a model uses them: saving, summaries, diagrams,
    folding, training.

    Args:
        model: a model.
        images: NHWC images, or their shape (`jax.ShapeDtypeStruct`).

    Returns:
        A `jax.ShapeDtypeStruct` for each input.

    Example:
        >>> import jax.numpy as jnp
        >>> import densezoo as dz
        >>> images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        >>> [len(example_inputs(dz.create_model(name), images)) for name in ("unet", "siamese_unet")]
        [1, 2]
    """
    images = jax.ShapeDtypeStruct(images.shape, images.dtype)
    method = getattr(model, "example_inputs", None)
    return (images,) if method is None else tuple(method(images))
