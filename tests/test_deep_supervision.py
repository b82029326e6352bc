import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import densezoo as dz
from densezoo import losses, train

KEY = jax.random.key(0)
IMAGES = jax.random.normal(KEY, (2, 33, 40, 3))
FIELDS = {"fpn": {"features": 32, "segmentation_features": 32, "dropout": 0.0}, "upernet": {"features": 16}}


def model_of(name, auxiliary):
    encoder = dz.PlainEncoder(features=(4, 8, 16))
    return dz.create_model(name, encoder, 3, auxiliary=auxiliary, **FIELDS.get(name, {}))


@pytest.mark.parametrize("name", ["unet", "unetplusplus", "fpn", "upernet"])
def test_auxiliary_heads_answer_in_training_only_and_change_nothing_else(name):
    model, plain = model_of(name, 1), model_of(name, 0)

    @jax.jit
    def run(images):
        variables = model.init(KEY, images)
        without = {kind: {k: v for k, v in tree.items() if k != "auxiliary"} for kind, tree in variables.items()}
        trained, _ = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return model.apply(variables, images), trained, plain.apply(without, images)

    logits, (first, other), without = run(IMAGES)
    assert logits.shape == first.shape == other.shape == (2, 33, 40, 3)
    assert float(jnp.abs(first - other).max()) > 1e-3
    np.testing.assert_allclose(without, logits, atol=1e-6)


@pytest.mark.parametrize("name", ["unet", pytest.param("fpn", marks=pytest.mark.parity)])
def test_the_heads_train(name):
    model = model_of(name, 1)
    state = train.create_state(model, optax.sgd(0.1), KEY, IMAGES)
    mask = jnp.zeros((2, 33, 40), jnp.int32).at[:, ::2].set(1)
    supervised = losses.deep_supervision(losses.cross_entropy)
    step = train.make_train_step(lambda apply, batch, key: supervised(apply(batch["image"]), batch["mask"]))
    before = jax.tree.map(np.asarray, state.params)
    after, _ = step(state, {"image": IMAGES, "mask": mask})
    for part in ("encoder", "decoder", "head", "auxiliary"):
        moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before[part], after.params[part])
        assert max(jax.tree.leaves(moved)) > 0, part


def test_the_loss_weighs_the_heads_by_hand():
    loss = losses.deep_supervision(lambda logits, target: (logits - target).sum(), weight=0.5)
    assert (
        float(loss((jnp.array([3.0]), jnp.array([5.0]), jnp.array([7.0])), jnp.array([1.0]))) == 2 + 0.5 * (4 + 6) / 2
    )
    assert float(loss(jnp.array([3.0]), jnp.array([1.0]))) == 2


def test_a_decoder_of_one_scale_is_named():
    with pytest.raises(ValueError, match="segnet's decoder has no coarser scales"):
        dz.create_model("segnet", dz.PlainEncoder(features=(4, 8)), auxiliary=1)
    with pytest.raises(ValueError, match="9 auxiliary heads were requested, but the decoder only has 1"):
        jax.eval_shape(dz.create_model("unet", dz.PlainEncoder(features=(4, 8, 16)), auxiliary=9).init, KEY, IMAGES)


def test_a_loss_of_one_array_says_how_to_take_a_tuple():
    logits, labels = (jnp.zeros((1, 2, 2, 3)),) * 2, jnp.zeros((1, 2, 2), jnp.int32)
    prepare = inspect.unwrap(losses._pixels.prepare)  # without the tests' own check of types
    with pytest.raises(TypeError, match=r"wrap the loss in densezoo\.losses\.deep_supervision"):
        prepare(logits, labels, None)
