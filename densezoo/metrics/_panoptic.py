"""Panoptic quality."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class PanopticCounts:
    """Counts for panoptic quality, for each class. `+` adds the counts of several pictures.

    Attributes:
        matched: (n,), pairs of predicted and true segments with an IoU above 0.5.
        spurious: (n,), predicted segments without a match.
        missed: (n,), true segments without a match.
        overlap: (n,), the sum of the matched segments' IoU.
    """

    matched: np.ndarray
    spurious: np.ndarray
    missed: np.ndarray
    overlap: np.ndarray

    def __add__(self, other: "PanopticCounts") -> "PanopticCounts":
        """Adds the counts of other pictures."""
        return PanopticCounts(*(getattr(self, name) + getattr(other, name) for name in _FIELDS))

    @property
    def recognition(self) -> np.ndarray:
        """RQ of each class, the F1 score of its segments; NaN for a class without segments."""
        return self._over(self.matched, self.matched + (self.spurious + self.missed) / 2)

    @property
    def segmentation(self) -> np.ndarray:
        """SQ of each class, the mean IoU of its matched segments; 0 without matches, NaN without segments."""
        return np.where(np.isnan(self.recognition), np.nan, self._over(self.overlap, np.maximum(self.matched, 1)))

    @property
    def quality(self) -> np.ndarray:
        """PQ of each class, the product of RQ and SQ; NaN for a class without segments."""
        return self._over(self.overlap, self.matched + (self.spurious + self.missed) / 2)

    @staticmethod
    def _over(value: np.ndarray, total: np.ndarray) -> np.ndarray:
        return np.where(total > 0, value / np.where(total > 0, total, 1), np.nan)


_FIELDS = tuple(field.name for field in dataclasses.fields(PanopticCounts))


def panoptic_counts(
    predicted: np.ndarray,
    predicted_classes: Mapping[int, int],
    truth: np.ndarray,
    true_classes: Mapping[int, int],
    num_classes: int,
    *,
    crowds: Mapping[int, int] | None = None,
) -> PanopticCounts:
    """Compares the segments of one picture.

    Args:
        predicted: (h, w) segment numbers; 0 for none.
        predicted_classes: the class of each predicted segment, 0..num_classes - 1.
        truth: (h, w) segment numbers; 0 for ignored pixels.
        true_classes: the class of each true segment.
        num_classes: number of classes.
        crowds: the class of each segment of `truth` that contains many objects. Predicted segments there are not
            spurious.

    Returns:
        The counts, which can be added over pictures.

    Raises:
        ValueError: if the maps' sizes differ, or a segment has no class or one out of range.

    Example:
        >>> import numpy as np
        >>> truth = np.array([[1, 1, 1, 2]])
        >>> counts = panoptic_counts(np.array([[1, 1, 0, 2]]), {1: 0, 2: 1}, truth, {1: 0, 2: 1}, 2)
        >>> counts.quality.round(3).tolist()
        [0.667, 1.0]

    References:
        Kirillov et al., Panoptic segmentation, 2019. https://arxiv.org/abs/1801.00868 (equation 1)
    """
    crowds = dict(crowds or {})
    if predicted.shape != truth.shape or predicted.ndim != 2:
        raise ValueError(f"maps of shape {predicted.shape} and {truth.shape}; expected (h, w), one size for both")
    for numbers, classes, what in (
        (predicted, predicted_classes, "predicted_classes"),
        (truth, {**true_classes, **crowds}, "true_classes or crowds"),
    ):
        if missing := sorted(set(np.unique(numbers).tolist()) - set(classes) - {0}):
            raise ValueError(f"segments {missing[:10]} have no class in {what}")
        if wrong := {key: label for key, label in classes.items() if not 0 <= label < num_classes}:
            raise ValueError(f"{what} has {wrong}; expected classes of 0..{num_classes - 1}")
    pairs, pixels = np.unique(np.stack([predicted.ravel(), truth.ravel()]), axis=1, return_counts=True)
    common = {(int(one), int(other)): int(count) for (one, other), count in zip(pairs.T, pixels, strict=True)}
    area, true_area = _areas(predicted), _areas(truth)
    matched, spurious, missed, overlap = (np.zeros(num_classes) for _ in _FIELDS)
    found: set[tuple[int, str]] = set()
    for (one, other), shared in common.items():
        if one == 0 or other not in true_classes or predicted_classes[one] != true_classes[other]:
            continue
        iou = shared / (area[one] + true_area[other] - shared - common.get((one, 0), 0))
        if iou > 0.5:
            label = true_classes[other]
            matched[label] += 1
            overlap[label] += iou
            found |= {(one, "predicted"), (other, "true")}
    for number in true_area:
        if number in true_classes and (number, "true") not in found:
            missed[true_classes[number]] += 1
    for number in area:
        if number == 0 or (number, "predicted") in found:
            continue
        label = predicted_classes[number]
        ignored = common.get((number, 0), 0)
        ignored += sum(common.get((number, crowd), 0) for crowd, of_class in crowds.items() if of_class == label)
        if ignored / area[number] <= 0.5:
            spurious[label] += 1
    return PanopticCounts(matched, spurious, missed, overlap)


def _areas(numbers: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(numbers, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}
