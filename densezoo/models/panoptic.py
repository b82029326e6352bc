"""Panoptic FPN: Mask R-CNN and a semantic branch on the same pyramid, merged into one map of segments."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Integer

from densezoo import ops
from densezoo.models.detection import extents_of, inside
from densezoo.models.padding import each_alone
from densezoo.models.rcnn import RCNN
from densezoo.models.segmentation import computed_by
from densezoo.ops.sharding import per_device
from densezoo.types import Detections, Pyramid


@struct.dataclass
class Panoptic:
    """A panoptic segmentation of a batch of images.

    Attributes:
        segments: the segment number of each pixel: 0 for none, 1 to n for the n rows of the detections, and n + c for
            the stuff class c, from 1 on.
        classes: the class of segment k at index k - 1: a detection's label, or -1 for a row without a detection. Stuff
            classes come after thing classes.
        detections: the detected objects, as those of `dz.detect`. Objects with a low score, or hidden behind better
            ones, have no pixels in `segments`.
    """

    segments: Integer[Array, "b h w"]
    classes: Integer[Array, "b s"]
    detections: Detections


def panoptic(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "b h w c"],
    sizes: Any = None,
    *,
    score_threshold: float = 0.5,
    overlap: float | None = None,
    stuff_area: int | None = None,
) -> Panoptic:
    """Segments images into things and stuff: detects objects and merges them with the semantic branch. Can be jitted.

    The rules of the merging are those of `ops.merge_segments`. Pictures of different sizes are batched as in
    `dz.detect`; the padding belongs to no segment, and each picture has the segments that it has alone.

    Args:
        model: a panoptic model, such as `create_model("panoptic_fpn", num_classes=81, stuff_classes=53)`.
        variables: the model's variables.
        images: a batch of images, normalised as in training.
        sizes: (b, 2) integers, height and width of each picture without padding; None if there is no padding.
        score_threshold: objects with a lower score get no pixels.
        overlap: an object gets no pixels if better ones cover more than this fraction of it. None selects the model's.
        stuff_area: stuff classes with fewer pixels get none. None selects the model's.

    Returns:
        `models.Panoptic`.

    Raises:
        TypeError: if the model has no semantic branch.
        ValueError: if images or sizes have the wrong shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("panoptic_fpn", "resnet18", num_classes=3, stuff_classes=2)
        >>> images = jnp.zeros((1, 64, 96, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> found = jax.eval_shape(lambda variables: dz.panoptic(model, variables, images), variables)
        >>> found.segments.shape, found.classes.shape  # 100 rows of detections and 2 stuff classes
        ((1, 64, 96), (1, 102))
    """
    if not isinstance(model, PanopticFPN):
        raise TypeError(f"a {type(model).__name__} has no semantic branch: create a model 'panoptic_fpn'")
    options = {"score_threshold": score_threshold, "overlap": overlap, "stuff_area": stuff_area}
    return model.apply(variables, images, sizes, **options, method="panoptic")  # pyright: ignore[reportReturnType]


class PanopticFPN(RCNN):
    """Mask R-CNN with a semantic branch on the same maps.

    `dz.panoptic` returns the merged segments, and `dz.detect` the objects. `method="semantic"` takes a pyramid and
    returns the logits of the semantic branch: channel 0 for all things together, then the stuff classes.

    Attributes:
        semantic_head: `Pyramid` -> logits of the image's size.
        overlap: default of `dz.panoptic`.
        stuff_area: default of `dz.panoptic`.

    The other fields are those of `RCNN`.

    References:
        Kirillov et al., Panoptic feature pyramid networks, 2019. https://arxiv.org/abs/1901.02446
        Kirillov et al., Panoptic segmentation, 2018. https://arxiv.org/abs/1801.00868 (section 4, how it is merged)
    """

    semantic_head: nn.Module | None = None
    overlap: float = 0.5
    stuff_area: int = 4096

    def __call__(self, images: Any, sizes: Any = None, *, train: bool = False) -> Any:
        """See `RCNN`."""
        outputs = super().__call__(images, sizes, train=train)
        if self.is_initializing():
            self.semantic(outputs.pyramid)
        return outputs

    def semantic(
        self, pyramid: Pyramid, extents: Integer[Array, "b 2"] | None = None, *, train: bool = False
    ) -> Float[Array, "b h w k"]:
        """Logits of the semantic branch for every pixel of the padded images.

        Args:
            pyramid: the neck's maps.
            extents: the size that each picture would be padded to alone; None if it is that of the images.
            train: whether to run in training mode.
        """
        assert self.semantic_head is not None and pyramid.image_size is not None
        with computed_by(self), each_alone(extents, pyramid.image_size):
            return self.semantic_head(pyramid, train=train and "semantic_head" not in self.frozen)

    def panoptic(
        self,
        images: Float[Array, "b h w c"],
        sizes: Integer[Array, "b 2"] | None = None,
        *,
        score_threshold: float = 0.5,
        overlap: float | None = None,
        stuff_area: int | None = None,
        train: bool = False,
    ) -> Panoptic:
        """See `dz.panoptic`. Always runs in inference mode."""
        del train
        outputs = RCNN.__call__(self, images, sizes)
        assert outputs.logits is not None
        found = self.detections_of(outputs, score_threshold=min(score_threshold, self.score_threshold))
        extents = None if sizes is None else extents_of(self.encoder, jnp.asarray(sizes))
        height, width = images.shape[1:3]
        logits = self.semantic(outputs.pyramid, extents)[:, :height, :width]
        whole = jnp.broadcast_to(jnp.array([[height, width]]), (images.shape[0], 2)) if sizes is None else sizes

        def merge(found: Detections, logits: jax.Array, inside: jax.Array) -> jax.Array:
            return ops.merge_segments(
                jnp.asarray(found.masks),
                found.boxes,
                found.scores,
                logits,
                valid=found.valid,
                inside=inside,
                score_threshold=score_threshold,
                overlap=self.overlap if overlap is None else overlap,
                stuff_area=self.stuff_area if stuff_area is None else stuff_area,
            )

        segments = per_device(jax.vmap(merge), found, logits, inside((height, width), jnp.asarray(whole)), auto=True)
        stuff = jnp.arange(1, logits.shape[-1], dtype=jnp.int32) + outputs.logits.shape[-1] - 1
        stuff = jnp.broadcast_to(stuff[None], (images.shape[0], stuff.shape[0]))
        return Panoptic(segments, jnp.concatenate([found.labels, stuff], 1), found)
