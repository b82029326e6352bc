"""The Flax blocks that encoders and decoders are composed of.

Conventions, so that blocks fit together:

- `upsampler(x, size)` returns `x` resized to `size`.
- `downsampler(x, size)` returns `x` halved to `size`.
- `skip(x, feature)` joins two maps of the same size.
- The fields `upsample`, `skip` and `norm` hold factories: a Module class or a `functools.partial` of one.
- The file of a block registers its name in `BLOCKS` with `register_blocks`.
"""

from densezoo.blocks.aspp import ASPP, SeparableConv
from densezoo.blocks.attention import SCSE, ChannelGate, attend
from densezoo.blocks.content_aware import CARAFE, DySample
from densezoo.blocks.conv import Conv, ConvNormAct, DoubleConv, ResidualDoubleConv
from densezoo.blocks.deferred import Upsampled
from densezoo.blocks.downsamplers import FIR, AveragePool, StridedConv, halved
from densezoo.blocks.embeddings import Fourier, LearnedTimes, Sinusoidal
from densezoo.blocks.factories import BLOCKS, build, check_call, register_blocks
from densezoo.blocks.initializers import (
    fan_average,
    he_normal_fan_out,
    he_uniform,
    he_uniform_transposed,
    icnr,
    nearly_zero,
    torch_bias,
    torch_uniform,
    truncated_normal,
)
from densezoo.blocks.norm import BatchNorm, FrozenBatchNorm, GroupNorm, LayerNorm, norm_act
from densezoo.blocks.regularize import DropPath, SpatialDropout, drop_path_rates, run_block
from densezoo.blocks.repeat import one_by_one, run_blocks
from densezoo.blocks.residual import ResidualBlock, SelfAttention
from densezoo.blocks.skips import AttentionGate, ConcatSkip, LateralAdd, NoSkip, step_up
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
    "AveragePool",
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
    "FIR",
    "Fourier",
    "FrozenBatchNorm",
    "GroupNorm",
    "LateralAdd",
    "LayerNorm",
    "LearnedTimes",
    "Nearest",
    "NoSkip",
    "PixelShuffle",
    "ResidualDoubleConv",
    "ResidualBlock",
    "ResizeConv",
    "SCSE",
    "SelfAttention",
    "SeparableConv",
    "Sinusoidal",
    "SpatialDropout",
    "StridedConv",
    "TransposedConv",
    "Upsampled",
    "attend",
    "build",
    "check_call",
    "defer",
    "drop_path_rates",
    "fan_average",
    "halved",
    "he_normal_fan_out",
    "he_uniform",
    "he_uniform_transposed",
    "icnr",
    "nearly_zero",
    "norm_act",
    "register_blocks",
    "one_by_one",
    "run_block",
    "run_blocks",
    "step_up",
    "upsampled",
    "torch_bias",
    "torch_uniform",
    "truncated_normal",
]
