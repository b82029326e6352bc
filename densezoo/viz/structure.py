"""A model's architecture, derived from the model: its maps as boxes, and their dependencies as links."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from densezoo.blocks import ConcatSkip, LateralAdd
from densezoo.inputs import example_inputs
from densezoo.types import Size
from densezoo.viz.tracing import Map, Trace, trace

_JOINS = {"concatenate": "concat", "add": "add", "add_any": "add", "mul": "multiply"}
"""Display names of the primitives that combine maps."""
_LATERAL = "lateral"
"""The join of a `LateralAdd`, which is shown as `1x1, add` for the skip and as `add` for the other input."""


@dataclasses.dataclass(frozen=True)
class Box:
    """A map of the model: the last one in a chain of maps of the same size.

    Attributes:
        name: the module or output that it comes from, such as `encoder.maps[1]` or `decoder.block0`.
        column: the part that it belongs to, such as `encoder`, `decoder.top_down`, `head`; `image` for the input.
        size: (height, width).
        channels: number of channels.
        stride: image size divided by `size`, rounded.
        upsample: class of the upsampler that enlarged a map to this size; empty if there is none.
        key: identifies the map in a run of the model (`viz.tracing.run_with_maps`).
    """

    name: str
    column: str
    size: Size
    channels: int
    stride: int
    upsample: str
    key: str


@dataclasses.dataclass(frozen=True)
class Link:
    """A dependency of one map on another.

    Attributes:
        start: index of the source box.
        end: index of the target box.
        kind: `skip` to a map of the same size that has other inputs too; `head` to the model's logits; otherwise
          `down` to a coarser map, `up` to a finer one, `forward` at the same size.
        join: how it is combined with the other inputs of `end`: `concat`, `add`, `indices` (pooling indices for
          unpooling) or another primitive's name; empty if there are no other inputs.
        projection: `1x1` for a skip that a `LateralAdd` first projects by a 1x1 convolution; else empty.
    """

    start: int
    end: int
    kind: str
    join: str
    projection: str = ""

    @property
    def words(self) -> str:
        """What happens to a skip, such as `concat` or `1x1, add`."""
        return f"{self.projection}, {self.join}" if self.projection else self.join


@dataclasses.dataclass(frozen=True)
class Head:
    """A head of a detector that predicts for anchors or regions, or the detections at the end.

    Attributes:
        name: such as `box_head`; empty for the detections.
        kind: its class.
        outputs: name and shape, without the batch, of each array that it gives; names may be empty.
        maps: indices of the boxes that it reads.
        heads: indices of the heads that come directly before it.
    """

    name: str
    kind: str
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    maps: tuple[int, ...]
    heads: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model's boxes and links.

    Attributes:
        title: class names of the model's parts.
        boxes: the maps, roughly in the order in which they are computed; the first one is the image, or the images that
          the model takes together.
        links: the dependencies between the boxes.
        parameters: number of values in the collection `params`.
        heads: a detector's heads, in the order in which they run; the detections are the last.
    """

    title: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]
    parameters: int
    heads: tuple[Head, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The parts, in the order of their first maps."""
        return tuple(dict.fromkeys(box.column for box in self.boxes))

    @property
    def encoder(self) -> str:
        """The part whose input is the image."""
        return next(self.boxes[link.end].column for link in self.links if link.start == 0)


def architecture(model: nn.Module, *, image_size: Size = (256, 256), channels: int = 3) -> Architecture:
    """Derives a model's maps and their data flow from the model, without computing them.

    Parts whose inputs or outputs are maps of several sizes (encoder, decoder, a pyramid in it) are shown in detail.
    Other modules are not, and consecutive maps of the same size form one box.

    Args:
        model: a model of images, for example from `create_model`.
        image_size: (height, width) of the input image; powers of 2 give exact strides.
        channels: channels of the input image.

    Raises:
        TypeError: if `model` is not a Flax Linen module.
        ValueError: if the parts do not fit together, or no module returns a map.

    Example:
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder(features=(8, 16)), num_classes=2)
        >>> read = architecture(model)
        >>> [(box.name, box.stride, box.channels) for box in read.boxes if box.column == "encoder"]
        [('encoder.maps[0]', 1, 8), ('encoder.maps[1]', 2, 16)]
        >>> [link.join for link in read.links if link.kind == "skip"]
        ['concat']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a Flax Linen module, for example from create_model; got {type(model).__name__}")
    inputs = example_inputs(model, jax.ShapeDtypeStruct((1, *image_size, channels), jnp.float32))
    variables = jax.eval_shape(lambda *inputs: model.init(jax.random.key(0), *inputs), *inputs)
    found = trace(model, variables, *inputs)
    if len(found.maps) == 1:
        raise ValueError(f"no module in {type(model).__name__} returns a map of shape (b, h, w, c)")
    groups = _group(found)
    parts = dict.fromkeys(m.path[0] for m in found.maps[1:] if m.path[:1] in found.parts)
    classes = dict.fromkeys(type(getattr(model, name, model)).__name__ for name in parts)
    return Architecture(
        title=", ".join(classes) or type(model).__name__,
        boxes=tuple(_box(found, group, image_size) for group in groups),
        links=_links(found, groups),
        parameters=sum(x.size for x in jax.tree.leaves(variables.get("params", {}))),
        heads=_heads(found, groups),
    )


