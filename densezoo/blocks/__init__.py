"""The Flax blocks that encoders and decoders are composed of.

Conventions, so that blocks fit together:

- An upsampler is called `upsampler(x, size)` and gives `x` at `size`.
- A skip is called `skip(x, feature)` with both at the same size and joins them.
- `upsample`, `skip`, `norm` fields hold factories: a Module class or a `functools.partial` of one.
"""

from densezoo.blocks.content_aware import CARAFE, DySample
from densezoo.blocks.conv import Conv, ConvNormAct, DoubleConv
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.initializers import he_normal_fan_out, he_uniform, he_uniform_transposed, icnr
from densezoo.blocks.norm import BatchNorm, GroupNorm, build, norm_act
from densezoo.blocks.skips import ConcatSkip, LateralAdd, step_up
from densezoo.blocks.upsamplers import Bicubic, Bilinear, Nearest, PixelShuffle, ResizeConv, TransposedConv, defer

__all__ = [
    "CARAFE",
    "BatchNorm",
    "Bicubic",
    "Bilinear",
    "ConcatSkip",
    "Conv",
    "ConvNormAct",
    "DoubleConv",
    "DySample",
    "GroupNorm",
    "LateralAdd",
    "Nearest",
    "PixelShuffle",
    "ResizeConv",
    "TransposedConv",
    "Upsampled",
    "build",
    "defer",
    "he_normal_fan_out",
    "he_uniform",
    "he_uniform_transposed",
    "icnr",
    "norm_act",
    "step_up",
]
