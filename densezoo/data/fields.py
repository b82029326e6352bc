"""An extensible table from the names of fields to their kinds.

A kind defines how cropping, padding, mirroring, rotating and resizing change an array, and which value it has outside
the picture. The pipeline and the transforms use the kind and never the name:

| field | kind | array of one sample |
| --- | --- | --- |
| `image` | `Image` | (h, w, c), floats in batches |
| `mask`, `change` | `LabelMap` | (h, w) class numbers, or (h, w, n) of 0 and 1 for several labels per pixel |
| `depth` | `ScalarMap` | (h, w) or (h, w, n) floats, 0 for pixels without a measurement |
| `normals` | `VectorMap` | (h, w, 3) unit vectors, zeros for pixels without a measurement |
| `instances` | `InstanceMap` | (h, w); k is the instance in row k - 1 of boxes and labels, 0 is background |
| `boxes` | `Boxes` | (n, 4), x0, y0, x1, y1 in pixels; zeros in rows without an instance |
| `labels` | `Labels` | (n,), -1 in rows without an instance |
| `areas` | `Areas` | (n,), pixels of each instance as annotated, also of hidden parts; NaN if unknown |
| `size`, `image_id` and all others | `Kind` | any shape; never changed |

A name may have a suffix that starts with an underscore or a number: `image_before`, `image_after` and `image2` are
images, `mask_2` is a label map. The longest match in the table applies. Boxes, labels and instances with the same
suffix belong together: `boxes_2`, `labels_2` and `instances_2`. `boxes_crowd`, `labels_crowd` and `instances_crowd` are
COCO's crowds, which `densezoo.metrics` excludes from the scores.

To add a field, add an entry to the table before the first batch is made:

    >>> from densezoo.data import fields
    >>> fields.KINDS["heatmap"] = fields.ScalarMap(linear=True)
    >>> fields.KINDS["flow"] = fields.VectorMap(components=2, length="pixels", fill=float("nan"))
    >>> fields.kind_of("flow_backward").components
    2
    >>> del fields.KINDS["heatmap"], fields.KINDS["flow"]
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.data import _arrays


@dataclasses.dataclass(frozen=True)
class Kind:
    """A value of a sample that does not depend on the picture's geometry, such as a weight; the base of all kinds.

    Subclass it, or another kind, for a different behaviour. Methods take the NumPy or JAX array of one sample; the
    transforms map them over the batch.

    Attributes:
        fill: the value of empty samples and outside the picture; None for the `ignore_index` of the pipeline.
    """

    fill: float | None = 0
    moves: ClassVar[bool] = False  # whether mirroring and rotating change it
    axes: ClassVar[tuple[str, ...]] = ()  # allowed shapes, for messages; empty for any

    def check(self, name: str, shape: tuple[int, ...], caller: str, batch: tuple[str, ...] = ()) -> None:
        """Raises a ValueError that names the field, if an array of this shape cannot be of this kind."""
        expected = [", ".join([*batch, axes]) for axes in self.axes]
        if expected and len(shape) not in {axes.count(",") + 1 for axes in expected}:
            raise ValueError(
                f"{caller} got {name} of shape {shape}; expected {' or '.join(f'({x})' for x in expected)}."
            )

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        """Converts the array to the type that it has in batches."""
        return array.astype(np.float32 if array.dtype.kind == "f" else np.int32, copy=False)

    def filling(self, ignore_index: int) -> float:
        """Returns the value outside the picture."""
        return ignore_index if self.fill is None else self.fill

    def mirror(self, array: Any, axis: int, length: int) -> Any:
        """Mirrors along the axis 0 (swaps top and bottom) or 1 (left and right) of a picture of that length."""
        return array

    def transpose(self, array: Any) -> Any:
        """Swaps rows and columns of the picture."""
        return array

    def move(self, array: Any, zoom: Any, shift: Any) -> Any:
        """Follows the picture where each point (y, x) moves to zoom * (y, x) + shift; both are (2,). Not for maps."""
        return array


@dataclasses.dataclass(frozen=True)
class Map(Kind):
    """A map that moves pixel by pixel with the picture.

    Attributes:
        linear: resize by linear interpolation, with averaging when it shrinks, instead of by the nearest pixel.
    """

    linear: bool = False
    moves: ClassVar[bool] = True
    axes: ClassVar[tuple[str, ...]] = ("height, width", "height, width, channels")

    def mirror(self, array: Any, axis: int, length: int) -> Any:
        return _arrays.namespace(array).flip(array, axis)

    def transpose(self, array: Any) -> Any:
        return array.swapaxes(0, 1)

    def rescale(self, array: Any, zoom: Any) -> Any:
        """Corrects the values of a map that was resized by the factors `zoom` (2,), of height and width."""
        return array

    def resize(self, array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Resizes to (height, width), at half-pixel centres, on the host."""
        zoom = np.divide(size, array.shape[:2]).astype(np.float32)
        return self.rescale((_arrays.resize_linear if self.linear else _arrays.resize_nearest)(array, size), zoom)

    def pad(self, array: np.ndarray, margins: Sequence[tuple[int, int]], ignore_index: int, mode: Any) -> np.ndarray:
        """Pads at the top and bottom, left and right; `mode` of `numpy.pad` applies to pictures."""
        del mode
        rest = [(0, 0)] * (array.ndim - 2)
        return np.pad(array, (*margins, *rest), constant_values=self.filling(ignore_index))

    def surroundings(self, array: jax.Array, ignore_index: int) -> jax.Array:
        """Returns the value around the pictures of a batch (b, h, w, ...), broadcastable to it."""
        return jnp.full((1,) * array.ndim, self.filling(ignore_index), array.dtype)


