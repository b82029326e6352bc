"""Side-by-side diagrams of architectures, generated from the models."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from densezoo.types import Size
from densezoo.viz.heads import BUSES, NEXT, draw_heads, legend_of_heads
from densezoo.viz.layout import Layout, Place, arrange, rows, terminal_text, terminals
from densezoo.viz.strokes import INK, Point, draw_arrow, draw_rounded, write
from densezoo.viz.structure import Architecture, Link, architecture

FAINT = "#8a8a8a"
FILLS = {"encoder": "#bcdcf2", "decoder": "#fbdca4", "top_down": "#b9e3d3", "neck": "#e5c6da", "extra": "#dcdcdc"}
"""Colours of the parts that many models have, the same in every diagram."""
OTHER_FILLS = ("#f3b8a4", "#d3cdf0", "#e6e6a8", "#c9e7f0")
"""Colours of other parts, in order of first occurrence."""
COLOURS = {"concat": "#c04a00", "add": "#00785a", "indices": "#8c3d77", "down": "#3d6f96", "up": "#a06c00"}
COLOURS |= {f"bus {number}": colour for number, colour in enumerate(BUSES)}
MEANINGS = {"down": "down to a coarser map", "up": "up to a finer map", "forward": "same size"}
DASHES = {"concat": "-", "add": (0, (5, 2)), "indices": (0, (1.2, 1.6)), "next": NEXT}
"""Dash patterns, so that arrows differ in more than colour."""
GAP = 0.6
LEFT = 0.6
TITLE = 0.88
FOOT = 0.72
LEGEND_LINE = 0.27


def diagram(
    models: nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module],
    *,
    image_size: Size = (256, 256),
    channels: int = 3,
    per_line: int | None = None,
) -> Figure:
    """Draws models side by side: their maps as boxes, with one row per scale, and the data flow as arrows.

    Everything is derived from the models (`architecture`). A box's width represents its channels and its height its
    resolution (both on a compressed scale). An arrow is a data dependency in the traced program. Parts of the same name
    have the same colour, which the legend names. The class of an upsampler is below its part, that of a head at its
    arrow. "1x1, add" is a skip that a 1x1 convolution projects (`LateralAdd`). The heads of a detector are round boxes
    on the right, from top to bottom in the order in which they run.

    Args:
        models: one model, several, or a mapping from titles to models.
        image_size: (height, width) of the input image.
        channels: channels of the input image.
        per_line: the number of models in a line; by default all.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        TypeError: if an object is not a Flax Linen module.
        ValueError: if there is no model, `per_line` is not positive, or a model's parts do not fit together.

    Example:
        >>> import densezoo as dz
        >>> encoder = dz.PlainEncoder(features=(8, 16, 32))
        >>> models = {name: dz.create_model(name, encoder) for name in ("unet", "fpn")}
        >>> figure = diagram(models)
    """
    if per_line is not None and per_line < 1:
        raise ValueError(f"per_line is the number of models in a line, at least 1; got {per_line}")
    reads = _read(models, image_size, channels)
    most = max(box.channels for _, read in reads for box in read.boxes)
    per_line = per_line or len(reads)
    lines = [reads[first : first + per_line] for first in range(0, len(reads), per_line)]
    drawn = []
    for line in lines:
        middles = rows([read for _, read in line])
        drawn.append((middles, [(title, read, arrange(read, middles, most)) for title, read in line]))
    heights = [TITLE - _lowest(*line) + FOOT for line in drawn]
    width = LEFT + max(sum(_width(*model) + GAP for model in line) for _, line in drawn)
    fills = _fills([read for _, read in reads])
    legend = _legend([read for _, read in reads], fills, width)
    height = sum(heights) + LEGEND_LINE * len(legend) + 0.12

    figure = Figure(figsize=(width, height), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(-height, 0))
    axes.set_axis_off()
    y = 0.0
    for (middles, line), line_height in zip(drawn, heights, strict=True):
        _draw_rows(axes, middles, y - TITLE, width)
        x = LEFT
        for title, read, layout in line:
            offset = x + (_width(title, read, layout) - layout.right + layout.left) / 2 - layout.left
            _draw_model(axes, title, read, _moved(layout, offset, y - TITLE), _lowest(middles, line) + y - TITLE, fills)
            x += _width(title, read, layout) + GAP
        y -= line_height
    _draw_legend(axes, legend, y - LEGEND_LINE / 2)
    return figure


def _read(models: Any, image_size: Size, channels: int) -> list[tuple[str, Architecture]]:
    if isinstance(models, nn.Module):
        models = [models]
    named = models.items() if isinstance(models, Mapping) else (("", model) for model in models)
    reads = [(name, architecture(model, image_size=image_size, channels=channels)) for name, model in named]
    if not reads:
        raise ValueError("expected at least one model to draw, got none")
    return reads


def _lowest(middles: dict[int, float], line: list[tuple[str, Architecture, Layout]]) -> float:
    """The y of the lowest row, or of the lowest head's middle line."""
    heads = [place.bottom + 0.12 for *_, layout in line for place in layout.heads]
    return min(*middles.values(), *heads) if heads else min(middles.values())


