"""Weights and images that anyone can make again from a name and a shape, so that a golden file stores outputs only.

They come from the raw bits of PCG64, whose stream NumPy guarantees for all versions, and plain arithmetic on them.
"""

import hashlib
import math

import numpy as np


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of this torch-style name and shape, uniform in a range that keeps activations of order one."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    low, high = _range(name, shape)
    count = math.prod(shape)
    seed = int.from_bytes(hashlib.sha256(f"{name}{shape}".encode()).digest()[:16], "little")
    bits = np.random.PCG64(seed).random_raw(count // 2 + 1).astype("<u8", copy=False).view("<u4")[:count]
    # 24 bits are exact in float32.
    unit = (bits >> 8).astype(np.float32) * np.float32(2**-24)
    return (np.float32(low) + np.float32(high - low) * unit).reshape(shape)


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if name == "image":
        return -1.7, 1.7
    if name.endswith("running_var"):
        return 0.5, 1.5
    if name.endswith("running_mean"):
        return -0.3, 0.3
    if name.endswith("bias"):
        return -0.2, 0.2
    if len(shape) == 1:  # scale of a norm
        return 0.4, 1.0
    # He et al. 2015: ReLU keeps the variance.
    bound = math.sqrt(6 / math.prod(shape[1:]))
    return -bound, bound
