"""The results of a predictor at the size of the given picture."""

import dataclasses
from typing import Any

import jax
import numpy as np

from densezoo.types import Detections, Size


def at_size(found: Any, size: Size, whole: Size, padded: Size, field: str | None) -> Any:
    """A result at the size of the picture.

    Args:
        found: the task's prediction for the padded picture.
        size: height and width of the picture that the model saw.
        whole: those of the picture that was given.
        padded: those of the picture with padding.
        field: kind of the prediction's maps, as in a batch.
    """
    height, width = size

    def of_picture(array: np.ndarray) -> np.ndarray:
        if array.shape[:2] != padded:
            return array
        array = array[:height, :width]
        return array if size == whole else resized(array, whole, field)

    found = jax.tree.map(of_picture, found)
    zoom = np.array([whole[1] / width, whole[0] / height] * 2, np.float32)

    def zoomed(part: Any) -> Any:  # boxes end at the border of the picture that the model saw
        return dataclasses.replace(part, boxes=part.boxes * zoom) if isinstance(part, Detections) else part

    return jax.tree.map(zoomed, found, is_leaf=lambda part: isinstance(part, Detections))


def resized(array: np.ndarray, size: tuple[int, int], field: str | None = None) -> np.ndarray:
    """An array of another size, by the kind of a field, or as a picture or map.

    Floats of the latter are interpolated linearly, and whole numbers are those of the nearest pixel.
    """
    from densezoo.data import fields

    kind: Any = fields.Map(linear=array.dtype.kind == "f") if field is None else fields.kind_of(field)
    return kind.resize(array, size)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(length == 0, np.float32(1), length)