def _texts(title: str, read: Architecture) -> tuple[str, str]:
    """Title and subtitle."""
    millions = read.parameters / 1e6
    size = f"{millions:.1f} M parameters" if millions >= 1 else f"{read.parameters:,} parameters"
    return (title, f"{read.title}, {size}") if title else (read.title, size)


def _width(title: str, read: Architecture, layout: Layout) -> float:
    title, subtitle = _texts(title, read)
    return max(layout.right - layout.left, 0.1 * len(title), 0.068 * len(subtitle))


def _moved(layout: Layout, x: float, y: float) -> Layout:
    places, heads = (
        tuple(Place(p.x + x, p.y + y, p.width, p.height) for p in each) for each in (layout.places, layout.heads)
    )
    columns = tuple((name, middle + x) for name, middle in layout.columns)
    return Layout(places, columns, layout.left + x, layout.right + x, heads)


def _draw_rows(axes: Any, middles: dict[int, float], y: float, width: float) -> None:
    axes.text(LEFT - 0.13, y, "scale", fontsize=10, color=FAINT, ha="right", va="center")
    for stride, middle in middles.items():
        axes.plot([LEFT - 0.05, width - 0.15], [y + middle] * 2, color="#ececec", linewidth=1, zorder=0)
        label = "1" if stride == 1 else f"1/{stride}"
        axes.text(LEFT - 0.13, y + middle, label, fontsize=10, color=FAINT, ha="right", va="center")


def _part(column: str) -> str:
    """`decoder.top_down` is called top_down."""
    return column.split(".")[-1]


def _fills(reads: list[Architecture]) -> dict[str, str]:
    """Colours of the parts by name."""
    boxes = [box for read in reads for i, box in enumerate(read.boxes) if i not in terminals(read)]
    parts = dict.fromkeys(_part(box.column) for box in boxes)
    others = [part for part in parts if part not in FILLS]
    fills = FILLS | {part: OTHER_FILLS[number % len(OTHER_FILLS)] for number, part in enumerate(others)}
    return {part: fills[part] for part in parts}


def _draw_model(
    axes: Any, title: str, read: Architecture, layout: Layout, lowest: float, fills: dict[str, str]
) -> None:
    middle = (layout.left + layout.right) / 2
    title, subtitle = _texts(title, read)
    top = layout.places[0].top
    axes.text(middle, top + 0.44, title, fontsize=14, weight="bold", color=INK, ha="center", va="center")
    axes.text(middle, top + 0.21, subtitle, fontsize=9.5, color="#555555", ha="center", va="center")
    for column, x in layout.columns:
        write(axes, x, lowest - 0.34, _part(column), color="#555555")
        upsamplers = dict.fromkeys(box.upsample for box in read.boxes if box.column == column and box.upsample)
        if upsamplers:
            write(axes, x, lowest - 0.52, f"up: {', '.join(upsamplers)}", color=COLOURS["up"], fontsize=9.5)
    for i, (box, place) in enumerate(zip(read.boxes, layout.places, strict=True)):
        if i in terminals(read):
            draw_rounded(axes, place)
            write(axes, place.x, place.y, terminal_text(read, i))
            continue
        corner = (place.left, place.bottom)
        fill = fills[_part(box.column)]
        axes.add_patch(
            Rectangle(corner, place.width, place.height, facecolor=fill, edgecolor=INK, linewidth=1.0, zorder=3)
        )
        write(axes, place.x, place.y, str(box.channels))
    labelled: set[int] = set()
    for link in read.links:
        _draw_link(axes, read, layout.places, link, labelled)
    draw_heads(axes, read, layout)


def _draw_link(axes: Any, read: Architecture, places: tuple[Place, ...], link: Link, labelled: set[int]) -> None:
    start, end = places[link.start], places[link.end]
    skip = link.kind == "skip"
    colour = COLOURS.get(link.join if skip else _direction(read, link), INK)
    points, word = _route(read, places, link)
    draw_arrow(axes, points, colour, 1.9 if skip else 1.3, DASHES.get(link.join, "-") if skip else "-")
    # Where only branches of one part meet, the label is drawn once.
    meets = end.x < start.x and link.join and not any(o.kind == "skip" and o.end == link.end for o in read.links)
    fits = abs(points[-1][0] - points[0][0]) > 0.1 + 0.07 * len(link.words)
    if word is not None and ((skip and fits) or (meets and link.end not in labelled)):
        labelled.add(link.end)
        write(axes, *word, link.words, color=colour, va="bottom", fontsize=9.5)

    if link.kind == "head" and _direction(read, link) == "up" and read.boxes[link.end].upsample:
        times = round(read.boxes[link.start].stride / read.boxes[link.end].stride)
        middle = (points[0][1] + points[-1][1]) / 2
        words = f"up x{times}: {read.boxes[link.end].upsample}"
        write(axes, points[-1][0] - 0.11, middle, words, color=COLOURS["up"], fontsize=9.5, rotation=90)


