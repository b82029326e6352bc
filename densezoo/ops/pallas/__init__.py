"""Pallas kernels for TPUs and NVIDIA GPUs, for steps that XLA splits into several trips through memory.

State of checking. In interpret mode on a CPU these kernels agree with plain JAX, values and gradients. `jax.export`
lowers them for TPU (Mosaic) and for CUDA (Triton), and without the hardware libtpu compiled them for a v5e, and Triton
for compute capabilities 8.0 and 9.0. They have not been run on an accelerator, nothing was timed, and whether they are
faster than XLA is not known. Hence `impl="auto"` does not choose them; `impl="pallas"` does.

Every operation has one kernel for TPUs and one for NVIDIA GPUs. Elsewhere, and for shapes or dtypes that a kernel does
not take, plain JAX computes the same; which it is depends only on static shapes, dtypes and the platform. On TPUs the
channels lie along 128 lanes, so that maps of few channels fill them poorly, and XLA copies its arrays into the layout
that the kernels read. Several devices: XLA cannot split a TPU kernel over them and raises an error, so call it inside
`jax.shard_map(..., check_vma=False)`, one device's share of the batch at a time.
"""

from densezoo.ops.pallas.bilinear import bilinear_x2, bilinear_x2_adjoint
from densezoo.ops.pallas.unpool import max_unpool_x2, max_unpool_x2_adjoint
from densezoo.ops.pallas.upsample_concat_conv import upsample_concat_conv

__all__ = [
    "bilinear_x2",
    "bilinear_x2_adjoint",
    "max_unpool_x2",
    "max_unpool_x2_adjoint",
    "upsample_concat_conv",
]
