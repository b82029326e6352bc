"""Predictions of a head at every anchor of a pyramid, and the anchors."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Integer

from densezoo import ops
from densezoo.ops.sharding import repeat_for, reshape
from densezoo.types import Pyramid, Size, size_of


@struct.dataclass
class Grid:
    """The anchors of all maps of a pyramid, fine to coarse.

    Attributes:
        anchors: x0, y0, x1, y1 in pixels of the image.
        inside: whether the anchor belongs to the picture, not to the padding.
        counts: number of anchors of each map.
        per_cell: number of anchors of each pixel of a map.
    """

    anchors: Float[Array, "b n 4"]
    inside: Bool[Array, "b n"]
    counts: tuple[int, ...] = struct.field(pytree_node=False)
    per_cell: int = struct.field(pytree_node=False)


@struct.dataclass
class AnchorOutputs:
    """Scores, and boxes encoded relative to anchors (`ops.decode_boxes`), of RetinaNet and region proposals.

    Attributes:
        logits: logits of each class, or of objectness.
        deltas: encoded boxes.
        grid: the anchors.
        sizes: height and width of each picture without padding.
        box_loss: the reference's loss of the boxes.
    """

    logits: Float[Array, "b n k"]
    deltas: Float[Array, "b n 4"]
    grid: Grid
    sizes: Float[Array, "b 2"] | None = None
    box_loss: str = struct.field(pytree_node=False, default="l1")

    def ranks(self) -> Float[Array, "b n"]:
        """What orders the anchors as their best scores do."""
        return self.logits.max(-1)

    def scores(self, image: int | jax.Array, chosen: Integer[Array, " m"]) -> Float[Array, "m k"]:
        """Probabilities of some of an image's anchors."""
        return jax.nn.sigmoid(self.logits[image, chosen])

    def boxes(self, image: int | jax.Array, chosen: Integer[Array, " m"]) -> Float[Array, "m 4"]:
        """Boxes of some of an image's anchors."""
        return ops.decode_boxes(self.deltas[image, chosen], self.grid.anchors[image, chosen])


@struct.dataclass
class PointOutputs:
    """Scores, boxes encoded by the distances of their sides (`ops.decode_distances`), and centerness, of FCOS.

    Attributes:
        logits: logits of each class.
        distances: distances to the left, top, right and bottom side, divided by the anchor's side.
        centerness: logits.
        grid: the anchors, one for each pixel of each map.
        sizes: height and width of each picture without padding.
    """

    logits: Float[Array, "b n k"]
    distances: Float[Array, "b n 4"]
    centerness: Float[Array, "b n"]
    grid: Grid
    sizes: Float[Array, "b 2"] | None = None

    def ranks(self) -> Float[Array, "b n"]:
        """What orders the anchors as their best scores do."""
        return jax.nn.sigmoid(self.logits.max(-1)) * jax.nn.sigmoid(self.centerness)

    def scores(self, image: int | jax.Array, chosen: Integer[Array, " m"]) -> Float[Array, "m k"]:
        """The geometric mean of class probability and centerness for some of an image's anchors."""
        centerness = jax.nn.sigmoid(self.centerness[image, chosen])
        return jnp.sqrt(jax.nn.sigmoid(self.logits[image, chosen]) * centerness[:, None])

    def boxes(self, image: int | jax.Array, chosen: Integer[Array, " m"]) -> Float[Array, "m 4"]:
        """Boxes of some of an image's anchors."""
        return ops.decode_distances(self.distances[image, chosen], self.grid.anchors[image, chosen])


def grid_of(
    pyramid: Pyramid,
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[float],
    extents: Integer[Array, "b 2"] | None = None,
) -> Grid:
    """The anchors on the maps of a pyramid.

    The distance between neighbours is image size // map size, as in torchvision. If pictures of different sizes share a
    batch, each gets the same anchors as alone. Otherwise anchors would move, because a coarse map also covers padding.

    Args:
        pyramid: maps with their reductions and the image's size.
        sizes: sides of the anchors in pixels, a tuple for each map.
        ratios: heights over widths.
        extents: height and width that each picture would be padded to alone; None for the whole image.

    Raises:
        ValueError: if the numbers of sizes and maps differ, or the pyramid has no reductions.
    """
    maps, reductions, image = pyramid.maps, pyramid.reductions, pyramid.image_size
    if reductions is None or image is None:
        raise ValueError("a detector needs an encoder whose pyramid has reductions: see dz.Pyramid")
    if len(sizes) != len(maps) or len({len(each) for each in sizes}) != 1:
        raise ValueError(f"sizes needs equally many anchor sizes for each of the {len(maps)} maps, got {tuple(sizes)}")
    whole = jnp.asarray(image, jnp.int32)[None] if extents is None else extents
    anchors, inside = [], []
    for x, reduction, each in zip(maps, reductions, sizes, strict=True):
        mine = -(-whole // reduction) if extents is not None else jnp.asarray(size_of(x), jnp.int32)[None]
        strides = whole // jnp.maximum(mine, 1)
        cell = ops.grid_anchors((1, 1), (1, 1), tuple(map(float, each)), tuple(map(float, ratios)))
        there, has = _map(size_of(x), strides, mine, cell)
        anchors.append(there)
        inside.append(has)
    counts = tuple(each.shape[1] for each in anchors)
    return Grid(
        repeat_for(maps[0], jnp.concatenate(anchors, 1)),
        repeat_for(maps[0], jnp.concatenate(inside, 1)),
        counts,
        len(sizes[0]) * len(ratios),
    )


def _map(
    size: Size, strides: Integer[Array, "b 2"], mine: Integer[Array, "b 2"], cell: Float[Array, "k 4"]
) -> tuple[Float[Array, "b n 4"], Bool[Array, "b n"]]:
    """The anchors of one map, row by row, and which of them the pictures have."""
    batch, count = strides.shape[0], cell.shape[0]
    y, x = (jnp.arange(side, dtype=jnp.int32)[None] for side in size)
    rows, columns = y < mine[:, :1], x < mine[:, 1:]
    y, x = ((z * strides[:, axis, None]).astype(jnp.float32) for axis, z in enumerate((y, x)))
    grid = (batch, *size)
    y, x = jnp.broadcast_to(y[:, :, None], grid), jnp.broadcast_to(x[:, None], grid)
    corners = jnp.stack([x, y, x, y], -1)
    inside = jnp.broadcast_to((rows[:, :, None] & columns[:, None])[..., None], (*grid, count))
    anchors = corners[:, :, :, None] + cell[None, None, None]
    return reshape(anchors, batch, -1, 4), reshape(inside, batch, -1)
