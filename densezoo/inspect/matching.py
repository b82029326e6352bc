"""The programs of images of several sizes: their traces, how these correspond, and the numbers that differ."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.inspect.flat import Flat, Node, Step, flatten
from densezoo.ops import implementation


class GlobalOperations(ValueError):
    """A model has operations that read the whole image.

    Attributes:
        names: the modules that have them.
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(", ".join(names))
        self.names = tuple(names)


class Misfit(Exception):
    """An image that the program of another size cannot compute."""


def trace(function: Callable[[Any], Any], shape: tuple[int, ...]) -> Flat:
    """Traces a function of images with one map as output, in the plain form of every operation."""
    with implementation("reference"):
        return flatten(jax.make_jaxpr(lambda images: function(images))(jax.ShapeDtypeStruct(shape, jnp.float32)))


def module_of(scopes: Sequence[str]) -> str:
    """The path of the module that an operation belongs to."""
    names = [name for name in scopes if name.isidentifier()]
    return "/".join(names[1:])


def match(flat: Flat, other: Flat) -> list[tuple[int, int]]:
    """Numbers the steps and arrays of a program like those of another one, for an image of another size.

    An odd side may be cut after an upsampling, or extended by its last row or column. These steps have no counterpart
    if the other side is even.

    Returns:
        Arrays that are extended, by number, and the axes.

    Raises:
        Misfit: if they differ in other operations.
    """
    steps, theirs, repeated = flat.steps, iter(other.steps), []
    cut: set[Node] = set()
    expected, index = next(theirs, None), 0
    while index < len(steps):
        step = steps[index]
        index += 1
        if expected is not None and _corresponds(step, expected):
            step.number = expected.number
            for ours, node in zip(step.outputs, expected.outputs, strict=True):
                ours.number = node.number
            expected = next(theirs, None)
        elif index < len(steps) and _repeats(step, steps[index]) and step.inputs[0] not in cut:
            repeated.append((step.inputs[0].number, steps[index].equation.params["dimension"]))
            for extra in (step, steps[index]):
                extra.number, extra.outputs[0].number = -1, step.inputs[0].number
            index += 1
        elif step.name == "slice" and _cuts(step.equation.params):
            step.number, step.outputs[0].number = -1, step.inputs[0].number
            cut.add(step.outputs[0])
        else:
            raise Misfit
    if expected is not None or flat.output.known is not None or flat.output.number != other.output.number:
        raise Misfit
    return repeated


def _cuts(parameters: Any) -> bool:
    """Whether a slice has the first positions of an array."""
    return not any(parameters["start_indices"]) and set(parameters["strides"] or [1]) == {1}


def _corresponds(step: Step, other: Step) -> bool:
    """Whether two steps are the same operation on the same arrays."""
    if (step.name, len(step.outputs)) != (other.name, len(other.outputs)):
        return False
    if [node.number for node in step.inputs] != [node.number for node in other.inputs]:
        return False
    if step.name == "slice":  # not the part of an array with its first positions, as a cut is
        first = [any(each.equation.params["start_indices"]) for each in (step, other)]
        if first[0] != first[1]:
            return False
    pairs = zip((*step.inputs, *step.outputs), (*other.inputs, *other.outputs), strict=True)
    return all(len(ours.shape) == len(theirs.shape) for ours, theirs in pairs)


def _repeats(step: Step, following: Step) -> bool:
    """Whether two steps repeat the end of an array along an axis."""
    if (step.name, following.name) != ("slice", "concatenate"):
        return False
    x, axis, p = step.inputs[0], following.equation.params["dimension"], step.equation.params
    start = [size - 1 if other == axis else 0 for other, size in enumerate(x.shape)]
    joined = following.inputs == [x, step.outputs[0]]
    return joined and list(p["start_indices"]) == start and p["limit_indices"] == x.shape


class Packed:
    """Tables of all tiles as one vector for each dtype, because a call takes longer with many arguments."""

    def __init__(self, tables: dict[str, np.ndarray]):
        self._places: dict[str, tuple[str, int, tuple[int, ...]]] = {}
        vectors: dict[str, list[np.ndarray]] = collections.defaultdict(list)
        ends: dict[str, int] = collections.defaultdict(int)
        for name, table in tables.items():
            dtype = table.dtype.name
            self._places[name] = dtype, ends[dtype], table.shape[1:]
            vectors[dtype].append(table.reshape(len(table), -1))
            ends[dtype] += vectors[dtype][-1].shape[1]
        self._vectors = {dtype: np.concatenate(parts, 1) for dtype, parts in vectors.items()}

    @property
    def layout(self) -> Any:
        return tuple(self._places.items())

    @property
    def nbytes(self) -> int:
        return sum(vector.nbytes for vector in self._vectors.values())

    def of(self, tile: int) -> dict[str, np.ndarray]:
        return {dtype: vector[tile] for dtype, vector in self._vectors.items()}

    def unpacked(self, vectors: Any) -> dict[str, Any]:
        found = {}
        for name, (dtype, start, shape) in self._places.items():
            size = int(np.prod(shape, dtype=int))
            found[name] = vectors[dtype][start : start + size].reshape(shape)
        return found
