"""Two-stage detectors, Faster and Mask R-CNN: proposals from a pyramid, then a class, a box and a mask for each."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Integer

from densezoo import ops
from densezoo.heads.anchors import AnchorOutputs
from densezoo.heads.region import BOX_WEIGHTS
from densezoo.models.detection import kept, large_enough, pyramid_of
from densezoo.models.padding import each_alone, with_edges
from densezoo.models.segmentation import computed_by
from densezoo.ops.implementation import chosen
from densezoo.ops.sharding import explicitly_sharded, in_auto_mesh, per_device, reshape
from densezoo.types import Detections, Pyramid

_MASKS_AT_ONCE = 25
"""Detections of each image that the mask head takes at a time."""


@struct.dataclass
class RegionOutputs:
    """The outputs of a two-stage detector.

    Attributes:
        pyramid: the neck's maps.
        anchors: the first stage's predictions for every anchor.
        boxes: the proposals in pixels, best first. Unused rows are zero.
        valid: which rows hold a proposal.
        logits: the second stage's class logits of the proposals. None in training, where the loss selects the boxes for
            the second stage.
        deltas: for each class, the encoded difference between the box and the proposal (`ops.decode_boxes` with
            `heads.BOX_WEIGHTS`). None in training.
    """

    pyramid: Pyramid
    anchors: AnchorOutputs
    boxes: Float[Array, "b p 4"]
    valid: Bool[Array, "b p"]
    logits: Float[Array, "b p k"] | None = None
    deltas: Float[Array, "b p k 4"] | None = None


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


def proposals_of(
    outputs: AnchorOutputs, candidates: int, count: int, threshold: float
) -> tuple[Float[Array, "b p 4"], Bool[Array, "b p"]]:
    """Selects proposals: takes the best anchors of each map, then suppresses overlaps within each map.

    Args:
        outputs: outputs of the first stage. Proposals have no gradient.
        candidates: number of anchors of each map that enter the suppression.
        count: number of proposals of all maps together.
        threshold: IoU threshold of the suppression.
    """
    select = functools.partial(_proposals, candidates=candidates, count=count, threshold=threshold)
    return per_device(select, jax.lax.stop_gradient(outputs), auto=True)


def _proposals(
    outputs: AnchorOutputs, *, candidates: int, count: int, threshold: float
) -> tuple[Float[Array, "b p 4"], Bool[Array, "b p"]]:
    ranks = jnp.where(outputs.grid.inside, outputs.logits[..., 0], -jnp.inf)

    def of_image(image: jax.Array, ranks: jax.Array, size: jax.Array) -> Detections:
        boxes, best, maps, start = [], [], [], 0
        for level, length in enumerate(outputs.grid.counts):
            rank, chosen = jax.lax.top_k(ranks[start : start + length], min(candidates, length))
            boxes.append(outputs.boxes(image, chosen + start))
            best.append(rank)
            maps.append(jnp.full(rank.shape, level, jnp.int32))
            start += length
        clipped, rank = ops.clip_boxes(jnp.concatenate(boxes), size), jnp.concatenate(best)
        valid = (rank > -jnp.inf) & large_enough(clipped, 1e-3)
        return kept(clipped, jax.nn.sigmoid(rank), jnp.concatenate(maps), valid, threshold, count)

    assert outputs.sizes is not None
    found = jax.vmap(of_image)(jnp.arange(ranks.shape[0]), ranks, outputs.sizes)
    return found.boxes, found.valid


def of_regions(outputs: RegionOutputs, score_threshold: Any, nms_threshold: Any, max_detections: int) -> Detections:
    """Postprocesses the second stage. Each class of each proposal is a separate candidate.

    Args:
        outputs: the model's outputs.
        score_threshold: see `dz.detect`.
        nms_threshold: see `dz.detect`.
        max_detections: see `dz.detect`.
    """
    regions = (outputs.logits, outputs.deltas, outputs.boxes, outputs.valid, outputs.anchors.sizes)
    best = functools.partial(_best_of_regions, max_detections=max_detections)
    return per_device(best, *regions, weights=(score_threshold, nms_threshold), auto=True)


def _best_of_regions(
    logits: jax.Array,
    deltas: jax.Array,
    proposals: jax.Array,
    real: jax.Array,
    sizes: jax.Array,
    score_threshold: Any,
    nms_threshold: Any,
    *,
    max_detections: int,
) -> Detections:
    most = logits.shape[-1] - 1
    if isinstance(score_threshold, float) and score_threshold > 0:
        most = min(most, max(1, int(1 / score_threshold)))  # the classes of a proposal add up to 1

    def of_image(logits: jax.Array, deltas: jax.Array, proposals: jax.Array, real: jax.Array, size: jax.Array):
        scores, chosen = jax.lax.top_k(jax.nn.softmax(logits)[:, 1:], most)  # without the background
        mine = jnp.take_along_axis(deltas[:, 1:], chosen[..., None], 1)
        boxes = ops.decode_boxes(mine, proposals[:, None], weights=BOX_WEIGHTS)
        boxes = ops.clip_boxes(boxes.reshape(-1, 4), size)
        labels = (chosen + 1).astype(jnp.int32).reshape(-1)
        valid = ((scores > score_threshold) & real[:, None]).reshape(-1) & large_enough(boxes, 1e-2)
        return kept(boxes, scores.reshape(-1), labels, valid, nms_threshold, max_detections)

    return jax.vmap(of_image)(logits, deltas, proposals, real, sizes)
