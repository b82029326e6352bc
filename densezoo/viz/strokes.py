"""What diagrams are drawn with: words, arrows and rounded boxes."""

import math
from typing import Any

from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from densezoo.viz.layout import Place

INK = "#222222"
Point = tuple[float, float]


def write(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Writes words at a point."""
    axes.text(x, y, text, **{"fontsize": 10, "color": INK, "ha": "center", "va": "center", "zorder": 5} | options)


def draw_arrow(axes: Any, points: list[Point], colour: str, width: float, dashes: Any) -> None:
    """Draws a line through the points, with a head at its end."""
    (x, y), (before_x, before_y) = points[-1], points[-2]
    length = math.hypot(x - before_x, y - before_y)
    neck = (x - 0.06 * (x - before_x) / length, y - 0.06 * (y - before_y) / length)
    xs, ys = zip(*points[:-1], neck, strict=True)
    axes.plot(xs, ys, color=colour, linewidth=width, linestyle=dashes, solid_joinstyle="miter", zorder=2)
    # The head by itself, because dashes would run through its outline too.
    head = FancyArrowPatch(neck, (x, y), arrowstyle="-|>,head_length=4.5,head_width=2.4", shrinkA=0, shrinkB=0)
    head.set(color=colour, linewidth=1, zorder=2)
    axes.add_patch(head)


def draw_rounded(axes: Any, place: Place) -> None:
    """Draws a white box with round corners."""
    corner = (place.left, place.bottom)
    box = FancyBboxPatch(corner, place.width, place.height, boxstyle="round,pad=0,rounding_size=0.13")
    box.set(facecolor="white", edgecolor=INK, linewidth=1.1, zorder=3)
    axes.add_patch(box)
