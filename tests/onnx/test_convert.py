"""JAX programs in onnxruntime."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops
from densezoo.onnx.convert import convert
from densezoo.ops import implementation
from densezoo.ops.implementation import whole_operations

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
RANDOM = np.random.default_rng(0)
MAPS = RANDOM.standard_normal((2, 6, 8, 4)).astype(np.float32)
KERNEL = RANDOM.standard_normal((3, 3, 4, 6)).astype(np.float32)
GROUPED = RANDOM.standard_normal((3, 3, 2, 6)).astype(np.float32)
MATRIX = RANDOM.standard_normal((4, 5)).astype(np.float32)
TABLE = RANDOM.permutation(60).reshape(2, 10, 3).astype(np.float32)
PLACES = RANDOM.integers(-3, 13, (2, 7)).astype(np.int32)


def converted(function, *inputs, symbolic=False):
    """The graph of a function, and its results in onnxruntime."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in inputs]
    if symbolic:
        (batch,) = jax.export.symbolic_shape("b")
        shapes = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in inputs]
    names = [f"input{i}" for i in range(len(inputs))]
    count = len(jax.tree.leaves(jax.eval_shape(function, *inputs)))
    with implementation("reference"), whole_operations():
        content = convert(function, shapes, names, [f"output{i}" for i in range(count)])
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(None, dict(zip(names, inputs, strict=True)))
    return [node.op_type for node in onnx.load_from_string(content).graph.node], found


def agree(function, *inputs, symbolic=False):
    operations, found = converted(function, *inputs, symbolic=symbolic)
    expected = jax.tree.leaves(jax.jit(function)(*inputs))
    for a, b in zip(found, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return operations


def convolve(x, kernel, **options):
    options = {"padding": "SAME", "window_strides": (1, 1)} | options
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **options)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        lambda x: convolve(x, KERNEL, window_strides=(2, 1), rhs_dilation=(1, 2)),
        lambda x: convolve(x, GROUPED, feature_group_count=2, padding=((2, 0), (1, 1))),
        lambda x: convolve(x, KERNEL, lhs_dilation=(2, 2), padding=((1, 2), (2, 1))),
        lambda x: convolve(x, GROUPED, lhs_dilation=(2, 2), feature_group_count=2, padding=((1, 1), (1, 2))),
        lambda x: ops.resize_nearest(x, (12, 24)),
        lambda x: ops.resize_nearest(x, (5, 12), half_pixel=False),
        lambda x: ops.resize_nearest(x, (3, 4)),
        lambda x: ops.resize_bilinear(x, (12, 5)),
        lambda x: ops.resize_bilinear(x, (12, 16), align_corners=True),
        lambda x: ops.resize_bicubic(x, (9, 16)),
        lambda x: ops.max_pool_with_indices(x, 2),
        lambda x: ops.max_pool_with_indices(x, 3, 2, 1),
        lambda x: nn.max_pool(x, (3, 2), (2, 2), "SAME"),
        lambda x: jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 2, 1), (1, 2, 2, 1), "SAME"),
        lambda x: jax.vmap(lambda x: ops.max_pool(x[None])[0])(x),
        lambda x: ops.max_unpool(*ops.max_pool_with_indices(x)),
        lambda x: ops.group_norm(x, jnp.arange(4.0), jnp.ones(4), groups=2, epsilon=1e-5, relu=True),
        lambda x: jnp.einsum("bhwc,cd->bhwd", convolve(x, KERNEL)[..., :4], MATRIX),
        lambda x: jnp.einsum("bhwc,bnwc->bchn", x, x[:, ::-1]),
        lambda x: jnp.einsum("hn,bhwc->bnwc", np.ones((6, 3), np.float32), convolve(x, KERNEL)),
        lambda x: convolve(x, KERNEL).reshape(x.shape[0], 6, 8, 2, 3).sum((1, 2, 4)),
        lambda x: convolve(x, KERNEL).reshape(x.shape[0], -1, 6) @ np.ones((6, 2), np.float32),
        lambda x: jnp.pad(convolve(x, KERNEL), ((0, 0), (1, 0), (0, 2), (0, 0)), constant_values=3)[:, ::2, 1:-1, ::-1],
        lambda x: jnp.stack([x, convolve(x, KERNEL)[..., :4]], 3).swapaxes(1, 2),
        lambda x: jnp.concatenate([jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape), 2 * x], -1).argmax(-1),
        lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.softmax(x) + jax.nn.silu(x) + jnp.sign(x) // 2,
        lambda x: jnp.where(x > 0, x.astype(jnp.int8), (10 * x).astype(jnp.int8)) % np.int8(3),
        lambda x: (jnp.arange(x.shape[0], dtype=jnp.float32)[:, None, None, None] * x).cumsum(1),
    ],
)  # fmt: skip
def test_maps(function, symbolic):
    agree(function, MAPS, symbolic=symbolic)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: jnp.take_along_axis(x, jnp.clip(i, 0, 9)[..., None], 1),
        lambda x, i: x.at[0, i[0]].get(mode="fill", fill_value=7),
        lambda x, i: jax.vmap(lambda x, i: x.at[:, i % 3].get(mode="clip").T)(x, i),
        lambda x, i: jax.vmap(lambda x, i: x[i, i % 3])(x, i),
        lambda x, i: jax.vmap(lambda x, i: jax.lax.dynamic_slice(x, (i[0], i[1]), (4, 2)))(x, i),
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i[0, 0], 4, 1),
        lambda x, i: jax.vmap(lambda x, i: x.at[jnp.abs(i[:2]) * 5].set(-1.0, mode="drop"))(x, i),
        lambda x, i: x.at[:, i[0]].add(x[:, :7], mode="drop"),
        lambda x, i: x.at[0, 3].set(i.sum().astype(jnp.float32)),
        lambda x, i: jax.lax.top_k(x.swapaxes(1, 2), 4),
        lambda x, i: jnp.argsort(x % 5, axis=1),
        lambda x, i: jax.lax.sort((i, x[..., 0][:, :7], -i), dimension=1, num_keys=1),
        lambda x, i: jnp.lexsort((x[0, :7, 0], i[0])),
    ],
)
def test_indexing(function):
    agree(function, TABLE, PLACES)


