"""The segmentation head: a convolution to one channel per class, and an upsampler to the image's size."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Bilinear, Conv, build, upsampled
from densezoo.naming import HRNET, PLAIN, SMP, TORCHVISION, TRANSFORMERS, Naming, Rule
from densezoo.types import Dtype, Initializer, ModuleDef, Size


class SegmentationHead(nn.Module):
    """Maps features to logits of the image's size, one channel per class, without a final activation.

    Attributes:
        num_classes: channels of the logits; 1 for a binary mask.
        kernel_size: kernel size of the convolution.
        upsample: factory of the upsampler to the image's size; align-corners as in segmentation_models_pytorch.
    """

    num_classes: int
    kernel_size: int = 3
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ k"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.num_classes, self.kernel_size, kernel_init=self.kernel_init, name="conv", **dtypes)(x)
        return x if x.shape[1:3] == size else upsampled(build(self.upsample, name="upsample", **dtypes), x, size)

    @nn.nowrap
    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch, plain U-Nets, torchvision, transformers, HRNet's authors."""
        upsample = build(self.upsample)
        differs = "its head has upsample=dz.Bilinear, without aligned corners"
        if isinstance(upsample, Bilinear) and not upsample.align_corners:
            differs = ""
        return [
            Naming(SMP, [Rule("conv", "segmentation_head.0")]),
            Naming(PLAIN, [Rule("conv", "outc.conv")]),
            Naming(PLAIN, [Rule("conv", "outc")]),
            Naming(TORCHVISION, [Rule("conv", "classifier.4")], differs=differs),
            Naming(HRNET, [Rule("conv", "last_layer.3")]),
            Naming(TRANSFORMERS, [Rule("conv", "decode_head.classifier")], differs=differs),
        ]
