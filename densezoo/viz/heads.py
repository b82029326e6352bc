"""The heads of a detector in a diagram, with the maps that they read and the detections at the end."""

from collections.abc import Sequence
from typing import Any

from densezoo.viz.layout import BUS_GAP, HEAD_LINE, Layout, buses, head_lines
from densezoo.viz.strokes import INK, draw_arrow, draw_rounded, write
from densezoo.viz.structure import Architecture

BUSES = ("#6a6a6a", "#a85fa0", "#4f8f4f")
"""Colours of the lines from maps to heads."""
NEXT = (0, (1, 1))
"""Dash pattern of the arrows from head to head, which are not maps of one size."""


def legend_of_heads(reads: Sequence[Architecture]) -> list[tuple[str, str]]:
    """Texts for the lines to heads and for the arrows between heads, each with the key of its colour and dashes."""
    readers: dict[str, dict[str, None]] = {}
    for read in reads:
        for number, maps in enumerate(buses(read)):
            names = dict.fromkeys(head.name or head.kind for head in read.heads if head.maps == maps)
            readers.setdefault(f"bus {number % len(BUSES)}", {}).update(names)
    entries = [(f"maps read by {', '.join(names)}", key) for key, names in readers.items()]
    return [*entries, ("a head's result, for the next step", "next")] if entries else []


def draw_heads(axes: Any, read: Architecture, layout: Layout) -> None:
    """Draws heads one below the other. Heads that read the same maps of a pyramid share a line."""
    if not read.heads:
        return
    right = max(place.right for place in layout.places)
    sets = buses(read)
    for number, maps in enumerate(sets):
        x, colour = right + BUS_GAP * (number + 1), BUSES[number % len(BUSES)]
        shift = -0.045 * (number + 1)  # Below the arrows between maps.
        readers = [place.y for head, place in zip(read.heads, layout.heads, strict=True) if head.maps == maps]
        starts = [layout.places[box].y + shift for box in maps]
        for box, y in zip(maps, starts, strict=True):
            axes.plot([layout.places[box].right, x], [y, y], color=colour, linewidth=1.1, zorder=2)
        ends = (*starts, *readers)
        axes.plot([x, x], [min(ends), max(ends)], color=colour, linewidth=1.1, zorder=2)
        for y in readers:
            draw_arrow(axes, [(x, y), (layout.heads[0].left, y)], colour, 1.1, "-")
    for head, place in zip(read.heads, layout.heads, strict=True):
        draw_rounded(axes, place)
        for line, words in enumerate(head_lines(head)):
            y = place.top - 0.06 - HEAD_LINE * (line + 0.5)
            write(axes, place.x, y, words, fontsize=9, weight="normal" if line else "bold")
        for before in head.heads:
            start = layout.heads[before]
            draw_arrow(axes, [(start.x, start.bottom), (place.x, place.top)], INK, 1.3, NEXT)