def test_loops():
    def collatz(n):
        """The number of steps, for each sample of a batch of its own."""
        step = lambda s: (jnp.where(s[0] % 2 == 0, s[0] // 2, 3 * s[0] + 1), s[1] + 1)  # noqa: E731
        return jax.lax.while_loop(lambda s: s[0] != 1, step, (n, 0))[1]

    agree(jax.vmap(collatz), np.asarray([1, 6, 7, 27], np.int32))
    agree(lambda x: jax.lax.fori_loop(0, 5, lambda i, y: y * x[i] + 1, jnp.zeros(3)), TABLE[0])
    step = lambda carry, row: (carry + row, (carry * row, row > 3))  # noqa: E731
    for reverse in (False, True):
        agree(lambda x, reverse=reverse: jax.lax.scan(step, x[0] * 0, x, reverse=reverse), TABLE[0])
    agree(lambda x: jax.lax.cond(x.sum() > 0, lambda x: 2 * x, lambda x: x - 1, x), TABLE)


def test_nms():
    corners = RANDOM.uniform(0, 50, (2, 300, 2))
    boxes = np.concatenate([corners, corners + RANDOM.uniform(5, 30, corners.shape)], -1).astype(np.float32)
    scores, labels = RANDOM.permutation(600).reshape(2, 300).astype(np.float32), RANDOM.integers(0, 3, (2, 300))
    agree(jax.vmap(lambda *x: ops.batched_nms(*x, 0.5, 260)), boxes, scores, labels.astype(np.int32))


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [2, 0])
def test_roi_align(aligned, sampling_ratio):
    corners = RANDOM.uniform(-5, 40, (2, 9, 2))
    boxes = np.concatenate([corners, corners + RANDOM.uniform(0, 30, corners.shape)], -1).astype(np.float32)
    options = {"sampling_ratio": sampling_ratio, "aligned": aligned, "spatial_scale": 0.25}
    operations = agree(lambda x, boxes: ops.roi_align(x, boxes, (3, 2), **options), MAPS, boxes, symbolic=True)
    assert ("RoiAlign" in operations) == (sampling_ratio > 0)


def test_maps_stay_in_nchw():
    """Of a network with convolutions, pooling, skips and norms, only input and output are transposed."""

    def network(x):
        x = ops.group_norm(convolve(x, KERNEL), jnp.ones(6), jnp.ones(6), groups=2, epsilon=1e-5)
        y = jax.nn.relu(ops.max_pool(x) * x.mean((1, 2), keepdims=True))
        y = jnp.concatenate([ops.resize_nearest(y, (6, 8)), x], -1)[..., :4]
        return convolve(y, KERNEL) + np.ones((1, 1, 1, 6), np.float32)

    operations = agree(network, MAPS)
    assert operations.count("Transpose") == 2
    assert {"Resize", "MaxPool"} <= set(operations)


def test_an_operation_without_a_rule_is_named():
    with pytest.raises(NotImplementedError, match="fft"):
        convert(jnp.fft.fft, [jax.ShapeDtypeStruct((4,), jnp.complex64)], ["x"], ["y"])


BEYOND = np.array([75.4, -79.0, 384.0, 3e9, -3e9, np.nan, np.inf, -np.inf, 0.0], np.float32)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32])
def test_floats_beyond_the_range_of_integers(dtype):
    _, (found,) = converted(lambda x: x.astype(dtype), BEYOND)
    np.testing.assert_array_equal(found, jax.jit(lambda x: x.astype(dtype))(BEYOND))


@pytest.mark.parametrize("function", [jnp.log1p, jnp.expm1])
def test_small_numbers_keep_their_digits(function):
    x = np.array([0, 1e-9, -1e-9, 1e-4, -1e-4, 0.3, -0.3, 0.99, 5, 80], np.float32)
    if function is jnp.expm1:
        x = np.append(x, np.float32([-90, -np.inf, np.inf]))
    else:
        x = np.append(x, np.float32([-1, np.inf]))
    _, (found,) = converted(function, x)
    np.testing.assert_allclose(found, jax.jit(function)(x), rtol=1e-6)


def test_rounding_away_from_zero():
    x = np.array([0.49999997, 0.5, 1.5, -0.5, -2.5, 8388609], np.float32)
    away = jax.lax.RoundingMethod.AWAY_FROM_ZERO
    _, (found,) = converted(lambda x: jax.lax.round(x, away), x)
    np.testing.assert_array_equal(found, jax.lax.round(x, away))
