"""Compiler options, and programs that must not be compiled with oneDNN."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import compiling, ops


def test_compiler_options_are_options_that_compile():
    options = dz.compiler_options()
    assert float(jax.jit(lambda x: 2 * x, compiler_options=options)(1.0)) == 2.0
    options["of"] = "the caller"
    assert "of" not in dz.compiler_options()


def test_training_keeps_the_passes_that_the_user_left_out(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x --xla_disable_hlo_passes=fusion,cse")
    compiling._known.cache_clear()
    try:
        options = dz.compiler_options(training=True)
        assert "xla_disable_hlo_passes" not in dz.compiler_options()
    finally:
        compiling._known.cache_clear()
    if jax.default_backend() == "cpu":
        assert options["xla_disable_hlo_passes"] == "fusion,cse,cse_barrier_expander,small-while-loop-hoisting"


@pytest.fixture
def onednn():
    """Skips if this jaxlib has no oneDNN, or ignores the option on this processor."""
    if not compiling.onednn_options():
        pytest.skip("no oneDNN here")


def test_a_probe_finds_onednn(monkeypatch):
    compiling.onednn_options.cache_clear()
    try:
        monkeypatch.setattr(compiling, "_compiled", lambda *_: 'custom_call_target="__onednn$convolution"')
        assert compiling.onednn_options() == ({} if jax.default_backend() != "cpu" else compiling._ONEDNN)
        compiling.onednn_options.cache_clear()
        monkeypatch.setattr(compiling, "_compiled", lambda *_: "convolution(")
        assert compiling.onednn_options() == {}
        compiling.onednn_options.cache_clear()
        monkeypatch.setattr(compiling, "_compiled", lambda *_: None)  # the option is unknown
        assert compiling.onednn_options() == {}
    finally:
        compiling.onednn_options.cache_clear()


@pytest.mark.parametrize("features", [1, 2])
def test_the_gradient_of_a_1x1_kernel_is_right(features):
    """With one feature, oneDNN would compute the kernel's gradient from wrong values."""
    head, x = nn.Conv(features, (1, 1)), jax.random.normal(jax.random.key(0), (3, 6, 7, 4))
    variables = head.init(jax.random.key(1), x)

    def gradient(variables):
        return jax.grad(lambda v: jnp.square(head.apply(v, x)).sum())(variables)["params"]["kernel"]  # pyright: ignore

    np.testing.assert_allclose(compiling.Jitted(gradient, training=True)(variables), gradient(variables), rtol=1e-4)


def test_what_onednn_miscomputes_is_compiled_without_it(onednn):
    def gradient(kernel, x):
        def loss(kernel):
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return y.sum()

        return jax.grad(loss)(kernel)

    x = jnp.ones((2, 8, 8, 16))
    for features, taken in ((2, True), (1, False)):
        text = compiling.Jitted(gradient).lower(jnp.ones((1, 1, 16, features)), x).compile().as_text()
        assert ("__onednn$convolution" in text) == taken


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((2, 8, 8, 16), True),
        ((1, 1, 1, 16), True),
        ((2, 1, 1, 16), True),
        ((2, 8, 8, 1), False),
        ((1, 8, 8, 16), False),
    ],
)
def test_what_onednn_adds_slowly_is_compiled_without_it(onednn, caplog, shape, taken):
    def function(x, kernel, bias, y):
        y = jax.jit(jnp.negative)(jnp.broadcast_to(y, (2, 8, 8, 16)))
        return jax.jit(partial(ops.conv, padding=1))(x, kernel) + jnp.expand_dims(bias, (0, 1, 2)) + y

    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    text = compiling.Jitted(function).lower(x, kernel, jnp.ones(16), jnp.ones(shape)).compile().as_text()
    assert ("__onednn$convolution" in text) == taken
    assert ("100 times" in caplog.text) != taken


def test_a_layer_norm_after_a_skip_trains_with_onednn(onednn):
    # Without care, the gradient adds a mean over channels to a convolution's gradient.
    conv, norm = dz.Conv(16), dz.LayerNorm()
    x = jnp.ones((2, 8, 8, 16))
    variables = conv.init(jax.random.key(0), x), norm.init(jax.random.key(1), x)

    def loss(x, variables):
        return (conv.apply(variables[0], x) * norm.apply(variables[1], x)).sum()

    text = compiling.Jitted(jax.grad(loss), training=True).lower(x, variables).compile().as_text()
    assert "__onednn$convolution" in text


def test_a_1x1_convolution_of_densezoo_keeps_onednn(onednn):
    """On CPU, its gradient is a matrix product; the form for other platforms is not compiled."""
    block, head, x = dz.Conv(16), dz.Conv(1, 1), jnp.ones((2, 8, 8, 16))
    variables = block.init(jax.random.key(0), x), head.init(jax.random.key(1), x)
    step = compiling.Jitted(jax.grad(lambda variables: head.apply(variables[1], block.apply(variables[0], x)).sum()))
    assert "__onednn$convolution" in step.lower(variables).compile().as_text()


def test_what_onednn_miscomputes_works_inside_another_program():
    head, x = nn.Conv(1, (1, 1)), jnp.ones((3, 6, 7, 4))
    variables = head.init(jax.random.key(1), x)
    gradient = compiling.Jitted(jax.grad(lambda v: jnp.square(head.apply(v, x)).sum()))
    inside, outside = jax.jit(lambda v: gradient(v))(variables), gradient(variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), inside, outside)


def test_a_jitted_function_keeps_its_structure_and_its_name():
    @compiling.Jitted
    def function(x, *, scale):
        return {"y": (x * scale, [x])}

    result = function(jnp.ones(2), scale=jnp.full(2, 3.0))
    assert jax.tree.structure(result) == jax.tree.structure({"y": (0, [0])})
    assert result["y"][0].tolist() == [3.0, 3.0]
    assert function.__name__ == "function"
