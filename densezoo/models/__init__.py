"""Models: an encoder with a decoder and a head, or with a neck and the heads of a detector.

The files of detectors register their families, like those of the decoders.
"""

from densezoo.models.autoencoder import Autoencoder, Reconstruction
from densezoo.models.detection import detect
from densezoo.models.diffusion import DiffusionUNet
from densezoo.models.diffusion_levels import DownLevel, MiddleLevel, UpLevel
from densezoo.models.panoptic import Panoptic, PanopticFPN, panoptic
from densezoo.models.rcnn import RCNN
from densezoo.models.regions import RegionOutputs
from densezoo.models.segmentation import PyramidModel, SegmentationModel
from densezoo.models.siamese import SiameseModel
from densezoo.models.single_stage import PlainNeck, SingleStage
from densezoo.models.two_stage import two_stage

COMPOSITIONS = (SegmentationModel, PyramidModel, SingleStage, RCNN, DiffusionUNet, Autoencoder)
"""All model classes, with subclasses. A model is called with images, and most have a field for each part."""

__all__ = [
    "COMPOSITIONS",
    "RCNN",
    "Autoencoder",
    "DiffusionUNet",
    "DownLevel",
    "MiddleLevel",
    "Panoptic",
    "PanopticFPN",
    "PlainNeck",
    "PyramidModel",
    "Reconstruction",
    "RegionOutputs",
    "SegmentationModel",
    "SiameseModel",
    "SingleStage",
    "UpLevel",
    "detect",
    "panoptic",
    "two_stage",
]
