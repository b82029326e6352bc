"""Panoptic FPN: Mask R-CNN and a semantic branch on the same pyramid, merged into one map of segments."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Integer

from densezoo import ops
from densezoo.models.rcnn import RCNN
from densezoo.models.segmentation import computed_by
from densezoo.ops.sharding import per_device
from densezoo.types import Detections, Pyramid


@struct.dataclass
class Panoptic:
    """A panoptic segmentation of a batch of images.

    Attributes:
        segments: the segment number of each pixel: 0 for none, 1 to n for the n rows of the detections, and one more
            for each stuff class.
        classes: the class of segment k at index k - 1: a detection's label, or -1 for a row without a detection. Stuff
            classes come after thing classes.
        detections: the detected objects.
    """

    segments: Integer[Array, "b h w"]
    classes: Integer[Array, "b s"]
    detections: Detections


class PanopticFPN(RCNN):
    """Mask R-CNN with a semantic branch on the same maps.

    `model.apply(variables, images, method="panoptic")` returns the merged segments, and `dz.detect` the objects.
    `method="semantic"` takes a pyramid and returns the logits of the semantic branch: channel 0 for all things
    together, then the stuff classes.

    Attributes:
        semantic_head: `Pyramid` -> logits of the image's size.
        overlap: an object is dropped if the fraction of it that better objects do not cover is smaller than this.
        stuff_area: stuff regions with fewer pixels are dropped.

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

    def semantic(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w k"]:
        """Logits of the semantic branch for every pixel of the padded images."""
        assert self.semantic_head is not None
        with computed_by(self.impl):
            return self.semantic_head(pyramid, train=train and "semantic_head" not in self.frozen)

    def panoptic(
        self,
        images: Float[Array, "b h w c"],
        sizes: Integer[Array, "b 2"] | None = None,
        *,
        score_threshold: float = 0.5,
        train: bool = False,
    ) -> Panoptic:
        """Returns the segments of images. Objects need a score above `score_threshold`."""
        del train
        outputs = RCNN.__call__(self, images, sizes)
        assert outputs.logits is not None
        found = self.detections_of(outputs, score_threshold=score_threshold)
        logits = self.semantic(outputs.pyramid)[:, : images.shape[1], : images.shape[2]]
        size = (images.shape[1], images.shape[2])
        merge = jax.vmap(lambda found, logits: self._merged(found, logits, size))
        segments = per_device(merge, found, logits, auto=True)
        if sizes is not None:
            y, x = (jnp.arange(side)[None] for side in size)
            inside = (y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None]
            segments = jnp.where(inside, segments, 0)
        stuff = jnp.arange(1, logits.shape[-1], dtype=jnp.int32) + outputs.logits.shape[-1] - 1
        stuff = jnp.broadcast_to(stuff[None], (images.shape[0], stuff.shape[0]))
        return Panoptic(segments, jnp.concatenate([found.labels, stuff], 1), found)

    def _merged(self, found: Detections, logits: jax.Array, size: tuple[int, int]) -> jax.Array:
        """Merges one image's segments: objects by descending score, then stuff on the remaining pixels."""
        assert found.masks is not None

        def place(segments, row_and_thing):
            row, box, mask, valid = row_and_thing
            pasted = ops.paste_masks(mask[None], box[None], size)[0] & valid
            free = pasted & (segments == 0)
            seen = free.sum().astype(jnp.float32) >= self.overlap * jnp.maximum(pasted.sum(), 1).astype(jnp.float32)
            return jnp.where(free & seen, row + 1, segments), None

        count = found.scores.shape[0]
        rows = (jnp.arange(count, dtype=jnp.int32), found.boxes, found.masks, found.valid)
        segments, _ = jax.lax.scan(place, jnp.zeros_like(found.labels, shape=size), rows)
        kinds = jnp.where(segments == 0, logits.argmax(-1).astype(jnp.int32), 0)
        areas = jnp.zeros(logits.shape[-1], jnp.int32).at[kinds.reshape(-1)].add(1)
        large = (areas >= self.stuff_area) & (jnp.arange(areas.shape[0]) > 0)
        return jnp.where(large[kinds] & (segments == 0), count + kinds, segments)
