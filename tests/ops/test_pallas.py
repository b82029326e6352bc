"""The Pallas kernels in interpret mode against plain forms and hand-computed values, and their lowering."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from densezoo.ops import max_unpool, resize_bilinear
from densezoo.ops.pallas import (
    bilinear_x2,
    bilinear_x2_adjoint,
    launch,
    max_unpool_x2,
    max_unpool_x2_adjoint,
    upsample_concat_conv,
)

BACKENDS: list[launch.Backend] = ["tpu", "gpu"]
# A batch and odd sides; one channel; channels in blocks of 128; a single pixel.
CASES = [
    ((2, 5, 7, 3), jnp.float32),
    ((2, 5, 7, 3), jnp.bfloat16),
    ((1, 6, 4, 1), jnp.float32),
    ((1, 2, 3, 256), jnp.bfloat16),
    ((1, 1, 1, 2), jnp.float32),
]


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch):
    """Small blocks, so that these small maps take several, the last of them ragged, and haloes are read."""
    monkeypatch.setattr(launch, "FLAT_BLOCK", 64)
    monkeypatch.setattr(launch, "MAX_ROWS", 2)


def whole(shape, dtype=jnp.float32, seed=0):
    """Small whole numbers: their sums, products and sixteenths are exact in float32."""
    return jnp.asarray(np.random.default_rng(seed).integers(-8, 9, shape), dtype)


def indices_for(shape):
    """Window positions, and some that are none."""
    return jnp.asarray(np.random.default_rng(1).integers(-1, 5, shape), jnp.int8)


def double(shape):
    return (shape[0], 2 * shape[1], 2 * shape[2], shape[3])


def value_and_vjp(function, x, g):
    @jax.jit
    def both(x, g):
        y, vjp = jax.vjp(function, x)
        return y, vjp(g)[0]

    return both(x, g)


def same(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(actual, np.float64), np.asarray(expected, np.float64))


def conv_loop(x, skip, kernel):
    """The definition, in NumPy."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    maps = x.repeat(2, 1).repeat(2, 2)
    if skip is not None:
        maps = np.concatenate([maps, np.asarray(skip, np.float64)], 3)
    height, width = maps.shape[1:3]
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    y = np.zeros((*maps.shape[:3], kernel.shape[3]))
    for i in range(3):
        for j in range(3):
            y += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return y


