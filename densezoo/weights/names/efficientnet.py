"""timm's names of EfficientNet, and those of efficientnet-pytorch, which segmentation_models_pytorch has too."""

import re
from collections.abc import Callable

from densezoo.encoders import EfficientNet
from densezoo.encoders.inverted_residual import InvertedResidualEncoder
from densezoo.weights.names.rules import SMP, Family, Naming, Rule, backbone, ignoring

# A block without expansion is another class in timm, which counts its parts on its own.
_TIMM_PARTS = {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}
_TIMM_SHORT = {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}


def left_out(encoder: InvertedResidualEncoder, name: Callable[[int, re.Match[str]], str]) -> str:
    """A pattern of the blocks that a smaller `coarsest` leaves out; `name` of a block's number and path."""
    names = [placed.name for placed in encoder.layout()]
    built = encoder.all_taps[len(encoder.reductions) - 1] + 1
    paths = [re.fullmatch(r"blocks_(\d+)_(\d+)", path) for path in names]
    prefixes = [name(number, path) for number, path in enumerate(paths) if path is not None and number >= built]
    return rf"({'|'.join(map(re.escape, prefixes))})\..*"


def timm(encoder: InvertedResidualEncoder, *, wrapped: bool = True) -> list[Naming]:
    """The names of networks of inverted residuals in timm."""

    def part(match: re.Match[str]) -> str:
        stage, index, name, leaf = match.groups()
        names = _TIMM_SHORT if stage == "0" else _TIMM_PARTS
        return f"blocks.{stage}.{index}.{names[name][leaf == 'norm']}"

    after = encoder.plan.blocks[-1].stage + 1
    rules = [
        Rule(r"conv_stem/conv", "conv_stem"),
        Rule(r"conv_stem/norm", "bn1"),
        Rule(r"blocks_(\d+)_(\d+)/(expand|depthwise|project)/(conv|norm)", part),
        Rule(r"blocks_(\d+)_(\d+)/gate/(reduce|expand)", r"blocks.\1.\2.se.conv_\3"),
        Rule(r"conv_head/conv", f"blocks.{after}.0.conv"),
        Rule(r"conv_head/norm", f"blocks.{after}.0.bn1"),
    ]
    others = rf"(conv_head|bn2|blocks\.{after})\..*"
    deeper = left_out(encoder, lambda _, path: f"blocks.{path[1]}.{path[2]}")
    return ignoring(backbone(rules, wrapped=wrapped), f"{others}|{deeper}")


def _efficientnet_pytorch(encoder: EfficientNet) -> list[Naming]:
    numbers = {placed.name: number for number, placed in enumerate(encoder.layout())}
    norms = {"expand": "_bn0", "depthwise": "_bn1", "project": "_bn2"}

    def part(match: re.Match[str]) -> str:
        block, name, leaf = match.groups()
        return f"_blocks.{numbers[block]}.{f'_{name}_conv' if leaf == 'conv' else norms[name]}"

    rules = [
        Rule(r"conv_stem/conv", "_conv_stem"),
        Rule(r"conv_stem/norm", "_bn0"),
        Rule(r"(blocks_\d+_\d+)/(expand|depthwise|project)/(conv|norm)", part),
        Rule(r"(blocks_\d+_\d+)/gate/(\w+)", lambda match: f"_blocks.{numbers[match[1]]}._se_{match[2]}"),
    ]
    deeper = left_out(encoder, lambda number, _: f"_blocks.{number}")
    namings = [Naming(SMP, rules, "encoder."), Naming("efficientnet-pytorch", rules)]
    return ignoring(namings, rf"(_conv_head|_bn1|_fc)\..*|{deeper}")


def _efficientnet(encoder: EfficientNet) -> list[Naming]:
    # segmentation_models_pytorch has three: efficientnet-*, timm-efficientnet-*, and timm's own as tu-.
    if encoder.padded_for:
        return [*_efficientnet_pytorch(encoder), *timm(encoder)]
    return [*timm(encoder, wrapped=not encoder.dilate_first), *_efficientnet_pytorch(encoder)]


FAMILIES = {EfficientNet: Family(_efficientnet, stem="conv_stem/conv")}
