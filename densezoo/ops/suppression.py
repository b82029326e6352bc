"""Non-maximum suppression: of overlapping boxes, only the one with the highest score is kept."""

import numbers

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from densezoo.ops.boxes import box_area
from densezoo.ops.checks import check_boxes, check_whole
from densezoo.types import accumulator_dtype

_BLOCK = 256
"""Block size: the number of candidates, and of kept boxes, that are compared at a time."""


def nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    threshold: float,
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> tuple[Int[Array, " outputs"], Bool[Array, " outputs"]]:
    """Selects boxes in descending order of score and skips those that overlap a selected one.

    The result equals that of the greedy loop exactly, including the order; ties keep the order of the boxes. Candidates
    are processed in blocks: memory grows linearly with the number of boxes, and the work stops once `max_outputs` boxes
    are selected. Use `jax.vmap` for a batch.

    Args:
        boxes: candidates in pixels. A box with a NaN is never selected and suppresses none.
        scores: scores of the boxes; a NaN is never selected.
        threshold: two boxes overlap if their intersection over union is greater than this, from 0 to 1.
        max_outputs: the number of boxes to return.
        valid: which candidates are real; None means all.

    Returns:
        Indices in descending order of score, and which of them are real. With fewer boxes than `max_outputs`, the
        remaining entries are 0 and False.

    Raises:
        ValueError: if shapes do not match, `threshold` is outside [0, 1], or `max_outputs` is below 1.
        TypeError: if boxes or scores are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [20.0, 20.0, 29.0, 29.0]])
        >>> indices, real = nms(boxes, jnp.array([0.6, 0.9, 0.3]), 0.5, 4)
        >>> indices[real].tolist()
        [1, 2]
    """
    return _suppress(boxes, scores, None, threshold, max_outputs, valid)


def batched_nms(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Int[Array, " n"],
    threshold: float,
    max_outputs: int,
    valid: Bool[Array, " n"] | None = None,
) -> tuple[Int[Array, " outputs"], Bool[Array, " outputs"]]:
    """`nms` in which only boxes with the same label suppress each other. The order is by score over all labels.

    Labels are compared directly. The common trick of shifting the boxes of each label apart would round their corners.

    Args:
        boxes: candidates in pixels.
        scores: scores of the boxes.
        labels: their classes, or the maps that they come from.
        threshold: as in `nms`; results and errors are also the same.
        max_outputs: the number of boxes to return, over all labels.
        valid: which candidates are real; None means all.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 8.0], [0.0, 0.0, 9.0, 9.0]])
        >>> indices, real = batched_nms(boxes, jnp.array([0.6, 0.9, 0.3]), jnp.array([1, 1, 2]), 0.5, 4)
        >>> indices[real].tolist()
        [1, 2]
    """
    return _suppress(boxes, scores, labels, threshold, max_outputs, valid)


def _suppress(boxes, scores, labels, threshold, max_outputs, valid):
    _check(boxes, scores, labels, threshold, max_outputs, valid)
    candidates = boxes.shape[0]
    if not candidates:
        return jnp.zeros(max_outputs, jnp.int32), jnp.zeros(max_outputs, bool)
    boxes = jax.lax.stop_gradient(boxes).astype(accumulator_dtype(boxes.dtype))
    scores = jax.lax.stop_gradient(scores).astype(accumulator_dtype(scores.dtype))
    alive = ~(jnp.isnan(scores) | jnp.isnan(boxes).any(-1))
    alive = alive if valid is None else alive & valid
    order = jnp.argsort(jnp.where(alive, -scores, jnp.inf)).astype(jnp.int32)
    block = min(_BLOCK, candidates)
    order = jnp.pad(order, (0, -candidates % block))
    alive = alive[order] & (jnp.arange(order.shape[0]) < candidates)
    table = jnp.concatenate([boxes.T, box_area(boxes)[None]])[:, order]
    groups = None if labels is None else labels[order]
    indices, count = _taken(order, table, groups, alive, _limit(threshold, boxes.dtype), max_outputs, block)
    return indices, jnp.arange(max_outputs) < count


def _limit(threshold, dtype):
    """The threshold, rounded down: after rounding, an overlap of 3/10 is greater than 0.3, as in torchvision."""
    if not isinstance(threshold, numbers.Real):
        return threshold
    rounded = np.asarray(threshold, dtype)
    return np.nextafter(rounded, np.asarray(-1, dtype)) if float(rounded) > float(threshold) else rounded


