"""Gradients by layer, and the lengths of their paths."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.inspect import gradient_flow
from densezoo.tasks import Segmentation

WEIGHTS = {"a": 0.5, "b": 2.0, "c": -0.25}


class Chain(nn.Module):
    """Layers of one number each, with or without additive skips around all but the first."""

    skip: bool = False

    @nn.compact
    def __call__(self, x, *, train=False):
        for name, weight in WEIGHTS.items():
            constant = nn.initializers.constant(weight)
            y = nn.Dense(1, use_bias=False, kernel_init=constant, name=name)(x)
            x = x + y if self.skip and name != "a" else y
        return x


def mean(apply, batch, key):
    return jnp.mean(apply(batch["image"]))


@pytest.mark.parametrize("skip", [False, True])
def test_path_lengths_of_a_chain(skip):
    model, batch = Chain(skip), {"image": jnp.full((1, 2, 2, 1), 3.0)}
    flow = gradient_flow(model, model.init(jax.random.key(0), batch["image"]), batch, mean)
    assert [layer.name for layer in flow.layers] == ["a", "b", "c"]
    # With skips, the gradient of `a` is 3 (1 + b z) (1 + c z): its paths have 0, 1 or 2 layers.
    a, b, c = WEIGHTS.values()
    gradient, length = (3 * (1 + b) * (1 + c), b / (1 + b) + c / (1 + c)) if skip else (3 * b * c, 2)
    np.testing.assert_allclose(flow["a"].path_length, length, rtol=1e-5)
    np.testing.assert_allclose(flow["a"].norm, abs(gradient), rtol=1e-5)
    np.testing.assert_allclose(flow["a"].relative, abs(gradient / a), rtol=1e-5)
    np.testing.assert_allclose(flow["c"].path_length, 0, atol=1e-6)


def test_gradients_are_those_of_training():
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    batch = {"image": images, "mask": jnp.arange(128).reshape(2, 8, 8) % 2}
    variables, task = model.init(jax.random.key(1), images), Segmentation(2)
    flow = gradient_flow(model, variables, batch, task.loss)

    def loss(params):
        def apply(x):
            return model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])[0]

        return task.loss(apply, batch, None)

    value, gradients = jax.jit(jax.value_and_grad(loss))(variables["params"])
    np.testing.assert_allclose(flow.loss, value, rtol=1e-5)
    kernel = gradients["encoder"]["block0"]["conv1"]["conv"]["kernel"]
    np.testing.assert_allclose(flow["encoder/block0/conv1/conv"].norm, jnp.linalg.norm(kernel), rtol=1e-4)
    assert flow.layers[-1].name == "head/conv" and "head/conv" in str(flow)
    with pytest.raises(KeyError, match=r"no layer 'stem'; the layers are encoder/block0/conv1/conv"):
        flow["stem"]


def test_loss_that_does_not_use_the_model():
    model, batch = Chain(), {"image": jnp.ones((1, 2, 2, 1))}
    variables = model.init(jax.random.key(0), batch["image"])
    with pytest.raises(ValueError, match="no layer received a gradient"):
        gradient_flow(model, variables, batch, lambda apply, batch, key: jnp.zeros(()))
    with pytest.raises(ValueError, match=r"expected the model's variables, .*got one of .*not their params alone"):
        gradient_flow(model, variables["params"], batch, lambda apply, batch, key: jnp.zeros(()))
    with pytest.raises(ValueError, match="must be a scalar"):
        gradient_flow(model, variables, batch, lambda apply, batch, key: apply(batch["image"]))
