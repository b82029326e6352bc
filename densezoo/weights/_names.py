"""How references name the parameters of the encoders, decoders, necks and heads here: a table a family.

A module's parameters lie here under paths such as `layer1_0/conv2/norm`; a naming says what a reference calls that
module, `layer1.0.bn2`. What the arrays in a module are called, and how their axes lie, depends on the array alone and
is in `LEAVES` and `KERNELS`. A further family adds a function that gives its namings, and a line in `FAMILIES`.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from densezoo.decoders import FPNDecoder, FPNNeck, SegNetDecoder, UNetDecoder
from densezoo.encoders import VGG, PlainEncoder, ResNet
from densezoo.heads import SegmentationHead

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
"""Names of arrays here to names there."""

KERNELS = {"conv": (2, 3, 1, 0), "conv_transpose": (2, 3, 0, 1), "dense": (1, 0)}
"""For each kind of kernel, which axis there becomes each axis here: OIHW to HWIO, IOHW to HWIO, OI to IO."""

NEVER_NEEDED = r"(.*\.)?num_batches_tracked|classification_head\..*"
"""Names that no model here has a place for: a counter, and smp's auxiliary classifier."""


class Rule(NamedTuple):
    """A pattern of paths here, the name there (a template of the match, or a function of it), and the kernels' kind."""

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
    """

    source: str
    rules: Sequence[Rule]
    prefix: str = ""
    ignored: str = ""

    def find(self, path: str) -> tuple[str, str] | None:
        """The name of the module at `path`, and its kernel's kind; None if the reference has no such module."""
        for rule in self.rules:
            match = re.fullmatch(rule.path, path)
            if match:
                name = match.expand(rule.name) if isinstance(rule.name, str) else rule.name(match)
                return self.prefix + name, rule.kernel
        return None


class Family(NamedTuple):
    """The namings of a class of modules, and for an encoder the path of its first convolution."""

    namings: Callable[[Any], Sequence[Naming]]
    stem: str | None = None


def _backbone(rules: Sequence[Rule]) -> list[Naming]:
    """The places where a backbone from torchvision or timm is found: on its own, or within a larger model."""
    return [
        Naming("segmentation_models_pytorch", rules, "encoder."),
        Naming("torchvision and timm", rules, "", ignored=r"(fc|classifier|head|pre_logits)\..*"),
        Naming("torchvision's detectors", rules, "backbone.body."),
        Naming("torchvision's detectors", rules, "body."),
        Naming("torchvision's segmentation models", rules, "backbone."),
        Naming("segmentation_models_pytorch", rules, "encoder.model."),  # its "tu-" encoders
    ]


def _resnet(encoder: ResNet) -> list[Naming]:
    return _backbone(
        [
            Rule(r"conv1/conv", "conv1"),
            Rule(r"conv1/norm", "bn1"),
            Rule(r"layer(\d)_(\d+)/conv(\d)/conv", r"layer\1.\2.conv\3"),
            Rule(r"layer(\d)_(\d+)/conv(\d)/norm", r"layer\1.\2.bn\3"),
            Rule(r"layer(\d)_(\d+)/downsample/conv", r"layer\1.\2.downsample.0"),
            Rule(r"layer(\d)_(\d+)/downsample/norm", r"layer\1.\2.downsample.1"),
        ]
    )


def _vgg(encoder: VGG) -> list[Naming]:
    return _backbone([Rule(r"features_(\d+)", r"features.\1")])


def _in_double_conv(norm: Any, match: re.Match[str]) -> int:
    """Place of a convolution or norm in the sequence (convolution, norm, activation) twice; or without the norms."""
    return (int(match[2]) - 1) * (2 if norm is None else 3) + (match[3] == "norm")


# The plain U-Nets that people write have modules inc, down1.., up1.., outc, and differ in what is between them and the
# double convolution: (inc, down, up).
_PLAIN_FORMS = (
    ("inc.double_conv", "down{}.maxpool_conv.1.double_conv", "up{}.conv.double_conv"),
    ("inc.double_conv", "down{}.1.double_conv", "conv{}.double_conv"),
    ("inc.double_conv", "down{}.double_conv", "up{}.double_conv"),
    ("inc.conv.conv", "down{}.mpconv.1.conv", "up{}.conv.conv"),
)
PLAIN = "plain U-Nets"


