"""Convolutions with larger outputs: transposed, by phases, and the pixel shuffle."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.ops import reference
from densezoo.ops.checks import check_maps, check_whole
from densezoo.ops.convolution import conv
from densezoo.ops.implementation import chosen, implementation, onednn, with_onednn
from densezoo.ops.sharding import explicitly_sharded, per_device, reduced_like, sides_shared, with_borders


def conv_transpose(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k k c d"], *, stride: int = 2, padding: int = 0
) -> Float[Array, "b h2 w2 d"]:
    """Transposed convolution: the gradient of a strided convolution with respect to its input.

    With stride s, kernel k and padding p the side grows from n to (n - 1) s - 2 p + k, as in
    `torch.nn.ConvTranspose2d`; s = 2 with k = 2, p = 0 or k = 4, p = 1 doubles it exactly.

    Args:
        x: NHWC maps.
        kernel: (height, width, in, out); a pixel of value 1 produces the unflipped kernel.
        stride: distance in pixels between the kernels of neighbouring pixels.
        padding: number of pixels to crop on every side.

    Raises:
        ValueError: if shapes do not match, the padding exceeds the kernel, or options are not integers.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> y = conv_transpose(jnp.ones((1, 1, 1, 1)), jnp.arange(4.0).reshape(2, 2, 1, 1))
        >>> y[0, :, :, 0].tolist()
        [[0.0, 1.0], [2.0, 3.0]]

    References:
        Dumoulin and Visin, A guide to convolution arithmetic for deep learning, 2016. https://arxiv.org/abs/1603.07285
    """
    check_maps(x)
    check_whole(1, stride=stride)
    check_whole(0, padding=padding)
    if kernel.ndim != 4 or 0 in kernel.shape or x.shape[3] != kernel.shape[2]:
        raise ValueError(f"expected NHWC maps and an (h, w, in, out) kernel, got {x.shape} and {kernel.shape}")
    size = kernel.shape[0]
    if padding >= size or kernel.shape[1] != size:
        raise ValueError(
            f"expected a square kernel, and padding less than its side; got {padding=}, kernel {kernel.shape[:2]}"
        )
    if chosen() == "reference":
        return reference.conv_transpose(x, kernel, stride=stride, padding=padding)
    if (size, stride, padding) == (4, 2, 1):
        # Row 2i of the result reads rows i - 1, i with the kernel's rows 3, 1; row 2i + 1 reads i, i + 1 with 2, 0.
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
    if size == stride and padding == 0 and not explicitly_sharded(x, kernel):
        borders = {axis: (0, 0) for axis, (_, count) in sides_shared(x).items() if x.shape[axis] % count == 0}
        # XLA would gather shared maps for a matrix product over all pixels.
        return with_borders(_tiles, x, borders, weights=(kernel,)) if borders else _tiles(x, kernel)
    return reference.conv_transpose(x, kernel, stride=stride, padding=padding)


def _tiles(x, kernel):
    """Transposed convolution whose output tiles touch without overlap: a matrix product.

    Both of its gradients are matrix products too, if whole rows of tiles are moved before and after, not single pixels.
    """
    batch, height, width, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[3]
    shape = (batch, height, width, size, size * features)

    def forward(x, kernel):
        wide = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        y = (x.reshape(-1, channels) @ wide).reshape(shape).swapaxes(2, 3)
        return y.reshape(batch, height * size, width * size, features), (x, kernel)

    def backward(saved, g):
        x, kernel = saved
        wide = kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
        rows = jnp.asarray(g).reshape(batch, height, size, width, size * features)
        rows = _side_by_side([rows[:, :, i] for i in range(size)]).reshape(-1, size * size * features)
        dkernel = (x.reshape(-1, channels).T @ rows).reshape(channels, size, size, features)
        return (rows @ wide.T).reshape(x.shape), reduced_like(dkernel.transpose(1, 2, 0, 3), kernel)

    function = jax.custom_vjp(lambda x, kernel: forward(x, kernel)[0])
    function.defvjp(forward, backward)
    return function(x, kernel)


def phase_conv(x: Float[Array, "b h w c"], kernel: Float[Array, "2 2 c d4"]) -> Float[Array, "b h2 w2 d"]:
    """Doubles a map's size with one convolution to four times the channels, whose results are interleaved.

    Args:
        x: NHWC maps.
        kernel: (2, 2, in, 4 out): for each phase (even or odd row, even or odd column) its taps. Pixel (2i + p, 2j + q)
          of the result reads the 2x2 pixels of `x` that begin at (i + p - 1, j + q - 1), with zeros around the map.
    """
    borders = {axis: (1, 1) for axis, (_, count) in sides_shared(x).items() if x.shape[axis] % count == 0}
    if borders:

        def own(x, kernel):
            y = phase_conv(x, kernel)
            for axis in borders:  # without the pixels of the result that belong to the neighbours
                y = jax.lax.slice_in_dim(y, 2, y.shape[axis] - 2, axis=axis)
            return y

        return with_borders(own, x, borders, weights=(kernel,))
    forms = {"cuda": _phases_by_three, "default": _phases_by_two}
    context = chosen(), onednn()

    @jax.custom_vjp
    def function(x, kernel):
        return jax.lax.platform_dependent(x, kernel, **forms)

    def backward(saved, g):
        def gradients(form):
            return lambda x, kernel, g: jax.vjp(form, x, kernel)[1](g)

        with implementation(context[0]), with_onednn(context[1]):
            by_platform = {platform: gradients(form) for platform, form in forms.items()}
            return jax.lax.platform_dependent(*saved, jnp.asarray(g), **by_platform)

    function.defvjp(lambda x, kernel: (function(x, kernel), (x, kernel)), backward)
    return function(x, kernel)


def _phases_by_three(x, kernel):
    """Each phase as a 3x3 window with zeros at unused taps: more products, in shapes for which cuDNN is fast.

    With 2x2 windows, XLA:GPU uses a form for the kernel's gradient that takes 30 times as long on an H100.
    """
    batch, height, width, channels = x.shape
    features = kernel.shape[-1] // 4
    phases = kernel.reshape(2, 2, channels, 4, features)
    placed = [
        jnp.pad(phases[..., 2 * p + q, :], ((p, 1 - p), (q, 1 - q), (0, 0), (0, 0))) for p in (0, 1) for q in (0, 1)
    ]
    y = conv(x, jnp.concatenate(placed, axis=-1), padding=1)
    # In several steps: with explicit sharding, JAX rejects a reshape that does all of it at once.
    y = y.reshape(batch, height, width, 2, 2 * features).swapaxes(2, 3).reshape(batch, 2 * height, width, -1)
    return y.reshape(batch, 2 * height, width, 2, features).reshape(batch, 2 * height, 2 * width, features)


def _phases_by_two(x, kernel):
    """2x2 windows over a grid that is larger by one; each phase reads a part of it."""
    batch, height, width, _ = x.shape
    features = kernel.shape[-1] // 4
    # If the zeros are padding of the convolution, XLA:CPU takes 15 times longer for the gradient of the kernel.
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    @jax.custom_vjp
    def pick(y):
        y = y.reshape(batch, height + 1, width + 1, 4, features)
        rows = [_side_by_side([y[:, p : p + height, q : q + width, 2 * p + q] for q in (0, 1)]) for p in (0, 1)]
        rows = [row.reshape(batch, height, width, 2, features) for row in rows]
        rows = [row.reshape(batch, height, 2 * width, features) for row in rows]
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, features)

    def backward(_, g):
        g, phases = jnp.asarray(g), [(p, q) for p in (0, 1) for q in (0, 1)]
        maps = [jnp.pad(g[:, p::2, q::2], ((0, 0), (p, 1 - p), (q, 1 - q), (0, 0))) for p, q in phases]
        return (_side_by_side(maps),)

    pick.defvjp(lambda y: (pick(y), None), backward)
    return pick(conv(padded, kernel))


def _side_by_side(maps: Sequence[jax.Array]) -> jax.Array:
    """Concatenates channels by adding zero-padded maps: XLA:CPU takes four times longer to concatenate."""
    channels = maps[0].shape[-1]
    placed = [
        jnp.pad(each, (*((0, 0),) * (each.ndim - 1), (i * channels, (len(maps) - 1 - i) * channels)))
        for i, each in enumerate(maps)
    ]
    return functools.reduce(jnp.add, placed)


def pixel_shuffle(x: Float[Array, "b h w c"], factor: int = 2) -> Float[Array, "b h2 w2 c2"]:
    """Depth to space: factor**2 channels become a factor x factor block of pixels, in torch's order of channels.

    Output channel d at offset (i, j) of the block comes from input channel d * factor**2 + i * factor + j.

    Raises:
        ValueError: if the number of channels is not a multiple of factor**2.

    Example:
        >>> import jax.numpy as jnp
        >>> pixel_shuffle(jnp.arange(4.0).reshape(1, 1, 1, 4))[0, :, :, 0].tolist()
        [[0.0, 1.0], [2.0, 3.0]]

    References:
        Shi et al., Real-time single image and video super-resolution, 2016. https://arxiv.org/abs/1609.05158
    """
    check_maps(x, floating=False)
    check_whole(1, factor=factor)
    if x.shape[3] % factor**2:
        raise ValueError(
            f"pixel_shuffle by {factor} needs NHWC maps with channels in multiples of {factor**2}, got {x.shape}"
        )
    return per_device(functools.partial(reference.pixel_shuffle, factor=factor), x)
