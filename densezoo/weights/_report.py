"""What does not fit between a checkpoint and a model, in one message."""

import dataclasses
import re
from collections.abc import Mapping

from densezoo.encoders import ENCODERS, VGG, ResNet

_SHOWN = 6
Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass
class Misfit:
    """Collects what does not fit; true if there is anything.

    Attributes:
      source: where the checkpoint came from.
      expected: names and shapes of the model, as the checkpoint should have them.
      came: names and shapes of the checkpoint.
      missing: names that the checkpoint lacks.
      left_over: names that the model has no place for.
      wrong: names with what came and what was expected.
      unnamed: paths of the model's arrays for which no name is known.
    """

    source: str
    expected: Shapes
    came: Shapes
    missing: list[str] = dataclasses.field(default_factory=list)
    left_over: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    unnamed: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.wrong or self.unnamed)

    def message(self, *, strict: bool) -> str:
        """All of it, hints first, then a line for each kind; `strict` says whether it stopped the loading."""
        lines = [f"{self.source} does not fit the model" + (":" if strict else " in everything; the rest is new:")]
        lines += [f"  {hint}" for hint in self._hints(strict)]
        for what, items in (
            ("missing in the checkpoint", self.missing),
            ("left over in the checkpoint", self.left_over),
            ("of another shape or type", self.wrong),
            ("in the model but in no known naming", self.unnamed),
        ):
            if items:
                more = f"; and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
                lines.append(f"  {len(items)} {what}: {'; '.join(items[:_SHOWN])}{more}")
        return "\n".join(lines)

    def _hints(self, strict: bool) -> list[str]:
        hints = []
        came, expected = identify(self.came), identify(self.expected)
        if came and expected and came != expected:
            hints.append(f"This looks like a checkpoint over {came}; the model's encoder looks like {expected}.")
        elif not any(name in self.came for name in self.expected):
            hints.append("No name fits: see docs/weights.md for the namings that are known.")
        elif strict and not self.left_over:
            hints.append("All of the checkpoint has its place: strict=False initialises what is missing or differs.")
        return hints


def identify(shapes: Shapes) -> str | None:
    """The encoder of the zoo whose weights these look like, as far as a glance tells."""
    blocks = _found(r"(?:.*\.)?layer(\d)\.(\d+)\.conv(\d)\.weight", shapes)
    layers = _found(r"(?:.*\.)?features\.(\d+)\.weight", shapes)
    for name, constructor in ENCODERS.items():
        encoder = constructor()
        if isinstance(encoder, ResNet) and (1, 0, 2) in blocks and _is_resnet(encoder, blocks):
            return name
        if isinstance(encoder, VGG) and layers and _vgg_layers(encoder) == {k: len(v) for (k,), v in layers.items()}:
            return name
    return None


def _found(pattern: str, shapes: Shapes) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Shapes by the numbers in their names."""
    found = {}
    for name, shape in shapes.items():
        match = re.fullmatch(pattern, name)
        if match:
            found[tuple(map(int, match.groups()))] = shape
    return found


def _is_resnet(encoder: ResNet, blocks: dict[tuple[int, ...], tuple[int, ...]]) -> bool:
    stages = {stage for stage, _, _ in blocks}
    sizes = tuple(len({block for stage, block, _ in blocks if stage == s}) for s in sorted(stages))
    options = getattr(encoder.block, "keywords", {})
    expansion = getattr(encoder.block, "func", encoder.block).expansion  # pyright: ignore[reportFunctionMemberAccess]
    groups = options.get("groups", 1)
    width = encoder.width * options.get("group_width", 64) // 64 * groups
    has_third = any(conv == 3 for _, _, conv in blocks)
    same_depth = sizes == tuple(encoder.stage_sizes) and has_third == (expansion > 1)
    return same_depth and blocks[1, 0, 2][:2] == (width, width // groups)


def _vgg_layers(encoder: VGG) -> dict[int, int]:
    """Position in torchvision's list of layers -> number of axes of its weight."""
    layers, position = {}, 0
    for size in encoder.stage_sizes:
        for _ in range(size):
            layers[position] = 4
            if encoder.norm is not None:
                layers[position + 1] = 1
            position += 2 if encoder.norm is None else 3
        position += 1
    return layers
