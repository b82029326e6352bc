"""Models as NNX modules."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import densezoo as dz

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 16, 24, 3))


def small(**fields):
    return dz.create_model("unet", dz.PlainEncoder((4, 8)), 2, **fields)


class Dropping(nn.Module):
    """A batch norm and dropout with two random streams; the second one's name only occurs in custom modules."""

    @nn.compact
    def __call__(self, x, *, train=False):
        x = dz.BatchNorm(name="norm")(dz.Conv(4, name="conv")(x), train=train)
        x = dz.SpatialDropout(0.5)(x, train=train)
        return x + jax.random.normal(self.make_rng("noise"), x.shape) if train else x


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def unet():
    model = small()
    return model, jax.jit(model.init)(KEY, IMAGES)


def mean_square(module, images):
    return jnp.mean(module(images) ** 2)


def test_variables_go_in_and_come_out_and_the_module_is_called_like_the_model(unet, with_statistics):
    model, _ = unet
    variables = with_statistics(model, IMAGES)
    module = dz.to_nnx(model, variables)
    assert_same(dz.from_nnx(module), variables)
    np.testing.assert_array_equal(nnx.jit(lambda m, x: m(x))(module, IMAGES), jax.jit(model.apply)(variables, IMAGES))
    assert_same(dz.from_nnx(module), variables)


def test_checkpoints_of_pytorch_go_through():
    encoder = dz.ResNet((1, 1), dz.BasicBlock, width=4)
    arrays = dz.weights.to_torch(encoder, jax.jit(encoder.init)(KEY, jnp.zeros((1, 64, 64, 3))))
    variables = dz.weights.from_torch(encoder, {name: 2 * array for name, array in arrays.items()})
    assert_same(dz.from_nnx(dz.to_nnx(encoder, variables)), variables)


def test_train_and_eval_switch_statistics_and_dropout(unet):
    model, variables = unet
    module = dz.to_nnx(model, variables)
    module.train()
    logits = module(IMAGES)
    expected, updated = model.apply(variables, IMAGES, train=True, mutable=["batch_stats"], rngs={"dropout": KEY})
    np.testing.assert_array_equal(logits, expected)
    assert_same(dz.from_nnx(module), variables | updated)
    module.eval()
    np.testing.assert_array_equal(module(IMAGES), model.apply(variables | updated, IMAGES))
    assert_same(dz.from_nnx(module), variables | updated)
    np.testing.assert_array_equal(
        module(IMAGES, train=True), model.apply(variables | updated, IMAGES, train=True, mutable=["batch_stats"])[0]
    )
    viewed = nnx.view(module, deterministic=False, use_running_average=False)
    assert not viewed.deterministic and module.deterministic
    module.set_attributes(deterministic=False)
    with pytest.raises(ValueError, match="must be equal"):
        module(IMAGES)


def test_random_streams_are_those_of_nnx():
    model = Dropping()
    variables = model.init(KEY, IMAGES)

    def outputs(rngs):
        module = dz.to_nnx(model, variables, rngs=rngs)
        module.train()
        return [module(IMAGES) for _ in range(2)]

    first, second = outputs(nnx.Rngs(3))
    assert not jnp.array_equal(first, second)
    np.testing.assert_array_equal(outputs(nnx.Rngs(3)), (first, second))
    assert not jnp.array_equal(outputs(4)[0], first)
    # A named stream only serves its own name.
    one, other = (outputs(nnx.Rngs(0, dropout=1, noise=noise))[0] for noise in (2, 3))
    dropped = (one == 0) | (other == 0)
    assert not jnp.array_equal(one, other) and not dropped.any()
    shared = nnx.Rngs(0)
    assert not jnp.array_equal(outputs(shared)[0], outputs(shared)[0])
    module = dz.to_nnx(model, variables)
    module(IMAGES)
    assert int(nnx.state(module, nnx.RngCount)["rngs"]["default"]["count"].get_value()) == 0


def test_a_step_is_that_of_optax_on_the_linen_model(unet):
    model, variables = unet
    module = dz.to_nnx(model, variables)
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    module.train()

    @nnx.jit
    def step(module, optimizer, images):
        loss, gradients = nnx.value_and_grad(mean_square)(module, images)
        optimizer.update(module, gradients)
        return loss

    def loss_of(params):
        logits, updated = model.apply(variables | {"params": params}, IMAGES, train=True, mutable=["batch_stats"])
        return jnp.mean(logits**2), updated

    with jax.numpy_dtype_promotion("standard"):  # as optax and NNX count
        loss = step(module, optimizer, IMAGES)
    (expected, updated), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(variables["params"])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
    result = dz.from_nnx(module)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), result, {"params": params} | updated)


