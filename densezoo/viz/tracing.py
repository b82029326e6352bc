"""Finds a model's maps and their data flow by tracing; nothing here depends on an architecture.

Every map that a module returns is marked (`checkpoint_name`), and the marks are then located in the traced
program.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from densezoo.inspect.walk import Path, as_reference, called_program, inference_method, module_calls
from densezoo.types import Size


@dataclasses.dataclass
class Map:
    """A map that a module returns.

    Attributes:
        key: identifier, equal in every run of a model on images of one shape.
        path: path of the module; empty for the image.
        module: the module that returns the map; None for the image.
        inside: position of the array in the module's output, such as `.maps[1]`; empty if it is the whole output.
        shape: NHWC.
        integer: whether it contains integers, such as pooling indices.
        sources: the maps that it directly depends on, each with the primitive that first combined it with another.
    """

    key: str
    path: Path
    module: nn.Module | None
    inside: str
    shape: tuple[int, ...]
    integer: bool
    sources: dict[int, str] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> Size:
        """(height, width)."""
        return self.shape[1], self.shape[2]


@dataclasses.dataclass
class Output:
    """An array that a head of a detector gives, or the detections at the end.

    Attributes:
        path: of the head; empty for the detections.
        kind: class of the head, or of the detections.
        inside: where the array is in what the head gives, such as `.logits`.
        shape: with the batch, or the regions of all images, first.
        sources: as those of a map; numbers from the number of maps on are outputs.
    """

    path: Path
    kind: str
    inside: str
    shape: tuple[int, ...]
    sources: dict[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Trace:
    """The result of tracing a model.

    Attributes:
        maps: the maps in the order in which they are computed; the first is the image.
        outputs: the outputs of the heads that predict for anchors or regions, and of the whole detector.
        parts: paths of the modules whose inputs or outputs are containers of maps of several sizes (encoder, decoder, a
          pyramid in it). `maps` contains the outputs of their children and those of their own outputs that are in
          containers, and nothing from further inside.
        upsamplers: paths and class names of the modules that are called like upsamplers (densezoo/blocks).
        images: number of images that the model takes for each sample.
    """

    maps: list[Map]
    outputs: list[Output]
    parts: set[Path]
    upsamplers: dict[Path, str]
    images: int = 1

    def part(self, m: Map) -> Path:
        """The part that a map belongs to; the image and each child of the model are parts of their own."""
        if m.module is None:
            return ("image",)
        return m.path if m.path in self.parts or self._is_child(m) else m.path[:-1]

    def is_head(self, m: Map) -> bool:
        """Whether a map is the output of a head."""
        return m.key in self._of_heads

    def _is_child(self, m: Map) -> bool:
        """Whether a map is the output of a child of the model that is not a part, in a model with parts."""
        return len(m.path) == 1 and m.path not in self.parts and len(self.parts) > 1

    @functools.cached_property
    def _of_heads(self) -> set[str]:
        """Keys of the heads' outputs: a child of the model, not a part, computes them from one map, for heads alone."""
        readers: dict[int, list[Map]] = {}
        for m in self.maps:
            for source in m.sources:
                readers.setdefault(source, []).append(m)
        found: set[str] = set()
        for number, m in reversed(list(enumerate(self.maps))):
            if (
                self._is_child(m)
                and len(m.sources) == 1
                and all(reader.key in found for reader in readers.get(number, ()))
            ):
                found.add(m.key)
        return found


def run_with_maps(
    model: nn.Module,
    variables: Any,
    inputs: Sequence[jax.Array],
    visit: Callable[..., jax.Array],
    visit_output: Callable[..., jax.Array] | None = None,
) -> Any:
    """Runs a model on its inputs and passes every map that a module returns through `visit`.

    Args:
        model: a Flax Linen module.
        variables: the model's variables.
        inputs: images, NHWC, and the model's other inputs.
        visit: called with (key, x, module, inside, arguments of the module); returns x.
        visit_output: called with (x, module, inside) for outputs of the model's own parts that are not maps, such as
            logits for each region; returns x.
    """
    calls = 0
    # A model with several images for each sample may encode all of them in one batch.
    samples = inputs[0].shape[0]
    batches = (samples, samples * sum(x.shape == inputs[0].shape for x in inputs))

    def note(module, call, args, kwargs):
        nonlocal calls
        given = call(*args, **kwargs)
        number, calls = calls, calls + 1

        def visit_map(path, x):
            inside = jax.tree_util.keystr(path)
            if getattr(x, "ndim", 0) != 4 or x.shape[0] not in batches:
                if visit_output is None or len(module.path) != 1 or not isinstance(x, jax.Array):
                    return x
                return visit_output(x, module, inside)
            return visit(f"{number}{inside}", x, module, inside, (*args, *kwargs.values()))

        return jax.tree_util.tree_map_with_path(visit_map, given)

    # With the plain forms, every map exists and every upsampler and skip is called.
    with as_reference(model) as model, module_calls(note):
        return model.apply(variables, *inputs, train=False, method=inference_method(model))


