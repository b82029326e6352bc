"""The inputs that a model takes."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from densezoo.messages import shortened


def example_inputs(model: nn.Module, images: Any, *, count: int = 1) -> tuple[Any, ...]:
    """Returns the shapes of inputs that a model takes together with images of a shape.

    A model that takes one batch of images needs nothing for this. Any other model has a method
    `example_inputs(images)`, which gets the shape of the images and returns the shapes of all inputs, the images first,
    in the order of its call. Whatever needs inputs of its own for a model uses them: saving, summaries, diagrams,
    folding, training.

    Args:
        model: a model.
        images: NHWC images, or their shape (`jax.ShapeDtypeStruct`).
        count: number of images that a model without this method takes for each sample.

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
    return (images,) * count if method is None else tuple(method(images))


def check_collections(variables: Any) -> None:
    """Refuses parameters alone in place of a model's variables.

    Raises:
        TypeError: if the variables are not a dictionary.
        ValueError: if they have no `params`.
    """
    if not isinstance(variables, Mapping):
        raise TypeError(f"expected the model's variables, a dictionary of params; got a {type(variables).__name__}")
    if variables and "params" not in variables:  # a model without parameters has no variables
        raise ValueError(
            "expected the model's variables, a dictionary of params and other collections; got one of"
            f" {shortened(sorted(variables), ', ', 4)}. Pass {{'params': params, ...}} or state.variables, as"
            " model.init returns them, and not their params alone"
        )
