"""Pictures of depth and surface normals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from densezoo.viz.colors import to_rgb

WIDTH = 2.4
"""Width of a picture in inches."""
_MAP = "magma_r"  # near is bright
_POINTS = 6000


def depth_maps(
    images: Sequence[ArrayLike],
    truths: Sequence[ArrayLike] | None,
    predictions: Sequence[ArrayLike],
    *,
    unit: str = "m",
    names: Sequence[str] | None = None,
) -> Figure:
    """Draws image, true depth, predicted depth and the error, one row per image, with colour bars in the unit.

    Truth and prediction of a row have the same colours. Holes (0, negative, infinite, NaN) are white.

    Args:
        images: pictures as files hold them, of any sizes.
        truths: the true depth of each, (h, w); None to draw only predictions.
        predictions: the predicted depth of each, (h, w).
        unit: of depth.
        names: titles of the images; None for "image".

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if numbers or sizes differ.

    Example:
        >>> import numpy as np
        >>> truth = np.ones((8, 12))
        >>> figure = depth_maps([np.zeros((8, 12, 3))], [truth], [1.5 * truth])
        >>> [axes.get_title() for axes in figure.axes][:4]
        ['image', 'truth', 'prediction', 'error: mean 0.50 m']
    """
    rows = []
    names = ["image"] * len(images) if names is None else names
    for name, (picture, truth, guess) in zip(names, _rows(images, truths, predictions, 2), strict=True):
        maps = [("prediction", guess)] if truth is None else [("truth", truth), ("prediction", guess)]
        known = np.concatenate([array[_known(array)] for _, array in maps[:1]])
        low, high = np.quantile(known, [0.01, 0.99]) if known.size else (0.0, 1.0)
        style: dict[str, Any] = {"cmap": _MAP, "vmin": low, "vmax": max(high, low + 1e-6)}
        row = [(name, picture, None)]
        row += [(title, np.where(_known(array), array, np.nan), {**style, "label": unit}) for title, array in maps]
        if truth is not None:
            error = np.where(_known(truth), np.abs(guess - truth), np.nan)
            row.append(_error(error, unit, _typical(error)))
        rows.append(row)
    return _draw(rows)


def normal_maps(
    images: Sequence[ArrayLike], truths: Sequence[ArrayLike] | None, predictions: Sequence[ArrayLike]
) -> Figure:
    """Draws image, true normals, predicted normals and the angle between them, one row per image.

    Args:
        images: pictures as files hold them, of any sizes.
        truths: the true normals of each, (h, w, 3), zeros without a measurement; None to draw only predictions.
        predictions: the predicted normals of each, (h, w, 3).

    Returns:
        A matplotlib figure, for `viz.save`. `normals_to_rgb` describes the colours.

    Raises:
        ValueError: if numbers or sizes differ.

    Example:
        >>> import numpy as np
        >>> wall = np.broadcast_to([0.0, 0.0, -1.0], (8, 12, 3))
        >>> figure = normal_maps([np.zeros((8, 12, 3))], [wall], [wall])
        >>> [axes.get_title() for axes in figure.axes][:4]
        ['image', 'truth', 'prediction', 'error: mean 0.00 degrees']
    """
    rows = []
    for picture, truth, guess in _rows(images, truths, predictions, 3):
        row: list[Any] = [("image", picture, None)]
        if truth is not None:
            row.append(("truth", normals_to_rgb(truth), None))
        row.append(("prediction", normals_to_rgb(guess), None))
        if truth is not None:
            cross, dot = np.linalg.norm(np.cross(truth, guess), axis=-1), (truth * guess).sum(-1)
            angle = np.where((cross == 0) & (dot == 0), 90.0, np.degrees(np.arctan2(cross, dot)))
            angle = np.where((truth != 0).any(-1), angle, np.nan)
            row.append(_error(angle, "degrees", 60.0))
        rows.append(row)
    figure = _draw(rows)
    note = "colours of normals: red to the right, green up, blue towards the camera; black: not measured"
    figure.suptitle(note, fontsize=9)
    return figure


def normals_to_rgb(normals: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Converts normals (x right, y down, z forward) to colours: red is right, green is up, blue is to the camera.

    Example:
        >>> import numpy as np
        >>> normals_to_rgb(np.array([[[0.0, 0.0, -1.0], [0.0, 0.0, 0.0]]])).tolist()  # a wall; not measured
        [[[128, 128, 255], [0, 0, 0]]]
    """
    normals = np.nan_to_num(np.asarray(normals, float))
    colours = np.rint((normals * [1, -1, -1] + 1) * 127.5)
    return np.where((normals != 0).any(-1, keepdims=True), colours.clip(0, 255), 0).astype(np.uint8)


