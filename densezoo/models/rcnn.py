"""Two-stage detectors, Faster and Mask R-CNN: proposals from a pyramid, then a class, a box and a mask for each."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from densezoo import ops
from densezoo.models.detection import pyramid_of
from densezoo.models.padding import each_alone, with_edges
from densezoo.models.regions import RegionOutputs, of_regions, proposals_of
from densezoo.models.segmentation import computed_by
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import explicitly_sharded, in_auto_mesh, per_device, reshape
from densezoo.types import Detections, Pyramid

_MASKS_AT_ONCE = 25
"""Detections of each image that the mask head takes at a time."""


class RCNN(nn.Module):
    """A two-stage detector: proposals from a feature pyramid, then a class, a box and a mask for each proposal.

    Regions are read at the scale of the padded image. torchvision infers the scale from the unpadded image, which
    doubles it for images with heights of 33 to 45 and 65 to 67 pixels, so its detections differ there.

    The second stage can be called separately, as the loss does with its sampled proposals:
    `model.apply(variables, outputs.pyramid, boxes, method="box_outputs")`, and likewise `method="mask_logits"`.

    Attributes:
        encoder: images -> `Pyramid`.
        neck: `Pyramid` -> maps, such as `FPNNeck`.
        rpn: (`Pyramid`, extents) -> `AnchorOutputs`, such as `RPNHead`.
        box_head: maps of regions -> classes and boxes, such as `BoxHead`. Its field `size` is the side of these maps.
        mask_head: maps of regions -> square masks of any size, such as `MaskHead`; None for boxes alone. It also has a
            field `size`.
        region_maps: number of maps, starting with the finest, from which regions are read.
        score_threshold: default of `dz.detect`.
        nms_threshold: default of `dz.detect`.
        max_detections: default of `dz.detect`.
        candidates: number of anchors of each map that enter the suppression of proposals, in inference and training.
        proposals: number of proposals after suppression, in inference and training.
        proposal_threshold: if two proposals from one map overlap more than this, only the better one is kept.
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("mask_rcnn", "resnet18", num_classes=3)
        >>> images = jnp.zeros((1, 64, 96, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> found = jax.eval_shape(lambda variables: dz.detect(model, variables, images), variables)
        >>> found.boxes.shape, found.masks.shape
        ((1, 100, 4), (1, 100, 28, 28))

    References:
        Ren et al., Faster R-CNN, 2015. https://arxiv.org/abs/1506.01497
        He et al., Mask R-CNN, 2017. https://arxiv.org/abs/1703.06870
    """

    encoder: nn.Module
    neck: nn.Module
    rpn: nn.Module
    box_head: nn.Module
    mask_head: nn.Module | None = None
    region_maps: int = 4
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100
    candidates: tuple[int, int] = (1000, 2000)
    proposals: tuple[int, int] = (1000, 2000)
    proposal_threshold: float = 0.7
    frozen: tuple[str, ...] = ()
    impl: str = "auto"

    def __call__(
        self, images: Float[Array, "b h w c"], sizes: Integer[Array, "b 2"] | None = None, *, train: bool = False
    ) -> RegionOutputs:
        """Runs both stages, or only the first in training. See `dz.detect` for `sizes`."""
        with computed_by(self):
            pyramid, extents, sizes_of = pyramid_of(self, images, sizes, train=train)
            assert pyramid.image_size is not None
            with each_alone(None if train else extents, pyramid.image_size):
                anchors: Any = self.rpn(pyramid, extents, train=train and "rpn" not in self.frozen)
            if not train:
                maps = tuple(with_edges(x, extents, pyramid.image_size) for x in pyramid.maps)
                pyramid = dataclasses.replace(pyramid, maps=maps)
            anchors = anchors.replace(sizes=sizes_of)
            boxes, valid = proposals_of(anchors, self.candidates[train], self.proposals[train], self.proposal_threshold)
        if self.is_initializing() and self.mask_head is not None:
            self.mask_logits(pyramid, boxes[:, :1])
        if train and not self.is_initializing():
            return RegionOutputs(pyramid, anchors, boxes, valid)
        return RegionOutputs(pyramid, anchors, boxes, valid, *self.box_outputs(pyramid, boxes))

    def box_outputs(
        self, pyramid: Pyramid, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> tuple[Float[Array, "b n k"], Float[Array, "b n k 4"]]:
        """Class logits of boxes in pixels, and for each class the box's difference from the given box."""
        logits, deltas = self._of_regions("box_head", pyramid, boxes, train=train)
        return reshape(logits, *boxes.shape[:2], -1), reshape(deltas, *boxes.shape[:2], -1, 4)

    def mask_logits(
        self, pyramid: Pyramid, boxes: Float[Array, "b n 4"], *, train: bool = False
    ) -> Float[Array, "b n _ _ k"]:
        """A mask of each class for boxes in pixels."""
        masks = self._of_regions("mask_head", pyramid, boxes, train=train)
        return reshape(masks, *boxes.shape[:2], *masks.shape[1:])

    def detect(
        self,
        images: Float[Array, "b h w c"],
        sizes: Integer[Array, "b 2"] | None = None,
        *,
        score_threshold: Any = None,
        nms_threshold: Any = None,
        max_detections: int | None = None,
        train: bool = False,
    ) -> Detections:
        """See `dz.detect`. Always runs in inference mode."""
        del train
        return self.detections_of(
            self(images, sizes),
            score_threshold=score_threshold,
            nms_threshold=nms_threshold,
            max_detections=max_detections,
        )

    def detections_of(
        self,
        outputs: RegionOutputs,
        *,
        score_threshold: Any = None,
        nms_threshold: Any = None,
        max_detections: int | None = None,
    ) -> Detections:
        """Converts the outputs of both stages to detections, with masks if the model has them."""
        found = of_regions(
            outputs,
            self.score_threshold if score_threshold is None else score_threshold,
            self.nms_threshold if nms_threshold is None else nms_threshold,
            self.max_detections if max_detections is None else max_detections,
        )
        if self.mask_head is None:
            return found

        if chosen() == "reference" or in_auto_mesh(found.boxes) or explicitly_sharded(found.boxes):
            logits = self.mask_logits(outputs.pyramid, found.boxes)
            masks = per_device(_chosen_masks, logits, found.labels, found.valid, auto=True)
        else:
            masks = self._masks_by_parts(outputs.pyramid, found)
        return dataclasses.replace(found, masks=masks)

    def _masks_by_parts(self, pyramid: Pyramid, found: Detections) -> Float[Array, "b n _ _"]:
        """The masks of the detections, which are in the first rows, and 0 for the other rows.

        The mask head takes most of the time, so it stops after the last detection of the batch.
        """
        rows = found.boxes.shape[1]
        step = min(_MASKS_AT_ONCE, rows)

        def padded(x: jax.Array) -> jax.Array:
            return jnp.pad(x, ((0, 0), (0, -rows % step), *((0, 0),) * (x.ndim - 2)))

        regions = padded(self._regions("mask_head", pyramid, found.boxes))
        labels, valid = padded(found.labels), padded(found.valid)
        last = found.valid.sum(1).max(initial=0)

        def add(model: "RCNN", state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            start, masks = state
            x, label, real = (jax.lax.dynamic_slice_in_dim(x, start, step, 1) for x in (regions, labels, valid))
            logits = model._head("mask_head", x)
            mine = _chosen_masks(logits.reshape(*label.shape, *logits.shape[1:]), label, real)
            return start + step, jax.lax.dynamic_update_slice_in_dim(masks, mine, start, 1)

        # Made from scores, so that inside `jax.shard_map` it varies as the masks do.
        zeros = 0 * padded(found.scores)[:, :, None, None]
        nothing = jnp.broadcast_to(zeros, (*labels.shape, *self._mask_size(regions[:, :1])))
        state = (jnp.zeros((), jnp.int32), nothing)

        def rows_are_left(model: "RCNN", state: tuple[jax.Array, jax.Array]) -> Any:
            return state[0] < last

        _, masks = nn.while_loop(rows_are_left, add, self, state)
        return masks[:, :rows]

    def _mask_size(self, regions: jax.Array) -> tuple[int, int]:
        """Height and width of the mask head's outputs, without running it."""
        alone, _ = self.unbind()
        run = functools.partial(alone.init_with_output, method=lambda model, x: model._head("mask_head", x))
        masks, _ = jax.eval_shape(run, jax.random.key(0), regions)
        return masks.shape[1], masks.shape[2]

    def _of_regions(self, part: str, pyramid: Pyramid, boxes: jax.Array, *, train: bool) -> Any:
        return self._head(part, self._regions(part, pyramid, boxes), train=train)

    def _regions(self, part: str, pyramid: Pyramid, boxes: jax.Array) -> jax.Array:
        """The maps of boxes in the size that a head reads."""
        assert pyramid.image_size is not None
        with computed_by(self):
            size = getattr(self, part).size
            return ops.multiscale_roi_align(pyramid.maps[: self.region_maps], boxes, pyramid.image_size, size)

    def _head(self, part: str, x: jax.Array, *, train: bool = False) -> Any:
        with computed_by(self):
            return getattr(self, part)(reshape(x, -1, *x.shape[2:]), train=train and part not in self.frozen)


def _chosen_masks(logits: jax.Array, labels: jax.Array, valid: jax.Array) -> jax.Array:
    """The probabilities of each box's class, 0 for a box that is not real."""
    chosen = jnp.maximum(labels, 0)[:, :, None, None, None]
    masks = jax.nn.sigmoid(jnp.take_along_axis(logits, chosen, axis=-1)[..., 0].astype(jnp.float32))
    return jnp.where(valid[:, :, None, None], masks, 0)
