"""Models: compositions of an encoder with a decoder and a head, or with a neck."""

from densezoo.models.segmentation import PyramidModel, SegmentationModel

__all__ = ["PyramidModel", "SegmentationModel"]
