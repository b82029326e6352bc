"""Pictures of predicted masks beside images and truth."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from densezoo.viz import colors, legend, multilabel

WIDTH = 2.2
"""Width of a picture in inches."""
WRONG = (213, 0, 50)
RIGHT = (160, 160, 160)
"""A typical grey of the image behind the errors, for the legend."""


def predictions(
    images: Sequence[ArrayLike] | np.ndarray,
    masks: Sequence[ArrayLike] | np.ndarray | None,
    predictions: Sequence[ArrayLike] | np.ndarray,
    *,
    class_names: Sequence[str] | None = None,
    palette: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> Figure:
    """Draws image, truth, prediction and errors, one row per image; without truth, the prediction over the image.

    With several labels per pixel, a row has the image and a panel for each class, which shows its correct, missed and
    falsely predicted pixels.

    Args:
        images: (n, h, w, c), or a list of images of any sizes; shown as by `to_rgb`.
        masks: (n, h, w) class indices of the truth, or None. With several labels per pixel, (n, h, w,
            classes) of 0 and 1.
        predictions: (n, h, w) class indices, or (n, h, w, classes) of 0 and 1.
        class_names: names for the legend, in the order of the indices.
        palette: a colour for each class, uint8 (classes, 3); by default `palette(classes)`. Not used with several
            labels per pixel.
        ignore_index: label of ignored pixels in the truth; they count neither as right nor as wrong.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        TypeError: if masks or predictions contain floats, such as logits.
        ValueError: if the numbers or sizes of images, masks and predictions differ, or a label has no name or colour.

    Example:
        >>> image, truth = np.zeros((1, 8, 8, 3)), np.eye(8, dtype=int)[None]
        >>> figure = predictions(image, truth, truth, class_names=["background", "line"])
        >>> [axes.get_title() for axes in figure.axes]
        ['image', 'truth', 'prediction', 'errors: 0.0 %']
    """
    several = all(np.ndim(mask) == 3 for mask in predictions)
    guesses = [colors.to_labels(mask, several=several) for mask in predictions]
    truths = None if masks is None else [colors.to_labels(mask, several=several) for mask in masks]
    pictures = [colors.to_rgb(image) for image in images]
    _check(pictures, truths, guesses)
    if several:
        return _draw(*multilabel.rows(pictures, truths, guesses, class_names, ignore_index), every_title=True)
    every = [*guesses, *(truths or [])]
    named = legend.class_palette(every, class_names, ignore_index)  # raises an error for a label without a name
    palette = named if palette is None else palette

    rows = []
    for index, (picture, guess) in enumerate(zip(pictures, guesses, strict=True)):
        row = [("image", picture)]
        if truths is not None:
            row.append(("truth", colors.colorize(truths[index], palette, ignore_index=ignore_index)))
        row.append(("prediction", colors.colorize(guess, palette, ignore_index=ignore_index)))
        if truths is None:
            row.append(("overlay", colors.overlay(picture, guess, palette=palette, ignore_index=ignore_index)))
        else:
            row.append(_errors(picture, truths[index], guess, ignore_index))
        rows.append(row)
    entries = legend.class_entries(every, class_names, palette, ignore_index)
    if truths is not None:
        entries.append(Patch(facecolor=legend.hexadecimal(WRONG), label="wrong class"))
        entries.append(Patch(facecolor=legend.hexadecimal(RIGHT), label="right class: image in grey"))
    return _draw(rows, entries)


def _check(pictures: list[np.ndarray], truths: list[np.ndarray] | None, guesses: list[np.ndarray]) -> None:
    if not pictures:
        raise ValueError("expected at least one image, got none")
    for name, given in (("masks", truths), ("predictions", guesses)):
        if given is None:
            continue
        if len(given) != len(pictures):
            raise ValueError(f"there are {len(pictures)} images and {len(given)} {name}: pass one for each image")
        for index, (picture, mask) in enumerate(zip(pictures, given, strict=True)):
            if picture.shape[:2] != mask.shape[:2]:
                raise ValueError(f"image {index} has {picture.shape[:2]} pixels and its entry in {name} {mask.shape}")


def _errors(
    picture: np.ndarray, truth: np.ndarray, guess: np.ndarray, ignore_index: int | None
) -> tuple[str, np.ndarray]:
    """A title with the share of wrong pixels, and a picture with these in red over the image in pale grey."""
    counted = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
    wrong = (truth != guess) & counted
    share = wrong.sum() / max(1, counted.sum())
    grey = picture.mean(axis=-1, keepdims=True) * 0.5 + 110
    return f"errors: {100 * share:.1f} %", np.where(wrong[..., None], WRONG, grey).astype(np.uint8)


def _draw(rows: Sequence[Sequence[multilabel.Panel]], entries: Sequence[Patch], *, every_title: bool = False) -> Figure:
    heights = [WIDTH * max(panel[1].shape[0] / panel[1].shape[1] for panel in row if panel) for row in rows]
    columns = len(rows[0])
    per_line = legend.per_line(entries, columns * WIDTH)
    legend_height = 0.25 * -(-len(entries) // per_line) + 0.15
    size = (columns * (WIDTH + 0.1), sum(heights) + 0.3 * len(rows) + legend_height)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, axes_of_row in zip(rows, grid, strict=True):
        for panel, axes in zip(line, axes_of_row, strict=True):
            axes.set_axis_off()
            if panel is None:
                continue
            title, picture = panel
            axes.imshow(picture, interpolation="nearest")
            if every_title or line is rows[0] or ":" in title:
                axes.set_title(title, fontsize=10)
    figure.legend(handles=list(entries), loc="outside lower center", ncols=per_line, frameon=False, fontsize=9)
    return figure
