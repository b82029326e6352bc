"""Segments of things and stuff over their pictures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib import patheffects
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from densezoo.viz import colors, legend

WIDTH = 3.4
"""Inches of a picture."""


def panoptic(
    images: Sequence[ArrayLike],
    found: Sequence[Any],
    *,
    class_names: Sequence[str] | None = None,
    truths: Sequence[tuple[ArrayLike, ArrayLike]] | None = None,
) -> Figure:
    """A picture for each image with its segments: a colour for each class, lighter and darker for single objects.

    Args:
        images: of any sizes, (h, w, c) each, shown as by `to_rgb`.
        found: for each image its `models.Panoptic` without the batch axis, as a predictor gives them.
        class_names: of the classes of segments, such as `task.segment_names`; None takes their numbers.
        truths: for each image its true segments (h, w) and classes, as those of `models.Panoptic`, to draw beside it.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if numbers of images, segmentations and truths differ, there is no image, an image and its segments
            have different sizes, or a class has no name.

    Example:
        >>> import densezoo as dz
        >>> found = dz.Detections(np.zeros((1, 4)), np.array([0.9]), np.array([1]), np.array([True]))
        >>> segments = np.repeat(np.array([[1, 2]]), 4, 0)
        >>> merged = dz.models.Panoptic(segments, np.array([1, 2]), found)
        >>> figure = panoptic([np.zeros((4, 2, 3))], [merged], class_names=["background", "cat", "sky"])
        >>> figure.axes[0].get_title(), [text.get_text() for text in figure.axes[0].texts]
        ('1 thing, 1 class of stuff', ['cat 0.90'])
    """
    if not len(images) or len(images) != len(found) or (truths is not None and len(truths) != len(images)):
        more = "" if truths is None else f" and {len(truths)} truths"
        raise ValueError(f"got {len(images)} images, {len(found)} segmentations{more}; expected one for every image")
    pictures = [colors.to_rgb(image) for image in images]
    rows: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []
    for index, each in enumerate(found):
        scores = np.asarray(each.detections.scores)
        row = [(np.asarray(each.segments), np.asarray(each.classes), scores)]
        if truths is not None:
            segments, classes = truths[index]
            row.insert(0, (np.asarray(segments), np.asarray(classes), np.zeros(0)))
        rows.append(row)
    maps = [_classes(*part[:2], picture) for row, picture in zip(rows, pictures, strict=True) for part in row]
    occurring = [classes[classes >= 0] for classes in maps]
    palette = legend.class_palette(occurring, class_names)
    entries = legend.class_entries(occurring, class_names, palette)
    columns = len(rows[0])
    per_line = legend.per_line(entries, columns * WIDTH)
    heights = [WIDTH * picture.shape[0] / picture.shape[1] for picture in pictures]
    below = 0.25 * -(-len(entries) // per_line) + 0.15
    figure = Figure(
        (WIDTH * columns + 0.2, sum(heights) + 0.35 * len(rows) + below), layout="constrained", facecolor="white"
    )
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, picture, line in zip(rows, pictures, grid, strict=True):
        for (segments, classes, scores), axes in zip(row, line, strict=True):
            axes.imshow(_coloured(picture, segments, classes, palette), interpolation="nearest")
            axes.set_axis_off()
            _label(axes, segments, classes, scores, class_names, truth=len(row) == 2 and axes is line[0])
    figure.legend(handles=entries, loc="outside lower center", ncols=per_line, frameon=False, fontsize=8)
    return figure


def _classes(segments: np.ndarray, classes: np.ndarray, picture: np.ndarray) -> np.ndarray:
    """The class of each pixel, -1 for none."""
    if segments.shape != picture.shape[:2]:
        raise ValueError(f"an image has {picture.shape[:2]} pixels and its segments {segments.shape}")
    return np.concatenate([[-1], classes])[segments]


def _coloured(
    picture: np.ndarray, segments: np.ndarray, classes: np.ndarray, palette: np.ndarray
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with the colours of its segments, and lines between them."""
    result, seen = picture.astype(np.float32), {}
    for number in np.unique(segments[segments > 0]).tolist():
        label = int(classes[number - 1])
        shade = (0.0, 0.35, -0.25)[seen.setdefault(label, 0) % 3]
        seen[label] += 1
        colour = palette[label].astype(np.float32)
        colour = colour + shade * (255 - colour) if shade > 0 else colour * (1 + shade)
        pixels = segments == number
        result[pixels] = 0.4 * picture[pixels] + 0.6 * colour
    border = np.zeros(segments.shape, bool)
    border[:-1] |= segments[:-1] != segments[1:]
    border[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    result[border] = 255
    return np.rint(result).astype(np.uint8)


def _label(
    axes: Any,
    segments: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str] | None,
    *,
    truth: bool,
) -> None:
    """Writes the classes of things, the numbers of both, and the share of pixels without a segment."""
    numbers = np.unique(segments[segments > 0]).tolist()
    things = [number for number in numbers if number <= len(scores)]
    rim = [patheffects.withStroke(linewidth=2, foreground="black")]
    for number in things:
        y, x = (np.median(place) for place in np.nonzero(segments == number))
        label = int(classes[number - 1])
        name = f"class {label}" if class_names is None else class_names[label]
        text = f"{name} {scores[number - 1]:.2f}"
        axes.text(x, y, text, color="white", fontsize=6, ha="center", va="center", path_effects=rim)
    stuff = len(numbers) - len(things)
    bare = float((segments == 0).mean())
    parts = [f"{len(things)} thing{'s' * (len(things) != 1)}", f"{stuff} class{'es' * (stuff != 1)} of stuff"]
    parts = [f"truth: {len(numbers)} segments"] if truth else parts
    axes.set_title(", ".join([*parts, f"{bare:.0%} of neither"] if bare >= 0.005 else parts), fontsize=8)
