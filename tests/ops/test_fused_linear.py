"""Linear layers of maps, resized and fused, compared with a NumPy loop over the pixels."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo import ops


def arguments(sizes=((4, 6), (2, 3), (7, 9)), channels=(1, 40, 2), width=3, out=5, biased=(True, False, True)):
    """Maps of the result's size, coarser and finer; the second has fewer pixels than channels."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    maps = [draw(2, *size, c) for size, c in zip(sizes, channels, strict=True)]
    layers = [(draw(c, width), draw(width) if bias else None) for c, bias in zip(channels, biased, strict=True)]
    return maps, layers, draw(len(maps) * width, out)


def loop(maps, layers, kernel, bias, size):
    """With nearest neighbours at pixel centres."""
    result = np.zeros((maps[0].shape[0], *size, kernel.shape[1]), np.float64)
    for b, i, j in np.ndindex(result.shape[:3]):
        joined = []
        for x, (layer, shift) in zip(maps, layers, strict=True):
            row, column = ((2 * at + 1) * n // (2 * m) for at, n, m in zip((i, j), x.shape[1:3], size, strict=True))
            joined.append(np.asarray(x, np.float64)[b, row, column] @ layer + (0 if shift is None else shift))
        result[b, i, j] = np.concatenate(joined) @ kernel + (0 if bias is None else bias)
    return result


@pytest.mark.parametrize("biased", [(True, False, True), (False, False, False)])
@pytest.mark.parametrize("bias", [None, jnp.arange(5.0)])
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_it_equals_a_loop_over_the_pixels(impl, bias, biased):
    maps, layers, kernel = arguments(biased=biased)
    compute = partial(ops.resize_concat_linear, resizes=[ops.resize_nearest] * 3, size=(4, 6))
    with ops.implementation(impl):
        y = jax.jit(compute)(maps, layers, kernel, bias)
    np.testing.assert_allclose(y, loop(maps, layers, kernel, bias, (4, 6)), rtol=1e-4, atol=1e-4)


def test_both_forms_have_the_same_gradients():
    maps, layers, kernel = arguments()
    resizes = [ops.resize_bilinear, ops.resize_bicubic, partial(ops.resize_bilinear, align_corners=True)]

    def loss(impl, maps, layers, kernel, bias):
        with ops.implementation(impl):
            return jnp.sum(jnp.sin(ops.resize_concat_linear(maps, layers, kernel, bias, resizes, (4, 6))))

    fast, plain = (
        jax.jit(jax.grad(partial(loss, impl), (0, 1, 2, 3)))(maps, layers, kernel, jnp.ones(5))
        for impl in ("auto", "reference")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), fast, plain)


def test_the_concatenation_is_never_built():
    maps, layers, kernel = arguments()
    compute = partial(ops.resize_concat_linear, bias=None, resizes=[ops.resize_nearest] * 3, size=(4, 6))
    assert "concatenate" not in str(jax.make_jaxpr(compute)(maps, layers, kernel))


def test_what_does_not_match_is_named():
    maps, layers, kernel = arguments()
    with pytest.raises(ValueError, match="2 resizes"):
        ops.resize_concat_linear(maps, layers, kernel, None, [ops.resize_nearest] * 2, (4, 6))
    with pytest.raises(ValueError, match="3 x 3 rows"):
        ops.resize_concat_linear(maps, layers, kernel[1:], None, [ops.resize_nearest] * 3, (4, 6))