def trace(model: nn.Module, variables: Any, *inputs: jax.ShapeDtypeStruct) -> Trace:
    """Finds the maps of a model and the data flow between them.

    Args:
        model: a Flax Linen module.
        variables: the model's variables; shapes are enough.
        *inputs: an image, NHWC, and the model's other inputs. All of its images are one map.
    """
    maps = [Map("", (), None, "", inputs[0].shape, False)]
    outputs: list[Output] = []
    containers: dict[str, list[jax.Array]] = {}
    parts: set[Path] = {()}
    upsamplers: dict[Path, str] = {}

    def visit(key, x, module, inside, args):
        maps.append(Map(key, module.path, module, inside, x.shape, not jnp.issubdtype(x.dtype, jnp.inexact)))
        given = containers.setdefault(key.removesuffix(inside), [])
        given.append(x)
        # Separate maps of several sizes do not count: a U-Net's block has two inputs.
        if any(_several_sizes(value) for value in (*args, given)):
            parts.add(module.path)
        match args:
            case (jax.Array(ndim=4) as before, (int(), int()), *_) if math.prod(before.shape[1:3]) < math.prod(
                x.shape[1:3]
            ):
                upsamplers[module.path] = type(module).__name__
        return checkpoint_name(x, str(len(maps) - 1))

    def visit_output(x, module, inside):
        outputs.append(Output(module.path, type(module).__name__, inside, x.shape))
        return checkpoint_name(x, f"output {len(outputs) - 1}")

    def run(variables, *inputs):
        marked = [checkpoint_name(x, "0") if x.shape == inputs[0].shape else x for x in inputs]
        return run_with_maps(model, variables, marked, visit, visit_output)

    program, result = jax.make_jaxpr(run, return_shape=True)(variables, *inputs)
    parts = {path for path in parts if all(path[:depth] in parts for depth in range(len(path)))}

    def is_shown(m: Map) -> bool:
        return bool(m.inside and m.path) if m.path in parts else m.path[:-1] in parts

    kept = [i for i, m in enumerate(maps) if i == 0 or is_shown(m)]
    maps = [maps[i] for i in kept]
    numbers = {str(i): new for new, i in enumerate(kept)}
    heads = [i for i, output in enumerate(outputs) if output.path not in parts]
    while True:
        nodes = dict(enumerate([*maps, *(outputs[i] for i in heads)])) | {_OTHER: Output((), "", "", ())}
        numbers |= {f"output {i}": _OTHER for i in range(len(outputs))}
        numbers |= {f"output {i}": len(maps) + new for new, i in enumerate(heads)}
        same: dict[int, int] = {}
        ends = _follow(program.jaxpr, [{} for _ in program.jaxpr.invars], numbers, nodes, same)
        # What a map is computed from is no head's output, but for example an encoder's tokens or an embedding of times.
        before = [source for m in maps for source in m.sources if source >= len(maps)]
        read: set[int] = set()
        while before:
            place = before.pop()
            if place >= len(maps) and place not in read:
                read.add(place)
                before.extend(nodes[place].sources)
        if not read:
            break
        heads = [i for place, i in enumerate(heads, len(maps)) if place not in read]
    outputs = [outputs[i] for i in heads]
    if outputs:
        kind = "output" if hasattr(result, "shape") else type(result).__name__
        for (path, leaf), marks in zip(jax.tree_util.tree_leaves_with_path(result), ends, strict=True):
            outputs.append(Output((), kind, jax.tree_util.keystr(path), leaf.shape, marks))
    images = sum(x.shape == inputs[0].shape for x in inputs)
    return _without(same, Trace(maps, outputs, parts, upsamplers, images))


def _without(same: dict[int, int], found: Trace) -> Trace:
    """Leaves out maps that a part only hands on from another part."""
    maps = found.maps
    same = {i: j for i, j in same.items() if i < len(maps) and found.part(maps[i]) != found.part(maps[j])}
    new: dict[int, int] = {}
    for i in range(len(maps) + len(found.outputs)):
        new[i] = new[same[i]] if i in same else len(set(new.values()))
    for node in (*maps, *found.outputs):
        node.sources = {new[i]: join for i, join in node.sources.items() if i != _OTHER}
    return dataclasses.replace(found, maps=[m for i, m in enumerate(maps) if i not in same])


def _several_sizes(value: Any) -> bool:
    leaves: Iterable[Any] = () if isinstance(value, jax.Array) else jax.tree.leaves(value)
    return len({x.shape[1:3] for x in leaves if getattr(x, "ndim", 0) == 4}) > 1


_OTHER = -1
"""The number of all outputs that are not shown, such as tokens."""

Marks = dict[int, str]
"""The maps that an array is computed from, each with the primitive that combined it with another, or empty."""


def _follow(
    program: Any, given: list[Marks], numbers: dict[str, int], nodes: dict[int, Any], same: dict[int, int]
) -> list[Marks]:
    """Propagates the marks through a traced program, from arguments to results.

    Records the sources of each map and output, and which of them are the `same` as an earlier one.
    """
    known: dict[Any, Marks] = dict(zip(program.invars, given, strict=True))
    marked: dict[Any, int] = {}

    def look_up(variable: Any) -> Marks:
        return {} if isinstance(variable, Literal) else known.get(variable, {})

    for equation in program.eqns:
        inputs = [look_up(variable) for variable in equation.invars]
        number = numbers.get(equation.params["name"]) if equation.primitive.name == "name" else None
        inner = called_program(equation)
        if number is not None:
            nodes[number].sources = inputs[0]
            outputs = [{number: ""}]
            if equation.invars[0] in marked:
                same[number] = marked[equation.invars[0]]
            marked[equation.outvars[0]] = number
        elif inner is not None and equation.primitive.name not in ("while", "scan"):
            outputs = _follow(inner, inputs, numbers, nodes, same)
        else:
            outputs = [_meet(equation.primitive.name, inputs)] * len(equation.outvars)
        known.update(zip(equation.outvars, outputs, strict=True))
    return [look_up(variable) for variable in program.outvars]


def _meet(primitive: str, inputs: list[Marks]) -> Marks:
    inputs = [marks for marks in inputs if marks]
    differ = any(marks.keys() != inputs[0].keys() for marks in inputs)
    met: Marks = {}
    for marks in inputs:
        for mark, join in marks.items():
            met[mark] = met.get(mark) or join or (primitive if differ else "")
    return met
