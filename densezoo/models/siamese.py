"""Change detection: a segmentation model of two images, which one encoder with shared weights maps to two pyramids."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blueprint import MODELS, Blueprint, register
from densezoo.decoders.snunet import SNUNetDecoder, needs_scales
from densezoo.heads import SegmentationHead
from densezoo.models.segmentation import SegmentationModel, computed_by
from densezoo.ops.sharding import reshape
from densezoo.types import Pyramid, size_of

FUSIONS = ("early", "concat", "difference")
"""How a `SiameseModel` joins its two images."""


class SiameseModel(SegmentationModel):
    """A segmentation model of two images: `model.apply(variables, before, after)` returns logits of their size.

    With `fusion="early"`, the channels of both images are concatenated, and the model is a segmentation model of the
    result. Otherwise, the encoder maps both images in one batch. All maps of the two pyramids are then joined, the
    coarsest too, and decoded: "concat" concatenates the channels, and "difference" takes the absolute difference,
    whose result does not change if the images are swapped. Batch norms use the statistics of both images.

    In the authors' code, the decoder starts from the coarsest map of the second image alone, and only the skips are
    joined. Their difference therefore depends on the order of the images.

    Attributes:
        fusion: "early", "concat" or "difference"; FC-EF, FC-Siam-conc and FC-Siam-diff in the paper.

    The other attributes are those of `SegmentationModel`.

    Raises:
        ValueError: if there is no such fusion, or the images differ in shape or dtype.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("siamese_unet", dz.PlainEncoder((4, 8)), num_classes=2, fusion="difference")
        >>> before, after = jnp.zeros((2, 1, 33, 50, 3))
        >>> variables = model.init(jax.random.key(0), before, after)
        >>> model.apply(variables, before, after).shape
        (1, 33, 50, 2)

    References:
        Daudt et al., Fully convolutional siamese networks for change detection, 2018. https://arxiv.org/abs/1810.08462
    """

    fusion: str = "difference"

    def __post_init__(self):
        if self.fusion not in FUSIONS:
            near = difflib.get_close_matches(str(self.fusion), FUSIONS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FUSIONS)}"
            raise ValueError(f"unknown fusion {self.fusion!r}; {hint}")
        super().__post_init__()

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, before: Float[Array, "b h w c"], after: Float[Array, "b h w c"], *, train: bool = False
    ) -> Float[Array, "b h w k"] | tuple[Float[Array, "b h w k"], ...]:
        if before.shape != after.shape or before.dtype != after.dtype or before.ndim != 4:
            raise ValueError(
                "expected two batches of NHWC images of one shape and dtype, before and after the change; got"
                f" {before.shape} {before.dtype} and {after.shape} {after.dtype}"
            )
        with computed_by(self):
            if self.fusion == "early":
                pyramid = self._encoded(jnp.concatenate([before, after], -1), train=train)
            else:
                both = jnp.stack([before, after], 1)  # pairs stay together, so that a sharded batch is not moved
                pyramid = self._encoded(reshape(both, 2 * before.shape[0], *before.shape[1:]), train=train)
                pyramid = _joined(pyramid, before.shape[0], _concatenated if self.fusion == "concat" else _difference)
            return self._decoded(pyramid, size_of(before), train=train)

    @nn.nowrap
    def example_inputs(self, images: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """The shapes of both images."""
        return images, images


def _concatenated(before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.concatenate([before, after], -1)


def _difference(before: jax.Array, after: jax.Array) -> jax.Array:
    return jnp.abs(before - after)


def _joined(pyramid: Pyramid, samples: Any, join: Callable[[jax.Array, jax.Array], jax.Array]) -> Pyramid:
    """Joins the maps of the first and the second image of each pair in a batch."""

    def halves(x: jax.Array) -> jax.Array:
        both = reshape(x, samples, 2, *x.shape[1:])
        return join(both[:, 0], both[:, 1])

    # Positions of maxima have no difference.
    keeps = pyramid.pool_indices is not None and join is _concatenated
    return pyramid.replace(
        maps=jax.tree.map(halves, pyramid.maps),
        tokens=jax.tree.map(halves, pyramid.tokens),
        pool_indices=jax.tree.map(halves, pyramid.pool_indices) if keeps else None,
    )


_unet = MODELS["unet"]

register(
    Blueprint(
        name="siamese_unet",
        description="A U-Net, or any other decoder, on the joined maps of two images, which share one encoder.",
        skip_strategy="joins both images' maps at every scale by difference or concatenation, then the decoder's skips",
        excels_at="what has changed between two aligned pictures: buildings, land cover, damage",
        paper="Daudt et al. 2018, https://arxiv.org/abs/1810.08462",
        decoder=_unet.decoder,
        encoder="resnet34",
        head=_unet.head,
        model=SiameseModel,
        task="change",
        num_classes=2,
        decoder_fields=_unet.decoder_fields,
        misfit=_unet.misfit,
    )
)

register(
    Blueprint(
        name="snunet",
        description="A U-Net++ on the concatenated maps of two images, with channel attention over its finest maps.",
        skip_strategy="nested and dense: concatenates both images' maps and the outputs of all blocks at a scale",
        excels_at="small changes and sharp borders, which dense skips at full resolution keep",
        paper="Fang et al. 2021, https://ieeexplore.ieee.org/document/9355573",
        decoder=SNUNetDecoder,
        encoder="snunet",
        head=partial(SegmentationHead, kernel_size=1),
        model=partial(SiameseModel, fusion="concat"),
        task="change",
        num_classes=2,
        misfit=needs_scales,
    )
)
