"""Pictures of predicted class boundaries, compared with the true ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from densezoo.viz import legend
from densezoo.viz.colors import colorize, to_rgb

AGREED, MISSED, INVENTED = (255, 255, 255), (255, 0, 255), (0, 219, 36)
"""Colours unlike those of the first classes, also for people with red-green colour blindness."""
ZOOM = 4
PANEL = 1.9


def boundaries(
    images: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    *,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Compares the classes and class boundaries that each model predicts with the truth. One row per image.

    Boundaries are the pixels whose class differs from that of the pixel to the right or below. A boundary counts as
    found only where prediction and truth have it at the same pixel. The image is drawn darkened behind the boundaries
    and enlarged, so that single pixels are visible. The text below a prediction is the share of wrong pixels.

    Args:
        images: (h, w, c) each.
        masks: true classes, (h, w) each.
        predictions: each model's name and its predicted classes for every image.
        class_names: for the legend, in the order of the classes.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if there are no images, the numbers of images, masks and predictions differ, sizes differ, or a
            label has no name.

    Example:
        >>> image, mask = np.zeros((8, 8, 3)), np.eye(8, dtype=int)
        >>> figure = boundaries([image], [mask], {"a model": [mask]})
        >>> [axes.get_title().split() for axes in figure.axes]
        [['image'], ['truth'], ['a', 'model:', 'prediction'], ['a', 'model:', 'boundaries']]
    """
    _check(images, masks, predictions)
    every = [np.asarray(mask) for group in (masks, *predictions.values()) for mask in group]
    palette = legend.class_palette(every, class_names)
    entries = legend.class_entries(every, class_names, palette)
    columns = 2 + 2 * len(predictions)
    per_line = legend.per_line(entries, columns * PANEL - 2)  # leaves room for the legend of the boundaries
    lines = max(3, -(-len(entries) // per_line))
    size = (PANEL * columns, (PANEL + 0.25) * len(images) + 0.4 + 0.27 * lines)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        picture = _enlarged(to_rgb(image))
        _panel(grid[row, 0], picture, "image" if row == 0 else "")
        _panel(grid[row, 1], colorize(mask, palette), "truth" if row == 0 else "")
        for number, (name, group) in enumerate(predictions.items()):
            left, right = grid[row, 2 + 2 * number], grid[row, 3 + 2 * number]
            wrong = f"{100 * np.mean(np.asarray(group[row]) != np.asarray(mask)):.1f} % of pixels wrong"
            _panel(left, colorize(group[row], palette), f"{name}:\nprediction" if row == 0 else "", wrong)
            true, found = _edges(_enlarged(mask)), _edges(_enlarged(group[row]))
            shown = picture // 3
            shown[true & found], shown[true & ~found], shown[found & ~true] = AGREED, MISSED, INVENTED
            _panel(right, shown, f"{name}:\nboundaries" if row == 0 else "")
    kinds = [
        Patch(facecolor=legend.hexadecimal(colour), edgecolor="0.4", label=label)
        for colour, label in ((AGREED, "boundary found"), (MISSED, "boundary missed"), (INVENTED, "false boundary"))
    ]
    figure.legend(handles=entries, ncols=per_line, loc="outside lower left", frameon=False, fontsize=10)
    figure.legend(handles=kinds, loc="outside lower right", frameon=False, fontsize=10)
    return figure


def _check(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], predictions: Mapping[str, Sequence[np.ndarray]]
) -> None:
    if not images or any(len(each) != len(images) for each in (masks, *predictions.values())):
        counts = {name: len(each) for name, each in predictions.items()}
        raise ValueError(
            f"expected a mask and predictions for each of {len(images)} images, got {len(masks)}, {counts}"
        )
    for name, group in predictions.items():
        for row, (image, mask, prediction) in enumerate(zip(images, masks, group, strict=True)):
            if np.shape(prediction) != np.shape(mask) or np.shape(image)[:2] != np.shape(mask):
                shapes = np.shape(image), np.shape(mask), np.shape(prediction)
                raise ValueError(f"image {row}: image, mask and prediction {name!r} differ in size: {shapes}")


def _panel(axes: Any, picture: np.ndarray, title: str, below: str = "") -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(below, fontsize=9, labelpad=3)
    axes.spines[:].set_visible(False)


def _enlarged(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def _edges(mask: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    edges = np.zeros(mask.shape, bool)
    edges[:-1] |= mask[:-1] != mask[1:]
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return edges
