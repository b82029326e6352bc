"""Error reports about mismatches between a checkpoint and a model."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import flax.linen as nn

from densezoo.encoders import ENCODERS
from densezoo.messages import shortened
from densezoo.weights._conventions import difference
from densezoo.weights._fingerprints import identify, names_of
from densezoo.weights._parameters import Parameter, parts_of, stem_path

_SHOWN = 6


@dataclasses.dataclass
class Report:
    """Mismatches between a checkpoint and a model; truthy if there are any.

    Attributes:
        source: the source of the checkpoint.
        model: the model to load into.
        part: the part of the model to load, None for all.
        parameters: the arrays of the model.
        came: names and shapes in the checkpoint.
        missing: names that the checkpoint lacks.
        unexpected: names in the checkpoint without an array in the model.
        mismatched: names with another shape or dtype, with the found and the expected ones.
        unnamed: paths of the model's arrays without a known name.
    """

    source: str
    model: nn.Module
    part: str | None
    parameters: Sequence[Parameter]
    came: Mapping[str, tuple[int, ...]]
    missing: list[str] = dataclasses.field(default_factory=list)
    unexpected: list[str] = dataclasses.field(default_factory=list)
    mismatched: list[str] = dataclasses.field(default_factory=list)
    unnamed: list[str] = dataclasses.field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched or self.unnamed)

    def message(self, *, strict: bool) -> str:
        """The report, hints first, then a line for each kind; `strict` says whether loading failed."""
        what = "the model" if self.part is None else f"the model's {self.part}"
        lines = [f"{self.source} does not fit {what}" + (":" if strict else " in everything; the rest is new:")]
        lines += [f"  {hint}" for hint in (self._another_encoder() or self._hints(strict))]
        for kind, items in (
            ("missing in the checkpoint", self.missing),
            ("unexpected in the checkpoint", self.unexpected),
            ("mismatched in shape or type", self.mismatched),
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
        parameters = [p for p in self.parameters if not name or p.path[1] == name]
        if all(map(self._fits, parameters)):
            return []
        shapes = {p.path: p.shape for p in parameters}
        came, alike = identify(self.came), names_of(shapes, stem_path(self.model))
        ours = [n for n in alike if not difference(ENCODERS[n](), parts[name])]
        if not came or set(ours) & set(came):
            return []
        described = ours[0] if ours else f"another {type(parts[name]).__name__}"
        hints = [f"This looks like a checkpoint over {came[0]}; the model's encoder is {described}."]
        if came[0] in alike and (lines := difference(ENCODERS[came[0]](), parts[name])):
            hints.append(f"{came[0]} has {', and '.join(lines)}.")
        return hints

    def _hints(self, strict: bool) -> list[str]:
        if not any(p.name in self.came for p in self.parameters):
            return self._no_name_fits()
        hints = []
        parts = [part for part in parts_of(self.model) if part and self.part is None]
        parameters = {part: [p for p in self.parameters if p.path[1] == part] for part in parts}
        whole = [part for part in parts if all(map(self._fits, parameters[part]))]
        # A bias or a norm may have the right number of channels by chance.
        absent = [part for part in parts if not any(self._fits(p) for p in parameters[part] if len(p.shape) > 1)]
        if whole and absent and strict:
            hints.append(f"It fits the {' and the '.join(whole)}, and nothing of the {' and the '.join(absent)}.")
            if not self.unexpected and len(whole) == 1:
                hints.append(f"To initialise the others: part={whole[0]!r}.")
            elif not self.unexpected:
                hints.append(f"To initialise the {' and the '.join(absent)} anew: strict=False.")
        if 0 < len(self.missing) <= _SHOWN:
            expected = {p.name: p.shape_there for p in self.parameters}
            for name in self.missing:
                alike = [other for other in self.unexpected if self.came[other] == expected[name]]
                if near := difflib.get_close_matches(name, alike, n=1):
                    hints.append(f"Perhaps renamed: {near[0]} came, {name} was expected.")
        if not hints and strict and not self.unexpected and not self.unnamed:
            hints.append("All other arrays match: strict=False initialises what is missing or differs.")
        return hints

    def _no_name_fits(self) -> list[str]:
        hints = ['No name matches: the guide "Weights" lists the supported names.']
        if not self.unexpected:
            hints.append(f"The checkpoint has {shortened(list(self.came))}.")
        return hints

    def _fits(self, parameter: Parameter) -> bool:
        return parameter.name is not None and self.came.get(parameter.name) == parameter.shape_there
