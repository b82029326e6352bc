"""The outputs of two-stage detectors, their proposals, and their detections."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from densezoo import ops
from densezoo.heads.anchors import AnchorOutputs
from densezoo.heads.region import BOX_WEIGHTS
from densezoo.models.detection import kept, large_enough
from densezoo.ops.sharding import per_device
from densezoo.types import Detections, Pyramid


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
