"""The types that every room shares."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from densezoo.deprecation import renamed

__all__ = ["Dtype", "Initializer", "ModuleDef", "Pyramid", "Size"]

Dtype = Any
"""Anything that `jnp.dtype` takes; None lets a module compute in the type of its input and parameters."""

Initializer = Callable[..., jax.Array]
"""Called with a key, a shape and a dtype, as those of `jax.nn.initializers`."""

Side = Any
"""A side in pixels: an int, or in `jax.export` a symbolic dimension."""

Size = tuple[Side, Side]
"""(height, width) in pixels."""

ModuleDef = Callable[..., Any]
"""A factory of Flax modules: a Module class, or a `functools.partial` of one."""


@renamed(features="maps")
@struct.dataclass
class Pyramid:
    """What an encoder returns and a decoder takes: feature maps from fine to coarse.

    Attributes:
      maps: NHWC arrays, fine to coarse.
      pool_indices: for each 2x2 max-pooling of the encoder, fine to coarse, the place of each maximum in its window
        (`ops.max_pool_with_indices`); None if the encoder does not pool this way. SegNet's skip.
      reductions: image size over map size for each map, and
      image_size: (height, width) of the encoder's input. From these two a decoder that upsamples beyond the finest map
        knows how many steps are left, and ends exactly on the image. A pyramid made by hand may lack them: such a
        decoder then doubles as often as it has blocks.
      tokens: for each map what a transformer keeps beside it, such as the class token, (batch, tokens, channels); None
        if there is none. DPT reads them.
    """

    maps: tuple[jax.Array, ...]
    pool_indices: tuple[jax.Array, ...] | None = None
    reductions: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    image_size: Size | None = struct.field(pytree_node=False, default=None)
    tokens: tuple[jax.Array, ...] | None = None


@struct.dataclass
class Detections:
    """What `dz.detect` finds in a batch of pictures: for each of them n rows, the best first.

    Attributes:
        boxes: (b, n, 4), x0, y0, x1, y1 in pixels; zeros in rows without a detection.
        scores: (b, n), from 0 to 1.
        labels: (b, n), the numbers of the model's classes; -1 in rows without a detection.
        valid: (b, n), whether the row holds a detection.
        masks: (b, n, 28, 28), the probability that each part of the box belongs to the object, which
            `ops.paste_masks` puts into the picture; None for a model without masks.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


def accumulator_dtype(dtype: Dtype) -> Dtype:
    """The float type in which to sum values of `dtype`: float32, or float64 for float64."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def size_of(x: jax.Array) -> Size:
    """(height, width) of NHWC maps."""
    return x.shape[1], x.shape[2]
