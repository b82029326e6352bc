"""Atrous spatial pyramid pooling and the separable convolution: receptive fields, options, dtypes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.blocks import SeparableConv

KEY = jax.random.key(0)


def test_separable_conv_is_its_two_convolutions():
    x = jax.random.normal(KEY, (1, 7, 6, 3))
    conv = SeparableConv(4, dilation=2, norm=None, act=None)
    y, variables = jax.jit(conv.init_with_output)(KEY, x)
    depthwise, pointwise = (variables["params"][name] for name in ("depthwise", "pointwise"))
    assert set(depthwise) == {"kernel"}
    assert depthwise["kernel"].shape == (3, 3, 1, 3)
    # The one kernel that does the same: their products.
    kernel = depthwise["kernel"].transpose(0, 1, 3, 2) * pointwise["conv"]["kernel"]
    expected, _ = dz.Conv(4, dilation=2, kernel_init=lambda *_: kernel).init_with_output(KEY, x)
    np.testing.assert_allclose(y, expected + pointwise["conv"]["bias"].reshape(1, 1, 1, -1), atol=1e-5)


@pytest.mark.parametrize("separable", [False, True])
def test_branches_see_as_far_as_their_rates(separable):
    aspp = dz.ASPP(2, atrous_rates=(2, 5), separable=separable, norm=None, act=nn.silu)
    x = jax.random.normal(KEY, (1, 15, 15, 1))
    variables = jax.jit(aspp.init)(KEY, x)
    names = {"convs_0", "convs_1", "convs_2", "pool", "project"}
    assert set(variables["params"]) == names

    middle = jax.jit(jax.grad(lambda x, params: aspp.apply({"params": params}, x)[0, 7, 7].sum()))

    def seen(branch):
        """The pixels that the centre of the result depends on, if only this branch exists."""
        others = names - {branch, "project"}
        params = variables["params"] | {name: jax.tree.map(np.zeros_like, variables["params"][name]) for name in others}
        pixels = np.argwhere(np.asarray(middle(x, params))[0, :, :, 0])
        return {(int(row) - 7, int(column) - 7) for row, column in pixels}

    assert seen("convs_0") == {(0, 0)}
    for branch, rate in (("convs_1", 2), ("convs_2", 5)):
        assert seen(branch) == {(row, column) for row in (-rate, 0, rate) for column in (-rate, 0, rate)}
    assert len(seen("pool")) == 15 * 15


def test_dropout_acts_in_training_only():
    aspp = dz.ASPP(32, atrous_rates=(1,), dropout=0.25, norm=None, act=lambda x: x + 9.0)
    x = jax.random.normal(KEY, (1, 16, 16, 2))

    @jax.jit
    def before_and_after(key):
        before, variables = aspp.init_with_output(key, x)
        return before, aspp.apply(variables, x, train=True, rngs={"dropout": key})

    before, y = before_and_after(KEY)
    assert not bool((before == 0).any())
    assert 0.2 < float((y == 0).mean()) < 0.3
    # Values, not channels.
    assert not bool((y == 0).all((1, 2)).any())


def test_half_precision_and_one_pixel():
    aspp = dz.ASPP(4, separable=True, dtype=jnp.bfloat16)
    y, variables = jax.eval_shape(aspp.init_with_output, KEY, jnp.ones((1, 1, 1, 3)))
    assert y.dtype == jnp.bfloat16
    assert y.shape == (1, 1, 1, 4)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