@dataclasses.dataclass(frozen=True)
class Image(Map):
    """A picture, padded with its own pixels or its mean; `to_float` converts integers to floats in 0..1."""

    linear: bool = True
    axes: ClassVar[tuple[str, ...]] = ("height, width, channels",)

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return _arrays.to_float(array)

    def pad(self, array: np.ndarray, margins: Sequence[tuple[int, int]], ignore_index: int, mode: Any) -> np.ndarray:
        return np.pad(array, (*margins, (0, 0)), mode=mode)

    def surroundings(self, array: jax.Array, ignore_index: int) -> jax.Array:
        return _arrays.channel_means(array)


@dataclasses.dataclass(frozen=True)
class LabelMap(Map):
    """Class numbers, (h, w), or 0 and 1 for each of n labels, (h, w, n); `ignore_index` outside the picture."""

    fill: float | None = None
    axes: ClassVar[tuple[str, ...]] = ("height, width", "height, width, classes")

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return _arrays.to_numbers(name, array)


@dataclasses.dataclass(frozen=True)
class ScalarMap(Map):
    """A measured number for each pixel, such as a depth, or several; 0 for pixels without a measurement.

    The files of KITTI and NYU also use 0. Unlike NaN, it is safe in a loss that masks it: for NaN, the gradient of
    `where(valid, f(depth), 0)` would be NaN. The fill replaces NaN and infinity in a source. Resizing takes the
    nearest pixel, because a mean across an edge or a hole is not a measurement; use `linear=True` for a heatmap.
    """

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return _arrays.to_measured(array, self.fill)


@dataclasses.dataclass(frozen=True)
class VectorMap(Map):
    """A vector for each pixel: surface normals, or optical flow with other attributes.

    A horizontal flip changes the sign of x, a vertical flip that of y, and rotations by 90 degrees rotate both. Zero
    vectors mark pixels without a measurement; they stay zero and have no weight in interpolation.

    Attributes:
        components: length of the last axis. The first two components are x, to the right, and y.
        length: "unit" rescales vectors to length 1 after interpolation; "pixels" is for displacements, which scale with
            the picture; "free" does neither.
        y_up: whether y points up, as in OpenGL, instead of down.
    """

    linear: bool = True
    components: int = 3
    length: Literal["unit", "pixels", "free"] = "unit"
    y_up: bool = False
    axes: ClassVar[tuple[str, ...]] = ("height, width, components",)

    def check(self, name: str, shape: tuple[int, ...], caller: str, batch: tuple[str, ...] = ()) -> None:
        super().check(name, shape, caller, batch)
        if shape[-1] != self.components:
            raise ValueError(f"{caller} got {name} of shape {shape}; expected {self.components} components.")

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return _arrays.to_measured(array, self.fill, axes=(-1,))

    def mirror(self, array: Any, axis: int, length: int) -> Any:
        signs = np.ones(self.components)
        signs[1 - axis] = -1
        return super().mirror(array, axis, length) * signs[None, None].astype(array.dtype)

    def transpose(self, array: Any) -> Any:
        turned = super().transpose(array)[..., np.r_[1, 0, 2 : self.components]]
        signs = np.where((np.arange(self.components) < 2) & self.y_up, -1, 1)
        return turned * signs[None, None].astype(array.dtype)

    def rescale(self, array: Any, zoom: Any) -> Any:
        numpy = _arrays.namespace(array)
        if self.length == "unit":
            square = (array * array).sum(-1, keepdims=True)
            return array / numpy.sqrt(numpy.where(square > 0, square, numpy.ones_like(square)))
        if self.length == "pixels":
            factors = [zoom[1], zoom[0], *[numpy.ones_like(zoom[0])] * (self.components - 2)]
            return array * numpy.stack(factors)[None, None].astype(array.dtype)
        return array