def point_clouds(image: ArrayLike, points: Mapping[str, Float[np.ndarray, "h w 3"]], *, unit: str = "m") -> Figure:
    """Draws the points of a picture from the side: distance to the right, height upwards, in the picture's colours.

    Args:
        image: the picture, as files hold it.
        points: points of its pixels by title, such as "truth" and "prediction", from `ops.points_from_depth`.
        unit: of the points.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if there are no points, or the sizes differ.

    Example:
        >>> import numpy as np
        >>> import jax.numpy as jnp
        >>> from densezoo.ops import points_from_depth
        >>> points = np.asarray(points_from_depth(jnp.ones((8, 12)), focal=12.0))
        >>> figure = point_clouds(np.zeros((8, 12, 3)), {"a wall, from its edge": points})
        >>> figure.axes[1].get_xlabel()
        'distance from the camera (m)'
    """
    picture = to_rgb(image)
    for title, array in points.items():
        if array.shape != (*picture.shape[:2], 3):
            raise ValueError(f"the points {title!r} have the shape {array.shape}, the image {picture.shape}")
    if not points:
        raise ValueError("expected at least one set of points, got none")
    figure = Figure(figsize=(5.2 * len(points) + 3.2, 3.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 1 + len(points), width_ratios=[3.2, *[5.2] * len(points)])
    axes[0].imshow(picture)
    axes[0].set_title("image", fontsize=10)
    axes[0].set_axis_off()
    every = [array[_known(array[..., 2])] for array in points.values()]
    shown = np.concatenate(every) if sum(map(len, every)) else np.ones((1, 3))
    (_, top, _), (_, bottom, far) = np.quantile(shown, [0.002, 0.998], axis=0)
    for place, (title, array) in zip(axes[1:], points.items(), strict=True):
        known = _known(array[..., 2])
        cloud, colours = array[known], picture[known] / 255
        step = max(1, len(cloud) // _POINTS)
        order = np.argsort(cloud[::step, 0])  # from left to right, as seen from the right: near points hide far ones
        _, y, z = cloud[::step][order].T
        place.scatter(z, -y, s=np.clip(12000 / max(1, len(order)), 2, 8), c=colours[::step][order], linewidths=0)
        place.plot([0], [0], marker=">", color="tab:red", markersize=9)
        place.annotate("camera", (0, 0), xytext=(0, 8), textcoords="offset points", ha="left", fontsize=8)
        place.set(xlim=(-0.04 * far, 1.04 * far), ylim=(min(-bottom, 0) - 0.3, max(-top, 0) + 0.3), aspect="equal")
        place.set_xlabel(f"distance from the camera ({unit})", fontsize=9)
        place.set_ylabel(f"height above the camera ({unit})", fontsize=9)
        place.set_title(f"{title}, from the side", fontsize=10)
        place.set_facecolor("0.93")
    return figure


def _known(depth: np.ndarray) -> np.ndarray:
    return np.isfinite(depth) & (depth > 0)


def _typical(error: np.ndarray) -> float:
    known = error[np.isfinite(error)]
    return float(np.quantile(known, 0.98)) if known.size else 1.0


def _error(error: np.ndarray, unit: str, limit: float) -> tuple[str, np.ndarray, dict[str, Any]]:
    known = error[np.isfinite(error)]
    mean = known.mean() if known.size else np.nan
    style = {"cmap": "Reds", "vmin": 0.0, "vmax": max(limit, 1e-6), "label": unit}
    return f"error: mean {mean:.2f} {unit}", error, style


def _rows(images: Any, truths: Any, predictions: Any, axes: int) -> list[tuple[Any, Any, Any]]:
    if not len(images):
        raise ValueError("expected at least one image, got none")
    truths = [None] * len(images) if truths is None else truths
    if not len(images) == len(truths) == len(predictions):
        raise ValueError(f"there are {len(images)} images, {len(truths)} truths and {len(predictions)} predictions")
    rows = []
    for index, (image, truth, guess) in enumerate(zip(images, truths, predictions, strict=True)):
        row = to_rgb(image), None if truth is None else np.asarray(truth, float), np.asarray(guess, float)
        shapes = [array.shape for array in row[1:] if array is not None]
        if any(len(shape) != axes or shape[:2] != row[0].shape[:2] for shape in shapes):
            raise ValueError(f"image {index} has {row[0].shape[:2]} pixels, and its maps have the shapes {shapes}")
        rows.append(row)
    return rows


def _draw(rows: Sequence[Sequence[Any]]) -> Figure:
    """One line of panels (title, picture, style) for each row; a style has the label of a colour bar."""
    heights = [WIDTH * row[0][1].shape[0] / row[0][1].shape[1] for row in rows]
    columns = len(rows[0])
    size = (columns * (WIDTH + 0.45), sum(heights) + 0.35 * len(rows) + 0.2)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for line, places in zip(rows, grid, strict=True):
        for (title, picture, style), first, place in zip(line, rows[0], places, strict=True):
            place.set_axis_off()
            options = dict(style or {})
            label = options.pop("label", None)
            shown = place.imshow(picture, interpolation="nearest", **options)
            if line is rows[0] or title != first[0]:
                place.set_title(title, fontsize=10)
            if label:
                bar = figure.colorbar(shown, ax=place, fraction=0.05, pad=0.02)
                bar.set_label(label, fontsize=8)
                bar.ax.tick_params(labelsize=7)
    return figure
