"""How a reshape computes an array that lies in the corner of a larger one: see `densezoo.inspect.corner`."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from densezoo.inspect.corner_rule import Numbers, Rule
from densezoo.inspect.flat import Node, Step


class Reshape(Rule):
    """Axes that are joined or split. Where a joined axis varies, positions lie elsewhere in the larger array."""

    sized = ("new_sizes", "dimensions")

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        return {
            f"{before.start} {before.stop} {after.start} {after.stop}": np.array(
                [*step.inputs[0].shape[before], *step.outputs[0].shape[after]], np.int32
            )
            for before, after in _groups(step, like)
            if not (_is_in_order(like.inputs[0], before) and _is_in_order(like.outputs[0], after))
        }

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        x, large, result = arrays[0], like.inputs[0].shape, like.outputs[0].shape
        groups = [([int(axis) for axis in name.split()], sizes) for name, sizes in numbers.items()]
        for (first, end, new_first, new_end), sizes in reversed(groups):  # which leaves the axes before as they are
            places = _index(_places(None, result[new_first:new_end]), sizes[end - first :])
            places = _index(_places(places, sizes[: end - first]), large[first:end])
            x = x.reshape(*x.shape[:first], math.prod(large[first:end]), *x.shape[end:])
            x = jnp.take(x, places, first, mode="clip")
        return [x.reshape(result)]


Group = tuple[slice, slice]
"""Ranges of input axes and of output axes that hold the same positions."""


def _groups(step: Step, like: Step) -> list[Group]:
    """The smallest groups of neighbouring axes that a reshape keeps together, for both sizes."""
    nodes = (step.inputs[0], step.outputs[0]), (like.inputs[0], like.outputs[0])
    ranks = len(like.inputs[0].shape), len(like.outputs[0].shape)
    ends, begins, found = [0, 0], [0, 0], []
    while any(end < rank for end, rank in zip(ends, ranks, strict=True)):
        parts = slice(begins[0], ends[0]), slice(begins[1], ends[1])
        counts = [[math.prod(node.shape[part]) for node, part in zip(pair, parts, strict=True)] for pair in nodes]
        empty = [begin == end for begin, end in zip(begins, ends, strict=True)]
        if not any(empty) and all(before == after for before, after in counts):
            found.append(parts)
            begins = list(ends)
        else:
            before, after = counts[1]
            side = 0 if empty[0] or (before < after and not empty[1]) else 1
            ends[side if ends[side] < ranks[side] else 1 - side] += 1
    return [*found, (slice(begins[0], ends[0]), slice(begins[1], ends[1]))]


def _is_in_order(node: Node, part: slice) -> bool:
    """Whether positions of a part of the axes have the same number for every size: only the first one varies."""
    varies, sizes = node.varies[part], node.shape[part]
    return not any(varies[number] and math.prod(sizes[:number]) > 1 for number in range(len(sizes)))


def _places(index: Any, sizes: Any) -> list[Any]:
    """The position along each axis, from the position in all axes; None for those of all positions in order."""
    if index is None:
        index = jnp.arange(math.prod(sizes), dtype=jnp.int32)
    places = []
    for size in reversed(list(sizes)):
        places.append(index % size)
        index = index // size
    return places[::-1]


def _index(places: Sequence[Any], sizes: Any) -> Any:
    """The position in all axes, from the position along each."""
    index: Any = 0
    for place, size in zip(places, sizes, strict=True):
        index = index * size + place
    return index
