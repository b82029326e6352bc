"""The Flax blocks that encoders and decoders are composed of.

Conventions, so that blocks fit together:

- An upsampler is called `upsampler(x, size)` and gives `x` at `size`.
- A skip is called `skip(x, feature)` with both at the same size and joins them.
- `upsample`, `skip`, `norm` fields hold factories: a Module class or a `functools.partial` of one.
- A block registers its name in `BLOCKS` (`register_blocks`), in the file that holds it.
"""

from densezoo.blocks.aspp import ASPP, SeparableConv
from densezoo.blocks.attention import SCSE, ChannelGate, attend
from densezoo.blocks.content_aware import CARAFE, DySample
from densezoo.blocks.conv import Conv, ConvNormAct, DoubleConv
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.factories import BLOCKS, build, check_call, register_blocks
from densezoo.blocks.initializers import (
    he_normal_fan_out,
    he_uniform,
    he_uniform_transposed,
    icnr,
    torch_bias,
    torch_uniform,
    truncated_normal,
)
from densezoo.blocks.norm import BatchNorm, FrozenBatchNorm, GroupNorm, LayerNorm, norm_act
from densezoo.blocks.regularize import DropPath, SpatialDropout, drop_path_rates, run_block
from densezoo.blocks.skips import AttentionGate, ConcatSkip, LateralAdd, step_up
from densezoo.blocks.upsamplers import (
    Bicubic,
    Bilinear,
    Nearest,
    PixelShuffle,
    ResizeConv,
    TransposedConv,
    defer,
    upsampled,
)

__all__ = [
    "ASPP",
    "AttentionGate",
    "BLOCKS",
    "BatchNorm",
    "Bicubic",
    "Bilinear",
    "CARAFE",
    "ChannelGate",
    "ConcatSkip",
    "Conv",
    "ConvNormAct",
    "DoubleConv",
    "DropPath",
    "DySample",
    "FrozenBatchNorm",
    "GroupNorm",
    "LateralAdd",
    "LayerNorm",
    "Nearest",
    "PixelShuffle",
    "ResizeConv",
    "SCSE",
    "SeparableConv",
    "SpatialDropout",
    "TransposedConv",
    "Upsampled",
    "attend",
    "build",
    "check_call",
    "defer",
    "drop_path_rates",
    "he_normal_fan_out",
    "he_uniform",
    "he_uniform_transposed",
    "icnr",
    "norm_act",
    "register_blocks",
    "run_block",
    "step_up",
    "upsampled",
    "torch_bias",
    "torch_uniform",
    "truncated_normal",
]
