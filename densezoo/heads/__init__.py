"""Heads: maps -> logits."""

from densezoo.heads.segmentation import SegmentationHead

__all__ = ["SegmentationHead"]