def _heads(found: Trace, groups: list[list[int]]) -> tuple[Head, ...]:
    box_of = {i: box for box, group in enumerate(groups) for i in group}
    paths = list(dict.fromkeys(output.path for output in found.outputs))
    head_of = {len(found.maps) + i: paths.index(output.path) for i, output in enumerate(found.outputs)}
    heads, before = [], []
    for number, path in enumerate(paths):
        outputs = [output for output in found.outputs if output.path == path and output.sources]
        sources = {source for output in outputs for source in output.sources}
        earlier = {head_of[source] for source in sources if source in head_of} - {number}
        # Those before the ones that come directly before it are left out.
        direct = earlier - {further for head in earlier for further in before[head]}
        before.append(earlier | {further for head in earlier for further in before[head]})
        heads.append(
            Head(
                ".".join(path),
                next(output.kind for output in found.outputs if output.path == path),
                tuple((output.inside.rsplit(".")[-1].split("[")[0], _of_one_image(output.shape)) for output in outputs),
                tuple(sorted({box_of[source] for source in sources if source in box_of})),
                tuple(sorted(direct)),
            )
        )
    return tuple(heads)


def _of_one_image(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the batch. Heads of regions have those of all images as their batch."""
    return shape[1:] if shape[:1] == (1,) else shape


def _group(found: Trace) -> list[list[int]]:
    """Groups the maps into boxes: consecutive maps of one part at one size."""
    member: dict[int, int] = {}
    groups: dict[int, list[int]] = {}
    for i, m in enumerate(found.maps):
        if m.integer and m.sources:  # Pooling indices belong to the pooled map.
            joined = [member[next(iter(m.sources))]]
        else:
            within = [s for s in m.sources if not found.maps[s].integer and found.part(found.maps[s]) == found.part(m)]
            # A map whose input has another size starts a new box.
            same_size = all(found.maps[s].size == m.size for s in within)
            joined = sorted({member[s] for s in within}) if same_size else []
        target = joined[0] if joined else i
        groups[target] = sorted([i, *(other for group in joined for other in groups.pop(group))])
        member |= dict.fromkeys(groups[target], target)

    def when(group: list[int]) -> int:
        # A part returns the maps of a container at its end.
        return max((i for i in group if not found.maps[i].inside), default=group[-1])

    return sorted(groups.values(), key=when)


def _box(found: Trace, group: list[int], image_size: Size) -> Box:
    maps = [found.maps[i] for i in group]
    last, part = _last(maps), found.part(_last(maps))
    if last.module is None:
        name = "image" if found.images == 1 else f"{found.images} images"
        return Box(name, part[0], last.size, last.shape[-1], 1, "", last.key)
    # An automatically named module, such as Dropout_0, computes the part's own result.
    unnamed = last.path[-1].startswith(f"{type(last.module).__name__}_")
    return Box(
        name=".".join(part if unnamed else last.path) + last.inside,
        column=".".join(part) or "model",
        size=last.size,
        channels=last.shape[-1],
        stride=max(1, round(image_size[0] / last.size[0])),
        upsample=", ".join(dict.fromkeys(name for m in maps for name in _upsamplers(found, m))),
        key=last.key,
    )


def _last(maps: list[Map]) -> Map:
    return next((m for m in reversed(maps) if not m.integer), maps[-1])


def _upsamplers(found: Trace, m: Map) -> list[str]:
    """Classes of the outermost upsamplers in the module that computed a map. A head is not one, but may contain one."""
    if m.path in found.parts:
        return []
    inside = {path: name for path, name in found.upsamplers.items() if path[: len(m.path)] == m.path and len(path) > 1}
    return [name for path, name in inside.items() if not any(path[:depth] in inside for depth in range(len(path)))]


def _links(found: Trace, groups: list[list[int]]) -> tuple[Link, ...]:
    box_of = {i: box for box, group in enumerate(groups) for i in group}
    joins: dict[tuple[int, int], str] = {}
    for end, group in enumerate(groups):
        for i in group:
            for source in found.maps[i].sources:
                start = box_of[source]
                if start != end:
                    joins[start, end] = joins.get((start, end)) or _join(found, group, i, source)
        into = [link for link in joins if link[1] == end]
        if any(joins[link] == "indices" for link in into):
            joins |= dict.fromkeys(into, "indices")
    last = [_last([found.maps[i] for i in group]) for group in groups]
    encoder = next(last[end].path[:1] for start, end in joins if start == 0)

    def kind(start: int, end: int, join: str) -> str:
        before, after = last[start], last[end]
        if found.is_head(after):
            return "head"
        # A skip within a decoder also counts, if the decoder has several maps at a scale or contains the encoder.
        may_skip = after.path[:1] != encoder and (before.path[:1] == encoder or found.part(before) == found.part(after))
        if may_skip and join and (before.size == after.size or (join == "indices" and only_indices(start, end))):
            return "skip"
        if before.size == after.size:
            return "forward"
        return "down" if before.size[0] * before.size[1] > after.size[0] * after.size[1] else "up"

    def only_indices(start: int, end: int) -> bool:
        return all(found.maps[s].integer for i in groups[end] for s in found.maps[i].sources if box_of[s] == start)

    def link(start: int, end: int, join: str) -> Link:
        found_kind = kind(start, end, join)
        if join != _LATERAL:
            return Link(start, end, found_kind, join)
        return Link(start, end, found_kind, "add", "1x1" if found_kind == "skip" else "")

    return tuple(link(*ends, join) for ends, join in joins.items())


def _join(found: Trace, group: list[int], i: int, source: int) -> str:
    """How `source`, an input of the box's map `i`, is combined with the box's other inputs."""
    if found.maps[source].integer:
        return "indices"
    while True:
        if primitive := found.maps[i].sources[source]:
            return _skip_class(found.maps[i].module) or _JOINS.get(primitive, primitive)
        following = [j for j in group if i in found.maps[j].sources]
        if not following:
            return ""
        source, i = i, following[0]


def _skip_class(module: nn.Module | None) -> str:
    """The join implied by the skip's class: a fused block does not build the concatenated map."""
    skip = getattr(module, "skip", type(module))
    skip = skip.func if isinstance(skip, partial) else skip
    known = {ConcatSkip: "concat", LateralAdd: _LATERAL}
    return next((name for cls, name in known.items() if isinstance(skip, type) and issubclass(skip, cls)), "")
