"""Transposed convolution, pixel shuffle, and the convolution that gives a map of twice the size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.implementation import chosen


def conv_transpose(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], *, stride: int = 2, padding: int = 0
) -> Float[Array, "b h2 w2 d"]:
    """Transposed convolution: the gradient of a strided convolution with respect to its input.

    With stride s, kernel k and padding p the side grows from n to (n - 1) s - 2 p + k, as in
    `torch.nn.ConvTranspose2d`; s = 2 with k = 2, p = 0 or k = 4, p = 1 doubles it exactly.

    Args:
        x: NHWC maps.
        kernel: (height, width, in, out); a pixel of value 1 paints it as it is, unflipped.
        stride: pixels between the painted kernels.
        padding: pixels cut off from every side.

    Raises:
        ValueError: shapes that do not match, or more padding than there is kernel.

    Example:
        >>> import jax.numpy as jnp
        >>> y = conv_transpose(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1))
        >>> y[0, :, :, 0].tolist()
        [[0.0, 1.0], [2.0, 3.0]]

    References:
        Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016. https://arxiv.org/abs/1603.07285
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"expected NHWC maps and an (h, w, in, out) kernel, got {x.shape} and {kernel.shape}")
    size = kernel.shape[0]
    if stride < 1 or not 0 <= padding < size or kernel.shape[1] != size:
        raise ValueError(
            f"the kernel is square, stride at least 1, padding less than the kernel; got {stride=} {padding=}"
            f" and a kernel of {kernel.shape[:2]}"
        )
    if chosen() == "reference":
        return reference.conv_transpose(x, kernel, stride=stride, padding=padding)
    if (size, stride, padding) == (4, 2, 1):
        # Row 2i of the result sees rows i - 1 and i by the kernel's rows 3 and 1, row 2i + 1 sees i and i + 1 by 2, 0.
        taps = ((3, 1), (2, 0))
        return phase_conv(
            x,
            jnp.concatenate(
                [
                    jnp.stack([jnp.stack([kernel[i, j] for j in taps[q]]) for i in taps[p]])
                    for p in (0, 1)
                    for q in (0, 1)
                ],
                axis=-1,
            ),
        )
    if size == stride and padding == 0:
        # The painted kernels touch without overlap: one matrix product, then depth to space.
        batch, height, width, _ = x.shape
        y = jnp.einsum("bhwc,klcd->bhkwld", x, kernel)
        return y.reshape(batch, height * stride, width * stride, kernel.shape[3])
    return reference.conv_transpose(x, kernel, stride=stride, padding=padding)


def phase_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c d4"]) -> Float[Array, "b h2 w2 d"]:
    """A map of twice the size by one 2x2 convolution: four times the channels, interleaved.

    Args:
        x: NHWC maps.
        kernel: (2, 2, in, 4 out): for each phase (even or odd row, even or odd column) its taps. Pixel (2i + p, 2j + q)
          of the result reads the 2x2 pixels of `x` that begin at (i + p - 1, j + q - 1), with zeros around the map.
    """
    batch, height, width, _ = x.shape
    features = kernel.shape[-1] // 4
    # With the zeros as padding of the convolution, XLA:CPU takes 15 times longer for the gradient of the kernel.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = y.reshape(batch, height + 1, width + 1, 4, features)
    rows = [
        jnp.stack([y[:, p : p + height, q : q + width, 2 * p + q] for q in (0, 1)], axis=3).reshape(
            batch, height, 2 * width, features
        )
        for p in (0, 1)
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, features)


def pixel_shuffle(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c2"]:
    """Depth to space: factor**2 channels become a factor x factor block of pixels, in torch's order of channels.

    Output channel d at offset (i, j) of the block comes from input channel d * factor**2 + i * factor + j.

    Raises:
        ValueError: the channels do not divide by factor**2.

    Example:
        >>> import jax.numpy as jnp
        >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
        [[0.0, 1.0], [2.0, 3.0]]

    References:
        Shi et al., Real-time single image and video super-resolution, 2016. https://arxiv.org/abs/1609.05158
    """
    if factor < 1 or x.ndim != 4 or x.shape[3] % factor**2:
        raise ValueError(
            f"pixel_shuffle by {factor} needs NHWC maps with channels in multiples of {factor**2}, got {x.shape}"
        )
    batch, height, width, channels = x.shape
    out = channels // factor**2
    x = x.reshape(batch, height, width, out, factor, factor)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height * factor, width * factor, out)
