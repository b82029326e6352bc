"""Heads: maps -> logits."""

from densezoo.heads.auxiliary import AuxiliaryHeads
from densezoo.heads.dpt import DPTHead
from densezoo.heads.segmentation import SegmentationHead

__all__ = ["AuxiliaryHeads", "DPTHead", "SegmentationHead"]
