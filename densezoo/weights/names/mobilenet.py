"""timm's names of MobileNetV2 and MobileNetV3, and torchvision's of MobileNetV2."""

import re

from densezoo.encoders import MobileNetV2, MobileNetV3
from densezoo.weights.names.efficientnet import left_out, timm
from densezoo.weights.names.rules import Family, Naming, Rule, backbone, ignoring


def _torchvision(encoder: MobileNetV2) -> list[Naming]:
    # One flat list, with the first convolution at its beginning.
    layout = encoder.layout()
    numbers = {placed.name: number for number, placed in enumerate(layout, start=1)}
    after = len(layout) + 1

    def part(match: re.Match[str]) -> str:
        block, name, leaf = match.groups()
        place = ["expand", "depthwise", "project"].index(name) - int(block.startswith("blocks_0_"))
        if name == "project":  # its convolution and its norm are in the same sequence as the pairs before
            return f"features.{numbers[block]}.conv.{place + (leaf == 'norm')}"
        return f"features.{numbers[block]}.conv.{place}.{int(leaf == 'norm')}"

    rules = [
        Rule(r"conv_stem/conv", "features.0.0"),
        Rule(r"conv_stem/norm", "features.0.1"),
        Rule(r"(blocks_\d+_\d+)/(expand|depthwise|project)/(conv|norm)", part),
        Rule(r"conv_head/conv", f"features.{after}.0"),
        Rule(r"conv_head/norm", f"features.{after}.1"),
    ]
    deeper = left_out(encoder, lambda number, _: f"features.{number + 1}")
    return ignoring(backbone(rules), rf"features\.{after}\..*|{deeper}")


def _mobilenet_v2(encoder: MobileNetV2) -> list[Naming]:
    # The last convolution is there in torchvision's form alone, which segmentation_models_pytorch has too.
    if encoder.head_features:
        return [*_torchvision(encoder), *timm(encoder)]
    return [*timm(encoder), *_torchvision(encoder)]


FAMILIES = {
    MobileNetV2: Family(_mobilenet_v2, stem="conv_stem/conv"),
    MobileNetV3: Family(timm, stem="conv_stem/conv"),
}
