"""torchvision's and timm's names of ResNet and its kin."""

from densezoo.encoders import ResNet
from densezoo.weights.names.rules import Family, Naming, Rule, backbone, ignoring


def blocks(encoder: ResNet, gate: str) -> list[Rule]:
    """The stages, in which the references agree but for what they call the squeeze-and-excitation."""
    pooled = int(encoder.average_down)  # the pooling has a place in the sequence
    return [
        Rule(r"layer(\d)_(\d+)/conv(\d)/conv", r"layer\1.\2.conv\3"),
        Rule(r"layer(\d)_(\d+)/conv(\d)/norm", r"layer\1.\2.bn\3"),
        Rule(r"layer(\d)_(\d+)/downsample/conv", rf"layer\1.\2.downsample.{pooled}"),
        Rule(r"layer(\d)_(\d+)/downsample/norm", rf"layer\1.\2.downsample.{pooled + 1}"),
        Rule(r"layer(\d)_(\d+)/se/reduce", rf"layer\1.\2.{gate}.fc1"),
        Rule(r"layer(\d)_(\d+)/se/expand", rf"layer\1.\2.{gate}.fc2"),
    ]


def deeper(encoder: ResNet) -> str:
    """A pattern of the stages that a smaller `coarsest` leaves out."""
    return rf"layer[{len(encoder.reductions)}-9]\..*"


def _resnet(encoder: ResNet) -> list[Naming]:
    stem = [Rule(r"conv1/conv", "conv1"), Rule(r"conv1/norm", "bn1")]
    if encoder.deep_stem:
        stem = [
            Rule(r"conv1/conv", "conv1.0"),
            Rule(r"conv1/norm", "conv1.1"),
            Rule(r"conv2/conv", "conv1.3"),
            Rule(r"conv2/norm", "conv1.4"),
            Rule(r"conv3/conv", "conv1.6"),
            Rule(r"conv3/norm", "bn1"),
        ]
    of_timm = encoder.deep_stem or encoder.average_down or encoder.squeeze_excite
    return ignoring(backbone([*stem, *blocks(encoder, "se")], wrapped=of_timm), deeper(encoder))


FAMILIES = {ResNet: Family(_resnet, stem="conv1/conv")}
