"""Sources of images with dense targets, augmentation on the device, and the pipeline between them."""

from densezoo.data import transforms
from densezoo.data.folder import ImageMaskFolder, read_image, to_float
from densezoo.data.pipeline import EvalBatches, Source, eval_batches, train_batches
from densezoo.data.scenes import DigitScenes
from densezoo.data.subset import Subset

__all__ = [
    "DigitScenes",
    "EvalBatches",
    "ImageMaskFolder",
    "Source",
    "Subset",
    "eval_batches",
    "read_image",
    "to_float",
    "train_batches",
    "transforms",
]
