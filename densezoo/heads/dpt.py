"""The head of DPT."""

from densezoo.heads.segmentation import SegmentationHead
from densezoo.naming import SMP, Naming, Rule


class DPTHead(SegmentationHead):
    """A 1x1 convolution to one channel per class, and an upsampler to the image's size.

    The convolution, batch norm and dropout before it belong to the head in segmentation_models_pytorch. Here they are
    the end of `DPTDecoder`, because they depend on the training mode.
    """

    kernel_size: int = 1

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        return [Naming(SMP, [Rule("conv", "segmentation_head.head.4")])]