def test_frozen_parts_are_no_params_and_stay(unet):
    model, variables = small(frozen=("encoder",)), unet[1]
    module = dz.to_nnx(model, variables)
    assert set(nnx.state(module, nnx.Param)["variables"]["params"]) == {"decoder", "head"}
    assert set(nnx.state(module, dz.nnx.Frozen)["variables"]["params"]) == {"encoder"}
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    module.train()
    with jax.numpy_dtype_promotion("standard"):
        optimizer.update(module, nnx.jit(nnx.grad(mean_square))(module, IMAGES))
    result = dz.from_nnx(module)
    for collection in ("params", "batch_stats"):
        assert_same(result[collection]["encoder"], variables[collection]["encoder"])
        assert not jnp.array_equal(*(jax.tree.leaves(v[collection]["decoder"])[0] for v in (result, variables)))
    with pytest.raises(ValueError, match="frozen contains 'backbone'"):
        dz.to_nnx(model.clone(frozen=("backbone",)), variables)


def test_a_checkpoint_of_orbax_brings_back_everything(unet, tmp_path):
    model, variables = unet
    module = dz.to_nnx(model, variables, rngs=5)
    module.train()
    module(IMAGES)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(module))
    other = dz.to_nnx(model, jax.tree.map(jnp.zeros_like, variables))
    with ocp.StandardCheckpointer() as checkpointer:
        nnx.update(other, checkpointer.restore(tmp_path / "state", nnx.state(other)))
    assert_same(dz.from_nnx(other), dz.from_nnx(module))
    other.train()
    np.testing.assert_array_equal(other(IMAGES), module(IMAGES))


def test_split_and_merge(unet):
    model, variables = unet
    graph, params, rest = nnx.split(dz.to_nnx(model, variables), nnx.Param, ...)
    assert len(jax.tree.leaves(params)) == len(jax.tree.leaves(variables["params"]))

    @jax.jit
    def apply(params, images):
        return nnx.merge(graph, jax.tree.map(lambda x: 2 * x, params), rest)(images)

    doubled = variables | {"params": jax.tree.map(lambda x: 2 * x, variables["params"])}
    np.testing.assert_allclose(apply(params, IMAGES), jax.jit(model.apply)(doubled, IMAGES), rtol=1e-5, atol=1e-5)


def test_it_is_a_part_of_another_module(unet):
    class Classifier(nnx.Module):
        def __init__(self, rngs):
            self.backbone = dz.to_nnx(*unet)
            self.head = nnx.Linear(2, 5, rngs=rngs)

        def __call__(self, images):
            return self.head(self.backbone(images).mean((1, 2)))

    classifier = Classifier(nnx.Rngs(0))
    assert nnx.jit(lambda module, x: module(x))(classifier, IMAGES).shape == (2, 5)
    classifier.train()
    assert not classifier.backbone.deterministic
    gradients = nnx.jit(nnx.grad(mean_square))(classifier, IMAGES)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradients["backbone"]["variables"]["params"]["head"]))


def test_what_is_no_model_or_another_ones_variables_is_named(unet, tmp_path):
    model, variables = unet
    module = dz.to_nnx(model, variables)
    for call in (dz.compile, dz.weights.to_torch, partial(dz.save, tmp_path / "model.safetensors")):
        with pytest.raises(TypeError, match=r"got a NNXModel: dz\.from_nnx\(module\)"):
            call(model, module)
        with pytest.raises(TypeError, match=r"got a State: dz\.from_nnx\(module\)"):
            call(model, nnx.state(module))
        with pytest.raises(TypeError, match=r"the NNX module NNXModel: pass the model that dz\.to_nnx was given"):
            call(module, variables)
        with pytest.raises(TypeError, match="the model comes first"):
            call(variables, model)
    with pytest.raises(TypeError, match="the NNX module NNXModel"):
        dz.summary(module, (16, 24, 3))
    with pytest.raises(TypeError, match="the model comes first"):
        dz.to_nnx(variables, model)
    with pytest.raises(ValueError, match="not the variables of the model"):
        dz.to_nnx(model, {"params": variables["params"]})
    with pytest.raises(TypeError, match=r"dz\.to_nnx made, got a Linear"):
        dz.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
