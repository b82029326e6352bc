"""Types shared by all packages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from densezoo.deprecation import renamed

__all__ = ["Dtype", "Initializer", "ModuleDef", "Pyramid", "Size"]

Dtype = Any
"""Anything that `jnp.dtype` accepts. With None, a module computes in the dtype of its input and parameters."""

Initializer = Callable[..., jax.Array]
"""Called with a key, a shape and a dtype, like the functions of `jax.nn.initializers`."""

Side = Any
"""A side in pixels: an int, or in `jax.export` a symbolic dimension."""

Size = tuple[Side, Side]
"""(height, width) in pixels."""

ModuleDef = Callable[..., Any]
"""A factory of Flax modules: a Module class, or a `functools.partial` of one."""


@renamed(features="maps")
@struct.dataclass
class Pyramid:
    """Feature maps from fine to coarse: the output of an encoder and the input of a decoder.

    Attributes:
        maps: NHWC arrays, fine to coarse.
        pool_indices: for each 2x2 max-pooling of the encoder, fine to coarse, the position of each maximum in its
            window (`ops.max_pool_with_indices`). None if the encoder does not pool this way. SegNet uses them as skips.
        reductions: image size divided by map size, for each map.
        image_size: (height, width) of the encoder's input. A decoder that upsamples beyond the finest map uses
            `reductions` and `image_size` to compute the number of remaining steps and to end at the image's size.
            Without them, as in a pyramid made by hand, it doubles the size once per block.
        tokens: for each map, a transformer's additional tokens, such as the class token, (batch, tokens, channels).
            None if there are none. DPT uses them.
    """

    maps: tuple[jax.Array, ...]
    pool_indices: tuple[jax.Array, ...] | None = None
    reductions: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    image_size: Size | None = struct.field(pytree_node=False, default=None)
    tokens: tuple[jax.Array, ...] | None = None


@struct.dataclass
class Detections:
    """The result of `dz.detect`: n rows for each image of a batch, best detection first.

    Attributes:
        boxes: (b, n, 4), x0, y0, x1, y1 in pixels; zeros in rows without a detection.
        scores: (b, n), from 0 to 1.
        labels: (b, n), class numbers of the model; -1 in rows without a detection.
        valid: (b, n), whether the row holds a detection.
        masks: (b, n, side, side), probabilities that each part of the box belongs to the object, by default with a side
            of 28. `ops.paste_masks` pastes them into the image. None for a model without masks.
    """

    boxes: jax.Array
    scores: jax.Array
    labels: jax.Array
    valid: jax.Array
    masks: jax.Array | None = None


def accumulator_dtype(dtype: Dtype) -> Dtype:
    """The float dtype for sums of values of `dtype`: float32, or float64 for float64."""
    return jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32


def size_of(x: jax.Array) -> Size:
    """(height, width) of NHWC maps."""
    return x.shape[1], x.shape[2]
