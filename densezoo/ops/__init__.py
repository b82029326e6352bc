"""Pure functions on arrays: no parameters, no modules."""

from densezoo.ops.convolution import conv
from densezoo.ops.fused_linear import resize_concat_linear
from densezoo.ops.implementation import IMPLEMENTATIONS, implementation
from densezoo.ops.norm import batch_norm, group_norm
from densezoo.ops.pool import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool, max_pool_with_indices, max_unpool
from densezoo.ops.reassemble import carafe
from densezoo.ops.resize import resize_bicubic, resize_bilinear, resize_nearest
from densezoo.ops.sample import sample_bilinear
from densezoo.ops.transposed import conv_transpose, pixel_shuffle
from densezoo.ops.upsampled_conv import upsample_concat_conv

__all__ = [
    "IMPLEMENTATIONS",
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "carafe",
    "conv",
    "conv_transpose",
    "global_avg_pool",
    "group_norm",
    "implementation",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "pixel_shuffle",
    "resize_bicubic",
    "resize_bilinear",
    "resize_concat_linear",
    "resize_nearest",
    "sample_bilinear",
    "upsample_concat_conv",
]
