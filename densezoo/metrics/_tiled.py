"""Counts of a prediction that is computed by tiles."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from densezoo.messages import option
from densezoo.metrics._counts import Counts
from densezoo.metrics._tally import Tally


class TiledCounts:
    """Confusion counts of a prediction that is computed by tiles: the `out` of `dz.predict_tiled`.

    Each tile is compared with the same part of the labels. Nothing of the picture's size is kept: not even the labels,
    if they are read when they are sliced. The counts are those of `confusion_counts` and `confusion_matrix` for the
    whole picture.

    Args:
        labels: class indices (height, width). An array, or anything with `shape` that returns arrays for slices, such
            as `np.memmap` or `data.open_tiff(path)`, whose single channel is dropped.
        num_classes: number of classes; 2 for binary segmentation.
        ignore_index: label of ignored pixels.

    Attributes:
        shape: (height, width).
        counts: `Counts` of the tiles so far.
        matrix: their confusion matrix, a `Tally` (num_classes, num_classes) with a row for each true class.

    Raises:
        ValueError: if the labels are not (height, width), or a tile does not fit.
        TypeError: if predictions or labels are not integers.

    Example:
        >>> import numpy as np
        >>> from densezoo.metrics import TiledCounts
        >>> counts = TiledCounts(np.array([[0, 0, 1], [1, 1, 255]]), num_classes=2, ignore_index=255)
        >>> counts[:, :2] = np.array([[0, 1], [1, 1]])
        >>> counts[:, 2:] = np.array([[1], [1]])
        >>> np.asarray(counts.matrix).tolist(), np.asarray(counts.counts.tp).tolist()
        ([[1, 1], [0, 3]], [1, 3])
    """

    def __init__(self, labels: Any, *, num_classes: int, ignore_index: int | None = None):
        shape = tuple(getattr(labels, "shape", ()))
        if len(shape) not in (2, 3) or shape[2:] not in ((), (1,)):
            raise ValueError(f"expected labels of shape (height, width), got shape {shape}")
        if num_classes < 1:
            raise ValueError(f"{option('num_classes')} must be at least 1, got {num_classes}")
        self.shape = shape[:2]
        self._labels, self._classes, self._ignored = labels, num_classes, ignore_index
        # A last row and column for numbers that are not classes.
        self._pairs = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def __setitem__(self, index: tuple[slice, slice], tile: Any) -> None:
        predictions, labels = np.asarray(tile), np.asarray(self._labels[index])
        if labels.ndim == 3:
            labels = labels[..., 0]
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions {predictions.shape} and labels {labels.shape} differ: expected class indices, such as"
                ' those of reduce="classes"'
            )
        for name, array in (("predictions", predictions), ("labels", labels)):
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name} are {array.dtype}: expected class indices")
        counted = np.ones(labels.shape, bool) if self._ignored is None else labels != self._ignored
        true, predicted = (self._inside(array[counted]) for array in (labels, predictions))
        found = np.bincount(true * (self._classes + 1) + predicted, minlength=self._pairs.size)
        self._pairs += found.reshape(self._pairs.shape)

    def _inside(self, numbers: np.ndarray) -> np.ndarray:
        """The numbers of classes; the number of classes for others."""
        numbers = numbers.astype(np.int64)
        return np.where((numbers >= 0) & (numbers < self._classes), numbers, self._classes)

    @property
    def counts(self) -> Counts:
        """True and false positives and negatives of each class."""
        tp = np.diagonal(self._pairs)[:-1]
        fp, fn = (self._pairs.sum(axis)[:-1] - tp for axis in (0, 1))
        tn = self._pairs.sum() - tp - fp - fn
        return Counts(_tally(tp), _tally(fp), _tally(fn), _tally(tn))

    @property
    def matrix(self) -> Tally:
        """The number of pixels of each true class that are predicted as each class."""
        return _tally(self._pairs[:-1, :-1])


def _tally(numbers: np.ndarray) -> Tally:
    """A tally of int64, which JAX does not have."""
    return Tally(*(jnp.asarray(part.astype(np.uint32)) for part in (numbers & 0xFFFF, numbers >> 16)))
