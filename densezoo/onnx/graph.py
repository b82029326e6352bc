"""An ONNX graph that is being written, and the arrays of the JAX program in it."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from densezoo.extras import require
from densezoo.inspect.flat import compact
from densezoo.types import Side

Order = tuple[int, ...]
"""For each axis of an ONNX tensor: the array's axis that it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
    """An array of the JAX program.

    Its ONNX tensor may have the axes in another order, such as NCHW, and a single element along axes along which the
    array repeats. Transpositions and broadcasts are therefore written only where an operation needs them.

    Attributes:
        shape: the array's shape.
        dtype: its dtype.
        name: of its ONNX tensor; None if the array is known.
        known: its value, if it depends on no input. Axes along which it repeats have a stride of 0.
        order: the order of the ONNX tensor's axes.
        repeats: the array's axes along which the ONNX tensor has a single element.
    """

    shape: tuple[Side, ...]
    dtype: np.dtype
    name: str | None = None
    known: np.ndarray | None = None
    order: Order = ()
    repeats: frozenset[int] = frozenset()


def known(value: Any) -> Tensor:
    """An array with a known value."""
    value = np.asarray(value)
    repeats = frozenset(axis for axis, step in enumerate(value.strides) if step == 0)
    return Tensor(value.shape, value.dtype, known=value, order=tuple(range(value.ndim)), repeats=repeats)


def common_order(tensors: Sequence[Tensor]) -> Order:
    """The order of axes that needs the fewest transpositions of large tensors; if in doubt, not the array's own."""

    def weight(x: Tensor) -> tuple[int, bool]:
        sides = [side for axis, side in enumerate(x.shape) if axis not in x.repeats and isinstance(side, int)]
        return math.prod(sides), x.order != tuple(range(len(x.shape)))

    rank = max(len(x.shape) for x in tensors)
    candidates = [x for x in tensors if x.known is None and len(x.shape) == rank]
    return max(candidates, key=weight).order if candidates else tuple(range(rank))


