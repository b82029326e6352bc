"""Names of the heads."""

from densezoo.heads import SegmentationHead
from densezoo.weights.names.hrnet import AUTHORS as HRNET
from densezoo.weights.names.plain import PLAIN
from densezoo.weights.names.rules import SMP, TORCHVISION, Family, Naming, Rule


def _segmentation_head(head: SegmentationHead) -> list[Naming]:
    return [
        Naming(SMP, [Rule("conv", "segmentation_head.0")]),
        Naming(PLAIN, [Rule("conv", "outc.conv")]),
        Naming(PLAIN, [Rule("conv", "outc")]),
        Naming(TORCHVISION, [Rule("conv", "classifier.4")]),
        Naming(HRNET, [Rule("conv", "last_layer.3")]),
    ]


FAMILIES = {SegmentationHead: Family(_segmentation_head)}
