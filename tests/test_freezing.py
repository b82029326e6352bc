"""Frozen parts of parts, by the paths of their submodules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import densezoo as dz
from densezoo import freezing, train

ENCODER = dz.ResNet((1, 1, 1), dz.BasicBlock, width=8)


def test_names_cover_what_is_inside_and_wildcards_one_step():
    names = ("encoder/layer1_*", "head")
    inside = [("encoder", "layer1_0"), ("encoder", "layer1_12", "conv1", "kernel"), ("head",), ("head", "kernel")]
    outside = [("encoder",), ("encoder", "layer2_0"), ("decoder", "layer1_0"), ("heads",), ("a", "encoder", "layer1_0")]
    assert all(freezing.is_frozen(path, names) for path in inside)
    assert not any(freezing.is_frozen(path, names) for path in outside)
    params = {"encoder": {"layer1_0": {"a": 1}, "layer2_0": {"a": 2}}, "head": {"b": 3}, "empty": {}}
    trained = freezing.trainable(params, names)
    assert trained == {"encoder": {"layer2_0": {"a": 2}}}
    assert freezing.merged(params, {"encoder": {"layer2_0": {"a": 7}}})["encoder"] == {
        "layer1_0": {"a": 1},
        "layer2_0": {"a": 7},
    }
    with pytest.raises(
        ValueError, match=r"contains 'encoder/layer9', but the .* are \['layer1_0', 'layer2_0'\]"
    ):
        freezing.check_names(params, ("encoder/layer9",))
    with pytest.raises(ValueError, match="freeze: names contains 'neck'"):
        train.freeze(optax.sgd(0.1), "neck").init(params)


def test_layers_are_frozen_as_in_torchvision():
    def names(trained, encoder=ENCODER):
        return dz.create_model("unet", encoder, trainable_layers=trained).frozen

    assert names(None) == names(4) == ()
    assert names(3) == ("encoder/conv1",) and names(2) == ("encoder/conv1", "encoder/layer1_0")
    assert len(names(0)) == 4
    with pytest.raises(ValueError, match=r"trainable_layers=5: the encoder has 4 stages; expected 0 to 4"):
        names(5)
    with pytest.raises(ValueError, match=r"PlainEncoder cannot be frozen alone: expected trainable_layers=2"):
        names(1, dz.PlainEncoder((4, 8)))


def test_frozen_layers_do_not_move_and_the_others_do():
    model = dz.create_model("unet", ENCODER, 2, trainable_layers=2, frozen=("head",))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32))
    state = train.create_state(model, optax.adamw(0.1, weight_decay=0.5), jax.random.key(0), images, ema_decay=0.9)
    before = jax.tree.map(np.asarray, state.variables)
    assert "conv1" not in state.ema["encoder"] and "head" not in state.ema
    step = train.make_train_step(lambda apply, batch, key: jnp.square(apply(batch["image"]) - 1).mean())
    for _ in range(2):
        state, metrics = step(state, {"image": images})
    for path, now in jax.tree_util.tree_leaves_with_path(state.variables):
        keys = [key.key for key in path]
        then = before
        for key in keys:
            then = then[key]
        frozen = keys[1] == "head" or keys[2] in ("conv1", "layer1_0")
        assert bool((now == then).all()) == frozen, keys
    assert jax.tree.all(
        jax.tree.map(lambda x, y: bool((x == y).all()), state.ema_variables["params"]["head"], before["params"]["head"])
    )
    assert float(metrics["grad_norm"]) > 0

    module = dz.to_nnx(model, before)
    trained = nnx.state(module, nnx.Param)["variables"]["params"]
    assert "conv1" not in trained["encoder"] and "layer2_0" in trained["encoder"] and "head" not in trained
    optimizer = train.freeze(optax.adamw(0.1), model.frozen)
    with jax.numpy_dtype_promotion("standard"):  # as optax needs
        updates, _ = optimizer.update(before["params"], optimizer.init(before["params"]), before["params"])
    assert not np.asarray(updates["encoder"]["conv1"]["conv"]["kernel"]).any()
    assert np.asarray(updates["encoder"]["layer2_0"]["conv1"]["conv"]["kernel"]).all()


def test_frozen_statistics_of_alike_units_do_not_move():
    encoder = dz.HRNet(width=4, layer1_size=1, depths=(1, 2), branch_size=2, incre=False)
    model = dz.create_model("hrnet", encoder, 2, frozen=("encoder/stage3_*",))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, updated = jax.jit(lambda v: model.apply(v, images, train=True, mutable=["batch_stats"]))(variables)
    before, after = (tree["batch_stats"]["encoder"] for tree in (variables, updated))
    for unit in ("stage2_0", "stage3_0", "stage3_1"):
        same = jax.tree.map(lambda x, y: bool((x == y).all()), before[unit], after[unit])
        assert jax.tree.all(same) == unit.startswith("stage3"), unit