class Graph:
    """A graph, or the body of a loop in the graph `outer`, whose tensors it can read."""

    def __init__(self, outer: "Graph | None" = None, batch: Any = None):
        self.nodes: list[Any] = []
        self.outer = outer
        self._root: Graph = outer._root if outer else self
        self._same: dict[Any, Any] = {}
        if outer is None:
            self.weights: dict[Any, Any] = {}
            self.makers: dict[str, Any] = {}
            self.count, self.batch, self.batch_name = 0, batch, ""

    def fresh(self, stem: str) -> str:
        """A new name."""
        self._root.count += 1
        return f"{stem}_{self._root.count}"

    def constant(self, array: np.ndarray) -> str:
        """The name of a constant."""
        array = np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        key = (array.dtype.str, array.shape, hashlib.blake2b(array.tobytes()).digest())
        weights = self._root.weights
        if key not in weights:
            weights[key] = require("onnx").numpy_helper.from_array(array, self.fresh("constant"))
        return weights[key].name

    def add(self, op: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node, unless the graph has the same one. Returns the name of its output, or the list of several.

        Args:
            op: ONNX's name of the operation.
            *inputs: names, arrays, or None for those that are left out.
            outputs: number of outputs.
            **attributes: ONNX's attributes.
        """
        names = tuple("" if x is None else x if isinstance(x, str) else self.constant(np.asarray(x)) for x in inputs)
        key = (op, names, outputs, tuple((name, repr(value)) for name, value in attributes.items()))
        graph: Graph | None = self
        while graph is not None and op not in ("Loop", "If"):
            if key in graph._same:
                return graph._same[key]
            graph = graph.outer
        results = [self.fresh(op) for _ in range(outputs)]
        self.nodes.append(require("onnx").helper.make_node(op, names, results, **attributes))
        self._root.makers.update(dict.fromkeys(results, self.nodes[-1]))
        self._same[key] = results[0] if outputs == 1 else results
        return self._same[key]

    def maker(self, name: str) -> Any:
        """The node with this output; None if it is a constant or an input."""
        return self._root.makers.get(name)

    def value(self, name: str) -> np.ndarray | None:
        """The constant with this name; None if it is not one."""
        found = [x for x in self._root.weights.values() if x.name == name]
        return require("onnx").numpy_helper.to_array(found[0]) if found else None

    def tensor(self, name: str, aval: Any, order: Order | None = None, repeats: Any = ()) -> Tensor:
        """An array of the shape and dtype of `aval`."""
        order = tuple(range(len(aval.shape))) if order is None else tuple(order)
        return Tensor(tuple(aval.shape), np.dtype(aval.dtype), name, None, order, frozenset(repeats))

    def read(self, x: Tensor, order: Order | None = None, *, full: bool = True) -> str:
        """The name of an ONNX tensor of an array, in an order of axes.

        Args:
            x: the array.
            order: the order; None means the array's own.
            full: whether axes along which the array repeats are written out.
        """
        order = tuple(range(len(x.shape))) if order is None else tuple(order)
        if x.known is not None:
            return self.constant(np.transpose(x.known if full else compact(x.known), order))
        assert x.name is not None
        name = x.name
        sides = {axis: 1 if axis in x.repeats else side for axis, side in enumerate(x.shape)}
        long = [
            [axis for axis in axes if not (isinstance(sides[axis], int) and sides[axis] == 1)]
            for axes in (order, x.order)
        ]
        if order != x.order and long[0] == long[1]:
            name = self.reshape(name, [sides[axis] for axis in order])
        elif order != x.order:
            name = self.add("Transpose", name, perm=[x.order.index(axis) for axis in order])
        if full and any(x.shape[axis] != 1 for axis in x.repeats):
            name = self.add("Expand", name, self.sizes([x.shape[axis] for axis in order]))
        return name

    def sizes(self, sides: Sequence[Side]) -> Any:
        """A vector of sides, of which some may depend on the number of images."""
        if all(isinstance(side, int | np.integer) for side in sides):
            return np.asarray(sides, np.int64)
        return self.add("Concat", *[self._side(side) for side in sides], axis=0)

    def _side(self, side: Side) -> Any:
        if isinstance(side, int | np.integer):
            return np.asarray([side], np.int64)
        root = self._root
        factor = side // root.batch
        if not isinstance(factor, int | np.integer) or factor * root.batch != side:
            raise NotImplementedError(f"a side of {side} is no multiple of the number of images")
        return self.add("Mul", root.batch_name, np.asarray([factor], np.int64)) if factor != 1 else root.batch_name

    def reshape(self, name: str, sides: Sequence[Side]) -> str:
        """The tensor with other sides."""
        symbolic = [i for i, side in enumerate(sides) if not isinstance(side, int | np.integer)]
        if len(symbolic) == 1 and all(sides[i] != 0 for i in range(len(sides)) if i != symbolic[0]):
            return self.add("Reshape", name, np.asarray([-1 if i in symbolic else s for i, s in enumerate(sides)]))
        return self.add("Reshape", name, self.sizes(sides))

    def cast(self, name: Any, dtype: Any) -> str:
        """The tensor in another dtype."""
        return self.add("Cast", name, to=self.type(dtype))

    @staticmethod
    def type(dtype: Any) -> int:
        """ONNX's number of a dtype."""
        return require("onnx").helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def finish(self, name: str, inputs: Sequence[tuple[str, Any]], outputs: Sequence[tuple[str, str, Any]]) -> Any:
        """ONNX's graph.

        Args:
            name: of the graph.
            inputs: names and avals.
            outputs: the names that the graph gives its outputs, those of the tensors, and their avals.
        """
        helper = require("onnx").helper

        def info(name: str, aval: Any) -> Any:
            sides = [int(side) if isinstance(side, int | np.integer) else str(side) for side in aval.shape]
            return helper.make_tensor_value_info(name, self.type(aval.dtype), sides)

        needed = {source for _, source, _ in outputs}
        kept = []
        for node in reversed(self.nodes):
            if self.outer is None and needed.isdisjoint(node.output):
                continue
            kept.append(node)
            needed.update(_reads(node))
        nodes = kept[::-1] + [helper.make_node("Identity", [source], [given]) for given, source, _ in outputs]
        weights = [x for x in self.weights.values() if x.name in needed] if self.outer is None else []
        results = [info(given, aval) for given, _, aval in outputs]
        return helper.make_graph(nodes, name, [info(*x) for x in inputs], results, weights)


def _reads(node: Any) -> set[str]:
    """The names that a node and its inner graphs read."""
    inner = [part for attribute in node.attribute for part in attribute.g.node]
    outputs = [attribute.g.output for attribute in node.attribute]
    return set(node.input) | {name for part in inner for name in _reads(part)} | {x.name for o in outputs for x in o}
