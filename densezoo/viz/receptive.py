"""Receptive fields drawn over a picture."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densezoo.inspect.receptive import ReceptiveField, extent
from densezoo.viz.colors import to_rgb

SHOWN = 0.999
"""Share of the gradient below which a pixel is drawn dark, as a quantile."""


def receptive_fields(
    image: Float[np.ndarray, "h w c"],
    fields: Sequence[ReceptiveField],
    effective: Sequence[Float[np.ndarray, "h w"]],
    *,
    squares: Sequence[tuple[int, int, int]] | None = None,
) -> Figure:
    """Draws what the middle of each layer can see (a frame) and what it uses (bright pixels) over a picture.

    A title has the layer's name, its stride, and the size of its receptive field, which is cut off at the border of
    the image. Maps of an encoder are called
    levels, from fine to coarse.

    Args:
        image: the picture, as files hold it.
        fields: receptive fields of layers, from `inspect.receptive_fields`.
        effective: for each layer, the magnitudes of `inspect.effective_receptive_field`.
        squares: for each layer, a square to draw with dashed lines: row and column of its middle, and its side.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        ValueError: if the numbers of layers differ, or there is none.

    Example:
        >>> import numpy as np
        >>> import densezoo as dz
        >>> fields = dz.inspect.receptive_fields(dz.PlainEncoder((4, 8)), (32, 32, 3)).layers[:1]
        >>> figure = receptive_fields(np.zeros((32, 32, 3)), fields, [np.ones((32, 32))])
        >>> figure.axes[0].get_title().splitlines()
        ['block0/conv1, stride 1', 'sees 3x3']
    """
    if len(fields) != len(effective) or not fields:
        raise ValueError(f"expected as many maps as fields, and at least one; got {len(effective)} and {len(fields)}")
    columns = min(len(fields), 3)
    lines = -(-len(fields) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.8 * lines + 0.5), layout="constrained")
    picture = to_rgb(image)
    for number, (field, values) in enumerate(zip(fields, effective, strict=True)):
        axes = figure.add_subplot(lines, columns, number + 1)
        axes.imshow(picture)
        # Relative to nearly the largest value, with a square root, because the gradient falls off like a Gaussian.
        strength = np.sqrt(np.clip(values / max(float(np.quantile(values, SHOWN)), 1e-30), 0, 1))
        axes.imshow(np.zeros_like(values), cmap="gray", alpha=0.75 * (1 - strength))
        axes.imshow(strength, cmap="inferno", alpha=0.8 * strength, vmin=0, vmax=1)
        (top, bottom), (left, right) = field.rows, field.columns
        axes.add_patch(
            Rectangle(
                (left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, edgecolor="cyan", linewidth=1.5
            )
        )
        if squares is not None:
            row, column, side = squares[number]
            corner = (column - side / 2, row - side / 2)
            axes.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="white", linewidth=1.2, linestyle="--"))
        axes.set(xlim=(-0.5, values.shape[1] - 0.5), ylim=(values.shape[0] - 0.5, -0.5))
        stride = round(values.shape[0] / field.shape[1])
        axes.set_title(f"{layer_name(field)}, stride {stride}\nsees {extent(field, values.shape)}", fontsize=10)
        axes.set_axis_off()
    note = "frame: pixels that the middle of the map depends on; bright: pixels that it depends on most (gradient)"
    figure.suptitle(note, fontsize=9)
    return figure


def layer_name(field: ReceptiveField) -> str:
    """The name of a layer in pictures and tables, such as `level 2` for an encoder's third map."""
    if field.path and field.path[-1].isdigit():
        return " ".join([*field.path[:-1], "level", field.path[-1]])
    return field.name or "output"