def _overlapping(a, b, a_labels, b_labels, limit):
    """(n, m), 1 where a column of the table `a` and one of `b` overlap too much, 0 elsewhere.

    Each coordinate and the areas are separate rows, so that XLA:CPU processes eight pairs at a time.
    """
    (ax1, ay1, ax2, ay2, a_area), (bx1, by1, bx2, by2, b_area) = a[:, :, None], b[:, None]
    width = jnp.minimum(ax2, bx2) - jnp.maximum(ax1, bx1)
    height = jnp.minimum(ay2, by2) - jnp.maximum(ay1, by1)
    # The `where` prevents a fusion, as in boxes.py. Empty or infinite boxes give 0, or NaN, which is not greater.
    common = jnp.where((width > 0) & (height > 0), width * height, 0)
    much = common / (a_area + b_area - common) > limit
    much = much if a_labels is None else much & (a_labels[:, None] == b_labels[None])
    return much.astype(a.dtype)


def _taken(order, table, labels, alive, limit, most, block):
    """The indices of the selected boxes among those in order, padded with zeros, and their number.

    Each block of candidates is compared with all previously selected boxes, then within itself. "Any overlap" is always
    computed as a matrix product, which is many times faster on CPU than a reduction.
    """
    end = jnp.where(alive, jnp.arange(alive.shape[0]) + 1, 0).max()
    room = -(-most // _BLOCK) * _BLOCK
    number = jnp.arange(block)
    earlier = (number[None] < number[:, None]).astype(table.dtype)

    def part(array, start, length):
        return None if array is None else jax.lax.dynamic_slice_in_dim(array, start, length, -1)

    def take_block(state):
        start, indices, taken, labels_taken, count = state
        these, labels_of_these = part(table, start, block), part(labels, start, block)

        def compare(chunk, hits):
            first = chunk * _BLOCK
            of_chunk = part(labels_taken, first, _BLOCK)
            much = _overlapping(these, part(taken, first, _BLOCK), labels_of_these, of_chunk, limit)
            return hits + much @ (first + jnp.arange(_BLOCK) < count).astype(much.dtype)

        chunks = (count + _BLOCK - 1) // _BLOCK
        hits = jax.lax.fori_loop(0, chunks, compare, jnp.zeros_like(table, shape=block))
        left = part(alive, start, block) & (hits == 0)
        much = _overlapping(these, these, labels_of_these, labels_of_these, limit) * earlier
        keep = _settle(left, much)
        place = jnp.where(keep, count + (earlier @ keep.astype(earlier.dtype)).astype(jnp.int32), room)
        indices = indices.at[place].set(part(order, start, block), mode="drop")
        taken = taken.at[:, place].set(these, mode="drop")
        if labels is not None:
            labels_taken = labels_taken.at[place].set(labels_of_these, mode="drop")
        return start + block, indices, taken, labels_taken, count + keep.sum(dtype=jnp.int32)

    # As zeros of what is read, they vary among devices like it inside `jax.shard_map`, which loops there require.
    start = count = jnp.zeros_like(table, jnp.int32, ())
    taken = jnp.zeros_like(table, shape=(5, room))
    labels_taken = None if labels is None else jnp.zeros_like(table, labels.dtype, room)
    state = (start, jnp.zeros_like(table, jnp.int32, room), taken, labels_taken, count)
    if table.shape[1] == block:
        state = take_block(state)  # a single block: the compiler omits the code for later ones
    else:
        state = jax.lax.while_loop(lambda state: (state[0] < end) & (state[-1] < most), take_block, state)
    return state[1][:most], state[-1]


def _settle(left, much):
    """Which of a block's boxes the greedy loop selects: remaining ones that overlap no earlier selected box.

    The solution is unique. Every round settles at least the first unsettled box, and usually many: a box is settled
    once all earlier boxes that it overlaps are.
    """

    def again(state):
        keep, _ = state
        return left & (much @ keep.astype(much.dtype) == 0), keep

    return jax.lax.while_loop(lambda state: (state[0] != state[1]).any(), again, again((left, left)))[0]


def _check(boxes, scores, labels, threshold, max_outputs, valid):
    check_boxes(2, boxes=boxes)
    for name, array in (("scores", scores), ("labels", labels), ("valid", valid)):
        if array is not None and array.shape != boxes.shape[:1]:
            raise ValueError(f"{name} needs an entry for each of the {boxes.shape[0]} boxes, got shape {array.shape}")
    if not jnp.issubdtype(scores.dtype, jnp.floating):
        raise TypeError(f"scores must be of a float type, got {scores.dtype}: cast them first")
    if isinstance(threshold, numbers.Real) and not 0 <= float(threshold) <= 1:
        raise ValueError(f"threshold must be from 0 to 1, got {threshold}")
    check_whole(1, max_outputs=max_outputs)
