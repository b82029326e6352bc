"""Computes windows of a model's output from windows of its input, with exactly the numbers of the whole picture.

A model is traced at the size of the whole picture, which computes nothing. From the output backwards, `Plan` finds the
window of every array that a tile needs, and `windowed` computes only those. Zero padding happens at the borders of the
picture and not at those of tiles, and a resize reads the positions that it reads in the whole picture, so that the
result is the same for every size and every kind of resize. Where a tile lies is an input of the compiled program: all
tiles share one program.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.inspect.flat import Flat, Node
from densezoo.inspect.local import NotLocal, Window, along, axes_of, cut
from densezoo.inspect.matching import GlobalOperations, Misfit, Packed, match, module_of, trace
from densezoo.inspect.neighbours import RULES


def traced(function: Callable[[Any], Any], shape: tuple[int, ...]) -> Flat:
    """Traces a function of images with one map as output, and finds the spatial axes of every array.

    Raises:
        GlobalOperations: if an operation has no rule, which is so for those that mix distant pixels.
    """
    flat = trace(function, shape)
    flat.inputs[0].axes = (1, 2)
    lost: set[Node] = set()
    names: dict[str, None] = {}
    for step in flat.steps:
        if not lost & set(step.inputs) and all(node.axes is None for node in step.inputs):
            continue  # weights
        try:
            if step.name not in RULES or all(node.axes is None for node in step.inputs):
                raise NotLocal
            axes = RULES[step.name].axes(step)
        except NotLocal:
            if not lost & set(step.inputs):
                names[module_of(step.scopes) or step.name] = None
            lost |= set(step.outputs)
            continue
        for node, places in zip(step.outputs, axes, strict=True):
            node.axes = places
    if names:
        raise GlobalOperations(list(names))
    if flat.output.axes != (1, 2) or flat.output.shape[1:3] != shape[1:3]:
        raise GlobalOperations([f"its output of shape {flat.output.shape}"])
    return flat


class Plan:
    """The windows of all arrays for tiles of an image, and the numbers that the program reads for each of them.

    Args:
        flat: the traced program of the whole image.
        origins: first rows and first columns of the tiles' outputs.
        tile: height and width of the tiles' outputs.
        template: a plan for another image, whose program shall compute this one.
        shared: whether this plan is to be a template.

    Raises:
        Misfit: if the template's program does not fit.
    """

    def __init__(
        self,
        flat: Flat,
        origins: tuple[Sequence[int], Sequence[int]],
        tile: tuple[int, int],
        *,
        template: "Plan | None" = None,
        shared: bool = False,
    ):
        if template is not None and match(flat, template.flat):
            raise Misfit
        self.flat, self.tile = flat, tile
        self._template, self._shared = template, shared or template is not None
        self.windows: list[dict[Node, Window]] = [{}, {}]
        self.parts: list[dict[tuple[int, int], tuple[int, int, int]]] = [{}, {}]
        self.filled: list[set[Node]] = [set(), set()]
        self._tables: list[dict[str, np.ndarray]] = [{}, {}]
        for k in (0, 1):
            self._follow(k, np.asarray(origins[k]))
        self.packed = [Packed(tables) for tables in self._tables]
        # The program is that of the template, which reads these numbers instead of its own.
        if template is not None and not (
            self.parts == template.parts
            and all(ours.layout == theirs.layout for ours, theirs in zip(self.packed, template.packed, strict=True))
        ):
            raise Misfit

    def _follow(self, k: int, origins: np.ndarray) -> None:
        """Goes from the output to the input along one spatial axis."""
        wanted: dict[Node, list[Window]] = collections.defaultdict(list)
        everywhere = np.ones(len(origins), bool)
        single = len(origins) == 1 and self._template is None
        stored, tables = self.windows[k], self._tables[k]

        def settle(nodes: Sequence[Node]) -> bool:
            requests = [window for node in nodes for window in wanted[node]]
            if requests:
                node = next(node for node in nodes if node.axes is not None)
                size = self._nominal(node).shape[axes_of(node)[k]]
                window = self._union(requests, size if single else None, nodes[0].number, k)
                stored.update(dict.fromkeys(nodes, window))
            return bool(requests)

        target = Window(origins, self.tile[k], everywhere)
        wanted[self.flat.output].append(target)
        wants: dict[tuple[int, int], Window] = {}
        for number, step in reversed(list(enumerate(self.flat.steps))):
            if step.outputs[0].axes is None or not settle(step.outputs):
                continue
            rule = RULES[step.name]
            needs = rule.need(step, k, stored[step.outputs[0]], not self._shared)
            for place, (node, window) in enumerate(zip(step.inputs, needs, strict=True)):
                if window is not None:
                    wants[number, place] = window
                    if self._shared and self._template is None and rule.reads_stored(step, k):
                        window = window._replace(length=window.length + SLACK)
                    wanted[node].append(window)
        settle(self.flat.inputs)
        for (number, place), window in sorted(wants.items()):
            step = self.flat.steps[number]
            node, fill = step.inputs[place], RULES[step.name].fill(step, k)
            part = None if RULES[step.name].reads_stored(step, k) else window
            self._part(k, (step.number, place), node, part, place == 0 and fill is not None)
        self._part(k, (-1, 0), self.flat.output, target, False)
        for step in self.flat.steps:
            if step.outputs[0] in stored:
                inputs = [stored.get(node) for node in step.inputs]
                for name, table in RULES[step.name].tables(step, k, stored[step.outputs[0]], inputs).items():
                    tables[f"{step.number} {name}"] = table

    def _nominal(self, node: Node) -> Node:
        return node if self._template is None else self._template.flat.nodes[node.number]

    def _union(self, requests: list[Window], size: int | None, number: int, k: int) -> Window:
        """The smallest window that contains all of them; within the array if there is only one tile."""
        far = np.iinfo(np.int64).max // 2
        first = np.min([np.where(w.used, w.start, far) for w in requests], 0)
        last = np.max([np.where(w.used, w.start + w.length - 1, -far) for w in requests], 0)
        used = np.any([w.used for w in requests], 0)
        if size is not None:
            first, last = np.clip(first, 0, size - 1), np.clip(last, 0, size - 1)
        first, last = np.where(used, first, 0), np.where(used, last, 0)
        length = int((last - first).max()) + 1
        if self._template is not None:
            longest = self._template.windows[k].get(self._template.flat.nodes[number])
            if longest is None or longest.length < length:
                raise Misfit
            length = longest.length
        return Window(first, length, used)

    def _part(self, k: int, key: tuple[int, int], node: Node, window: Window | None, padded: bool) -> None:
        """Notes how a window is cut from the stored one."""
        stored, tables = self.windows[k][node], self._tables[k]
        size = node.shape[axes_of(node)[k]]
        low = high = 0
        if window is not None:
            low, high = (
                int(np.where(window.used, beyond, 0).max(initial=0))
                for beyond in (stored.start - window.start, window.start + window.length - stored.start - stored.length)
            )
            if stored.length + low + high != window.length:
                tables[f"start {key}"] = np.where(window.used, window.start - stored.start + low, 0).astype(np.int32)
            self.parts[k][key] = low, high, window.length
        outside = (stored.start < 0) | (stored.start + stored.length > size)
        if padded and (self._shared or outside.any()):
            self.filled[k].add(node)
            tables[f"inside {node.number}"] = np.stack([-stored.start, size - stored.start], 1).astype(np.int32)

    def source(self, k: int, tile: int) -> tuple[int, int]:
        """First position and length of the part of the image that a tile reads; it may extend beyond the image."""
        window = self.windows[k][self.flat.inputs[0]]
        return int(window.start[tile]), window.length

    def numbers(self, row: int, column: int) -> Any:
        """The program's second argument for a tile."""
        return self.packed[0].of(row), self.packed[1].of(column)

    def run(self, image: Any, numbers: Any) -> Any:
        """The tile of the output, from its part of the image."""
        tables = [packed.unpacked(given) for packed, given in zip(self.packed, numbers, strict=True)]
        by_step: list[dict[int, dict[str, Any]]] = [collections.defaultdict(dict), collections.defaultdict(dict)]
        for k in (0, 1):
            for name, x in tables[k].items():
                number, word = name.split(" ", 1)
                if number.isdecimal():
                    by_step[k][int(number)][word] = x
        values: dict[Node, Any] = {self.flat.inputs[0]: image}

        def read(key: tuple[int, int], node: Node, fill: Any = None) -> Any:
            if node.axes is None:
                return node.known if node.known is not None else values[node]
            x = values[node]
            for k, axis in enumerate(node.axes):
                if fill is not None and node in self.filled[k]:
                    low, high = tables[k][f"inside {node.number}"]
                    places = jnp.arange(x.shape[axis], dtype=jnp.int32)
                    x = jnp.where(along((places >= low) & (places < high), axis, x.ndim), x, fill)
            for k, axis in enumerate(node.axes):
                low, high, length = self.parts[k].get(key, (0, 0, x.shape[axis]))
                if low or high:
                    around = [(low, high, 0) if other == axis else (0, 0, 0) for other in range(x.ndim)]
                    x = jax.lax.pad(x, jnp.zeros((), x.dtype) if fill is None else fill, around)
                x = cut(x, axis, tables[k].get(f"start {key}"), length)
            return x

        for step in self.flat.steps:
            number, rule = step.number, RULES.get(step.name)
            if step.outputs[0].axes is not None and step.outputs[0] not in self.windows[0]:
                continue
            fills = [rule.fill(step, k) for k in (0, 1)] if rule and step.outputs[0].axes else [None]
            fill = next((fill for fill in fills if fill is not None), None)
            arrays = [read((number, i), node, fill if i == 0 else None) for i, node in enumerate(step.inputs)]
            if step.outputs[0].axes is None or rule is None:
                results = step.equation.primitive.bind(*arrays, **step.equation.params)
                results = results if step.equation.primitive.multiple_results else [results]
            else:
                lengths = self.windows[0][step.outputs[0]].length, self.windows[1][step.outputs[0]].length
                own = [of_steps[number] for of_steps in by_step]
                results = rule.run(step, arrays, lengths, own)
            values.update(zip(step.outputs, results, strict=True))
        return read((-1, 0), self.flat.output)


SLACK = 2
"""Positions by which a resize's windows are longer than necessary in a template, since its steps depend on the size."""
