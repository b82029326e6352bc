"""Compositions: encoder, decoder, head; encoder, neck."""

import dataclasses
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import check_call, one_by_one
from densezoo.encoders import Encoder
from densezoo.freezing import is_frozen
from densezoo.ops.checks import check_fixed
from densezoo.ops.implementation import chosen
from densezoo.ops.resize import repeat_edges
from densezoo.types import Pyramid, Size, size_of


class SegmentationModel(nn.Module):
    """An encoder, a decoder and a head, which map images to logits of the image's size.

    Attributes:
        encoder: images -> Pyramid: an `Encoder`, or any module with the same interface.
        decoder: Pyramid -> map.
        head: (map, size) -> logits of that size.
        auxiliary: heads for the decoder's coarser scales (`AuxiliaryHeads`). They only run in training: the model then
            returns a tuple of the logits and each auxiliary head's logits, for `losses.deep_supervision`. The decoder's
            call must take `all_scales`, like `UNetDecoder`.
        frozen: parts that are not trained, such as `("encoder",)`, or parts of parts, such as `("encoder/conv1",
            "encoder/layer1_*")`. They use their running batch statistics, and `densezoo.train` does not change their
            parameters and statistics. In your own training loop, the gradients of "encoder" are zero, and
            `train.freeze(optimizer, model.frozen)` keeps all of these parts unchanged.
        impl: the form of the operations: "auto" is the fastest measured form, and "reference" is plain JAX, for
            comparison or forward-mode differentiation (`ops.implementation`). Both have the same parameters, and the
            same results up to rounding.

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
        with computed_by(self):
            return self._decoded(self._encoded(images, train=train), size_of(images), train=train)

    @nn.nowrap
    def _encoded(self, images: jax.Array, *, train: bool) -> Pyramid:
        pyramid = encode(self.encoder, images, train=train and "encoder" not in self.frozen)
        return without_gradient(pyramid) if "encoder" in self.frozen else pyramid

    @nn.nowrap
    def _decoded(self, pyramid: Pyramid, image_size: Size, *, train: bool) -> Any:
        """The logits of images of a size; in training with those of the auxiliary heads, if there are any."""
        auxiliary = self.auxiliary if train or self.is_initializing() else None
        check_call(self.decoder, "decoder", "pyramid", train=train)
        check_call(self.head, "head", "maps", "size")
        decode = partial(self.decoder, pyramid, train=train and "decoder" not in self.frozen)
        # `encode` enlarges very small images. Decode at the enlarged size, and crop the logits afterwards.
        size = pyramid.image_size
        if auxiliary is None:
            return _cut(self.head(decode(), size), image_size)
        maps = decode(all_scales=True)
        logits = self.head(maps[0], size), *auxiliary(maps[1:], size)
        return tuple(_cut(each, image_size) for each in logits) if train else _cut(logits[0], image_size)


def without_gradient(pyramid: Pyramid) -> Pyramid:
    """Stops gradients into a frozen encoder: its parameters get zero gradients, and it needs no backward pass."""
    return jax.tree.map(jax.lax.stop_gradient, pyramid)


def _cut(logits: jax.Array, size: Size) -> jax.Array:
    return logits[:, : size[0], : size[1]]


class PyramidModel(nn.Module):
    """An encoder and a neck, the backbone of a detector. Maps images to a tuple of maps, fine to coarse.

    Attributes:
        encoder: images -> Pyramid.
        neck: Pyramid -> maps, such as `FPNNeck`.
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    An image smaller than the encoder's `min_size` is enlarged by repeating its edges, and the maps are those of the
    enlarged image.

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
        with computed_by(self):
            pyramid = encode(self.encoder, images, train=train and "encoder" not in self.frozen)
            pyramid = without_gradient(pyramid) if "encoder" in self.frozen else pyramid
            check_call(self.neck, "neck", "pyramid", train=train)
            return self.neck(pyramid, train=train and "neck" not in self.frozen)


@contextmanager
def computed_by(model: Any) -> Iterator[None]:
    """The context in which a model calls its parts, for its fields `impl` and `frozen`.

    An `impl` of "auto" does not override an `ops.implementation` around the model. Parts of parts that are frozen run
    in inference mode; the model itself does this for whole parts.
    """
    nested = tuple(name for name in model.frozen if "/" in name)
    depth = len(model.path)

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if kwargs.get("train") and is_frozen(context.module.path[depth:], nested):
            kwargs = {**kwargs, "train": False}
        return call(*args, **kwargs)

    with (
        nn.intercept_methods(intercept) if nested else nullcontext(),
        one_by_one() if nested else nullcontext(),
        nullcontext() if model.impl == "auto" else ops.implementation(model.impl),
    ):
        yield


def encode(encoder: nn.Module, images: jax.Array, *, train: bool) -> Pyramid:
    """Checks the images, enlarges images that are too small for the encoder, and runs the encoder."""
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected a batch of NHWC images without empty axes, got shape {images.shape}")
    if chosen() == "reference":
        check_fixed('impl="reference"', *size_of(images))
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(
            f"expected float images, got {images.dtype}: densezoo.data.to_float scales integer pixels to 0..1"
        )
    shape = images.shape if all(isinstance(side, int) for side in images.shape) else None  # unknown if symbolic
    if shape and shape[1] <= 4 and min(shape[2:]) >= 16:
        warnings.warn(
            f"images of shape {images.shape} look like NCHW, but are read as NHWC with {images.shape[-1]} channels:"
            " convert them with images.transpose(0, 2, 3, 1)",
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
            f"the variables do not match this encoder and images with {images.shape[-1]} channels (expected NHWC, got"
            f" shape {images.shape}): {error}"
        ) from error
    if not isinstance(pyramid, Pyramid):
        raise TypeError(
            f"{type(encoder).__name__}, the encoder, returned a {type(pyramid).__name__}: an encoder returns"
            " dz.Pyramid(maps, reductions=...), with its maps from fine to coarse and the image size over each map's"
            " size, such as dz.Pyramid((x, y), reductions=(2, 4))"
        )
    if not pyramid.maps:
        raise ValueError(f"{type(encoder).__name__}, the encoder, gave a Pyramid of 0 maps; a decoder needs at least 1")
    reductions = pyramid.reductions
    if reductions is not None and len(reductions) != len(pyramid.maps):
        raise ValueError(f"expected a reduction for each map; this encoder has {len(pyramid.maps)} maps, {reductions=}")
    # An encoder that is a plain module may set nothing but the maps.
    return dataclasses.replace(pyramid, image_size=size_of(images))
