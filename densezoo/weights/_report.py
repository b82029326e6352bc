"""What does not fit between a checkpoint and a model, in one message."""

import dataclasses
import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

import flax.linen as nn

from densezoo.messages import shortened
from densezoo.weights._fingerprints import identify, name_of
from densezoo.weights._slots import Slot, choose, parts_of, slots_of, stem_path

_SHOWN = 6


@dataclasses.dataclass
class Misfit:
    """Collects what does not fit; true if there is anything.

    Attributes:
      source: where the checkpoint came from.
      model: what is to be filled.
      part: the part of it that is, None for all.
      slots: its arrays.
      came: names and shapes of the checkpoint.
      missing: names that the checkpoint lacks.
      left_over: names that the model has no place for.
      wrong: names with what came and what was expected.
      unnamed: paths of the model's arrays for which no name is known.
    """

    source: str
    model: nn.Module
    part: str | None
    slots: Sequence[Slot]
    came: Mapping[str, tuple[int, ...]]
    missing: list[str] = dataclasses.field(default_factory=list)
    left_over: list[str] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)
    unnamed: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.left_over or self.wrong or self.unnamed)

    def message(self, *, strict: bool) -> str:
        """All of it, hints first, then a line for each kind; `strict` says whether it stopped the loading."""
        what = "the model" if self.part is None else f"the model's {self.part}"
        lines = [f"{self.source} does not fit {what}" + (":" if strict else " in everything; the rest is new:")]
        lines += [f"  {hint}" for hint in (self._another_encoder() or self._hints(strict))]
        for kind, items in (
            ("missing in the checkpoint", self.missing),
            ("left over in the checkpoint", self.left_over),
            ("of another shape or type", self.wrong),
            ("in the model but in no known naming", self.unnamed),
        ):
            if items:
                lines.append(f"  {len(items)} {kind}: {shortened(items)}")
        return "\n".join(lines)

    def _another_encoder(self) -> list[str]:
        parts = parts_of(self.model)
        name = next(iter(parts)) if len(parts) == 1 else "encoder"
        if name not in parts or self.part not in (None, name):
            return []
        slots = [slot for slot in self.slots if not name or slot.path[1] == name]
        if all(self._fits(slot) for slot in slots):
            return []
        shapes = {slot.path: slot.shape for slot in slots}
        came, ours = identify(self.came), name_of(shapes, stem_path(self.model))
        if not came or ours in came:
            return []
        described = ours or f"another {type(parts[name]).__name__}"
        return [f"This looks like a checkpoint over {came[0]}; the model's encoder is {described}."]

    def _hints(self, strict: bool) -> list[str]:
        if not any(slot.name in self.came for slot in self.slots):
            return self._no_name_fits()
        hints = []
        parts = [part for part in parts_of(self.model) if part and self.part is None]
        slots = {part: [slot for slot in self.slots if slot.path[1] == part] for part in parts}
        whole = [part for part in parts if all(map(self._fits, slots[part]))]
        # A bias or a norm may have the right number of channels by chance.
        absent = [part for part in parts if not any(self._fits(s) for s in slots[part] if len(s.shape) > 1)]
        if whole and absent and strict:
            hints.append(f"It fits the {' and the '.join(whole)}, and nothing of the {' and the '.join(absent)}.")
            if not self.left_over and len(whole) == 1:
                hints.append(f"To initialise the others: part={whole[0]!r}.")
            elif not self.left_over:
                hints.append(f"To initialise the {' and the '.join(absent)} anew: strict=False.")
        if 0 < len(self.missing) <= _SHOWN:
            expected = {slot.name: slot.shape_there for slot in self.slots}
            for name in self.missing:
                alike = [other for other in self.left_over if self.came[other] == expected[name]]
                if near := difflib.get_close_matches(name, alike, n=1):
                    hints.append(f"Perhaps renamed: {near[0]} came, {name} was expected.")
        if not hints and strict and not self.left_over and not self.unnamed:
            hints.append("All of the checkpoint has its place: strict=False initialises what is missing or differs.")
        return hints

    def _no_name_fits(self) -> list[str]:
        hints = ["No name fits: see docs/weights.md for the namings that are known."]
        if not self.left_over:
            hints.append(f"The checkpoint has {shortened(list(self.came))}.")
        prefix, count = Counter(name.split(".")[0] + "." for name in self.came).most_common(1)[0]
        shorter = {name.removeprefix(prefix) for name in self.came}
        tree = {slot.path: slot for slot in self.slots}
        parts = {name: module for name, module in parts_of(self.model).items() if self.part in (None, name)}
        namings = choose(parts, tree, shorter)
        if any(slot.name in shorter for name, naming in namings.items() for slot in slots_of(name, tree, naming)):
            hints.append(f"`{prefix}` is before {count} of {len(self.came)} names; pass them without it.")
        return hints

    def _fits(self, slot: Slot) -> bool:
        return slot.name is not None and self.came.get(slot.name) == slot.shape_there