def _direction(read: Architecture, link: Link) -> str:
    """Whether a link (also the image's or a head's) goes down, up, or stays at the same size."""
    before, after = read.boxes[link.start].size, read.boxes[link.end].size
    return "forward" if before == after else "down" if before[0] * before[1] > after[0] * after[1] else "up"


def _route(read: Architecture, places: tuple[Place, ...], link: Link) -> tuple[list[Point], Point | None]:
    """The corners of an arrow, and a position for its label."""
    start, end = places[link.start], places[link.end]
    upwards = end.y > start.y
    if start.y == end.y:
        between = [p for p in places if p.y == start.y and min(start.x, end.x) < p.x < max(start.x, end.x)]
        if between:  # Route the arrow above the arrow heads between its ends.
            above = start.top + 0.04 + 0.05 * len(between)
            xs = (start.right - 0.07, end.left + 0.07) if start.x < end.x else (start.left + 0.07, end.right - 0.07)
            return [(xs[0], start.top), (xs[0], above), (xs[1], above), (xs[1], end.top)], None
        sides = (start.right, end.left) if start.x < end.x else (start.left, end.right)
        return [(sides[0], start.y), (sides[1], end.y)], (sum(sides) / 2 - 0.04, start.y + 0.03)
    if abs(start.x - end.x) < 1e-6:
        return [(start.x, start.top if upwards else start.bottom), (end.x, end.bottom if upwards else end.top)], None
    if end.x > start.x and not upwards and start.x < end.left:
        return [(start.x, start.bottom), (start.x, end.y), (end.left, end.y)], None
    if end.x > start.x:
        beside = (places[other.end] for other in read.links if other.start == link.start)
        if any(p.y == start.y and p.x > start.x for p in beside):
            return [(start.right, start.top), (end.left, end.bottom if upwards else end.top)], None
        return [(start.right, start.y), (end.x, start.y), (end.x, end.bottom if upwards else end.top)], None
    points = [(start.x, start.top if upwards else start.bottom), (start.x, end.y), (end.right, end.y)]
    return points, ((start.x + end.right) / 2, end.y + 0.03)


Entry = tuple[str, str, float]
"""Legend entry: text, arrow kind or box colour or nothing, x."""


def _legend(reads: list[Architecture], fills: dict[str, str], width: float) -> list[list[Entry]]:
    """The legend's entries, line by line."""
    found = {_direction(read, link) for read in reads for link in read.links if link.kind != "skip"}
    skips = dict.fromkeys((link.words, link.join) for read in reads for link in read.links if link.kind == "skip")
    boxes = [*fills.items(), ("number and width: channels", ""), ("height: resolution", "")]
    size = "x".join(map(str, reads[0].boxes[0].size))
    if any(read.heads for read in reads):
        boxes.append((f"round: head, with the shapes of its outputs for an image of {size}", ""))
    arrows = [(meaning, kind) for kind, meaning in MEANINGS.items() if kind in found]
    arrows += [(f"skip: {words.replace('1x1', '1x1 convolution')}", join) for words, join in skips]
    arrows += legend_of_heads(reads)
    lines: list[list[Entry]] = []
    for entries in (boxes, arrows):
        x = width
        for text, key in entries:
            needed = _key_width(key) + 0.08 * len(text)
            if x + needed > width - 0.1:
                lines.append([])
                x = LEFT
            lines[-1].append((text, key, x))
            x += needed + 0.25
    return lines


def _key_width(key: str) -> float:
    return 0.0 if not key else 0.22 if key.startswith("#") else 0.5


def _draw_legend(axes: Any, lines: list[list[Entry]], y: float) -> None:
    for number, line in enumerate(lines):
        at = y - number * LEGEND_LINE
        for text, key, x in line:
            if key.startswith("#"):
                axes.plot([x + 0.08], [at], "s", color=key, markersize=10, markeredgecolor=INK, markeredgewidth=0.8)
            elif key:
                draw_arrow(axes, [(x, at), (x + 0.42, at)], COLOURS.get(key, INK), 1.6, DASHES.get(key, "-"))
            colour = INK if key else "#555555"
            write(axes, x + _key_width(key), at, text, ha="left", fontsize=9.5, color=colour)
