"""A confusion matrix as a picture."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

_WRITTEN = 20
"""The maximum number of classes for which the cells contain numbers."""


def confusion_matrix(counts: ArrayLike, class_names: Sequence[str] | None = None) -> Figure:
    """Draws a confusion matrix: the share of each true class's pixels that is predicted as each class.

    Args:
        counts: numbers of pixels, (classes, classes), with a row for each true class, as returned by
            `metrics.confusion_matrix`.
        class_names: names of the classes; by default their numbers.

    Returns:
        A matplotlib figure, for `viz.save`. A class without pixels has an empty row.

    Raises:
        ValueError: if the matrix is not square, or the number of names differs from the number of classes.

    Example:
        >>> figure = confusion_matrix([[90, 10], [5, 95]], ["sky", "ground"])
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['sky', 'ground']
    """
    matrix = np.asarray(counts)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(f"expected a matrix (classes, classes), got shape {matrix.shape}")
    classes = len(matrix)
    names = list(map(str, range(classes))) if class_names is None else list(class_names)
    if len(names) != classes:
        raise ValueError(f"there are {classes} classes and {len(names)} class_names: pass one name for each class")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.where(totals > 0, matrix / np.maximum(totals, 1), np.nan)

    cell = 0.55 if classes <= _WRITTEN else 0.22
    margin = 1.2 + 0.08 * max(map(len, names))
    side = cell * classes + margin
    figure = Figure(figsize=(side + 1.0, side), layout="constrained", facecolor="white")
    axes = figure.subplots()
    drawn = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if classes <= _WRITTEN else 6
    axes.set_xticks(range(classes), names, rotation=90 if max(map(len, names)) > 3 else 0, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(drawn, ax=axes, label="% of the true class's pixels", shrink=0.8)
    for row, column in np.argwhere(shares > 0) if classes <= _WRITTEN else ():
        share = 100 * shares[row, column]
        text = "<1" if share < 1 else ">99" if 99 < share < 100 else f"{share:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 55 else "black")
    return figure
