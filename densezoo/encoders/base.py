"""What every encoder has: the scales of its maps, known before it runs, and the checks that go with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax

from densezoo.naming import Naming
from densezoo.types import Pyramid, size_of


class Encoder(nn.Module):
    """images -> `Pyramid`, as a base class that publishes the scales of the maps.

    A subclass has `scales` and `__call__`, which begins with `self.check(images)` and returns
    `self.pyramid(images, maps)`. It may override `min_size`, `stem` and `reference_names`, and declare the fields
    `coarsest`, `output_stride`, `remat`, `dtype`; what it does not declare, `create_model` does not ask of it.

    Attributes:
        scales: image size over map size for every stage, fine to coarse, if none is left out and none dilated.
        coarsest: the last of `scales` to build; None builds all.
        output_stride: from here on, dilation replaces strides; None for never.
        min_size: the smallest image side that it can take; models repeat the edges of smaller images.
        pools: whether the pyramid has `pool_indices`, which SegNet needs.
        unseen: fields that change the results and no array's name or shape, such as a padding.
            `dz.weights.from_torch` warns where encoders of the zoo with the same arrays differ in them.
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
    unseen: ClassVar[tuple[str, ...]] = ()

    @property
    def reductions(self) -> tuple[int, ...]:
        """Image size over map size, fine to coarse: `scales` up to `coarsest`, none above `output_stride`."""
        scales = self.scales
        if not scales:
            raise NotImplementedError(f"{type(self).__name__} needs `scales`, such as scales = (2, 4, 8)")
        for field, value, least in (("coarsest", self.coarsest, scales[0]), ("output_stride", self.output_stride, 8)):
            *choices, last = [2**power for power in range(16) if least <= 2**power <= max(32, *scales)]
            if value is not None and value not in (*choices, last):
                raise ValueError(f"{field} is {', '.join(map(str, choices))} or {last}, got {value}")
        built = [scale for scale in scales if scale <= (self.coarsest or scale)]
        return tuple(min(scale, self.output_stride or scale) for scale in built)

    @nn.nowrap
    def check(self, images: jax.Array) -> None:
        """Raises a ValueError for impossible scales and for images below `min_size`."""
        _ = self.reductions  # raises for fields that cannot be
        smallest = self.min_size
        if any(side < smallest for side in size_of(images)):
            raise ValueError(
                f"{type(self).__name__} needs images of at least {smallest}x{smallest} pixels, got {size_of(images)}:"
                " pad them (the models here do), or leave out coarser stages"
            )

    @nn.nowrap
    def pyramid(
        self,
        images: jax.Array,
        maps: Sequence[jax.Array],
        pool_indices: Sequence[jax.Array] | None = None,
        tokens: Sequence[jax.Array] | None = None,
    ) -> Pyramid:
        """The maps with their scales and the size of the images."""
        return Pyramid(
            tuple(maps),
            None if pool_indices is None else tuple(pool_indices),
            self.reductions,
            size_of(images),
            None if tokens is None else tuple(tokens),
        )

    @nn.nowrap
    def reference_names(self) -> Sequence[Naming]:
        """How references name the parameters; see `dz.Naming`."""
        return []


ENCODERS: dict[str, Callable[..., Encoder]] = {}
"""Names, as timm and segmentation_models_pytorch have them, to constructors."""


def register_encoders(encoders: Mapping[str, Callable[..., Encoder]]) -> None:
    """Adds encoders to those that `create_encoder` and `create_model` know by name.

    Args:
        encoders: names to `Encoder` classes or partials of them.

    Raises:
        TypeError: an instance, or something else that cannot be called, in place of a class; nothing is added then.

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
