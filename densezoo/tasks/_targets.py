"""Training targets and losses of anchors and proposals, with the same results as torchvision.

Objects are padded: `boxes` (b, n, 4) and `labels` (b, n), with a label of -1 in rows without an object. The boxes in
those rows have no effect. For a batch without any object, the loss and gradients are finite.

Devices that share the batch match and sample for their own pictures, and exchange sums only: of losses and of counts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from densezoo import losses, ops
from densezoo.heads import BOX_WEIGHTS, AnchorOutputs, PointOutputs
from densezoo.ops.sharding import per_device

Losses = dict[str, Float[Array, ""]]
BETA = 1 / 9
"""The `beta` of torchvision's smooth L1 loss in two-stage detectors."""


def of_anchors(outputs: AnchorOutputs, boxes: Float[Array, "b n 4"], labels: Integer[Array, "b n"]) -> Losses:
    """RetinaNet's losses: the focal loss of all classes, and the box loss of anchors that have an object."""

    def of_image(logits, deltas, anchors, inside, boxes, labels):
        matched = _match(anchors, inside, boxes, labels, 0.5, 0.4)
        found = matched >= 0
        target = jax.nn.one_hot(jnp.where(found, labels[matched], -1), logits.shape[-1])
        focal = losses.sigmoid_focal_loss(logits, target).sum(-1)
        wanted = _safe(boxes[matched], found)
        if outputs.box_loss == "giou":
            box = losses.giou_loss(ops.decode_boxes(deltas, anchors), wanted)
        else:
            box = losses.smooth_l1_loss(deltas, ops.encode_boxes(wanted, anchors), beta=0.0).sum(-1)
        count = _at_least_one(found.sum())
        return jnp.where(matched == ops.BETWEEN, 0, focal).sum() / count, jnp.where(found, box, 0).sum() / count

    grid = outputs.grid
    of_each = (outputs.logits, outputs.deltas, grid.anchors, grid.inside, boxes, labels)
    classes, box = per_device(jax.vmap(of_image), *of_each, auto=True)
    return {"classification": classes.mean(), "box": box.mean()}


def of_points(outputs: PointOutputs, boxes: Float[Array, "b n 4"], labels: Integer[Array, "b n"]) -> Losses:
    """FCOS's losses: focal loss, box overlap, and the centerness of each pixel that has an object."""
    grid = outputs.grid
    levels = np.repeat(np.arange(len(grid.counts)), grid.counts)
    least, most = levels == 0, levels == len(grid.counts) - 1

    def of_image(logits, distances, centerness, anchors, inside, boxes, labels):
        matched = match(anchors, inside, boxes, labels)
        found = matched >= 0
        target = jax.nn.one_hot(jnp.where(found, labels[matched], -1), logits.shape[-1])
        focal = losses.sigmoid_focal_loss(logits, target).sum(-1)
        wanted = _safe(boxes[matched], found)
        box = losses.giou_loss(ops.decode_distances(distances, anchors), wanted)
        edges = jnp.where(found[:, None], ops.encode_distances(wanted, anchors), 1)
        across, down = edges[:, 0::2], edges[:, 1::2]
        central = jnp.sqrt(across.min(-1) / across.max(-1) * (down.min(-1) / down.max(-1)))
        centered = losses.binary_cross_entropy(centerness, jax.lax.stop_gradient(central))
        parts = {
            "classification": jnp.where(inside, focal, 0).sum(),
            "box": jnp.where(found, box, 0).sum(),
            "centerness": jnp.where(found, centered, 0).sum(),
        }
        return parts, found.sum()

    def match(anchors, inside, boxes, labels):
        centre, side = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2] - anchors[:, 0]
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        near = jnp.abs(centre[:, None] - middle[None]).max(-1) < 1.5 * side[:, None]
        edges = jnp.concatenate([centre[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centre[:, None]], -1)
        longest = edges.max(-1)
        fits = near & (edges.min(-1) > 0)
        fits &= (longest > jnp.where(least, 0, 4 * side)[:, None]) & (
            longest < jnp.where(most, jnp.inf, 8 * side)[:, None]
        )
        fits &= (labels >= 0)[None] & inside[:, None]
        quality = jnp.where(fits, 1e8 - ops.box_area(boxes)[None], 0)  # the smallest object
        return jnp.where(quality.max(1) < 1e-5, ops.BELOW, quality.argmax(1))

    predicted = (outputs.logits, outputs.distances, outputs.centerness)
    parts, found = per_device(jax.vmap(of_image), *predicted, grid.anchors, grid.inside, boxes, labels, auto=True)
    count = _at_least_one(found.sum())
    return {name: each.sum() / count for name, each in parts.items()}


def of_proposals(
    outputs: AnchorOutputs,
    boxes: Float[Array, "b n 4"],
    labels: Integer[Array, "b n"],
    key: Any,
    count: int,
    share: float,
) -> Losses:
    """The first stage's losses: objectness of sampled anchors, and boxes of those that have an object."""

    def of_image(logits, deltas, anchors, inside, boxes, labels, key):
        matched = _match(anchors, inside, boxes, labels, 0.7, 0.3)
        kinds = jnp.where(matched == ops.BETWEEN, -1, (matched >= 0).astype(jnp.int32))
        rows, real = ops.sample_matches(key, kinds, min(count, kinds.shape[0]), share)
        object_ = kinds[rows] > 0
        positive = real & object_
        wanted = _safe(boxes[matched[rows]], positive)
        box = losses.smooth_l1_loss(deltas[rows], ops.encode_boxes(wanted, anchors[rows]), beta=BETA).sum(-1)
        score = losses.binary_cross_entropy(logits[rows, 0], object_.astype(jnp.float32))
        return jnp.where(real, score, 0).sum(), jnp.where(positive, box, 0).sum(), real.sum()

    grid, keys = outputs.grid, jax.random.split(key, boxes.shape[0])
    of_each = (outputs.logits, outputs.deltas, grid.anchors, grid.inside, boxes, labels, keys)
    score, box, drawn = per_device(jax.vmap(of_image), *of_each, auto=True)
    total = _at_least_one(drawn.sum())
    return {"objectness": score.sum() / total, "proposal_box": box.sum() / total}


def draw_regions(
    proposals: Float[Array, "b p 4"],
    valid: Bool[Array, "b p"],
    boxes: Float[Array, "b n 4"],
    labels: Integer[Array, "b n"],
    key: Any,
    count: int,
    share: float,
) -> tuple[Float[Array, "b s 4"], Integer[Array, "b s"], Integer[Array, "b s"], Float[Array, "b s 4"]]:
    """Samples the training boxes of the second stage from the proposals and the ground-truth boxes.

    Returns:
        The boxes, those with an object first; the class of each, 0 for background and -1 for an unused row; the row of
        its object; and the object's box.
    """

    def of_image(proposals, valid, boxes, labels, key):
        real = jnp.concatenate([valid, labels >= 0])
        candidates = jnp.concatenate([proposals, _safe(boxes, labels >= 0)])
        matched = ops.match(ops.box_iou(boxes, candidates), 0.5, 0.5, valid=labels >= 0)
        classes = jnp.where(real, jnp.where(matched >= 0, labels[matched], 0), -1)
        rows, drawn = ops.sample_matches(key, classes, count, share)
        objects = jnp.maximum(matched[rows], 0)
        return candidates[rows], jnp.where(drawn, classes[rows], -1), objects, boxes[objects]

    keys = jax.random.split(key, boxes.shape[0])
    return per_device(jax.vmap(of_image), jax.lax.stop_gradient(proposals), valid, boxes, labels, keys, auto=True)


def of_regions(
    logits: Float[Array, "b s k"],
    deltas: Float[Array, "b s k 4"],
    regions: Float[Array, "b s 4"],
    classes: Integer[Array, "b s"],
    wanted: Float[Array, "b s 4"],
) -> Losses:
    """The second stage's losses: the classes of the sampled boxes, and the deltas of those that have an object.

    Args:
        logits: class logits of the boxes.
        deltas: predicted deltas for each class.
        regions: the sampled boxes.
        classes: classes of the boxes; -1 for an unused row.
        wanted: the ground-truth box of each.
    """

    def of_image(logits, deltas, regions, classes, wanted):
        drawn, found = classes >= 0, classes > 0
        label = jnp.maximum(classes, 0)
        entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], -1)[:, 0]
        mine = jnp.take_along_axis(deltas, label[:, None, None], 1)[:, 0]
        target = ops.encode_boxes(_safe(wanted, found), _safe(regions, found), weights=BOX_WEIGHTS)
        box = losses.smooth_l1_loss(mine, target, beta=BETA).sum(-1)
        return jnp.where(drawn, entropy, 0).sum(), jnp.where(found, box, 0).sum(), drawn.sum()

    entropy, box, drawn = per_device(jax.vmap(of_image), logits, deltas, regions, classes, wanted, auto=True)
    total = _at_least_one(drawn.sum())
    return {"region_class": entropy.sum() / total, "region_box": box.sum() / total}