@dataclasses.dataclass(frozen=True)
class InstanceMap(Map):
    """The number of the instance at each pixel: k for row k - 1 of the boxes and labels, 0 for none."""

    axes: ClassVar[tuple[str, ...]] = ("height, width",)

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return _arrays.to_numbers(name, array)


@dataclasses.dataclass(frozen=True)
class Rows(Kind):
    """A value for each instance, (n, ...), such as a crowd flag; the fill if the instance is outside the picture."""


@dataclasses.dataclass(frozen=True)
class Labels(Rows):
    """The class of each instance, (n,); a negative number marks a row without an instance."""

    fill: float | None = -1


@dataclasses.dataclass(frozen=True)
class Boxes(Rows):
    """Boxes (n, 4): x0, y0, x1, y1 in pixels; zeros in rows without an instance."""

    moves: ClassVar[bool] = True
    axes: ClassVar[tuple[str, ...]] = ("boxes, 4",)

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32, copy=False)

    def mirror(self, array: Any, axis: int, length: int) -> Any:
        numpy = _arrays.namespace(array)
        x0, y0, x1, y1 = (array[..., index] for index in range(4))
        moved = (x0, length - y1, x1, length - y0) if axis == 0 else (length - x1, y0, length - x0, y1)
        return numpy.where((array != 0).any(-1, keepdims=True), numpy.stack(moved, -1), array)

    def transpose(self, array: Any) -> Any:
        return array[..., np.array([1, 0, 3, 2])]

    def move(self, array: Any, zoom: Any, shift: Any) -> Any:
        order = np.array([1, 0, 1, 0])
        return array * zoom[order][None] + shift[order][None]


@dataclasses.dataclass(frozen=True)
class Areas(Rows):
    """The area of each whole instance in pixels, (n,), which grows with the picture; NaN where it is unknown."""

    def convert(self, name: str, array: np.ndarray) -> np.ndarray:
        return array.astype(np.float32, copy=False)

    def move(self, array: Any, zoom: Any, shift: Any) -> Any:
        return array * (zoom[0] * zoom[1])


KINDS: dict[str, Kind] = {
    "image": Image(),
    "mask": LabelMap(),
    "change": LabelMap(),
    "depth": ScalarMap(),
    "normals": VectorMap(),
    "instances": InstanceMap(),
    "boxes": Boxes(),
    "labels": Labels(),
    "areas": Areas(),
    "size": Kind(),
    "image_id": Kind(),
}
"""The kinds of fields by name; add the kinds of your own fields here."""

SIZE = "size"  # added by the pipeline: the height and width of padded pictures before padding, int32


def kind_of(name: str) -> Kind:
    """Returns the kind of a field.

    Args:
        name: name of the field, such as "image_before".

    Returns:
        The kind of the longest matching name in `KINDS`; `Kind()` if none matches.

    Example:
        >>> kind_of("image_before"), kind_of("weight")
        (Image(fill=0, linear=True), Kind(fill=0))
    """
    return KINDS.get(_split(name)[0], Kind())


def group_of(name: str) -> str:
    """Returns the suffix of a field's name: "_2" for `boxes_2`, which belongs to `labels_2`."""
    return _split(name)[1]


def _split(name: str) -> tuple[str, str]:
    bases = [base for base in KINDS if name.startswith(base) and re.fullmatch(r"(_.*|\d*)", name[len(base) :])]
    base = max(bases, key=len, default=name)
    return base, name[len(base) :]
