"""What detectors share: the way from pictures to a pyramid, and from scores and boxes to detections."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from densezoo import ops
from densezoo.encoders import Encoder
from densezoo.heads.anchors import AnchorOutputs, PointOutputs
from densezoo.models.padding import each_alone
from densezoo.models.segmentation import encode, without_gradient
from densezoo.types import Detections, Pyramid, Size, size_of

MULTIPLE = 32
"""Images are padded to multiples of this many pixels, as torchvision does."""


def detect(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "b h w c"],
    sizes: Any = None,
    *,
    score_threshold: float | None = None,
    nms_threshold: float | None = None,
    max_detections: int | None = None,
) -> Detections:
    """Finds objects: runs a detector and keeps the best boxes, with torchvision's numbers. It can be jitted.

    Pictures of different sizes share a batch when each is padded at the bottom and right, with anything: padding
    becomes zeros, and `sizes` says what is picture. Each picture then has the anchors that it has alone, and its boxes
    end at its own border. It has the detections that it has alone, up to rounding, in a model of convolutions;
    attention in an encoder reads the padding.

    Args:
        model: a detector, such as `create_model("retinanet", num_classes=91)` gives.
        variables: of the model.
        images: a batch of images, normalised as the model was trained.
        sizes: (b, 2) whole numbers, height and width of each picture without padding; None for all of the image.
        score_threshold: detections have a higher score. None, here and below, is what the family has in torchvision.
        nms_threshold: of two boxes of a class that overlap more than this, the one with the higher score is kept. Of
          boxes without area, which a single-stage detector finds beyond the picture, the best of each class is kept.
        max_detections: rows of the result for each picture.

    Returns:
        `Detections`. Labels are the numbers that the model was trained with: class 0 is the background of a model with
        region proposals, and a class like the others without.

    Raises:
        TypeError: the model is no detector.
        ValueError: images or sizes of another shape.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("retinanet", dz.PlainEncoder((4, 8, 8)), num_classes=3, features=8)
        >>> images = jnp.zeros((2, 64, 96, 3))
        >>> variables = jax.jit(model.init)(jax.random.key(0), images)
        >>> found = jax.jit(lambda images: dz.detect(model, variables, images, max_detections=5))(images)
        >>> found.boxes.shape, int(found.valid.sum())  # without training every score is 0.01
        ((2, 5, 4), 0)
    """
    if not hasattr(model, "detect"):
        raise TypeError(f"a {type(model).__name__} finds no boxes: dz.list_models(task='detection') lists what does")
    return model.apply(  # pyright: ignore[reportReturnType]
        variables,
        images,
        sizes,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        max_detections=max_detections,
        method="detect",
    )


def pyramid_of(
    model: Any, images: jax.Array, sizes: Any, *, train: bool
) -> tuple[Pyramid, Integer[Array, "b 2"] | None, Float[Array, "b 2"]]:
    """The maps of a detector's neck, what each picture would be padded to alone (None for all alike), and its size."""
    given = sizes
    whole = size_of(images) if images.ndim == 4 else (0, 0)
    if given is None:
        sizes = jnp.broadcast_to(jnp.asarray(whole, jnp.int32), (images.shape[0], 2))
    else:
        sizes = jnp.asarray(given)
        if sizes.shape != (images.shape[0], 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
            raise ValueError(
                f"sizes are whole numbers, a height and a width for each of the {images.shape[0]} images; got shape"
                f" {sizes.shape} and type {sizes.dtype}"
            )
        images = jnp.where(_inside(whole, sizes)[..., None], images, 0)
    reductions = model.encoder.reductions if isinstance(model.encoder, Encoder) else ()
    multiple = max((MULTIPLE, *reductions))
    if images.ndim == 4:
        images = jnp.pad(images, ((0, 0), *((0, -side % multiple) for side in whole), (0, 0)))
    extents = None
    if given is not None:
        smallest = model.encoder.min_size if isinstance(model.encoder, Encoder) else 1
        extents = jnp.maximum(-(-sizes // multiple) * multiple, jnp.where(sizes > 0, smallest, 0)).astype(jnp.int32)
    with each_alone(None if train else extents, size_of(images) if images.ndim == 4 else whole):
        pyramid = encode(model.encoder, images, train=train and "encoder" not in model.frozen)
        pyramid = without_gradient(pyramid) if "encoder" in model.frozen else pyramid
        maps = model.neck(pyramid, train=train and "neck" not in model.frozen)
    if pyramid.reductions is None:
        raise ValueError("a detector needs an encoder whose pyramid has reductions: see dz.Pyramid")
    result = Pyramid(tuple(maps), None, model.neck.scales(pyramid.reductions), pyramid.image_size)
    return result, extents, sizes.astype(jnp.float32)


def _inside(size: Size, sizes: Integer[Array, "b 2"]) -> Bool[Array, "b h w"]:
    """Which pixels are picture."""
    y, x = (jnp.arange(side, dtype=sizes.dtype)[None] for side in size)
    return (y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None]


def of_anchors(
    outputs: AnchorOutputs | PointOutputs,
    score_threshold: Any,
    nms_threshold: Any,
    max_detections: int,
    candidates: int,
) -> Detections:
    """The detections of a single-stage detector: the best of each map, then those of them that no better one overlaps.

    Args:
        outputs: of the model.
        score_threshold: see `detect`, as for the next two.
        nms_threshold: with the same label.
        max_detections: rows of the result.
        candidates: how many pairs of an anchor and a class each map gives at most.
    """
    assert outputs.sizes is not None
    classes = outputs.logits.shape[-1]
    ranks = jnp.where(outputs.grid.inside, outputs.ranks(), -jnp.inf)

    def of_image(image: jax.Array, ranks: jax.Array, size: jax.Array) -> Detections:
        boxes, scores, labels, start = [], [], [], 0
        for count in outputs.grid.counts:
            # The best pairs of an anchor and a class are among those of the anchors with the best class.
            best, chosen = jax.lax.top_k(ranks[start : start + count], min(candidates, count))
            chosen = chosen + start
            pairs = jnp.where((best > -jnp.inf)[:, None], outputs.scores(image, chosen), -1).reshape(-1)
            score, pair = jax.lax.top_k(pairs, min(candidates, pairs.shape[0]))
            boxes.append(outputs.boxes(image, chosen[pair // classes]))
            scores.append(score)
            labels.append((pair % classes).astype(jnp.int32))
            start += count
        clipped = ops.clip_boxes(jnp.concatenate(boxes), size)
        score, label = jnp.concatenate(scores), jnp.concatenate(labels)
        valid = score > score_threshold
        # Boxes that lie beyond the picture have no area, and so no overlap by which one could suppress another.
        empty = valid & (ops.box_area(clipped) <= 0)
        best = jnp.full(classes, -1.0).at[label].max(jnp.where(empty, score, -1))
        return kept(clipped, score, label, valid & (~empty | (score == best[label])), nms_threshold, max_detections)

    return jax.vmap(of_image)(jnp.arange(ranks.shape[0]), ranks, outputs.sizes)


def kept(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Integer[Array, " n"],
    valid: Bool[Array, " n"],
    nms_threshold: Any,
    max_detections: int,
) -> Detections:
    """One picture's boxes after suppression, in rows of a fixed number."""
    rows, real = ops.batched_nms(boxes, scores, labels, nms_threshold, max_detections, valid)
    return Detections(
        jnp.where(real[:, None], boxes[rows], 0),
        jnp.where(real, scores[rows], 0),
        jnp.where(real, labels[rows], -1),
        real,
    )


def large_enough(boxes: Float[Array, "*n 4"], least: float) -> Bool[Array, "*n"]:
    """Whether both sides of a box have at least this many pixels."""
    return (boxes[..., 2] - boxes[..., 0] >= least) & (boxes[..., 3] - boxes[..., 1] >= least)
