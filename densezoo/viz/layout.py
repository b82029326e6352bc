"""The layout of architecture diagrams in inches; this file draws nothing.

A model's parts are columns from left to right, its scales are rows from fine to coarse. Chains of maps within a part
are placed side by side in lanes. The image and the logits have a row of their own at the top.
"""

import dataclasses
import math

from densezoo.viz.structure import Architecture, Head

TERMINAL_HEIGHT = 0.46
ROW_GAP = 0.3
LANE_GAP = 0.18
COLUMN_GAP = 0.4
SKIP_GAP = 0.8  # Room for the label of the arrow.
CHARACTER = 0.085
HEAD_LINE = 0.19
HEAD_GAP = 0.34
BUS_GAP = 0.2  # Between the lines down which the maps of a pyramid reach the heads.


@dataclasses.dataclass(frozen=True)
class Place:
    """A rectangle, given by its centre, width and height; y increases upwards."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """The x of the left side."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """The x of the right side."""
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        """The y of the upper side."""
        return self.y + self.height / 2

    @property
    def bottom(self) -> float:
        """The y of the lower side."""
        return self.y - self.height / 2


@dataclasses.dataclass(frozen=True)
class Layout:
    """The positions of a model's boxes.

    Attributes:
      places: the boxes' rectangles, in the boxes' order.
      columns: the name of each part and the x of its centre, from left to right.
      left: the minimum x.
      right: the maximum x.
      heads: the rectangles of the heads and the detections, from top to bottom.
    """

    places: tuple[Place, ...]
    columns: tuple[tuple[str, float], ...]
    left: float
    right: float
    heads: tuple[Place, ...] = ()


def box_height(stride: int) -> float:
    """Height of a box, on a compressed scale: finer maps are higher, and coarse ones stay visible."""
    return 0.88 * stride**-0.36


def box_width(channels: int, most: int) -> float:
    """Width of a box, with room for its number: the square root of its channels relative to `most`, the maximum."""
    return max(0.1 + 0.62 * math.sqrt(channels / most), 0.12 + CHARACTER * len(str(channels)))


def rows(reads: list[Architecture]) -> dict[int, float]:
    """The centre of each scale's row, below the row of the images, whose centre is 0."""
    y, middles = -TERMINAL_HEIGHT / 2, {}
    shown = {box.stride for read in reads for i, box in enumerate(read.boxes) if i not in terminals(read)}
    for stride in sorted(shown):
        middles[stride] = y - ROW_GAP - box_height(stride) / 2
        y -= ROW_GAP + box_height(stride)
    return middles


def terminals(read: Architecture) -> dict[int, int]:
    """The boxes of the image and the logits, each with the box below it."""
    after = {link.start: link.end for link in read.links if link.start == 0}
    return after | {link.end: link.start for link in read.links if link.kind == "head"}


def arrange(read: Architecture, middles: dict[int, float], most: int) -> Layout:
    """Places a model's boxes; `middles` and `most` are those of all models in the diagram."""
    above, lanes = terminals(read), _lanes(read)
    shown = [i for i in range(len(read.boxes)) if i not in above]
    x, places, columns = 0.0, {}, []
    for column in dict.fromkeys(read.boxes[i].column for i in shown):
        inside = [i for i in shown if read.boxes[i].column == column]
        if columns:
            x += SKIP_GAP if any(link.kind == "skip" and link.end in inside for link in read.links) else COLUMN_GAP
        start = x
        for lane in range(1 + max(lanes[i] for i in inside)):
            widths = {i: box_width(read.boxes[i].channels, most) for i in inside if lanes[i] == lane}
            x += LANE_GAP if lane else 0
            for i, width in widths.items():
                stride = read.boxes[i].stride
                places[i] = Place(x + max(widths.values()) / 2, middles[stride], width, box_height(stride))
            x += max(widths.values())
        columns.append((column, (start + x) / 2))
    right = 0.0
    for i, below in above.items():
        while below in above:  # A head on top of a head.
            below = above[below]
        width = 0.2 + CHARACTER * max(map(len, terminal_text(read, i).split("\n")))
        # Several heads on one map are placed side by side.
        middle = max(places[below].x, right + width / 2 + 0.1) if i else places[below].x
        places[i] = Place(middle, 0.0, width, TERMINAL_HEIGHT)
        right = places[i].right
    heads = _stacked(read, max(place.right for place in places.values()))
    return Layout(
        places=tuple(places[i] for i in range(len(read.boxes))),
        columns=tuple(columns),
        left=min(place.left for place in places.values()),
        right=max(place.right for place in (*places.values(), *heads)),
        heads=heads,
    )


def _stacked(read: Architecture, right: float) -> tuple[Place, ...]:
    """The heads, one below the other, to the right of all maps and of the lines that the maps reach them by."""
    left = right + BUS_GAP * (1 + len(buses(read)))
    widths = [max(map(len, head_lines(head))) * CHARACTER * 0.85 + 0.2 for head in read.heads]
    y, places = TERMINAL_HEIGHT / 2, []
    for head in read.heads:
        height = HEAD_LINE * len(head_lines(head)) + 0.12
        places.append(Place(left + max(widths) / 2, y - height / 2, max(widths), height))
        y -= height + HEAD_GAP
    return tuple(places)


def buses(read: Architecture) -> list[tuple[int, ...]]:
    """The different sets of maps that heads read."""
    return list(dict.fromkeys(head.maps for head in read.heads if head.maps))


def head_lines(head: Head) -> list[str]:
    """What stands in the box of a head: its name, and its outputs with their shapes."""
    outputs = [f"{name} {' x '.join(map(str, shape))}".strip() for name, shape in head.outputs]
    return [head.name or head.kind.lower(), *outputs]


def terminal_text(read: Architecture, i: int) -> str:
    """The two lines in the box of the image or the logits."""
    channels = read.boxes[i].channels
    return f"{read.boxes[i].name}\n{channels} channel{'s' * (channels != 1)}"


def _lanes(read: Architecture) -> dict[int, int]:
    """Lanes of the boxes within their parts.

    A box has the lane of the coarser box that it is computed from. A chain that starts at a finer scale is placed to
    the left, near its source.
    """
    lanes: dict[int, int] = {}
    taken: dict[tuple[str, int], set[int]] = {}

    def take(i: int, wanted: int) -> None:
        used = taken.setdefault((read.boxes[i].column, read.boxes[i].stride), set())
        lanes[i] = wanted if wanted not in used else next(lane for lane in range(len(used) + 1) if lane not in used)
        used.add(lanes[i])

    for stride in sorted({box.stride for box in read.boxes}, reverse=True):
        row = [i for i, box in enumerate(read.boxes) if box.stride == stride]
        from_below = {i: _coarser_lanes(read, i, lanes) for i in row}
        for i in sorted(row, key=lambda i: not from_below[i]):
            take(i, max(from_below[i], default=0))
    count: dict[str, int] = {}
    for (column, _), used in taken.items():
        count[column] = max(count.get(column, 0), *used)
    return {i: count[read.boxes[i].column] - lane for i, lane in lanes.items()}


def _coarser_lanes(read: Architecture, i: int, lanes: dict[int, int]) -> list[int]:
    box = read.boxes[i]
    links = [(link.start, read.boxes[link.start]) for link in read.links if link.end == i]
    return [lanes[start] for start, other in links if other.column == box.column and other.stride > box.stride]
