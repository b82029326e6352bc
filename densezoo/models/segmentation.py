"""Compositions: encoder, decoder, head; encoder, neck."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import check_call
from densezoo.encoders import Encoder
from densezoo.ops.checks import check_fixed
from densezoo.ops.implementation import chosen
from densezoo.ops.resize import repeat_edges
from densezoo.types import Pyramid, size_of


class SegmentationModel(nn.Module):
    """image -> encoder -> pyramid -> decoder -> map -> head -> logits of exactly the image's size.

    Args (fields):
        encoder: images -> Pyramid: an `Encoder`, or any module called like one.
        decoder: Pyramid -> map.
        head: (map, size) -> logits of that size.
        auxiliary: heads for the decoder's coarser scales (`AuxiliaryHeads`), which run in training only: the model then
          gives a tuple, the logits and those of each such head, for `losses.deep_supervision`. The decoder must have
          `all_scales`, as `UNetDecoder` has.
        frozen: parts that do not train, such as `("encoder",)`: they run with their running batch statistics, and
          `densezoo.train` leaves their parameters and statistics as they are. In a loop of your own, the encoder's
          gradients are zero, and `train.freeze(optimizer, model.frozen)` keeps weight decay away.
        impl: which form of the operations computes: "auto", the fastest measured, or "reference", plain JAX, to compare
          with or to differentiate in forward mode (`ops.implementation`). Parameters are the same, and results up to
          rounding.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = SegmentationModel(
        ...     encoder=dz.PlainEncoder(features=(8, 16)),
        ...     decoder=dz.UNetDecoder(features=(8,)),
        ...     head=dz.SegmentationHead(3),
        ... )
        >>> images = jnp.zeros((2, 33, 50, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> model.apply(variables, images).shape
        (2, 33, 50, 3)
    """

    encoder: nn.Module
    decoder: nn.Module
    head: nn.Module
    auxiliary: nn.Module | None = None
    frozen: tuple[str, ...] = ()
    impl: str = "auto"

    def __call__(
        self, images: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b h w k"] | tuple[Float[Array, "b h w k"], ...]:
        auxiliary = self.auxiliary if train or self.is_initializing() else None
        check_call(self.decoder, "decoder", "pyramid", train=train)
        check_call(self.head, "head", "maps", "size")
        with computed_by(self.impl):
            pyramid = encode(self.encoder, images, train=train and "encoder" not in self.frozen)
            pyramid = without_gradient(pyramid) if "encoder" in self.frozen else pyramid
            decode = partial(self.decoder, pyramid, train=train and "decoder" not in self.frozen)
            # The size that the encoder saw, from which what `encode` added to a very small image is cut again.
            size = pyramid.image_size
            if auxiliary is None:
                return _cut(self.head(decode(), size), images)
            maps = decode(all_scales=True)
            logits = self.head(maps[0], size), *auxiliary(maps[1:], size)
        return tuple(_cut(each, images) for each in logits) if train else _cut(logits[0], images)


def without_gradient(pyramid: Pyramid) -> Pyramid:
    """A frozen encoder's maps: its parameters get zero gradients in any loop, and no backward pass."""
    return jax.tree.map(jax.lax.stop_gradient, pyramid)


def _cut(logits: jax.Array, images: jax.Array) -> jax.Array:
    return logits[:, : images.shape[1], : images.shape[2]]


class PyramidModel(nn.Module):
    """image -> encoder -> pyramid -> neck -> a tuple of maps, fine to coarse: the backbone of a detector.

    Args (fields):
        encoder: images -> Pyramid.
        neck: Pyramid -> maps, such as `FPNNeck`.
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    An image smaller than the encoder can take (`min_size`) is enlarged by repeating its edges, and the maps are those
    of the enlarged image.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = PyramidModel(encoder=dz.create_encoder("resnet18"), neck=dz.FPNNeck(features=32))
        >>> maps, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
        >>> [p.shape for p in maps]
        [(1, 16, 24, 32), (1, 8, 12, 32), (1, 4, 6, 32), (1, 2, 3, 32)]
    """

    encoder: nn.Module
    neck: nn.Module
    frozen: tuple[str, ...] = ()
    impl: str = "auto"

    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> tuple[Float[Array, "b _ _ c"], ...]:
        with computed_by(self.impl):
            pyramid = encode(self.encoder, images, train=train and "encoder" not in self.frozen)
            pyramid = without_gradient(pyramid) if "encoder" in self.frozen else pyramid
            check_call(self.neck, "neck", "pyramid", train=train)
            return self.neck(pyramid, train=train and "neck" not in self.frozen)


def computed_by(impl: str) -> AbstractContextManager[None]:
    """What a model's `impl` field means: "auto" leaves a choice that is made around the model as it is."""
    return nullcontext() if impl == "auto" else ops.implementation(impl)


def encode(encoder: nn.Module, images: jax.Array, *, train: bool) -> Pyramid:
    """Checks the images, repeats the edges of ones too small for the encoder, and runs it."""
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected a batch of NHWC images with no empty axis, got shape {images.shape}")
    if chosen() == "reference":
        check_fixed('impl="reference"', *size_of(images))
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"expected float images, got {images.dtype}: densezoo.data.to_float scales integer pixels to 0..1"
        )
    shape = images.shape if all(isinstance(side, int) for side in images.shape) else None  # a symbolic one says nothing
    if shape and shape[1] <= 4 and min(shape[2:]) >= 16:
        warnings.warn(
            f"images of shape {images.shape} look like NCHW and are taken as NHWC, with {images.shape[-1]} channels:"
            " images.transpose(0, 2, 3, 1) brings them in order",
            stacklevel=3,
        )
    check_call(encoder, "encoder", "images", train=train)
    smallest = encoder.min_size if isinstance(encoder, Encoder) else 1
    missing = [max(0, smallest - side) for side in size_of(images)]
    if any(missing):
        images = repeat_edges(images, (missing[0], missing[1]))
    try:
        pyramid = encoder(images, train=train)  # pyright: ignore[reportCallIssue]
    except ScopeParamShapeError as error:
        raise ValueError(
            f"the variables do not fit this encoder and images of {images.shape[-1]} channels (they come as NHWC, the"
            f" shape is {images.shape}): {error}"
        ) from error
    if not isinstance(pyramid, Pyramid):
        raise TypeError(
            f"{type(encoder).__name__}, the encoder, returned a {type(pyramid).__name__}: an encoder returns"
            " dz.Pyramid(maps, reductions=...), with its maps from fine to coarse and the image size over each map's"
            " size, such as dz.Pyramid((x, y), reductions=(2, 4))"
        )
    reductions = pyramid.reductions
    if reductions is not None and len(reductions) != len(pyramid.maps):
        raise ValueError(f"each map has a reduction; this encoder has {len(pyramid.maps)} maps and {reductions=}")
    # A plain module may return no more than maps.
    return pyramid.replace(image_size=size_of(images))
