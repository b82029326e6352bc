"""The head of DPT."""

from densezoo.heads.segmentation import SegmentationHead
from densezoo.naming import SMP, Naming, Rule


class DPTHead(SegmentationHead):
    """A 1x1 convolution to one channel per class, and the way to the image's size.

    The convolution, batch norm and dropout before it, which segmentation_models_pytorch counts to the head, are the end
    of `DPTDecoder` here: they behave otherwise in training.
    """

    kernel_size: int = 1

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        return [Naming(SMP, [Rule("conv", "segmentation_head.head.4")])]
