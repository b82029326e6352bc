"""Names of the heads."""

from densezoo.heads import SegmentationHead
from densezoo.weights.names.plain import PLAIN
from densezoo.weights.names.rules import SMP, Family, Naming, Rule


def _segmentation_head(head: SegmentationHead) -> list[Naming]:
    return [
        Naming(SMP, [Rule("conv", "segmentation_head.0")]),
        Naming(PLAIN, [Rule("conv", "outc.conv")]),
        Naming(PLAIN, [Rule("conv", "outc")]),
    ]


FAMILIES = {SegmentationHead: Family(_segmentation_head)}
