"""Merging objects and a map of classes into one map of segments."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from densezoo.ops.checks import check_boxes
from densezoo.ops.paste import paste_masks


def merge_segments(
    masks: Float[Array, "n side side"],
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    logits: Float[Array, "h w k"],
    *,
    valid: Bool[Array, " n"] | None = None,
    inside: Bool[Array, "h w"] | None = None,
    score_threshold: float = 0.5,
    overlap: float = 0.5,
    stuff_area: int = 4096,
) -> Integer[Array, "h w"]:
    """Merges the objects of one picture and its semantic logits: the best objects first, then stuff around them.

    The rules are those of detectron2: an object is left out if its score is below `score_threshold`, or if better
    objects cover more than the fraction `overlap` of it; otherwise it gets its pixels that are still free. Each stuff
    class then gets its free pixels, unless they are fewer than `stuff_area`. Of objects with equal scores, the first
    one comes first. Use `jax.vmap` for a batch.

    Args:
        masks: probabilities of the n objects' masks, as in `paste_masks`.
        boxes: their boxes in pixels.
        scores: their scores; an object with a score of NaN is left out.
        logits: of the classes of each pixel: channel 0 for all things together, then the stuff classes.
        valid: which rows hold an object; None for all.
        inside: which pixels belong to the picture; None for all. The others get no segment and do not count as area.
        score_threshold: smallest score of an object.
        overlap: largest fraction of an object that better ones may cover.
        stuff_area: smallest number of pixels of a stuff class.

    Returns:
        The segment of each pixel: 0 for none, k for the object in row k - 1, n + c for the stuff class of channel c.

    Raises:
        ValueError: if shapes do not match.
        TypeError: if masks or boxes are not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 4.0, 2.0]])
        >>> logits = jnp.zeros((3, 5, 3)).at[:, :, 2].set(1.0)
        >>> merge_segments(jnp.ones((2, 4, 4)), boxes, jnp.array([0.6, 0.9]), logits, stuff_area=3).tolist()
        [[4, 4, 4, 4, 4], [4, 2, 2, 2, 4], [4, 4, 4, 4, 4]]

    References:
        Kirillov et al., Panoptic segmentation, 2018. https://arxiv.org/abs/1801.00868 (section 4)
    """
    check_boxes(2, boxes=boxes)
    count, size = boxes.shape[0], (logits.shape[0], logits.shape[1])
    expected = {"scores": (scores, (count,)), "valid": (valid, (count,)), "inside": (inside, size)}
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, got {array.shape}")
    inside = jnp.ones(size, bool) if inside is None else inside
    shown = scores >= score_threshold
    shown = shown if valid is None else shown & valid

    def place(segments, row):
        pasted = paste_masks(masks[row][None], boxes[row][None], size)[0] & inside & shown[row]
        free = pasted & (segments == 0)
        area, covered = pasted.sum(), (pasted & ~free).sum()
        # A quotient of rounded numbers, so that a covered third equals an overlap of 1/3.
        much = covered.astype(jnp.float32) / jnp.maximum(area, 1).astype(jnp.float32) > overlap
        return jnp.where(free & ~much, row + 1, segments), None

    order = jnp.argsort(-scores).astype(jnp.int32)
    # `zeros_like` of data, so that the loop also works on shards.
    segments = jnp.zeros_like(boxes, shape=size, dtype=jnp.int32)
    if count:
        segments, _ = jax.lax.scan(place, segments, order)
    kinds = jnp.where((segments == 0) & inside, logits.argmax(-1).astype(jnp.int32), 0)
    every = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    # Compared class by class, which XLA vectorises, unlike a histogram by scattering.
    large = ((kinds[None] == every[:, None, None]).sum((1, 2)) >= stuff_area) & (every > 0)
    return jnp.where(large[kinds], count + kinds, segments)
