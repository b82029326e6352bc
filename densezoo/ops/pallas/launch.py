"""What the kernels share: the choice between them, block sizes, and the two ways to launch one."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

Backend = Literal["tpu", "gpu"]

# Bytes that one program's blocks and intermediate values may take: TPUs let a kernel have 16 MiB by default.
VMEM = 10 * 2**20
# Rows of a map beyond which a TPU program would not gain: haloes are a small part of what it reads.
MAX_ROWS = 64
# Elements that one GPU program writes, where it works element by element.
FLAT_BLOCK = 1024


def by_platform(
    plain: Callable, tpu: Callable | None, gpu: Callable | None, backend: Backend | None, *arrays: jax.Array | None
) -> jax.Array:
    """Calls the kernel of the platform that this is lowered for, or `plain` where there is none.

    Args:
        plain: the operation in plain JAX.
        tpu: the kernel for TPUs; None if it does not take these shapes.
        gpu: the same for NVIDIA GPUs.
        backend: None leaves the choice to the platform; "tpu" or "gpu" forces that kernel, for interpret mode.
        *arrays: the operands.

    Raises:
        ValueError: an unknown backend.
    """
    if backend is None:
        return jax.lax.platform_dependent(*arrays, tpu=tpu or plain, cuda=gpu or plain, default=plain)
    if backend not in ("tpu", "gpu"):
        raise ValueError(f'backend is "tpu", "gpu" or None (the platform\'s own); got {backend!r}')
    return ((tpu if backend == "tpu" else gpu) or plain)(*arrays)


def supported(elements: int, *arrays: jax.Array | None) -> bool:
    """Whether the kernels take these dtypes, and 32-bit offsets reach all `elements` of the largest map."""
    dtypes = {jnp.dtype(x.dtype) for x in arrays if x is not None}
    return dtypes in ({jnp.dtype("float32")}, {jnp.dtype("bfloat16")}) and elements < 2**30


def before(x: jax.Array, first: jax.Array, axis: int) -> jax.Array:
    """The neighbours at index - 1 along `axis`; `first` stands before the first."""
    size = x.shape[axis]
    # Mosaic knows no empty slices.
    return first if size == 1 else jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)


def after(x: jax.Array, last: jax.Array, axis: int) -> jax.Array:
    """The neighbours at index + 1 along `axis`; `last` stands after the last."""
    size = x.shape[axis]
    return last if size == 1 else jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)


def lane_bytes(width: int, channels: int) -> int:
    """Bytes of one row of float32 pixels in a TPU's tiles of 8 (halves: 16) by 128."""
    return pl.cdiv(width, 16) * 16 * pl.cdiv(channels, 128) * 128 * 4


def rows_that_fit(height: int, row_bytes: int) -> int:
    """Rows of a map that a TPU program takes, where each needs `row_bytes`; 0 if not even one fits."""
    return min(height, MAX_ROWS, VMEM // row_bytes)


def channel_block(channels: int) -> int:
    """Channels that a TPU program works on: 128 if they divide so, or all."""
    return 128 if channels % 128 == 0 else channels


def tpu_call(
    kernel: Callable, grid: Sequence[int], in_specs: Sequence[Any], out_spec: Any, out: Any, interpret: bool
) -> Callable:
    """A `pallas_call` for TPUs whose programs do not depend on each other."""
    return pl.pallas_call(
        kernel,
        grid=tuple(grid),
        in_specs=list(in_specs),
        out_specs=out_spec,
        out_shape=out,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * len(grid)),
        interpret=interpret,
    )


def gpu_flat_call(kernel: Callable, shape: Sequence[int], dtype: Any, interpret: bool) -> Callable:
    """A Triton launch in which every program computes `FLAT_BLOCK` successive elements of the result.

    Args:
        kernel: takes the operands' references, flat, and the four int32 coordinates (of NHWC) of the elements to
          compute; returns their values. Elements past the end get the last one's coordinates and are not stored.
        shape: NHWC shape of the result.
        dtype: of the result.
        interpret: runs in interpret mode.

    Returns:
        A function of the operands.
    """
    size = math.prod(shape)
    block = FLAT_BLOCK

    def body(*refs):
        *operands, out = refs
        element = pl.program_id(0) * block + jnp.arange(block, dtype=jnp.int32)
        values = kernel(*operands, *unravel(jnp.minimum(element, size - 1), shape))
        pltriton.store(out, values.astype(dtype), mask=element < size)

    call = pl.pallas_call(
        body,
        grid=(pl.cdiv(size, block),),
        out_specs=pl.BlockSpec((block,), lambda i: (i,)),
        out_shape=jax.ShapeDtypeStruct((size,), dtype),
        compiler_params=pltriton.CompilerParams(num_warps=4),
        interpret=interpret,
    )
    return lambda *arrays: call(*(x.reshape(-1) for x in arrays)).reshape(shape)


def unravel(index: jax.Array, shape: Sequence[int]) -> list[jax.Array]:
    """Coordinates of flat indices, all of them non-negative: `//` and `%` would add code for negative ones."""
    coordinates = []
    for size in reversed(shape[1:]):
        coordinates.append(jax.lax.rem(index, jnp.int32(size)))
        index = jax.lax.div(index, jnp.int32(size))
    return [index, *reversed(coordinates)]


def ravel(coordinates: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array:
    """Flat index of coordinates."""
    return functools.reduce(
        lambda index, pair: index * pair[0] + pair[1], zip(shape[1:], coordinates[1:], strict=True), coordinates[0]
    )