@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_bilinear_by_hand(backend):
    x = jnp.array([[0.0, 4.0], [8.0, 16.0]]).reshape(1, 2, 2, 1)
    y = bilinear_x2(x, backend=backend, interpret=True)[0, :, :, 0]
    rows = [[0, 1, 3, 4], [2, 3.25, 5.75, 7], [6, 7.75, 11.25, 13], [8, 10, 14, 16]]
    np.testing.assert_array_equal(y, rows)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_bilinear(backend, shape, dtype):
    x, g = whole(shape, dtype), whole(double(shape), dtype, 1)
    y, gradient = value_and_vjp(functools.partial(bilinear_x2, backend=backend, interpret=True), x, g)
    wide = value_and_vjp(lambda x: resize_bilinear(x, double(shape)[1:3]), x.astype(jnp.float32), g.astype(jnp.float32))
    # Exact in float32, and a bfloat16 is rounded once.
    same(y, wide[0].astype(dtype))
    same(gradient, wide[1].astype(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_gradients(backend):
    """The adjoints' gradients are the operations themselves."""
    g, x = whole((1, 6, 4, 2)), whole((1, 3, 2, 2), seed=1)
    (up,) = jax.vjp(functools.partial(bilinear_x2_adjoint, backend=backend, interpret=True), g)[1](x)
    same(up, bilinear_x2(x))
    index = indices_for(x.shape)
    (spread,) = jax.vjp(lambda g: max_unpool_x2_adjoint(g, index, backend=backend, interpret=True), g)[1](x)
    same(spread, jax.jit(max_unpool)(x, index))


@pytest.mark.parametrize(("shape", "dtype"), CASES)
@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_unpool(backend, shape, dtype):
    x, g, index = whole(shape, dtype), whole(double(shape), dtype, 1), indices_for(shape)
    y, gradient = value_and_vjp(lambda x: max_unpool_x2(x, index, backend=backend, interpret=True), x, g)
    expected = value_and_vjp(lambda x: jax.jit(max_unpool)(x, index), x, g)
    same(y, expected[0])
    same(gradient, expected[1])


def test_unpool_leaves_out_what_is_not_finite():
    x = jnp.full((1, 1, 1, 1), jnp.inf)
    for backend in BACKENDS:
        y = max_unpool_x2(x, jnp.full(x.shape, 3, jnp.int8), backend=backend, interpret=True)
        np.testing.assert_array_equal(y[0, :, :, 0], [[0, 0], [0, np.inf]])


@pytest.mark.parametrize(
    ("shape", "dtype", "depth", "features"),
    [
        ((2, 5, 7, 3), jnp.float32, 2, 5),
        ((2, 5, 7, 3), jnp.bfloat16, 2, 5),
        ((1, 3, 4, 17), jnp.bfloat16, None, 1),
        ((1, 1, 1, 1), jnp.float32, 1, 2),
    ],
)
@pytest.mark.parametrize("backend", [*BACKENDS, None])
def test_conv(backend, shape, dtype, depth, features):
    x = whole(shape, dtype)
    skip = None if depth is None else whole((*double(shape)[:3], depth), dtype, 1)
    kernel = whole((3, 3, shape[3] + (depth or 0), features), dtype, 2)
    y = jax.jit(functools.partial(upsample_concat_conv, backend=backend, interpret=True))(x, skip, kernel)
    # The kernel's sums are exact even in bfloat16.
    expected = jnp.asarray(conv_loop(x, skip, kernel), jnp.float32).astype(dtype)
    same(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_conv_ignores_what_lies_past_the_map(backend):
    """An infinity next to the last block's end would become a NaN where it is multiplied by zero."""
    x, skip = whole((2, 3, 5, 2)).at[1].set(jnp.inf), whole((2, 6, 10, 1)).at[1].set(jnp.inf)
    kernel = whole((3, 3, 3, 2))
    y = upsample_concat_conv(x, skip, kernel, backend=backend, interpret=True)
    np.testing.assert_array_equal(y[0], conv_loop(x[:1], skip[:1], kernel)[0])


@pytest.mark.parametrize("with_skip", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_conv_gradients(backend, with_skip):
    x, skip, kernel = whole((2, 3, 2, 2)), whole((2, 6, 4, 3)) if with_skip else None, whole((3, 3, 5, 4))
    kernel = kernel if with_skip else kernel[:, :, :2]
    g = whole((2, 6, 4, 4), seed=1)
    y, vjp = jax.vjp(functools.partial(upsample_concat_conv, backend=backend, interpret=True), x, skip, kernel)
    # It is linear in the maps and in the kernel: <f(u), g> = <u, f'(g)> holds exactly for every direction u.
    for position, gradient in enumerate(vjp(g)):
        if gradient is not None:
            operands = [x, skip, kernel]
            operands[position] = whole(gradient.shape, seed=3)
            if position != 2:
                other = 1 - position
                operands[other] = None if operands[other] is None else jnp.zeros_like(operands[other])
            direction = operands[position]
            assert np.vdot(conv_loop(*operands), g) == np.vdot(direction, gradient)
    assert y.shape == g.shape


def test_conv_differentiates_the_given_plain_form():
    calls = []

    def plain(x, skip, kernel):
        calls.append(x.shape)
        return 2.0 * jnp.ones((1, 2, 2, 1)) * x * kernel[1, 1, 0, 0]

    x, kernel = jnp.ones((1, 1, 1, 1)), jnp.ones((3, 3, 1, 1))
    gradient = jax.grad(
        lambda x: upsample_concat_conv(x, None, kernel, plain=plain, backend="gpu", interpret=True).sum()
    )(x)
    assert gradient.item() == 8 and calls


def text_for(platform, function, *arguments):
    """The module that `function` lowers to for a platform that need not be here."""
    checks = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    return export.export(jax.jit(function), platforms=[platform], disabled_checks=checks)(*arguments).mlir_module()


KERNEL_CALLS = {"tpu": "@tpu_custom_call", "cuda": "@__gpu$xla.gpu.triton"}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("platform", KERNEL_CALLS)
def test_lowering(platform, dtype):
    """Each kernel, and each that its gradient calls, is in the module of the platform that has it."""

    def total(function):
        return lambda *arguments: jnp.sum(function(*arguments).astype(jnp.float32) ** 2)

    def spec(*shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    x, index = spec(2, 5, 7, 3), jax.ShapeDtypeStruct((2, 5, 7, 3), jnp.int8)
    cases = [
        (bilinear_x2, (x,), 2),
        (max_unpool_x2, (x, index), 2),
        (upsample_concat_conv, (x, spec(2, 10, 14, 4), spec(3, 3, 7, 5)), 1),
        (lambda x, kernel: upsample_concat_conv(x, None, kernel), (x, spec(3, 3, 3, 5)), 1),
    ]
    for function, arguments, kernels in cases:
        text = text_for(platform, jax.value_and_grad(total(function)), *arguments)
        assert text.count(KERNEL_CALLS[platform]) == kernels
        assert KERNEL_CALLS["cuda" if platform == "tpu" else "tpu"] not in text


@pytest.mark.parametrize("platform", [*KERNEL_CALLS, "cpu"])
def test_plain_where_no_kernel_fits(platform):
    def kernels(function, *arguments):
        text = text_for(platform, function, *arguments)
        return sum(text.count(call) for call in KERNEL_CALLS.values())

    def spec(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype)

    assert kernels(bilinear_x2, spec(1, 2, 2, 3, dtype=jnp.float16)) == 0
    assert kernels(bilinear_x2, spec(1, 2, 2, 3)) == (platform != "cpu")
    # One row of a TPU's block would not fit into its fast memory; GPUs do not care.
    assert kernels(bilinear_x2, spec(1, 2, 5000, 3)) == (platform == "cuda")
    assert kernels(max_unpool_x2, spec(1, 2, 5000, 3), spec(1, 2, 5000, 3, dtype=jnp.int8)) == (platform == "cuda")

    def conv(x, kernel):
        return upsample_concat_conv(x, None, kernel)

    assert kernels(conv, spec(1, 2, 2, 129), spec(3, 3, 129, 4)) == 0
    assert kernels(conv, spec(1, 2, 2, 4), spec(3, 3, 4, 129)) == 0
    assert kernels(conv, spec(1, 2, 5000, 4), spec(3, 3, 4, 4)) == (platform == "cuda")


def test_fallback_has_the_values():
    x = whole((1, 3, 4, 130), jnp.float16)
    same(bilinear_x2(x, backend="tpu", interpret=True), resize_bilinear(x, (6, 8)))
    x, kernel = whole((1, 2, 3, 129)), whole((3, 3, 129, 2))
    for backend in BACKENDS:
        y = upsample_concat_conv(x, None, kernel, backend=backend, interpret=True)
        np.testing.assert_array_equal(y, conv_loop(x, None, kernel))


def test_what_does_not_fit_is_named():
    x, index = jnp.zeros((1, 2, 2, 3)), jnp.zeros((1, 2, 2, 3), jnp.int8)
    kernel = jnp.zeros((3, 3, 3, 1))
    raw = inspect.unwrap
    with pytest.raises(ValueError, match="NHWC"):
        raw(bilinear_x2)(x[0])
    with pytest.raises(TypeError, match="float"):
        raw(bilinear_x2)(index)
    with pytest.raises(ValueError, match="even height"):
        raw(bilinear_x2_adjoint)(x[:, :1])
    with pytest.raises(ValueError, match="backend"):
        raw(launch.by_platform)(jnp.sin, None, None, "gpus", x)
    with pytest.raises(ValueError, match=r"indices of shape \(1, 2, 2, 3\)"):
        raw(max_unpool_x2)(x, index[:, :1])
    with pytest.raises(TypeError, match="int8"):
        raw(max_unpool_x2)(x, index.astype(jnp.int32))
    with pytest.raises(ValueError, match="even height"):
        raw(max_unpool_x2_adjoint)(x[:, :1], index)
    with pytest.raises(ValueError, match=r"\(3, 3, 3, features\)"):
        raw(upsample_concat_conv)(x, None, kernel[:, :, :2])
    with pytest.raises(ValueError, match="twice the size"):
        raw(upsample_concat_conv)(x, x, kernel)
    with pytest.raises(TypeError, match="one dtype"):
        raw(upsample_concat_conv)(x, None, kernel.astype(jnp.bfloat16))
