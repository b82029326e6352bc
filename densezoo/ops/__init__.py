"""Pure functions on arrays: no parameters, no modules."""

from densezoo.ops.conv import conv_transpose, pixel_shuffle
from densezoo.ops.implementation import IMPLEMENTATIONS, implementation
from densezoo.ops.pool import max_pool, max_pool_with_indices, max_unpool
from densezoo.ops.resize import resize_bilinear, resize_nearest

__all__ = [
    "IMPLEMENTATIONS",
    "conv_transpose",
    "implementation",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "pixel_shuffle",
    "resize_bilinear",
    "resize_nearest",
]
