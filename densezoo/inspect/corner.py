"""Computes images of many sizes with one program, each with the numbers of a program of its own size up to rounding.

The program is that of a larger image. The smaller image lies in its corner, and so does every array that is computed
from it. A model is traced at the size of the smaller image as well, which computes nothing. The comparison of both
traces gives what depends on the size: lengths of axes, by which the program ignores what is beyond, and arrays such as
the positions of a resize or a resized position embedding. These are inputs of the program.

In contrast to `densezoo.inspect.windows`, operations may read the whole image.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from densezoo.inspect.corner_rules import RULES
from densezoo.inspect.flat import Flat, Node, Step, compact
from densezoo.inspect.local import bind
from densezoo.inspect.matching import GlobalOperations, Misfit, Packed, match, module_of


class Corner:
    """The program of images of a size, for smaller images. Its output is a map of the image's size.

    Args:
        large: the traced program of an image of the size.
        small: those of some smaller images. An axis varies if its length differs between the traces, and a known array
            is an input of the program if it does.

    Raises:
        GlobalOperations: if an operation has no rule.
        Misfit: if no smaller image has the same operations.
    """

    def __init__(self, large: Flat, *small: Flat):
        self._large = large
        self._moved: set[int] = set()
        self._inputs: dict[tuple[int, int], tuple[bool, ...]] = {}
        """Known inputs that depend on the size, by the numbers of step and input: the axes along which they vary."""
        self._repeated: set[tuple[int, int]] = set()
        """Arrays whose end some sizes repeat, by number, and the axis."""
        fitting = [flat for flat in small if self._compare(flat)]
        if not fitting:
            raise Misfit
        names = [module_of(step.scopes) or step.name for step in large.steps if not self._has_rule(step)]
        if names:
            raise GlobalOperations(list(dict.fromkeys(names)))
        self._packed = Packed(self._numbers(fitting[0]))

    def _compare(self, small: Flat) -> bool:
        """Notes what differs from a smaller image; False if its operations do."""
        try:
            self._repeated |= set(match(small, self._large))
        except Misfit:
            return False
        for step, like in self._pairs(small):
            for node, other in zip((*step.inputs, *step.outputs), (*like.inputs, *like.outputs), strict=True):
                differs = [a != b for a, b in zip(node.shape, other.shape, strict=True)]
                other.varies = tuple(map(max, differs, other.varies or differs))
            if (rule := RULES.get(step.name)) is not None and rule.moved(step, like):
                self._moved.add(like.number)
        for step, like in self._pairs(small):
            for place, (node, other) in enumerate(zip(step.inputs, like.inputs, strict=True)):
                key = like.number, place
                if node.known is not None and (any(other.varies) or not _is_corner(node, other)):
                    lengths = zip(compact(node.known).shape, compact(other.known).shape, strict=True)
                    several = [max(both) > 1 for both in lengths]
                    self._inputs[key] = tuple(map(max, several, self._inputs.get(key, several)))
        return True

    def _has_rule(self, step: Step) -> bool:
        return self._is_plain(step) or step.name in RULES

    def _pairs(self, small: Flat) -> list[tuple[Step, Step]]:
        return [(step, self._large.steps[step.number]) for step in small.steps if step.number >= 0]

    @staticmethod
    def _is_plain(like: Step) -> bool:
        """Whether no axis of a step varies."""
        return not any(any(node.varies) for node in (*like.inputs, *like.outputs))

    def numbers(self, small: Flat) -> Any:
        """The program's second argument for an image of another size.

        Raises:
            Misfit: if the program does not fit.
        """
        whole = small.output.shape[1:3] == small.inputs[0].shape[1:3]
        if not self._repeated.issuperset(match(small, self._large)) or not whole:
            raise Misfit
        packed = Packed(self._numbers(small))
        if packed.layout != self._packed.layout:
            raise Misfit
        return packed.of(0)

    def _numbers(self, small: Flat) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for step, like in self._pairs(small):
            for node, other in zip((*step.inputs, *step.outputs), (*like.inputs, *like.outputs), strict=True):
                _check(node, other)
            for place, (node, other) in enumerate(zip(step.inputs, like.inputs, strict=True)):
                if (several := self._inputs.get((like.number, place))) is not None:
                    found[f"{like.number} input {place}"] = _in_corner(node, other, several)
                elif node.known is not None and not _is_corner(node, other):
                    raise Misfit
            rule = None if self._is_plain(like) else RULES[step.name]
            _check_parameters(step, like, rule.sized if rule else ())
            if rule:
                moved = like.number in self._moved
                if rule.moved(step, like) and not moved:
                    raise Misfit
                for name, number in rule.numbers(step, like, moved).items():
                    found[f"{like.number} {name}"] = number
        for node in reversed(small.nodes):  # the last one is the array before its end is repeated
            for axis in [axis for number, axis in self._repeated if number == node.number]:
                found[f"-1 {node.number} {axis}"] = np.array(node.shape[axis], np.int32)
        return {name: number[None] for name, number in sorted(found.items())}

    def run(self, image: Any, numbers: Any) -> Any:
        """The output of the larger program, with that of the smaller one in its corner.

        Args:
            image: of the larger size, with the smaller image in its corner and any finite values beyond.
            numbers: those of the smaller image.
        """
        by_step: dict[int, dict[str, Any]] = {}
        for name, x in self._packed.unpacked(numbers).items():
            number, word = name.split(" ", 1)
            by_step.setdefault(int(number), {})[word] = x
        values: dict[Node, Any] = {}

        def write(node: Node, x: Any) -> None:
            for axis in [axis for number, axis in self._repeated if number == node.number]:
                last = by_step[-1][f"{node.number} {axis}"] - 1
                x = jnp.take(x, jnp.minimum(jnp.arange(x.shape[axis], dtype=jnp.int32), last), axis, mode="clip")
            values[node] = x

        def read(node: Node) -> Any:
            return node.known if node.known is not None else values[node]

        write(self._large.inputs[0], image)
        for step in self._large.steps:
            own = by_step.get(step.number, {})
            arrays = [
                jnp.broadcast_to(own[f"input {place}"], node.shape) if f"input {place}" in own else read(node)
                for place, node in enumerate(step.inputs)
            ]
            results = bind(step, arrays) if self._is_plain(step) else RULES[step.name].run(step, arrays, own)
            for node, result in zip(step.outputs, results, strict=True):
                write(node, result)
        return read(self._large.output)


def _check(node: Node, like: Node) -> None:
    """Checks the shapes and the dtype of an array against those of the larger program."""
    if len(node.shape) != len(like.shape) or node.dtype != like.dtype or (node.known is None) != (like.known is None):
        raise Misfit
    for size, large, varies in zip(node.shape, like.shape, like.varies, strict=True):
        if size > large or (size != large and not varies):
            raise Misfit


def _is_corner(node: Node, like: Node) -> bool:
    """Whether a known array is the corner of that of the larger program."""
    if node.known is None or like.known is None:
        raise Misfit
    ours, theirs = np.broadcast_arrays(compact(node.known), compact(like.known[tuple(map(slice, node.shape))]))
    return np.array_equal(ours, theirs)


def _in_corner(node: Node, like: Node, several: tuple[bool, ...]) -> np.ndarray:
    """A known array with the larger one's shape, or with length 1 along the axes along which it is constant.

    Args:
        node: the array.
        like: that of the larger program.
        several: the other axes.
    """
    small = compact(node.known)
    if any(side > 1 and not varied for side, varied in zip(small.shape, several, strict=True)) or not small.size:
        raise Misfit
    shape = [side if varied else 1 for side, varied in zip(node.shape, several, strict=True)]
    around = [
        (0, large - side if varied else 0) for side, large, varied in zip(shape, like.shape, several, strict=True)
    ]
    small = np.broadcast_to(small, shape)
    return np.pad(small, around, mode="edge") if around else small


def _check_parameters(step: Step, like: Step, sized: tuple[str, ...]) -> None:
    """Checks the parameters of a step that do not depend on the size."""
    ours, theirs = step.equation.params, like.equation.params
    if ours.keys() != theirs.keys():
        raise Misfit
    for name in ours.keys() - set(sized):
        if ours[name] != theirs[name] and str(ours[name]) != str(theirs[name]):
            raise Misfit
