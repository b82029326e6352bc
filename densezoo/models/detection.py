"""Functions shared by all detectors: from images to a pyramid, and from scores and boxes to detections."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer

from densezoo import ops
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale
from densezoo.encoders import Encoder
from densezoo.heads.anchors import AnchorOutputs, PointOutputs
from densezoo.models.padding import each_alone
from densezoo.models.segmentation import encode, without_gradient
from densezoo.ops.sharding import per_device, repeat_for
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
    """Detects objects: runs a detector and keeps the best boxes, with the same results as torchvision. Can be jitted.

    To batch pictures of different sizes, pad them at the bottom and right with any values, and pass their `sizes`; the
    padding is set to zero. Each picture then gets the same anchors as alone, and its boxes are clipped to its own
    border. In a convolutional model, its detections are the same as alone, up to rounding. Attention in an encoder
    reads the padding.

    Args:
        model: a detector, such as `create_model("retinanet", num_classes=91)`.
        variables: the model's variables.
        images: a batch of images, normalised as in training.
        sizes: (b, 2) integers, height and width of each picture without padding; None if there is no padding.
        score_threshold: only detections with a higher score are kept. For this and the next two arguments, None selects
            torchvision's value for the family.
        nms_threshold: if two boxes of a class overlap more than this, only the one with the higher score is kept. Boxes
            with zero area, which a single-stage detector predicts outside of the picture, overlap none and are all
            kept, as in torchvision; models with region proposals have none.
        max_detections: rows of the result for each picture.

    Returns:
        `Detections`. Labels are the class numbers of the training data. In models with region proposals, class 0 is the
        background; in the others it is an ordinary class.

    Raises:
        TypeError: if the model is not a detector.
        ValueError: if images or sizes have the wrong shape.

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
        raise TypeError(
            f"a {type(model).__name__} is not a detector: dz.list_models(task='detection') lists the detectors"
        )
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
    """The maps of a detector's neck, the size each picture would be padded to alone (None if all equal), its size."""
    given = sizes
    whole = size_of(images) if images.ndim == 4 else (0, 0)
    if given is None:
        sizes = repeat_for(images, jnp.asarray(whole, jnp.int32)[None])
    else:
        sizes = jnp.asarray(given)
        if sizes.shape != (images.shape[0], 2) or not jnp.issubdtype(sizes.dtype, jnp.integer):
            raise ValueError(
                f"sizes must be integers, a height and a width for each of the {images.shape[0]} images; got shape"
                f" {sizes.shape} and dtype {sizes.dtype}"
            )
        images = jnp.where(inside(whole, sizes)[..., None], images, 0)
    multiple = _multiple(model.encoder)
    if images.ndim == 4:
        images = jnp.pad(images, ((0, 0), *((0, -side % multiple) for side in whole), (0, 0)))
    extents = None if given is None else extents_of(model.encoder, sizes)
    with each_alone(None if train else extents, size_of(images) if images.ndim == 4 else whole):
        pyramid = encode(model.encoder, images, train=train and "encoder" not in model.frozen)
        pyramid = without_gradient(pyramid) if "encoder" in model.frozen else pyramid
        maps = model.neck(pyramid, train=train and "neck" not in model.frozen)
    if pyramid.reductions is None:
        raise ValueError("a detector needs an encoder whose pyramid has reductions: see dz.Pyramid")
    result = Pyramid(tuple(maps), None, model.neck.scales(pyramid.reductions), pyramid.image_size)
    return result, extents, sizes.astype(jnp.float32)


def extents_of(encoder: nn.Module, sizes: Integer[Array, "b 2"]) -> Integer[Array, "b 2"]:
    """The size that each picture would be padded to alone."""
    multiple, smallest = _multiple(encoder), encoder.min_size if isinstance(encoder, Encoder) else 1
    return jnp.maximum(-(-sizes // multiple) * multiple, jnp.where(sizes > 0, smallest, 0)).astype(jnp.int32)


def _multiple(encoder: nn.Module) -> int:
    return max((MULTIPLE, *(encoder.reductions if isinstance(encoder, Encoder) else ())))


def inside(size: Size, sizes: Integer[Array, "b 2"]) -> Bool[Array, "b h w"]:
    """Which pixels belong to the picture, not to the padding."""
    y, x = (jnp.arange(side, dtype=sizes.dtype)[None] for side in size)
    return (y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None]


def of_anchors(
    outputs: AnchorOutputs | PointOutputs,
    score_threshold: Any,
    nms_threshold: Any,
    max_detections: int,
    candidates: int,
) -> Detections:
    """Postprocesses a single-stage detector: takes the best candidates of each map, then suppresses overlaps.

    Args:
        outputs: the model's outputs.
        score_threshold: see `detect`.
        nms_threshold: see `detect`.
        max_detections: see `detect`.
        candidates: the largest number of (anchor, class) pairs that are taken from each map.
    """
    best = functools.partial(_best_of_anchors, max_detections=max_detections, candidates=candidates)
    return per_device(best, outputs, weights=(score_threshold, nms_threshold), auto=True)


def _best_of_anchors(
    outputs: AnchorOutputs | PointOutputs,
    score_threshold: Any,
    nms_threshold: Any,
    *,
    max_detections: int,
    candidates: int,
) -> Detections:
    assert outputs.sizes is not None
    classes = outputs.logits.shape[-1]
    ranks = jnp.where(outputs.grid.inside, outputs.ranks(), -jnp.inf)

    def of_image(image: jax.Array, ranks: jax.Array, size: jax.Array) -> Detections:
        boxes, scores, labels, start = [], [], [], 0
        for count in outputs.grid.counts:
            # The best (anchor, class) pairs belong to the anchors with the best class scores.
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
        # Boxes beyond the picture end up without area. As in torchvision, they overlap nothing, each other included.
        return kept(clipped, score, label, valid, nms_threshold, max_detections)

    return jax.vmap(of_image)(jnp.arange(ranks.shape[0]), ranks, outputs.sizes)


def kept(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    labels: Integer[Array, " n"],
    valid: Bool[Array, " n"],
    nms_threshold: Any,
    max_detections: int,
) -> Detections:
    """One picture's boxes after suppression, in a fixed number of rows."""
    rows, real = ops.batched_nms(boxes, scores, labels, nms_threshold, max_detections, valid)
    return Detections(
        jnp.where(real[:, None], boxes[rows], 0),
        jnp.where(real, scores[rows], 0),
        jnp.where(real, labels[rows], -1),
        real,
    )


def large_enough(boxes: Float[Array, "*n 4"], least: float) -> Bool[Array, "*n"]:
    """Whether both sides of a box are at least this many pixels long."""
    return (boxes[..., 2] - boxes[..., 0] >= least) & (boxes[..., 3] - boxes[..., 1] >= least)


def register_detector(
    name: str,
    make: Callable[..., Any],
    description: str,
    skip_strategy: str,
    excels_at: str,
    paper: str,
    *,
    encoder: str = "resnet50",
    misfit: Callable[[Any], str] = one_scale,
) -> None:
    """Registers a family of detectors, by default for COCO's 91 classes. See `Blueprint` for the arguments."""
    register(
        Blueprint(
            name=name,
            description=description,
            skip_strategy=skip_strategy,
            excels_at=excels_at,
            paper=paper,
            encoder=encoder,
            make=make,
            misfit=misfit,
            task="detection",
            num_classes=91,
        )
    )
