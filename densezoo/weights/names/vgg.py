"""torchvision's and timm's names of VGG."""

from densezoo.encoders import VGG
from densezoo.weights.names.rules import Family, Naming, Rule, backbone


def _vgg(encoder: VGG) -> list[Naming]:
    return backbone([Rule(r"features_(\d+)", r"features.\1")])


FAMILIES = {VGG: Family(_vgg, stem="features_0")}
