"""Sources of images with dense targets, augmentation on the device, and the pipeline between them."""

from densezoo.data import fields, transforms
from densezoo.data._arrays import to_float
from densezoo.data._decode import IMAGE_SUFFIXES
from densezoo.data._reading import Source
from densezoo.data._tiff_windows import TiffWindows, open_tiff
from densezoo.data.change_folder import ChangeFolder
from densezoo.data.change_scenes import ChangeScenes
from densezoo.data.coco import CocoDetection
from densezoo.data.coco_panoptic import CocoPanoptic
from densezoo.data.depth_folder import DepthFolder
from densezoo.data.evaluation import EvalBatches, eval_batches
from densezoo.data.folder import ImageMaskFolder, read_image
from densezoo.data.instance_folder import InstanceFolder
from densezoo.data.pipeline import train_batches
from densezoo.data.rendered import RenderedScenes
from densezoo.data.resizing import Resize, ScaleJitter
from densezoo.data.scenes import DigitScenes
from densezoo.data.subset import Subset

__all__ = [
    "ChangeFolder",
    "ChangeScenes",
    "CocoDetection",
    "CocoPanoptic",
    "DepthFolder",
    "DigitScenes",
    "EvalBatches",
    "IMAGE_SUFFIXES",
    "ImageMaskFolder",
    "InstanceFolder",
    "RenderedScenes",
    "Resize",
    "ScaleJitter",
    "Source",
    "Subset",
    "TiffWindows",
    "eval_batches",
    "fields",
    "open_tiff",
    "read_image",
    "to_float",
    "train_batches",
    "transforms",
]
