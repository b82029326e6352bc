"""Convolution, in the fastest form for each kind of device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from densezoo.ops.checks import check_maps, check_whole
from densezoo.ops.depthwise import depthwise, depthwise_gradients
from densezoo.ops.implementation import chosen, in_loop, onednn
from densezoo.ops.materialize import materialize, materialize_on_cpu
from densezoo.ops.sharding import explicitly_sharded, per_device, reduced_like, sides_shared, with_borders
from densezoo.types import Side


def conv(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k k i o"],
    *,
    strides: int = 1,
    padding: int | tuple[tuple[int, int], tuple[int, int]] = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Float[Array, "b h2 w2 o"]:
    """Convolution of NHWC maps with zero padding.

    On CPU, the gradients of a 1x1 convolution are matrix products, which XLA computes up to 1.7 times faster than the
    gradients of its convolution. The gradients of other convolutions first materialise their inputs. Depthwise
    convolutions are sums of shifted maps (`ops.depthwise`), which is about 50 times faster.

    Forward-mode differentiation needs `ops.implementation("reference")`.

    Args:
        x: NHWC maps.
        kernel: (k, k, in / groups, out).
        strides: stride in pixels.
        padding: rows and columns of zeros on every side, or ((top, bottom), (left, right)).
        dilation: distance between two taps of the kernel, in pixels.
        groups: number of channel groups, which are convolved separately.

    Raises:
        ValueError: if shapes do not match, or options are not integers.
        TypeError: if `x` is not of a float dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> conv(jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1)), padding=1)[0, :, :, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    check_maps(x)
    check_whole(1, strides=strides, dilation=dilation, groups=groups)
    pads = padding if isinstance(padding, tuple) else ((padding, padding), (padding, padding))
    for before, after in pads:
        check_whole(0, padding=before)
        check_whole(0, padding=after)
    if kernel.ndim != 4 or kernel.shape[2] * groups != x.shape[3] or kernel.shape[3] % groups:
        raise ValueError(f"expected a (h, w, in / groups, out) kernel for {x.shape} with {groups=}, got {kernel.shape}")
    options = {"strides": strides, "dilation": dilation, "groups": groups}
    compute = functools.partial(_conv, pads=pads, **options)

    def with_neighbours(x, kernel):
        """With pixels of other devices instead of the padding along the axes of the maps that they share."""
        borders, own_pads = {}, dict(enumerate(pads, 1))
        for axis, (_, count) in sides_shared(x).items():
            side, (before, after) = x.shape[axis], own_pads[axis]
            window = dilation * (kernel.shape[axis - 1] - 1) + 1
            beyond = max(window - strides - before, 0)
            whole = side % (count * strides) == 0 and max(before, beyond) <= side // count
            if whole and (side + before + after - window) // strides + 1 == side // strides:
                borders[axis], own_pads[axis] = (before, beyond), (0, 0)
        if not borders:
            return compute(x, kernel)
        own = functools.partial(_conv, pads=(own_pads[1], own_pads[2]), **options)
        return with_borders(own, x, borders, weights=(kernel,))

    # XLA would gather the batch for a grouped convolution: https://github.com/openxla/xla/issues/47945
    return per_device(with_neighbours, x, weights=(kernel,), auto=groups > 1)


# A function of its own is traced, differentiated and lowered once for all convolutions of the same shapes.
@functools.partial(jax.jit, static_argnames=("strides", "pads", "dilation", "groups"))
def _conv(x, kernel, *, strides: int, pads, dilation: int, groups: int) -> jax.Array:
    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(strides, strides),
            padding=pads,
            rhs_dilation=(dilation, dilation),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    if chosen() == "reference":
        return plain(x, kernel)
    sides = zip(x.shape[1:3], kernel.shape[:2], pads, strict=True)
    (rows, above), (columns, beside) = (_read_taps(*side, strides, dilation) for side in sides)
    kernel, pads = kernel[rows, columns], (above, beside)
    pointwise = kernel.shape[:2] == (1, 1) and (strides, pads, groups) == (1, ((0, 0), (0, 0)), 1)
    by_channel = groups == x.shape[3] == kernel.shape[3] > 1 and not explicitly_sharded(x, kernel)
    # oneDNN falls back to a reference loop for larger windows: 12 ms instead of 2.4 at 4x32x32x512, dilated by 12.
    near = dilation * (max(kernel.shape[:2]) - 1) <= 12
    as_depthwise = {"strides": strides, "padding": pads, "dilation": dilation, "onednn": onednn() and near}
    ordinary = groups == 1 and not pointwise and not explicitly_sharded(x, kernel)
    by_onednn = onednn() and ordinary and (dilation, x.dtype, kernel.dtype) == (1, jnp.float32, jnp.float32)
    in_layout = ordinary and in_loop()

    def gradients(x, kernel, g):
        return jax.vjp(plain, x, kernel)[1](g)

    def gradients_on_cpu(x, kernel, g):
        if by_channel:
            dx, dkernel = depthwise_gradients(x, kernel, g, **as_depthwise)
            return dx, reduced_like(dkernel, kernel)
        if by_onednn or in_layout:
            g = materialize(g)
            if in_layout:
                dx = _input_gradient(g, kernel, x.shape, strides, pads, dilation)
            else:
                (dx,) = jax.vjp(lambda x: plain(x, kernel), x)[1](g)
            kernel_gradient = _kernel_gradient if by_onednn else _kernel_gradient_by_channel
            dkernel = kernel_gradient(x, g, kernel.shape, strides, pads, dilation)
            return dx, reduced_like(dkernel, kernel)
        if not pointwise or explicitly_sharded(x, kernel):
            return gradients(x, kernel, materialize(g))
        pixels, g_pixels = x.reshape(-1, x.shape[3]), g.reshape(-1, g.shape[3])
        return (g_pixels @ kernel[0, 0].T).reshape(x.shape), reduced_like(
            (pixels.T @ g_pixels).reshape(kernel.shape), kernel
        )

    def gradients_by_blocks(x, kernel, g):
        return jax.vjp(by_blocks, x, kernel)[1](g)

    def backward(saved, g):
        on_gpu = {"cuda": gradients_by_blocks} if few else {}
        return jax.lax.platform_dependent(*saved, jnp.asarray(g), cpu=gradients_on_cpu, **on_gpu, default=gradients)

    # The first convolution of an encoder: with three channels, cuDNN does not reach the GPU's speed.
    few = strides > 1 and x.shape[3] <= 4 and (dilation, groups) == (1, 1) and not explicitly_sharded(x, kernel)
    by_blocks = functools.partial(_by_blocks, strides=strides, padding=pads)

    def compute(x, kernel):
        if few:
            return jax.lax.platform_dependent(x, kernel, cuda=by_blocks, default=plain)
        if not by_channel:
            return plain(x, kernel)
        on_cpu = functools.partial(depthwise, **as_depthwise)
        return jax.lax.platform_dependent(x, kernel, cpu=on_cpu, default=plain)

    function = jax.custom_vjp(compute)

    def forward(x, kernel):
        if not pointwise and not by_channel:
            # Otherwise XLA:CPU fuses a batch norm or a ReLU into the transposition at the start of the kernel's
            # gradient, where they take several times as long.
            x = materialize_on_cpu(x)
        return compute(x, kernel), (x, kernel)

    function.defvjp(forward, backward)
    return function(x, kernel)


def _by_blocks(x, kernel, *, strides: int, padding) -> jax.Array:
    """A strided convolution as a convolution of stride 1, after space-to-depth with blocks of strides x strides pixels.

    The channels are padded with zeros to a multiple of 4.
    """
    sizes = kernel.shape[:2]
    (rows, more_rows), (columns, more_columns) = (
        # The windows, with zeros that extend the kernel to whole blocks.
        ((side + sum(pads) - size) // strides + 1, -size % strides)
        for side, size, pads in zip(x.shape[1:3], sizes, padding, strict=True)
    )
    reach = [
        (n - 1) * strides + size + more
        for n, size, more in ((rows, sizes[0], more_rows), (columns, sizes[1], more_columns))
    ]
    ends = [want - side - pads[0] for want, side, pads in zip(reach, x.shape[1:3], padding, strict=True)]
    channels = -x.shape[3] % 4
    pads = [(0, 0, 0), *((pads[0], end, 0) for pads, end in zip(padding, ends, strict=True)), (0, channels, 0)]
    x = jax.lax.pad(x, jnp.zeros((), x.dtype), pads)
    kernel = jnp.pad(kernel, ((0, more_rows), (0, more_columns), (0, channels), (0, 0)))
    batch, features = x.shape[0], kernel.shape[3]
    x = x.reshape(batch, reach[0] // strides, strides, reach[1] // strides, strides, -1).swapaxes(2, 3)
    kernel = kernel.reshape(kernel.shape[0] // strides, strides, kernel.shape[1] // strides, strides, -1, features)
    kernel = kernel.swapaxes(1, 2)
    return jax.lax.conv_general_dilated(
        x.reshape(*x.shape[:3], -1),
        kernel.reshape(*kernel.shape[:2], -1, features),
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _read_taps(
    side: Side, size: int, padding: tuple[int, int], strides: int, dilation: int
) -> tuple[slice, tuple[int, int]]:
    """The kernel's taps along one axis that read at least one pixel of the map, and the padding that they need.

    If the dilation is at least the map's side, as in the ASPP of a small image, a 3x3 convolution becomes a 1x1 one.
    """
    before, after = padding
    if jax.export.is_symbolic_dim(side):  # any side is possible
        return slice(0, size), padding
    last = (side + before + after - dilation * (size - 1) - 1) // strides  # window
    taps = [
        tap
        for tap in range(size)
        if any(0 <= window * strides + tap * dilation - before < side for window in range(last + 1))
    ]
    if not taps:
        return slice(0, size), padding
    # At most the padding: cropping the map itself would need a negative one.
    first, end = min(taps[0], before // dilation), min(size - 1 - taps[-1], after // dilation)
    return slice(first, size - end), (before - first * dilation, after - end * dilation)


def _input_gradient(g, kernel, shape: tuple[int, ...], strides: int, pads, dilation: int) -> jax.Array:
    """The gradient of the input as a convolution of `g` in the layout that XLA:CPU is fast for.

    XLA only converts convolutions to this layout outside of loops.
    """
    taps = kernel.shape[0] * kernel.shape[1]
    # XLA does not use oneDNN's convolution after a `jnp.flip`.
    turned = jnp.take(kernel.reshape(taps, *kernel.shape[2:]), np.arange(taps)[::-1], axis=0, mode="clip")
    around = []
    for side, size, (low, _), n in zip(shape[1:3], kernel.shape[:2], pads, g.shape[1:3], strict=True):
        reach = dilation * (size - 1)
        around.append((reach - low, side + low - (n - 1) * strides - 1))
    return jax.lax.conv_general_dilated(
        g,
        turned.reshape(kernel.shape).swapaxes(2, 3),
        window_strides=(1, 1),
        padding=around,
        lhs_dilation=(strides, strides),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _kernel_gradient_by_channel(x, g, shape: tuple[int, ...], strides: int, pads, dilation: int) -> jax.Array:
    """The gradient of the kernel as autodiff has it, with the batch as channels and the channels as batch."""
    around = []
    for side, size, (low, _), n in zip(x.shape[1:3], shape[:2], pads, g.shape[1:3], strict=True):
        around.append((low, dilation * (size - 1) + (n - 1) * strides + 1 - side - low))
    y = jax.lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        g.transpose(1, 2, 0, 3),
        window_strides=(dilation, dilation),
        padding=around,
        rhs_dilation=(strides, strides),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.transpose(1, 2, 0, 3)


def _kernel_gradient(x, g, shape: tuple[int, ...], strides: int, pads, dilation: int = 1) -> jax.Array:
    """The gradient of the kernel as a convolution of `x` with `g`, in a shape for which oneDNN is fast.

    The sum runs over batch, rows and columns. The batch becomes the channel axis, and a row's pixels and their channels
    become one axis, along which the window moves by one pixel at a time. The result has the kernel's layout, and at
    least three times the columns of autodiff's form, whose output is a map of the kernel's size.
    """
    size, channels = shape[:2], x.shape[3]
    ends = [(n - 1) * strides + k for n, k in zip(g.shape[1:3], size, strict=True)]  # the extent of the windows in x
    x = x[:, : ends[0] - pads[0][0], : ends[1] - pads[1][0]]
    rows, columns = ((low, end - low - n) for end, (low, _), n in zip(ends, pads, x.shape[1:3], strict=True))
    y = jax.lax.conv_general_dilated(
        x.transpose(1, 2, 3, 0).reshape(1, x.shape[1], -1, x.shape[0]),
        g.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=(rows, (columns[0] * channels, columns[1] * channels)),
        rhs_dilation=(strides, strides * channels),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(shape)
