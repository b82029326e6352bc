"""Boundary metrics: the boundary F score and the Boundary IoU."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Integer

from densezoo.losses._boundary import label_edges
from densezoo.metrics._counts import Counts, checked, confusion, histogram, inside, iou, ratio
from densezoo.metrics._tally import Tally


@struct.dataclass
class BoundaryCounts:
    """Contour pixels of each class. `+` adds two counts.

    Attributes:
        predicted: pixels of predicted contours, a `Tally` of shape (num_classes,) like the others.
        true: pixels of true contours.
        matched: predicted pixels near a true one.
        matched_true: true pixels near a predicted one.
    """

    matched: Tally
    predicted: Tally
    matched_true: Tally
    true: Tally

    @classmethod
    def zeros(cls, num_classes: int) -> "BoundaryCounts":
        """Zero counts, the start of a sum."""
        zero = Tally.of(jnp.zeros((num_classes,), jnp.uint32))
        return cls(zero, zero, zero, zero)

    def __add__(self, other: "BoundaryCounts") -> "BoundaryCounts":
        return BoundaryCounts(
            self.matched + other.matched,
            self.predicted + other.predicted,
            self.matched_true + other.matched_true,
            self.true + other.true,
        )


def boundary_counts(
    predictions: Integer[Array, "b h w"],
    labels: Integer[Array, "b h w"],
    *,
    num_classes: int,
    tolerance: int = 2,
    ignore_index: int | None = None,
) -> BoundaryCounts:
    """Contour pixels of each class, and how many of them are within a tolerance of the other contour.

    A contour pixel of a class has a 4-neighbour of another class. The border of the image and the outline of an ignored
    region are not contours, and ignored pixels are never contour pixels. Two touching objects of one class have no
    contour between them. Distances are Euclidean, between pixel centres (the disk that DAVIS uses).

    Args:
        predictions: Class indices, (b, h, w); see `predict`.
        labels: Class indices, (b, h, w).
        num_classes: Number of classes; 2 for binary segmentation.
        tolerance: The maximum distance of a match, in pixels.
        ignore_index: Label of ignored pixels.

    Returns:
        Counts of shape (num_classes,), which can be added over images and steps.

    Raises:
        ValueError: If the shapes differ or are not (b, h, w), or if tolerance is negative.
        TypeError: If predictions or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.metrics import boundary_counts, boundary_f_score
        >>> labels = jnp.array([[[0, 0, 0, 1, 1, 1]]])
        >>> moved_by_one = jnp.array([[[0, 0, 1, 1, 1, 1]]])
        >>> for tolerance in (0, 1):
        ...     print(boundary_f_score(boundary_counts(moved_by_one, labels, num_classes=2, tolerance=tolerance)))
        [0. 0.]
        [1. 1.]

    References:
        Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013.
        Perazzi et al., A benchmark dataset and evaluation methodology for video object segmentation, CVPR 2016.
    """
    counted = checked(predictions, labels, ignore_index)
    _check_maps(labels, "tolerance", tolerance, 0)
    predicted, true = (inside(label_edges(m, counted), m, num_classes) for m in (predictions, labels))
    per_class = lambda m: Tally.of(histogram(m, num_classes))  # noqa: E731
    near_true = _finds_itself(predicted, true, tolerance)
    near_predicted = _finds_itself(true, predicted, tolerance)
    return BoundaryCounts(
        matched=per_class(inside(near_true, predicted, num_classes)),
        predicted=per_class(predicted),
        matched_true=per_class(inside(near_predicted, true, num_classes)),
        true=per_class(true),
    )


def boundary_f_score(counts: BoundaryCounts) -> Float[Array, " c"]:
    """Harmonic mean of the contours' precision and recall, for each class; NaN without any contour.

    It is 0 if only one of prediction and truth has a contour. The counts are sums over the data set; published scores
    are often means over images instead. For these, call this function with the counts of each image.
    """
    predicted, true = counts.predicted.value, counts.true.value
    right = jnp.where(predicted > 0, ratio(counts.matched.value, predicted), 0.0)
    found = jnp.where(true > 0, ratio(counts.matched_true.value, true), 0.0)
    score = 2.0 * right * found / jnp.where(right + found > 0, right + found, 1.0)
    return jnp.where(predicted + true > 0, score, jnp.nan)


def boundary_band_counts(
    predictions: Integer[Array, "b h w"],
    labels: Integer[Array, "b h w"],
    *,
    num_classes: int,
    distance: int,
    ignore_index: int | None = None,
) -> Counts:
    """Confusion counts of the bands inside each class's contours; their IoU is the Boundary IoU.

    A pixel is in its class's band if another class, or the outside of the image, is at most `distance` steps away,
    diagonal steps included (Chebyshev distance). This follows the authors: they erode by a 3 x 3 square, `distance`
    times, and treat the border of the image as a contour (`boundary_counts` does not). Their distance is 0.02 of the
    image's diagonal. Ignored pixels are not counted, and their outline is not a contour.

    Args:
        predictions: Class indices, (b, h, w); see `predict`.
        labels: Class indices, (b, h, w).
        num_classes: Number of classes; 2 for binary segmentation.
        distance: Width of the bands in pixels, at least 1.
        ignore_index: Label of ignored pixels.

    Returns:
        Counts of shape (num_classes,), for `boundary_iou`.

    Raises:
        ValueError: If the shapes differ or are not (b, h, w), or if distance is below 1.
        TypeError: If predictions or labels are not integers.

    Example:
        >>> import jax.numpy as jnp
        >>> from densezoo.metrics import boundary_band_counts, boundary_iou
        >>> labels = jnp.zeros((1, 9, 9), jnp.int32).at[:, 2:7, 2:7].set(1)
        >>> smaller = jnp.zeros((1, 9, 9), jnp.int32).at[:, 3:6, 3:6].set(1)
        >>> print(boundary_iou(boundary_band_counts(smaller, labels, num_classes=2, distance=1))[1])
        0.0

    References:
        Cheng et al., Boundary IoU: improving object-centric image segmentation evaluation, CVPR 2021.
    """
    counted = checked(predictions, labels, ignore_index)
    _check_maps(labels, "distance", distance, 1)
    predicted, true = (inside(_band(m, counted, distance), m, num_classes) for m in (predictions, labels))
    return confusion(predicted, true, counted, num_classes)


def boundary_iou(counts: Counts) -> Float[Array, " c"]:
    """Boundary IoU of each class, from `boundary_band_counts`; NaN for a class without labels and predictions."""
    return iou(counts)


def _check_maps(labels: Integer[Array, "b h w"], name: str, pixels: int, least: int) -> None:
    if labels.ndim != 3:
        raise ValueError(f"labels have shape {labels.shape}: expected (b, h, w)")
    if pixels < least:
        raise ValueError(f"{name} is {pixels}: expected at least {least} pixels")


def _finds_itself(
    labels: Integer[Array, "b h w"], others: Integer[Array, "b h w"], tolerance: int
) -> Bool[Array, "b h w"]:
    """Whether `others` contains the pixel's label within a disk around it."""
    steps = np.arange(-tolerance, tolerance + 1, dtype=np.int32)
    disk = np.argwhere(steps[:, None] ** 2 + steps[None] ** 2 <= tolerance**2).astype(np.int32)
    padded = jnp.pad(others, ((0, 0), (tolerance, tolerance), (tolerance, tolerance)), constant_values=-1)
    corners = jnp.asarray(disk)

    # A loop over the disk: memory and compile time depend neither on the number of classes nor on the disk's size.
    def look(i: Array, found: Bool[Array, "b h w"]) -> Bool[Array, "b h w"]:
        start = (jnp.int32(0), corners[i, 0], corners[i, 1])
        return found | (jax.lax.dynamic_slice(padded, start, labels.shape) == labels)

    return jax.lax.fori_loop(0, len(disk), look, jnp.zeros(labels.shape, bool))


def _band(labels: Integer[Array, "b h w"], counted: Bool[Array, "b h w"], distance: int) -> Bool[Array, "b h w"]:
    """Counted pixels with another label, or the outside of the image, in the square around them.

    The square contains another label if its largest or smallest label differs from the pixel's. The outside is
    smaller than every label, and ignored pixels are never the extreme.
    """
    labels = labels.astype(jnp.int32)
    limits = jnp.iinfo(jnp.int32)
    outside = ((0, 0), (distance, distance), (distance, distance))
    largest = jnp.pad(jnp.where(counted, labels, limits.min), outside, constant_values=limits.min)
    smallest = jnp.pad(jnp.where(counted, labels, limits.max), outside, constant_values=limits.min)
    size = 2 * distance + 1
    for window in ((1, size, 1), (1, 1, size)):
        largest = jax.lax.reduce_window(largest, np.int32(limits.min), jax.lax.max, window, (1, 1, 1), "VALID")
        smallest = jax.lax.reduce_window(smallest, np.int32(limits.max), jax.lax.min, window, (1, 1, 1), "VALID")
    return counted & ((largest != labels) | (smallest != labels))
