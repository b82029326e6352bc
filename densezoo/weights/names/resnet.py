"""torchvision's and timm's names of ResNet."""

from densezoo.encoders import ResNet
from densezoo.weights.names.rules import Family, Naming, Rule, backbone


def _resnet(encoder: ResNet) -> list[Naming]:
    return backbone(
        [
            Rule(r"conv1/conv", "conv1"),
            Rule(r"conv1/norm", "bn1"),
            Rule(r"layer(\d)_(\d+)/conv(\d)/conv", r"layer\1.\2.conv\3"),
            Rule(r"layer(\d)_(\d+)/conv(\d)/norm", r"layer\1.\2.bn\3"),
            Rule(r"layer(\d)_(\d+)/downsample/conv", r"layer\1.\2.downsample.0"),
            Rule(r"layer(\d)_(\d+)/downsample/norm", r"layer\1.\2.downsample.1"),
        ]
    )


FAMILIES = {ResNet: Family(_resnet, stem="conv1/conv")}
