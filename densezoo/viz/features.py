"""Pictures of a model's feature maps for one image: the encoder's beside the decoder's."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from densezoo.viz import colors, legend
from densezoo.viz.figures import wrapped
from densezoo.viz.structure import Architecture, Box, architecture
from densezoo.viz.tracing import run_with_maps

PANEL = 0.86
"""Width of one channel's picture in inches, with the gap to the next."""
GAP = 0.04
GROUP_GAP = 0.45
ROW_GAP = 0.27
LEFT = 0.5
TOP = 0.42
LINE = 0.17
"""Height of a caption line in inches."""
CAPTION = (
    "Rows: scales; 1/2 means half of the image's height and width. Each map shows the channels with the largest"
    " standard deviation over this image, in descending order; the number in the corner is the channel's index. Each"
    " channel has its own colour scale, from its minimum (dark) to its maximum (yellow), so brightness cannot be"
    " compared between channels."
)


def feature_maps(
    model: nn.Module,
    variables: Any,
    image: Float[Array, "h w c"],
    *others: Any,
    channels: int = 4,
    class_names: Sequence[str] | None = None,
) -> Figure:
    """Draws a model's feature maps for an image, scale by scale.

    Columns are the model's parts (encoder, decoder, a pyramid in it) and rows are its scales. Each map shows the
    channels that vary most over the image, each scaled from its minimum to its maximum. If a decoder has several maps
    at one scale, the first is shown. The image and the predicted class of every pixel are at the top. A caption
    explains which channels are shown and how.

    Args:
        model: a model, for example from `create_model`.
        variables: the model's variables.
        image: (h, w, c) float, as the model expects it.
        *others: the model's other inputs for this sample, such as the image after a change.
        channels: the maximum number of channels shown for each map.
        class_names: class names for a legend beside the prediction; without them, no legend is drawn.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        TypeError: if the model is not a Flax Linen module.
        ValueError: if `image` is not one image, or `channels` is not positive, or a predicted class has no name.

    Example:
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder(features=(4, 8)))
        >>> image = jnp.linspace(0, 1, 16 * 16 * 3).reshape(16, 16, 3)
        >>> figure = feature_maps(model, model.init(jax.random.key(0), image[None]), image)
    """
    shape = jnp.shape(image)
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"expected one image of shape (h, w, c), got shape {shape}: for a batch, pass images[0]")
    if channels < 1:
        raise ValueError(f"channels is the number of channels shown for each map, at least 1; got {channels}")
    read = architecture(model, image_size=shape[:2], channels=shape[2])
    boxes = _shown(read)
    wanted = {box.key for box in boxes.values()}

    @jax.jit
    def run(variables, inputs):
        found = {}

        def keep(key, x, module, inside, arguments):
            if key in wanted:
                found[key] = x[0]
            return x

        return run_with_maps(model, variables, inputs, keep), found

    result, found = jax.device_get(run(variables, [jnp.asarray(x)[None] for x in (image, *others)]))
    maps = {place: np.asarray(found[box.key], np.float32) for place, box in boxes.items()}
    return _draw(boxes, maps, np.asarray(image), _labels(result), channels, class_names)


def _shown(read: Architecture) -> dict[tuple[str, int], Box]:
    """The first map of each part and scale, without the image and the outputs of heads."""
    logits = {link.end for link in read.links if link.kind == "head"}
    boxes: dict[tuple[str, int], Box] = {}
    for i, box in enumerate(read.boxes):
        if i > 0 and i not in logits:
            boxes.setdefault((box.column, box.stride), box)
    return boxes


def _labels(result: Any) -> np.ndarray | None:
    """The class of every pixel, if the result is logits."""
    if getattr(result, "ndim", 0) != 4:
        return None
    logits = result[0].astype(np.float32)
    return (logits[..., 0] > 0).astype(int) if logits.shape[-1] == 1 else logits.argmax(axis=-1)


def _most_varied(x: np.ndarray, count: int) -> list[int]:
    """The channels with the largest standard deviation over the image, in descending order; ties keep channel order."""
    spread = np.nan_to_num(x.std(axis=(0, 1), dtype=np.float64), nan=-1.0)
    return np.argsort(-spread, kind="stable")[:count].tolist()


