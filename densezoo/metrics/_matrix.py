"""The confusion matrix."""

import jax.numpy as jnp
from jaxtyping import Array, Integer

from densezoo.metrics._counts import checked, histogram, inside
from densezoo.metrics._tally import Tally


def confusion_matrix(
    predictions: Integer[Array, "*shape"],
    labels: Integer[Array, "*shape"],
    *,
    num_classes: int,
    ignore_index: int | None = None,
) -> Tally:
    """Counts the pixels of each true class that are predicted as each class.

    Pixels whose label is not a class are not counted.

    Args:
        predictions: Class indices; see `predict`.
        labels: Class indices.
        num_classes: Number of classes; 2 for binary segmentation.
        ignore_index: Label of ignored pixels.

    Returns:
        Numbers of pixels (num_classes, num_classes), with a row for each true class and a column for each predicted
        one. They can be added over images and steps. `numpy.asarray` returns exact integers.

    Raises:
        ValueError: If the shapes differ.
        TypeError: If predictions are not integers.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from densezoo.metrics import confusion_matrix
        >>> labels = jnp.array([0, 0, 0, 1, 255])
        >>> matrix = confusion_matrix(jnp.array([0, 0, 1, 1, 1]), labels, num_classes=2, ignore_index=255)
        >>> np.asarray(matrix).tolist()
        [[2, 1], [0, 1]]
    """
    counted = checked(predictions, labels, ignore_index)
    true, predicted = (inside(counted, m, num_classes) for m in (labels, predictions))
    known = (true < num_classes) & (predicted < num_classes)
    pairs = jnp.where(known, true * num_classes + predicted, num_classes**2)
    return Tally.of(histogram(pairs, num_classes**2).reshape(num_classes, num_classes))
