"""The form of a table of names: how a reference calls the modules of a family, and what their arrays are called.

A module's parameters are here under paths such as `layer1_0/conv2/norm`; a naming gives the name of that module in the
reference, `layer1.0.bn2`. Encoders, decoders, necks and heads give theirs by a method `reference_names`. What the
arrays in a module are called, and the order of their axes, depends on the array alone: `LEAVES` and `KERNELS`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

SMP = "segmentation_models_pytorch"
TIMM = "torchvision and timm"
DETECTORS = "torchvision's detectors"
TORCHVISION = "torchvision's segmentation models"
PLAIN = "plain U-Nets"
HRNET = "HRNet's authors"
"""Whose names a naming has."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Names of arrays here to names there."""

KERNELS = {"conv": (2, 3, 1, 0), "conv_transpose": (2, 3, 0, 1), "dense": (1, 0)}
"""For each kind of kernel, which axis there becomes each axis here: OIHW to HWIO, IOHW to HWIO, OI to IO."""

COLUMN = "column"
"""The kind of an array that is a vector here and (channels, 1, 1) there."""

NEVER_NEEDED = r"(.*\.)?num_batches_tracked|classification_head\..*"
"""Names that no model here has a place for: a counter, and smp's auxiliary classifier."""


class Rule(NamedTuple):
    """A pattern of paths here, the name there (a template of the match, or a function of it), and the kernels' kind.

    A path is that of a module, whose arrays have the names of `LEAVES`; or that of an array that is not one of those,
    such as `stage0_block1/gamma`, and then the name there is the array's own.
    """

    path: str
    name: str | Callable[[re.Match[str]], str]
    kernel: str = "conv"


@dataclasses.dataclass(frozen=True)
class Naming:
    """One way in which references name a module's parameters.

    Attributes:
      source: whose names they are, for messages.
      rules: the first whose pattern is the whole path counts.
      prefix: before every name.
      ignored: a pattern of names that belong to the reference's version of this module, and that have no place here.
      epsilon: of the reference's batch norms, where the names tell it. Another one here goes into the running
        variances, which gives the same results.
      differs: what the reference of these names computes in another way than this module; empty for nothing.
    """

    source: str
    rules: Sequence[Rule]
    prefix: str = ""
    ignored: str = ""
    epsilon: float | None = None
    differs: str = ""

    def find(self, path: str) -> tuple[str, str] | None:
        """The name of the module at `path`, and its kernel's kind; None if the reference has no such module."""
        for rule in self.rules:
            match = re.fullmatch(rule.path, path)
            if match:
                name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                return self.prefix + name, rule.kernel
        return None


@runtime_checkable
class Named(Protocol):
    """A module that knows how references name its parameters."""

    def reference_names(self) -> Sequence[Naming]:
        """The ways in which references name them, the usual one first."""
        ...


def backbone(rules: Sequence[Rule], *, wrapped: bool = False) -> list[Naming]:
    """The places where a backbone from torchvision or timm is found: on its own, or within a larger model.

    `wrapped` says that segmentation_models_pytorch has it as a "tu-" encoder only, whose names come first then.
    """
    within = [Naming(SMP, rules, prefix) for prefix in ("encoder.", "encoder.model.")]
    return [
        *(reversed(within) if wrapped else within),
        Naming(TIMM, rules, "", ignored=r"(fc|classifier|head|pre_logits)\..*"),
        Naming(DETECTORS, rules, "backbone.body."),
        Naming(DETECTORS, rules, "body."),
        Naming(TORCHVISION, rules, "backbone."),
    ]


def ignoring(namings: Sequence[Naming], pattern: str) -> list[Naming]:
    """The namings with another pattern of names (after the prefix) that have no place here."""

    def extended(naming: Naming) -> str:
        mine = re.escape(naming.prefix) + f"(?:{pattern})"
        return f"{naming.ignored}|{mine}" if naming.ignored else mine

    return [dataclasses.replace(naming, ignored=extended(naming)) for naming in namings]


def dilated(namings: Sequence[Naming], output_stride: int, *, dilate_first: bool) -> list[Naming]:
    """The namings of an encoder that is not dilated as torchvision's segmentation models have it."""
    differs = f"its encoder is dilated: output_stride={output_stride}, dilate_first={dilate_first}"
    return [dataclasses.replace(n, differs=differs) if n.source == TORCHVISION else n for n in namings]
