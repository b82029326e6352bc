"""The base class of encoders: the scales of its maps, known before it runs, and input checks."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from densezoo.naming import Naming
from densezoo.types import Pyramid, size_of


class Encoder(nn.Module):
    """The base class of encoders, which map images to a `Pyramid` and declare the scales of its maps.

    A subclass defines `scales` and `__call__`, which starts with `self.check(images)` and returns
    `self.pyramid(images, maps)`. It may override `min_size`, `stem` and `reference_names`, and declare the fields
    `coarsest`, `output_stride`, `remat` and `dtype`. `create_model` only uses the fields that it declares.

    Attributes:
        scales: the reduction of every stage, fine to coarse, if all stages are built and none is dilated.
        coarsest: the last of `scales` to build; None builds all.
        output_stride: the largest reduction; later stages use dilation instead of strides. None for no dilation.
        min_size: the smallest supported image side. Models enlarge smaller images by repeating their edges.
        pools: whether the pyramid has `pool_indices`, which SegNet needs.
        unseen: fields that change the results but no array's name or shape, such as a padding.
            `dz.weights.from_torch` warns if encoders of the zoo with the same arrays differ in them.
        stem: path of the convolution that reads the images, such as "conv1/conv", which
            `dz.weights.from_torch(..., in_channels=)` adapts.

    Example:
        >>> import flax.linen as nn
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> class Halves(dz.Encoder):
        ...     scales = (2, 4)
        ...
        ...     @nn.compact
        ...     def __call__(self, images, *, train=False):
        ...         self.check(images)
        ...         x = dz.ConvNormAct(8, strides=2)(images, train=train)
        ...         return self.pyramid(images, [x, dz.ConvNormAct(16, strides=2)(x, train=train)])
        >>> model = dz.create_model("unet", Halves(), num_classes=2)
        >>> logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 33, 50, 3)))
        >>> logits.shape
        (1, 33, 50, 2)
    """

    scales: ClassVar[Any] = ()
    coarsest = None
    output_stride = None
    remat = False
    dtype = None
    min_size = 1
    pools = False
    stem: ClassVar[str | None] = None
    separable: ClassVar[bool] = True  # whether the layers before a map are those of an encoder that ends there
    unseen: ClassVar[tuple[str, ...]] = ()

    @property
    def reductions(self) -> tuple[int, ...]:
        """The reductions of the maps, fine to coarse: `scales` up to `coarsest`, limited to `output_stride`."""
        scales = self.scales
        if not scales:
            raise NotImplementedError(f"{type(self).__name__} needs `scales`, such as scales = (2, 4, 8)")
        for field, value, least in (("coarsest", self.coarsest, scales[0]), ("output_stride", self.output_stride, 8)):
            *choices, last = [2**power for power in range(16) if least <= 2**power <= max(32, *scales)]
            if value is not None and value not in (*choices, last):
                raise ValueError(f"{field} must be {', '.join(map(str, choices))} or {last}, got {value}")
        built = [scale for scale in scales if scale <= (self.coarsest or scale)]
        return tuple(min(scale, self.output_stride or scale) for scale in built)

    @nn.nowrap
    def check(self, images: jax.Array) -> None:
        """Raises a ValueError for invalid scales and for images smaller than `min_size`."""
        _ = self.reductions  # raises for invalid fields
        smallest = self.min_size
        if any(side < smallest for side in size_of(images)):
            raise ValueError(
                f"{type(self).__name__} needs images of at least {smallest}x{smallest} pixels, got {size_of(images)}:"
                " pad them (densezoo's models do), or omit coarser stages"
            )

    @nn.nowrap
    def pyramid(
        self,
        images: jax.Array,
        maps: Sequence[jax.Array],
        pool_indices: Sequence[jax.Array] | None = None,
        tokens: Sequence[jax.Array] | None = None,
    ) -> Pyramid:
        """Creates a pyramid of maps with their reductions and the size of the images."""
        return Pyramid(
            tuple(maps),
            None if pool_indices is None else tuple(pool_indices),
            self.reductions,
            size_of(images),
            None if tokens is None else tuple(tokens),
        )

    @nn.nowrap
    def reference_names(self) -> Sequence[Naming]:
        """The references' names of the parameters; see `dz.Naming`."""
        return []


def first_stages(encoder: nn.Module, trained: int) -> tuple[str, ...]:
    """The submodules of the stages before the last `trained` ones; the stages are those between an encoder's maps.

    Raises:
        ValueError: if the encoder does not have so many stages, or they cannot be told apart.

    Example:
        >>> import densezoo as dz
        >>> first_stages(dz.create_encoder("resnet18"), 3)
        ('conv1', 'layer1_0', 'layer1_1')
    """
    stages = len(encoder.reductions) if isinstance(encoder, Encoder) else 1
    if not 0 <= trained <= stages:
        raise ValueError(f"trainable_layers={trained}: the encoder has {stages} stages; expected 0 to {stages}")
    if trained == stages:
        return ()
    last = stages - trained - 1
    scales = encoder.scales if isinstance(encoder, Encoder) and encoder.coarsest is not None else ()
    if not scales or not encoder.separable or scales[last] >= (*scales, math.inf)[last + 1]:
        raise ValueError(
            f"the stages of this {type(encoder).__name__} cannot be frozen alone: expected trainable_layers={stages},"
            ' to train all, or frozen=("encoder",)'
        )
    part = encoder.clone(coarsest=scales[last])  # pyright: ignore[reportCallIssue]
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return tuple(jax.eval_shape(part.init, jax.random.key(0), images)["params"])


ENCODERS: dict[str, Callable[..., Encoder]] = {}
"""Maps the names of timm and segmentation_models_pytorch to constructors."""


def register_encoders(encoders: Mapping[str, Callable[..., Encoder]]) -> None:
    """Registers names of encoders for `create_encoder` and `create_model`.

    Args:
        encoders: maps names to `Encoder` classes or partials of them.

    Raises:
        TypeError: if a value is an instance or not callable. No name is registered then.

    Example:
        >>> from functools import partial
        >>> import densezoo as dz
        >>> dz.register_encoders({"resnet10": partial(dz.ResNet, (1, 1, 1, 1), dz.BasicBlock)})
        >>> dz.create_encoder("resnet10", output_stride=16).reductions
        (2, 4, 8, 16, 16)
        >>> del dz.encoders.ENCODERS["resnet10"]
    """
    for name, constructor in encoders.items():
        if isinstance(constructor, nn.Module) or not callable(constructor):
            kind = type(constructor).__name__
            advice = f"pass {kind} or a partial({kind}, ...)" if isinstance(constructor, nn.Module) else "pass a class"
            raise TypeError(f"encoder {name!r}: expected an Encoder class or a partial of one, got a {kind}: {advice}")
    ENCODERS.update(encoders)
