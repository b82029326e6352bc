"""Pictures of detected boxes and masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from densezoo.viz import colors

WIDTH = 3.2
"""Width of a picture in inches."""


def detections(
    images: Sequence[ArrayLike],
    found: Sequence[Any],
    *,
    class_names: Sequence[str] | None = None,
    truths: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
    score_threshold: float = 0.5,
) -> Figure:
    """Draws detected boxes with their classes, scores and masks, one picture per image; with truths, beside the truth.

    Args:
        images: of any sizes, (h, w, c) each, shown as by `to_rgb`.
        found: for each image its `Detections` without the batch axis, as a predictor returns them: boxes (n, 4),
            scores, labels, valid, and masks (n, side, side) or None.
        class_names: names of the labels; by default their numbers.
        truths: for each image, the boxes (m, 4) and labels (m,) of its objects. Rows with a negative label are padding.
        score_threshold: detections with a lower score are not drawn.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if the numbers of images, detections and truths differ, there is no image, or a label has no name.

    Example:
        >>> import densezoo as dz
        >>> found = dz.Detections(np.array([[2.0, 2, 6, 7]]), np.array([0.9]), np.array([1]), np.array([True]))
        >>> figure = detections([np.zeros((8, 9, 3))], [found], class_names=["background", "cat"])
        >>> figure.axes[0].get_title(), [text.get_text() for text in figure.axes[0].texts]
        ('1 found with a score of 0.5 or more', ['cat 0.90'])
    """
    if not len(images) or len(images) != len(found) or (truths is not None and len(truths) != len(images)):
        raise ValueError(
            f"got {len(images)} images, {len(found)} detections"
            + (f" and {len(truths)} truths" if truths is not None else "")
            + "; expected one of each for every image"
        )
    columns = 1 if truths is None else 2
    pictures = [colors.to_rgb(image) for image in images]
    heights = [WIDTH * picture.shape[0] / picture.shape[1] for picture in pictures]
    figure = Figure(
        (WIDTH * columns + 0.3, sum(heights) + 0.35 * len(pictures)), layout="constrained", facecolor="white"
    )
    grid = figure.subplots(len(pictures), columns, squeeze=False, height_ratios=heights)
    for index, (picture, each) in enumerate(zip(pictures, found, strict=True)):
        rows = np.flatnonzero(np.asarray(each.valid) & (np.asarray(each.scores) >= score_threshold))
        boxes, labels, scores = (np.asarray(array)[rows] for array in (each.boxes, each.labels, each.scores))
        if each.masks is not None and len(rows):
            picture = _with_masks(picture, boxes, np.asarray(each.masks)[rows], labels)
        texts = [f"{_name(label, class_names)} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
        title = f"{len(rows)} found with a score of {score_threshold:g} or more"
        _draw(grid[index, -1], picture, boxes, labels, texts, title)
        if truths is not None:
            true_boxes, true_labels = (np.asarray(array) for array in truths[index])
            there = true_labels >= 0
            texts = [_name(label, class_names) for label in true_labels[there]]
            _draw(
                grid[index, 0], pictures[index], true_boxes[there], true_labels[there], texts, f"truth: {there.sum()}"
            )
    return figure


def _with_masks(
    picture: UInt8[np.ndarray, "h w 3"], boxes: np.ndarray, masks: np.ndarray, labels: np.ndarray
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with coloured mask pixels; masks with higher scores are on top."""
    import jax.numpy as jnp

    from densezoo.ops import paste_masks

    height, width, _ = picture.shape
    given = jnp.asarray(masks, jnp.float32), jnp.asarray(boxes, jnp.float32)
    pasted = np.asarray(paste_masks(*given, (height, width)))
    result, palette = picture.astype(np.float32), colors.palette(colors.enough(int(labels.max())))
    for mask, label in zip(pasted[::-1], labels[::-1], strict=True):
        result[mask] = 0.5 * picture[mask] + 0.5 * palette[label]
    return np.rint(result).astype(np.uint8)


def _name(label: Any, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return f"class {label}"
    if not 0 <= label < len(class_names):
        raise ValueError(f"there are {len(class_names)} class_names, but an object has the label {label}")
    return str(class_names[label])


def _draw(axes: Any, picture: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: list[str], title: str) -> None:
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()
    palette = colors.palette(colors.enough(int(max(labels, default=0)))) / 255
    rim = [patheffects.withStroke(linewidth=2, foreground="black")]
    for (x0, y0, x1, y1), label, text in zip(boxes, labels, texts, strict=True):
        # Pixel k covers k to k + 1, but matplotlib centres it on k.
        axes.add_patch(
            Rectangle(
                (x0 - 0.5, y0 - 0.5),
                x1 - x0,
                y1 - y0,
                fill=False,
                linewidth=1.2,
                edgecolor=palette[label],
                path_effects=[patheffects.withStroke(linewidth=2.4, foreground="black")],
            )
        )
        axes.text(
            x0 - 0.5, max(y0 - 1.5, 0), text, fontsize=7, color="white", va="bottom", path_effects=rim, clip_on=True
        )