def _plain_encoder(encoder: PlainEncoder) -> list[Naming]:
    def naming(inc: str, down: str) -> Naming:
        def name(match: re.Match[str]) -> str:
            level = int(match[1])
            return f"{down.format(level) if level else inc}.{_in_double_conv(encoder.norm, match)}"

        rules = [Rule(r"block(\d+)/conv(\d)/(conv|norm)", name)]
        return Naming(PLAIN, rules, ignored=r"(up\d+|conv\d+|outc)\..*")

    return [naming(inc, down) for inc, down, _ in _PLAIN_FORMS]


def _unet(decoder: UNetDecoder) -> list[Naming]:
    def plain(transposed: str, convs: str) -> Naming:
        def name(match: re.Match[str]) -> str:
            return f"{convs.format(int(match[1]) + 1)}.{_in_double_conv(decoder.norm, match)}"

        up = Rule(r"block(\d+)/upsample", lambda match: transposed.format(int(match[1]) + 1), "conv_transpose")
        return Naming(PLAIN, [Rule(r"block(\d+)/convs/conv(\d)/(conv|norm)", name), up])

    smp = [
        Rule(r"block(\d+)/convs/conv(\d)/conv", r"blocks.\1.conv\2.0"),
        Rule(r"block(\d+)/convs/conv(\d)/norm", r"blocks.\1.conv\2.1"),
        Rule(r"center/conv(\d)/conv", lambda match: f"center.{int(match[1]) - 1}.0"),
        Rule(r"center/conv(\d)/norm", lambda match: f"center.{int(match[1]) - 1}.1"),
    ]
    return [
        Naming("segmentation_models_pytorch", smp, "decoder."),
        # The transposed convolution is within the block, or beside it.
        *(plain("up{}.up", convs) for _, _, convs in _PLAIN_FORMS),
        *(plain("up{}", convs) for _, _, convs in _PLAIN_FORMS),
    ]


def _fpn(decoder: FPNDecoder) -> list[Naming]:
    coarsest = decoder.levels - 1

    def segmentation_block(match: re.Match[str]) -> str:
        # Counted from the coarsest map there, from the finest here.
        return f"seg_blocks.{coarsest - int(match[1])}.block.{match[2]}.block.{int(match[3] == 'norm')}"

    rules = [
        Rule(r"top_down/top", f"p{coarsest + 2}"),
        Rule(r"top_down/skip(\d)/lateral", lambda match: f"p{int(match[1]) + 2}.skip_conv"),
        Rule(r"level(\d)_conv(\d)/(conv|norm)", segmentation_block),
    ]
    return [Naming("segmentation_models_pytorch", rules, "decoder.")]


def _fpn_neck(neck: FPNNeck) -> list[Naming]:
    def naming(prefix: str, within: str) -> Naming:
        rules = [
            Rule(r"top_down/top", f"inner_blocks.{neck.levels - 1}{within}"),
            Rule(r"top_down/skip(\d)/lateral", rf"inner_blocks.\1{within}"),
            Rule(r"output(\d)", rf"layer_blocks.\1{within}"),
        ]
        others = rf"{re.escape(prefix)}extra_blocks\..*|(rpn|roi_heads|head)\..*"
        return Naming("torchvision's detectors", rules, prefix, others)

    # Since torchvision 0.13 every convolution of the neck is in a block of its own.
    return [naming(prefix, within) for prefix in ("backbone.fpn.", "fpn.") for within in (".0", "")]


def _segmentation_head(head: SegmentationHead) -> list[Naming]:
    return [
        Naming("segmentation_models_pytorch", [Rule("conv", "segmentation_head.0")]),
        Naming(PLAIN, [Rule("conv", "outc.conv")]),
        Naming(PLAIN, [Rule("conv", "outc")]),
    ]


FAMILIES: dict[type[nn.Module], Family] = {
    ResNet: Family(_resnet, stem="conv1/conv"),
    VGG: Family(_vgg, stem="features_0"),
    PlainEncoder: Family(_plain_encoder, stem="block0/conv1/conv"),
    UNetDecoder: Family(_unet),
    FPNDecoder: Family(_fpn),
    FPNNeck: Family(_fpn_neck),
    SegNetDecoder: Family(lambda decoder: []),  # no reference for it is in common use
    SegmentationHead: Family(_segmentation_head),
}
"""Classes of modules to what is known of their names elsewhere."""
