"""The plain forms of the operations against hand-computed numbers and NumPy loops over their definitions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from densezoo.ops import reference

SIZES = [((4, 6), (8, 12)), ((5, 3), (9, 7)), ((7, 8), (3, 5)), ((1, 1), (4, 3)), ((3, 4), (1, 1)), ((3, 2), (9, 8))]


def image(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def row(*values):
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def cubic(d):
    # Keys 1981, equation 4, with a = -3/4.
    d = abs(d)
    if d <= 1:
        return 1.25 * d**3 - 2.25 * d**2 + 1
    return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def interpolate_loop(x, size, align_corners, kernel, reach, clamp):
    """Every output pixel is a distance-weighted mean of all pixels in its support; the border is repeated outside."""
    y = np.zeros((x.shape[0], *size, x.shape[3]))
    for i, j in np.ndindex(*size):
        at = []
        for index, n, m in zip((i, j), x.shape[1:3], size, strict=True):
            position = index * (n - 1) / max(m - 1, 1) if align_corners else (index + 0.5) * n / m - 0.5
            at.append(min(max(position, 0), n - 1) if clamp else position)
        for di, dj in np.ndindex(2 * reach, 2 * reach):
            r, c = int(np.floor(at[0])) + di - reach + 1, int(np.floor(at[1])) + dj - reach + 1
            pixel = x[:, min(max(r, 0), x.shape[1] - 1), min(max(c, 0), x.shape[2] - 1)]
            y[:, i, j] += kernel(at[0] - r) * kernel(at[1] - c) * pixel
    return y


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("before", "after"), SIZES)
def test_interpolation_equals_loop(before, after, align_corners):
    x = image(2, *before, 3)
    resizes = (reference.resize_bilinear, reference.resize_bicubic)
    y, z = jax.jit(lambda x: [resize(x, after, align_corners=align_corners) for resize in resizes])(x)
    linear = interpolate_loop(x, after, align_corners, lambda d: max(1 - abs(d), 0), 1, True)
    np.testing.assert_allclose(y, linear, atol=1e-6)
    np.testing.assert_allclose(z, interpolate_loop(x, after, align_corners, cubic, 2, False), atol=2e-6)


def test_resizing_by_hand():
    def nearest(m, half_pixel):
        return reference.resize_nearest(row(0, 1, 2, 3, 4), (1, m), half_pixel=half_pixel).ravel().tolist()

    assert nearest(3, True) == [0, 2, 4]  # floor of 0.83, 2.5, 4.17
    assert nearest(3, False) == [0, 1, 3]  # floor of 0, 1.67, 3.33
    assert nearest(10, True) == nearest(10, False) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    y = reference.resize_bilinear(row(0, 4), (2, 4), align_corners=False)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1, 3, 4]] * 2)
    y = reference.resize_bilinear(row(0, 1, 5), (1, 5), align_corners=True)
    np.testing.assert_array_equal(y.ravel(), [0, 0.5, 1, 3, 5])
    # In the middle of four pixels the weights are (-3, 19, 19, -3) / 32.
    y = reference.resize_bicubic(row(0, 32, 0, 0), (1, 7), align_corners=True)
    np.testing.assert_allclose(y.ravel(), [0, 19, 32, 19, 0, -3, 0], atol=1e-6)


def test_resizing_keeps_dtype_and_whole_numbers():
    y = reference.resize_nearest(jnp.arange(4).reshape(1, 2, 2, 1), (3, 4), half_pixel=True)
    assert y.dtype == jnp.int32 and y[0, :, :, 0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    x = image(1, 4, 4, 2)
    for resize in (reference.resize_bilinear, reference.resize_bicubic):
        half = resize(jnp.asarray(x, jnp.bfloat16), (7, 9), align_corners=False)
        # One rounding at the end: the result is that in float32, rounded.
        whole = resize(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), (7, 9), align_corners=False)
        assert half.dtype == jnp.bfloat16
        np.testing.assert_array_equal(half, whole.astype(jnp.bfloat16))


@functools.cache
def interpolated(resize, size, align_corners):
    return jax.jit(functools.partial(resize, size=size, align_corners=align_corners))


@pytest.mark.parametrize("extreme", [np.inf, np.nan])
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(8, 8), (7, 7), (13, 5)])
def test_extreme_values_reach_only_what_reads_them(extreme, align_corners, size):
    x = image(1, 4, 4, 1)
    x[0, 1, 1] = 0
    impulse = np.zeros_like(x)
    impulse[0, 1, 1] = 1
    spoilt = x.copy()
    spoilt[0, 1, 1] = extreme
    for resize in (reference.resize_bilinear, reference.resize_bicubic):
        run = interpolated(resize, size, align_corners)
        reads, before, after = np.asarray(run(impulse)) != 0, np.asarray(run(x)), np.asarray(run(spoilt))
        np.testing.assert_array_equal(~np.isfinite(after), reads)
        np.testing.assert_array_equal(after[~reads], before[~reads])
    huge = interpolated(reference.resize_bilinear, size, align_corners)(x * np.float32(1e30))
    assert bool(jnp.isfinite(huge).all())


@pytest.mark.parametrize(("size", "stride", "padding"), [(2, 2, 0), (4, 2, 1), (3, 2, 1), (3, 3, 0), (5, 1, 3)])
def test_conv_transpose_paints(size, stride, padding):
    x, kernel = image(2, 4, 3, 3), image(size, size, 3, 2, seed=1)
    y = np.zeros((2, 3 * stride + size, 2 * stride + size, 2))
    for i, j in np.ndindex(4, 3):
        rows, columns = slice(i * stride, i * stride + size), slice(j * stride, j * stride + size)
        y[:, rows, columns] += np.einsum("bc,klcd->bkld", x[:, i, j], kernel)
    expected = y[:, padding : y.shape[1] - padding, padding : y.shape[2] - padding]
    got = reference.conv_transpose(jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_pixel_shuffle_by_hand():
    y = reference.pixel_shuffle(jnp.arange(8.0).reshape(1, 1, 1, 8), 2)
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(y[0, :, :, 1], [[4, 5], [6, 7]])


def test_pool_by_hand():
    x = jnp.asarray([[1.0, 5.0, 2.0], [5.0, 0.0, -1.0], [7.0, 7.0, 7.0]]).reshape(1, 3, 3, 1)
    y, index = reference.max_pool_with_indices(x, 2, 1, 0)
    np.testing.assert_array_equal(y[0, :, :, 0], [[5, 5], [7, 7]])
    np.testing.assert_array_equal(index[0, :, :, 0], [[1, 0], [2, 2]])  # the first of equals
    y, index = reference.max_pool_with_indices(x, 3, 2, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[5, 5], [7, 7]])
    np.testing.assert_array_equal(index[0, :, :, 0], [[5, 3], [4, 3]])  # counted in the window, padding included
    assert index.dtype == jnp.int8
    with_nan = jnp.asarray([[np.nan, 9.0], [np.nan, 1.0]]).reshape(1, 2, 2, 1)
    y, index = reference.max_pool_with_indices(with_nan, 2, 2, 0)
    assert bool(jnp.isnan(y).all()) and index.item() == 2  # the last of several
    y, index = reference.max_pool_with_indices(jnp.asarray([[-3, -4], [-1, -1]]).reshape(1, 2, 2, 1), 2, 2, 1)
    np.testing.assert_array_equal(y[0, :, :, 0], [[-3, -4], [-1, -1]])


def test_unpool_by_hand():
    x = jnp.asarray([3.0, np.inf]).reshape(1, 1, 2, 1)
    y = reference.max_unpool(x, jnp.asarray([2, 1], jnp.int8).reshape(1, 1, 2, 1), (3, 4))
    np.testing.assert_array_equal(y[0, :, :, 0], [[0, 0, 0, np.inf], [3, 0, 0, 0], [0, 0, 0, 0]])
    dropped = reference.max_unpool(x, jnp.full((1, 1, 2, 1), 4, jnp.int8), (2, 4))
    assert not bool(dropped.any())


def test_upsample_concat_conv_by_hand():
    x, skip = jnp.asarray([[1.0, 3.0]]).reshape(1, 1, 2, 1), jnp.full((1, 2, 4, 1), 10.0)
    # A kernel that reads its centre, its upper neighbour and the skip at its centre.
    kernel = jnp.zeros((3, 3, 2, 1)).at[1, 1, 0, 0].set(1).at[0, 1, 0, 0].set(100).at[1, 1, 1, 0].set(1)
    expected = {
        "nearest": [1, 1, 3, 3],
        "bilinear": [1, 1.5, 2.5, 3],
        "bilinear_align_corners": [1, 5 / 3, 7 / 3, 3],
    }
    for method, line in expected.items():
        y = reference.upsample_concat_conv(x, skip, kernel, method=method, skip_first=False)
        above = 100 * np.asarray(line)
        np.testing.assert_allclose(y[0, :, :, 0], [np.add(line, 10), line + above + 10], rtol=1e-6)
        turned = reference.upsample_concat_conv(x, skip, kernel[:, :, ::-1], method=method, skip_first=True)
        np.testing.assert_array_equal(turned, y)
        y = reference.upsample_concat_conv(x, None, kernel[:, :, :1], method=method, skip_first=False)
        np.testing.assert_allclose(y[0, :, :, 0], [line, line + above], rtol=1e-6)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_equals_numpy(relu):
    x = 1000 + image(3, 2, 4, 5)
    scale, bias = image(5, seed=1), image(5, seed=2)
    y, mean, var = reference.batch_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), epsilon=0.5, relu=relu)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean((0, 1, 2))) / np.sqrt(wide.var((0, 1, 2)) + 0.5) * scale + bias
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, atol=1e-3)
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(var, wide.var((0, 1, 2)), rtol=1e-3)
    half, mean, _ = reference.batch_norm(
        jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale), jnp.asarray(bias), epsilon=0.5, relu=relu
    )
    assert half.dtype == jnp.bfloat16 and mean.dtype == jnp.float32


def test_group_norm_equals_numpy():
    x, scale, bias = image(3, 2, 4, 6), image(6, seed=1), image(6, seed=2)
    y = reference.group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), groups=3, epsilon=0.5, relu=True)
    for sample, group in np.ndindex(3, 3):
        channels = slice(2 * group, 2 * group + 2)
        part = x[sample, :, :, channels]
        expected = (part - part.mean()) / np.sqrt(part.var() + 0.5) * scale[channels] + bias[channels]
        np.testing.assert_allclose(y[sample, :, :, channels], np.maximum(expected, 0), atol=1e-5)


def test_carafe_equals_loop():
    x, masks = image(2, 3, 4, 6), image(2, 6, 8, 2 * 9, seed=1)
    expected = np.zeros((2, 6, 8, 6))
    for i, j, c, di, dj in np.ndindex(6, 8, 6, 3, 3):
        r, s = i // 2 + di - 1, j // 2 + dj - 1
        if 0 <= r < 3 and 0 <= s < 4:
            expected[:, i, j, c] += masks[:, i, j, (c // 3) * 9 + 3 * di + dj] * x[:, r, s, c]
    y = reference.carafe(jnp.asarray(x), jnp.asarray(masks), kernel_size=3, factor=2, groups=2)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_sampling_by_hand():
    x = jnp.asarray([[0.0, 1.0, 5.0], [10.0, 20.0, 30.0]]).reshape(1, 2, 3, 1)
    positions = jnp.asarray([[0, 0], [0, 1.5], [0.5, 1], [1, 2], [-3, 1], [0.5, 9]]).reshape(1, 1, 6, 2)
    y, tangent = jax.jvp(lambda p: reference.sample_bilinear(x, p), (positions,), (jnp.ones_like(positions),))
    np.testing.assert_allclose(y.ravel(), [0, 3, 10.5, 30, 1, 17.5])
    # Down plus right; from a whole position towards the next pixel, and nothing on the border or beyond it.
    np.testing.assert_allclose(tangent.ravel(), [0, 4, 19 + 7, 0, 4, 25])
    two = jnp.concatenate([x, 100 * x], -1)
    by_group = jnp.stack([positions, positions[:, :, ::-1]], 3)
    y = reference.sample_bilinear(two, by_group)
    np.testing.assert_allclose(y[0, 0].T, [[0, 3, 10.5, 30, 1, 17.5], [1750, 100, 3000, 1050, 300, 0]])


def test_everything_differentiates_in_both_modes():
    x, kernel = jnp.asarray(image(1, 3, 4, 4)), jnp.asarray(image(3, 3, 4, 2, seed=1))
    skip, both = jnp.asarray(image(1, 6, 8, 1)), jnp.asarray(image(3, 3, 5, 2, seed=2))
    masks = jnp.asarray(image(1, 6, 8, 9, seed=3))
    positions = jnp.asarray(0.3 + np.random.default_rng(4).integers(0, 2, (1, 5, 2, 2, 2)), jnp.float32)
    channel = jnp.ones(4)
    cases = [
        (lambda x: reference.resize_nearest(x, (5, 9), half_pixel=True), (x,)),
        (lambda x: reference.resize_bilinear(x, (5, 9), align_corners=False), (x,)),
        (lambda x: reference.resize_bicubic(x, (5, 9), align_corners=True), (x,)),
        (lambda x, k: reference.conv_transpose(x, k, stride=2, padding=1), (x, kernel)),
        (lambda x: reference.pixel_shuffle(x, 2), (x,)),
        (lambda x: reference.max_pool_with_indices(x, 2, 2, 0)[0], (x,)),
        (lambda x: reference.max_unpool(x, jnp.ones(x.shape, jnp.int8), (7, 9)), (x,)),
        (lambda x, s, k: reference.upsample_concat_conv(x, s, k, method="bilinear", skip_first=True), (x, skip, both)),
        (lambda x, s, b: reference.batch_norm(x, s, b, epsilon=1e-3, relu=False)[0], (x, channel, channel)),
        (lambda x, m: reference.carafe(x, m, kernel_size=3, factor=2, groups=1), (x, masks)),
        (lambda x, p: reference.sample_bilinear(x, p), (x, positions)),
    ]
    for f, arguments in cases:
        check_grads(jax.jit(f), arguments, order=1, modes=["fwd", "rev"], atol=2e-2, rtol=2e-2)
