"""Upsample, concatenate and convolve, as in a U-Net's decoder, without the upsampled and the concatenated map.

A convolution is linear in its input channels, so the convolution of a concatenation is a sum of two convolutions. If a
map is doubled by nearest neighbours, a 3x3 window only reads 2x2 of its pixels. For each of the four phases of an
output pixel (even or odd row and column), the taps of the kernel that read the same pixel can be added. This gives one
2x2 convolution of the small map to four times the channels, with 2.25 times fewer multiplications.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_maps
from densezoo.ops.convolution import conv
from densezoo.ops.implementation import chosen
from densezoo.ops.resize import resize_bilinear
from densezoo.ops.sharding import per_device
from densezoo.ops.transposed import phase_conv
from densezoo.types import accumulator_dtype

METHODS = ("nearest", "bilinear", "bilinear_align_corners")


def upsample_concat_conv(
    x: Float[Array, "b h w c"],
    skip: Float[Array, "b h2 w2 d"] | None,
    kernel: Float[Array, "3 3 e f"],
    *,
    method: str = "nearest",
    skip_first: bool = False,
) -> Float[Array, "b h2 w2 f"]:
    """Doubles `x`, concatenates `skip`, and convolves 3x3, with zeros around the image.

    Args:
        x: NHWC maps.
        skip: NHWC maps of twice the height and width; None for none.
        kernel: (3, 3, in, out), where in is the channels of both.
        method: "nearest", "bilinear" (at half-pixel centres) or "bilinear_align_corners".
        skip_first: whether the kernel's first channels are those of `skip`.

    Raises:
        ValueError: if the method is unknown, or shapes do not match.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> x, skip = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 2, 2, 1))
        >>> upsample_concat_conv(x, skip, jnp.ones((3, 3, 3, 1)))[0, :, :, 0].tolist()
        [[12.0, 12.0], [12.0, 12.0]]
    """
    _check(x, skip, kernel, method)
    if chosen() == "reference":
        plain = functools.partial(reference.upsample_concat_conv, method=method, skip_first=skip_first)
        if skip is None:
            return per_device(lambda x, kernel: plain(x, None, kernel), x, weights=(kernel,))
        return per_device(plain, x, skip, weights=(kernel,))
    if skip is not None and skip_first:
        kernel = jnp.roll(kernel, x.shape[-1], axis=2)  # from here on, x's channels are first
    y = _upsample_conv(x, kernel[:, :, : x.shape[-1]], method)
    return y if skip is None else y + conv(skip, kernel[:, :, x.shape[-1] :], padding=1)


def _upsample_conv(x, kernel, method):
    if method == "nearest":
        return phase_conv(x, _phase_kernel(kernel))
    size = (2 * x.shape[1], 2 * x.shape[2])
    # A bilinear pixel depends on 2x2 others, so a phase would need 3x3 taps: no fewer multiplications, and different
    # ones at the border.
    return conv(resize_bilinear(x, size, align_corners=method == "bilinear_align_corners"), kernel, padding=1)


# The three rows of the window are, of the small map, pixels -1, 0, 0 in phase 0 and 0, 0, 1 in phase 1.
_TAP_OF_ROW = ((0, 1, 1), (0, 0, 1))


def _phase_kernel(kernel):
    """(3, 3, in, out) -> (2, 2, in, 4 out): for each phase the sums of the taps that read the same pixel."""
    wide = kernel.astype(accumulator_dtype(kernel.dtype))

    def fold(taps, phase):
        parts = [[tap for tap, to in zip(taps, _TAP_OF_ROW[phase], strict=True) if to == t] for t in (0, 1)]
        return [functools.reduce(jnp.add, part) for part in parts]

    phases = []
    for p in (0, 1):
        for q in (0, 1):
            rows = fold([wide[i] for i in range(3)], p)
            phases.append(jnp.stack([jnp.stack(fold([row[j] for j in range(3)], q)) for row in rows]))
    return jnp.concatenate(phases, axis=-1).astype(kernel.dtype)


def _check(x, skip, kernel, method):
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    check_maps(x)
    doubled = (x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    if skip is not None and (skip.ndim != 4 or skip.shape[:3] != doubled):
        raise ValueError(f"skip must have twice the height and width of x {x.shape}; got {skip.shape}")
    channels = x.shape[3] + (0 if skip is None else skip.shape[3])
    if kernel.ndim != 4 or kernel.shape[:3] != (3, 3, channels):
        raise ValueError(f"expected a (3, 3, {channels}, out) kernel for x and skip, got {kernel.shape}")
