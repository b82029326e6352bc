"""Heads: map features to logits, and for detectors to boxes and masks."""

from densezoo.heads.anchors import AnchorOutputs, Grid, PointOutputs, grid_of
from densezoo.heads.auxiliary import AuxiliaryHeads
from densezoo.heads.dense import FCOSHead, RetinaNetHead, RPNHead
from densezoo.heads.dpt import DPTDepthHead, DPTHead
from densezoo.heads.region import BOX_WEIGHTS, BoxHead, MaskHead
from densezoo.heads.segmentation import SegmentationHead
from densezoo.heads.semantic import SemanticHead

__all__ = [
    "BOX_WEIGHTS",
    "AnchorOutputs",
    "AuxiliaryHeads",
    "BoxHead",
    "DPTDepthHead",
    "DPTHead",
    "FCOSHead",
    "Grid",
    "MaskHead",
    "PointOutputs",
    "RPNHead",
    "RetinaNetHead",
    "SegmentationHead",
    "SemanticHead",
    "grid_of",
]
