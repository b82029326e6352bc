"""torchvision's and timm's names of DenseNet."""

from densezoo.encoders import DenseNet
from densezoo.weights.names.rules import Family, Naming, Rule, backbone, ignoring


def _densenet(encoder: DenseNet) -> list[Naming]:
    def rules(between: str) -> list[Rule]:
        return [
            Rule(r"(conv0|norm\d)", r"features.\1"),
            Rule(r"(transition\d)_(conv|norm)", r"features.\1.\2"),
            Rule(r"(denseblock\d)_(denselayer\d+)/(conv|norm)(\d)", rf"features.\1.\2.\3{between}\4"),
        ]

    first = len(encoder.reductions)  # block that a smaller `coarsest` leaves out
    deeper = rf"features\.(denseblock[{first}-9]|transition[{first}-9]|transition{first - 1}\.conv|norm5)\..*"
    # torchvision's published files are older than its names.
    return [naming for between in ("", ".") for naming in ignoring(backbone(rules(between)), deeper)]


FAMILIES = {DenseNet: Family(_densenet, stem="conv0")}
