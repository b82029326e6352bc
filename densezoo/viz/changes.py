"""Pictures of predicted change beside both images and the truth."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from densezoo.viz import colors

WIDTH = 2.4
"""Width of a picture in inches."""
THRESHOLD = 0.5


def changes(
    before: Sequence[ArrayLike] | np.ndarray,
    after: Sequence[ArrayLike] | np.ndarray,
    truths: Sequence[ArrayLike] | np.ndarray | None,
    probabilities: Sequence[ArrayLike] | np.ndarray,
) -> Figure:
    """Draws the image before, the image after, the truth and the probability of change, one row per pair.

    The line on the probability is the border of what has truly changed. The title of a row has its F1 score.

    Args:
        before: (n, h, w, c), or a list of images of any sizes; shown as by `to_rgb`.
        after: the same places later.
        truths: (n, h, w) class numbers, 0 for unchanged; or None.
        probabilities: (n, h, w), the probability that a pixel has changed, 0 to 1.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if there is no pair, or the numbers or sizes differ.

    Example:
        >>> image, truth = np.zeros((1, 8, 8, 3)), np.eye(8, dtype=int)[None]
        >>> figure = changes(image, image, truth, truth.astype(float))
        >>> [axes.get_title() for axes in figure.axes[:4]]
        ['before', 'after', 'truth: white has changed', 'probability of change, F1 1.00']
    """
    columns = {"images before": before, "images after": after, "truths": truths, "probabilities": probabilities}
    given = {name: list(values) for name, values in columns.items() if values is not None}
    counts = {name: len(values) for name, values in given.items()}
    if len(set(counts.values())) != 1 or not counts["probabilities"]:
        raise ValueError(f"expected as many of each, at least one pair; got {counts}")
    for index, row in enumerate(zip(*given.values(), strict=True)):
        sizes = {name: np.shape(array)[:2] for name, array in zip(given, row, strict=True)}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"pair {index} has different sizes (height, width): {sizes}")
    rows = [np.shape(x) for x in given["probabilities"]]
    heights = [WIDTH * shape[0] / shape[1] for shape in rows]
    size = (len(given) * (WIDTH + 0.1) + 0.7, sum(heights) + 0.3 * len(rows) + 0.15)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), len(given), squeeze=False, height_ratios=heights)
    for index, axes in enumerate(grid):
        for place in axes:
            place.set_axis_off()
        axes[0].imshow(colors.to_rgb(given["images before"][index]), interpolation="nearest")
        axes[1].imshow(colors.to_rgb(given["images after"][index]), interpolation="nearest")
        probability = np.asarray(given["probabilities"][index], np.float64)
        shown = axes[-1].imshow(probability, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        title = "probability of change"
        if truths is not None:
            changed = np.asarray(given["truths"][index]) > 0
            axes[2].imshow(changed, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if 0 < changed.sum() < changed.size and min(changed.shape) > 1:
                axes[-1].contour(changed, [0.5], colors="white", linewidths=0.8)
            title += f", F1 {_f1(changed, probability >= THRESHOLD)}"
        titles = ("before", "after", *(["truth: white has changed"] if truths is not None else []), title)
        for column, (place, text) in enumerate(zip(axes, titles, strict=True)):
            if index == 0 or column == len(given) - 1:
                place.set_title(text, fontsize=9)
    label = "probability of change" + ("; line: border of the true change" if truths is not None else "")
    figure.colorbar(shown, ax=grid[:, -1], fraction=0.05, label=label)
    return figure


def _f1(truth: np.ndarray, guess: np.ndarray) -> str:
    total = truth.sum() + guess.sum()
    return f"{2 * (truth & guess).sum() / total:.2f}" if total else "undefined: no change"