def of_masks(
    logits: Float[Array, "b s m m k"],
    regions: Float[Array, "b s 4"],
    classes: Integer[Array, "b s"],
    rows: Integer[Array, "b s"],
    instances: Integer[Array, "b h w"],
) -> Losses:
    """The mask loss of the boxes that have an object.

    Args:
        logits: mask logits for each class.
        regions: the sampled boxes.
        classes: classes of the boxes; only those above 0 count.
        rows: row of each box's object. Its number in `instances` is one larger.
        instances: the number of the object at each pixel.
    """

    def of_image(logits, regions, classes, rows, instances):
        found = classes > 0
        numbers = jnp.where(found, rows + 1, -1)
        target = ops.crop_instances(instances, numbers, _safe(regions, found), logits.shape[1])
        mine = jnp.take_along_axis(logits, jnp.maximum(classes, 0)[:, None, None, None], -1)[..., 0]
        entropy = losses.binary_cross_entropy(mine, jax.lax.stop_gradient(target)).mean((-1, -2))
        return jnp.where(found, entropy, 0).sum(), found.sum()

    entropy, found = per_device(jax.vmap(of_image), logits, regions, classes, rows, instances, auto=True)
    return {"mask": entropy.sum() / _at_least_one(found.sum())}


def _match(anchors: Any, inside: Any, boxes: Any, labels: Any, high: float, low: float) -> Integer[Array, " n"]:
    """Matches anchors to objects. Anchors in the padding are neither object nor background."""
    overlap = jnp.where(inside[None], ops.box_iou(boxes, anchors), 0)
    matched = ops.match(overlap, high, low, valid=labels >= 0, allow_low_quality=True)
    return jnp.where(inside, matched, ops.BETWEEN)


def _at_least_one(count: Integer[Array, ""]) -> Float[Array, ""]:
    """The normalisation of a loss."""
    return jnp.maximum(count, 1).astype(jnp.float32)


def _safe(boxes: Float[Array, "*n 4"], counted: Bool[Array, "*n"]) -> Float[Array, "*n 4"]:
    """Replaces boxes that do not count by boxes for which no loss and no gradient is NaN."""
    return jnp.where(counted[..., None], boxes, jnp.asarray([0.0, 0.0, 1.0, 1.0]).reshape((1,) * counted.ndim + (4,)))