def _draw(
    boxes: dict[tuple[str, int], Box],
    maps: dict[tuple[str, int], np.ndarray],
    image: np.ndarray,
    labels: np.ndarray | None,
    channels: int,
    class_names: Sequence[str] | None,
) -> Figure:
    columns = list(dict.fromkeys(column for column, _ in boxes))
    strides = sorted({stride for _, stride in boxes})
    group = channels * PANEL
    panel_height = (PANEL - GAP) * image.shape[0] / image.shape[1]
    row_height = panel_height + ROW_GAP
    width = LEFT + len(columns) * group + (len(columns) - 1) * GROUP_GAP + 0.15
    prediction, entries = None, []
    if labels is not None:
        palette = legend.class_palette([labels], class_names)
        prediction = colors.colorize(labels, palette)
        if class_names is not None:
            entries = legend.class_entries([labels], class_names, palette, most=14)
    legend_columns = -(-len(entries) // 5)
    longest = max((len(str(entry.get_label())) for entry in entries), default=0)
    # The legend is beside the prediction, where other rows have more channels.
    width += max(0, legend_columns * (0.35 + 0.055 * longest) - (channels - 1) * PANEL)
    caption = wrapped(CAPTION, width - LEFT, 8.5)
    height = TOP + (1 + len(strides)) * row_height + 0.25 + LINE * (caption.count("\n") + 1)
    figure = Figure(figsize=(width, height), facecolor="white")

    def text(x: float, y: float, words: str, **options: Any) -> None:
        figure.text(x / width, 1 - y / height, words, **options)

    def panel(x: float, row: int, picture: np.ndarray, **options: Any) -> None:
        bottom = height - TOP - row * row_height - ROW_GAP - panel_height
        axes = figure.add_axes((x / width, bottom / height, (PANEL - GAP) / width, panel_height / height))
        axes.imshow(picture, interpolation="nearest", aspect="auto", **options)
        axes.set(xticks=[], yticks=[])

    lefts = [LEFT + number * (group + GROUP_GAP) for number in range(len(columns))]
    for number, (column, left) in enumerate(zip(columns, lefts, strict=True)):
        direction = "down" if number == 0 else "up" if _goes_up(boxes, column) else ""
        arrow = {"down": " \N{DOWNWARDS ARROW}", "up": " \N{UPWARDS ARROW}"}.get(direction, "")
        text(left, 0.22, column + arrow, fontsize=12, weight="bold", va="center")
    text(lefts[0], TOP + ROW_GAP - 0.06, "image", fontsize=8.5, va="bottom")
    panel(lefts[0], 0, colors.to_rgb(image))
    if prediction is not None:
        text(lefts[-1], TOP + ROW_GAP - 0.06, "prediction", fontsize=8.5, va="bottom")
        panel(lefts[-1], 0, prediction)
        if entries:
            figure.legend(
                handles=entries,
                loc="center left",
                bbox_to_anchor=((lefts[-1] + PANEL) / width, 1 - (TOP + ROW_GAP + panel_height / 2) / height),
                ncols=legend_columns,
                fontsize=7.5,
                frameon=False,
                labelspacing=0.25,
                columnspacing=0.8,
                handlelength=1.0,
            )
    text(LEFT, height - 0.1, caption, fontsize=8.5, color="#444444", va="bottom", linespacing=1.3)
    for row, stride in enumerate(strides, start=1):
        y = TOP + row * row_height + ROW_GAP
        scale = "1" if stride == 1 else f"1/{stride}"
        text(LEFT - 0.1, y + panel_height / 2, scale, fontsize=10, color="#777777", ha="right", va="center")
        for column, left in zip(columns, lefts, strict=True):
            if (column, stride) not in boxes:
                continue
            box, x = boxes[column, stride], maps[column, stride]
            name = box.name.rsplit(".", 1)[-1]
            text(left, y - 0.06, f"{name}, stride {stride}, {x.shape[-1]} channels", fontsize=8.5, va="bottom")
            for place, channel in enumerate(_most_varied(x, channels)):
                panel(left + place * PANEL, row, x[..., channel], cmap="viridis")
                figure.axes[-1].set_label(f"{box.name} channel {channel}")
                figure.axes[-1].text(
                    *(0.04, 0.05, str(channel)),
                    transform=figure.axes[-1].transAxes,
                    fontsize=7,
                    color="white",
                    path_effects=[withStroke(linewidth=1.5, foreground="black")],
                )
    return figure


def _goes_up(boxes: dict[tuple[str, int], Box], column: str) -> bool:
    """Whether a part's coarser maps are computed first."""
    strides = [stride for name, stride in boxes if name == column]
    return len(strides) > 1 and strides[0] > strides[-1]
