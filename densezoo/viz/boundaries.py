"""Where the borders of predicted classes run, beside those of the truth."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int
from matplotlib.figure import Figure

from densezoo.viz.colors import to_rgb

AGREED, MISSED, INVENTED = (255, 255, 255), (230, 159, 0), (86, 180, 233)
ZOOM = 4
PANEL = 2.4


def boundaries(
    images: Sequence[np.ndarray], masks: Sequence[np.ndarray], predictions: Mapping[str, Sequence[np.ndarray]]
) -> Figure:
    """Shows for each image, a row, the boundaries that each model, a column, finds, misses and makes up.

    Boundaries are the pixels whose class differs from that of the pixel to the right or below. The images are darkened
    and enlarged, so that single pixels can be seen.

    Args:
        images: (h, w, c) each.
        masks: true classes, (h, w) each.
        predictions: by the name of the model, its classes for every image.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if there are no images, or not as many masks and predictions as images, or sizes differ.

    Example:
        >>> image, mask = np.zeros((8, 8, 3)), np.eye(8, dtype=int)
        >>> figure = boundaries([image], [mask], {"a model": [mask]})
    """
    if not images or any(len(each) != len(images) for each in (masks, *predictions.values())):
        counts = {name: len(each) for name, each in predictions.items()}
        raise ValueError(
            f"expected a mask and predictions for each of {len(images)} images, got {len(masks)}, {counts}"
        )
    names = ["image", *predictions]
    figure = Figure(figsize=(PANEL * len(names), PANEL * len(images) + 0.7), layout="constrained")
    axes = figure.subplots(len(images), len(names), squeeze=False)
    for row, (image, mask) in enumerate(zip(images, masks, strict=True)):
        picture = _enlarged(to_rgb(image))
        axes[row, 0].imshow(picture)
        for column, name in enumerate(predictions, start=1):
            prediction = predictions[name][row]
            if np.shape(prediction) != np.shape(mask) or np.shape(image)[:2] != np.shape(mask):
                shapes = np.shape(image), np.shape(mask), np.shape(prediction)
                raise ValueError(f"image {row}: image, mask and prediction {name!r} differ in size: {shapes}")
            true, found = _edges(_enlarged(mask)), _edges(_enlarged(prediction))
            shown = picture // 3
            shown[true & found], shown[true & ~found], shown[found & ~true] = AGREED, MISSED, INVENTED
            axes[row, column].imshow(shown)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    for axis in axes.flat:
        axis.set_axis_off()
    handles = [
        figure.axes[0].plot([], [], "s", color=np.array(color) / 255, markeredgecolor="0.4", label=label)[0]
        for color, label in ((AGREED, "boundary found"), (MISSED, "boundary missed"), (INVENTED, "boundary made up"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _enlarged(x: np.ndarray) -> np.ndarray:
    return np.asarray(x).repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)


def _edges(mask: Int[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    edges = np.zeros(mask.shape, bool)
    edges[:-1] |= mask[:-1] != mask[1:]
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    return edges
