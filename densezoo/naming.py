"""Tables that map densezoo's parameter names to the names in a reference implementation.

densezoo's parameters have paths such as `layer1_0/conv2/norm`. A naming maps the path to the module's name in the
reference, such as `layer1.0.bn2`. The method `reference_names` of encoders, decoders, necks and heads returns their
namings. The names and axis order of the arrays in a module only depend on the kind of array: see `LEAVES` and
`KERNELS`.
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
SNUNET = "SNUNet's authors"
DIFFUSERS = "diffusers"
TRANSFORMERS = "transformers"
"""Sources of the names."""

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Maps densezoo's array names to the reference's."""

KERNELS = {"conv": (2, 3, 1, 0), "conv_transpose": (2, 3, 0, 1), "dense": (1, 0)}
"""For each kind of kernel, the transposition from the reference's axes: OIHW to HWIO, IOHW to HWIO, OI to IO."""

COLUMN = "column"
"""The kind of an array that is a vector in densezoo and (channels, 1, 1) in the reference."""

NEVER_NEEDED = r"(.*\.)?num_batches_tracked|classification_head\..*"
"""Names in references that no densezoo model has: a counter, and smp's auxiliary classifier."""


class Rule(NamedTuple):
    """A pattern of densezoo's paths, the reference's name (a template or a function of the match), the kernels' kind.

    The path is that of a module, whose arrays have the names in `LEAVES`, or that of another array, such as
    `stage0_block1/gamma`. In the second case, the name is the array's full name in the reference.

    A name with braces, such as "self.{key,value}", is for several arrays in the reference, whose outputs follow each
    other in densezoo's array: see `spelled_out`.
    """

    path: str
    name: str | Callable[[re.Match[str]], str]
    kernel: str = "conv"


@dataclasses.dataclass(frozen=True)
class Naming:
    """One reference's names of a module's parameters.

    Attributes:
        source: the source of the names, for messages.
        rules: rules in order of priority. The first rule whose pattern matches the whole path applies.
        prefix: prefix of every name.
        ignored: a pattern of the reference's names that have no counterpart in densezoo's module.
        epsilon: epsilon of the reference's batch norms, if the names determine it. If the model's epsilon differs, the
            running variances are changed to compensate, which gives the same results.
        differs: how the reference's computation differs from this module; empty if it does not.
    """

    source: str
    rules: Sequence[Rule]
    prefix: str = ""
    ignored: str = ""
    epsilon: float | None = None
    differs: str = ""

    def find(self, path: str) -> tuple[str, str] | None:
        """Returns the reference's name of the module at `path` and its kernel's kind, or None if it has none."""
        for rule in self.rules:
            match = re.fullmatch(rule.path, path)
            if match:
                name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                return self.prefix + name, rule.kernel
        return None


@runtime_checkable
class Named(Protocol):
    """A module that defines how references name its parameters."""

    def reference_names(self) -> Sequence[Naming]:
        """Returns the namings of its parameters, the most common one first."""
        ...


def spelled_out(name: str) -> list[str]:
    """The names of the arrays in the reference that make up one array in densezoo.

    Example:
        >>> spelled_out("attention.self.{key,value}.weight")
        ['attention.self.key.weight', 'attention.self.value.weight']
    """
    start, _, rest = name.partition("{")
    choices, _, end = rest.partition("}")
    return [f"{start}{choice}{end}" for choice in choices.split(",")]


def backbone(rules: Sequence[Rule], *, wrapped: bool = False) -> list[Naming]:
    """Returns the namings of a backbone of torchvision or timm, on its own or within a larger model.

    `wrapped` means that segmentation_models_pytorch only has it as a "tu-" encoder. Those names then come first.
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
    """Adds a pattern of ignored names (after the prefix) to each naming."""

    def extended(naming: Naming) -> str:
        mine = re.escape(naming.prefix) + f"(?:{pattern})"
        return f"{naming.ignored}|{mine}" if naming.ignored else mine

    return [dataclasses.replace(naming, ignored=extended(naming)) for naming in namings]


def dilated(namings: Sequence[Naming], output_stride: int, *, dilate_first: bool) -> list[Naming]:
    """Marks the namings of an encoder whose dilation differs from torchvision's segmentation models."""
    differs = f"its encoder is dilated: output_stride={output_stride}, dilate_first={dilate_first}"
    return [dataclasses.replace(n, differs=differs) if n.source == TORCHVISION else n for n in namings]
