"""What the fields of a sample or batch are, by name, and what happens to each when the picture moves."""

from __future__ import annotations

from types import ModuleType
from typing import Any

# Maps that move with the image, nearest pixel for nearest pixel, and what stands where there is no image: the
# ignore_index (None here), no instance, unknown depth.
MAPS: dict[str, int | None] = {"mask": None, "change": None, "instances": 0, "depth": 0}

_LEAST_REST = 0.25  # share of a box that must stay inside the picture


def is_image(name: str) -> bool:
    """Tells whether a field holds pictures: `image`, `image_before`, `image_after`...

    Args:
        name: of the field.

    Returns:
        True for pictures.
    """
    return name.startswith("image")


def is_map(name: str) -> bool:
    """Tells whether a field holds a number for every pixel.

    Args:
        name: of the field.

    Returns:
        True for maps.
    """
    return name in MAPS


def fill_of(name: str, ignore_index: int | None) -> int | None:
    """Gives the value of a map where there is no image.

    Args:
        name: of the map.
        ignore_index: for the maps of classes.

    Returns:
        The value, or None if there is none.
    """
    fill = MAPS[name]
    return ignore_index if fill is None else fill


def clip_boxes(numpy: ModuleType, boxes: Any, labels: Any, height: int, width: int) -> tuple[Any, Any]:
    """Cuts boxes off at the border of the picture, and empties the places of those that are mostly outside.

    Args:
        numpy: `numpy` or `jax.numpy`, as the arrays are.
        boxes: (..., n, 4), x0, y0, x1, y1 in pixels.
        labels: (..., n), -1 at empty places.
        height: of the picture.
        width: of the picture.

    Returns:
        Boxes and labels; zeros and -1 where less than a quarter of a box is left.
    """
    limits = numpy.asarray([width, height, width, height], dtype=boxes.dtype)
    inside = numpy.clip(boxes, numpy.zeros_like(boxes), numpy.broadcast_to(limits, boxes.shape))
    kept = (labels >= 0) & (_area(inside) > 0) & (_area(inside) >= _LEAST_REST * _area(boxes))
    inside = numpy.where(kept[..., None], inside, numpy.zeros_like(inside))
    return inside, numpy.where(kept, labels, numpy.full_like(labels, -1))


def _area(boxes: Any) -> Any:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
