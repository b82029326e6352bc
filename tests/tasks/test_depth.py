"""The tasks of depth and normals: they learn, ignore holes, and a file predicts in the unit of the data."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.tasks import Depth, Normals, describe, from_description
from densezoo.train import Recipe, train

SIZE = (32, 32)


class Slopes:
    """Brightness shows depth, from 2 to 6, and the left half has no measurement in one of several ways."""

    sizes = (SIZE,) * 8

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        rng = np.random.default_rng(int(index))
        across, down = rng.uniform(-1, 1, 2)
        y, x = np.mgrid[-1 : 1 : SIZE[0] * 1j, -1 : 1 : SIZE[1] * 1j]
        depth = (4 + across * x + down * y).astype(np.float32)
        normals = np.broadcast_to(np.array([across, down, -1]) / np.sqrt(across**2 + down**2 + 1), (*SIZE, 3)).copy()
        image = np.stack([depth / 8, 0 * depth + across, 0 * depth + down], -1).astype(np.float32)
        depth[:, :16] = np.array([0, -1, np.nan, np.inf])[index % 4]
        normals[:, :16] = 0 if index % 2 else np.nan
        return {"image": image, "depth": depth, "normals": normals.astype(np.float32)}


PREPROCESSING = dz.Preprocessing(mean=(0.5, 0, 0), std=(0.25, 1, 1))
RECIPE = Recipe(crop_size=SIZE, batch_size=4, steps=80, learning_rate=1e-2, flip_horizontal=False)


@pytest.mark.parametrize("task", [Depth(criterion="silog + 0.1*gradient(log=True)", unit="cm"), Normals()])
def test_a_model_learns_from_maps_with_holes_and_its_file_predicts(task, tmp_path):
    model = dz.create_model("unet", dz.PlainEncoder((8, 8)), task.num_classes)
    arguments = {"preprocessing": PREPROCESSING, "directory": tmp_path, "progress": False}
    _, history = train(task, model, Slopes(), Slopes(), RECIPE, **arguments)
    losses = [record["loss"] for record in history if "loss" in record]
    assert losses[-1] < 0.5 * losses[0]
    predict = dz.load_predictor(tmp_path)
    assert predict.task == task
    count, counts = jax.jit(task.count), []
    for sample in (Slopes()[index] for index in range(8)):
        found = predict(sample["image"])
        assert found.shape == sample[task.fields[1]].shape
        counts.append(count(found[None], sample[task.fields[1]][None]))
    scores = task.scores(functools.reduce(operator.add, counts))
    for name, score in history[-1]["scores"].items():
        assert scores[name] == pytest.approx(score, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("task", [Depth(), Depth(activation="sigmoid", max_depth=9.0), Depth(relative=True), Normals()])
def test_holes_reach_neither_loss_nor_gradient(task):
    samples = [Slopes()[index] for index in range(4)]
    name = task.fields[1]
    batch = {field: jnp.asarray(np.stack([sample[field] for sample in samples])) for field in task.fields}
    outputs = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SIZE, task.num_classes)), jnp.float32)
    function = jax.jit(jax.value_and_grad(lambda x, batch: task.loss(lambda images: x, batch, None)))
    value, gradient = map(np.asarray, function(outputs, batch))
    broken, same = map(np.asarray, function(outputs.at[:, :, :16].set(jnp.nan), batch))
    assert np.isfinite(value) and broken == value
    np.testing.assert_array_equal(gradient, same)
    assert not gradient[:, :, :16].any() and gradient[:, :, 16:].any()
    zero, none = function(outputs, batch | {name: 0 * jnp.nan_to_num(batch[name])})
    assert zero == 0 and not np.asarray(none).any()
    assert np.isnan(function(outputs.at[0, 0, 20].set(jnp.nan), batch)[0])


def test_relative_depth_is_scored_after_alignment():
    task = Depth(relative=True, activation="identity")
    depth = jnp.asarray(np.random.default_rng(0).uniform(1, 5, (2, 6, 8)), jnp.float32)
    outputs = 7 / depth[..., None] - 3
    batch = {"image": jnp.zeros((2, 6, 8, 3)), "depth": depth}

    def measure(task):
        return task.scores(jax.jit(lambda outputs, batch: task.measure(lambda images: outputs, batch))(outputs, batch))

    loss = jax.jit(lambda outputs, batch: task.loss(lambda images: outputs, batch, None))
    assert measure(task)["abs_rel"] < 1e-5
    assert float(loss(outputs, batch)) < 1e-5 < float(loss(outputs**2, batch))
    np.testing.assert_array_equal(task.predict(outputs), outputs[..., 0])
    unaligned = dataclasses.replace(task, relative=False)
    assert measure(unaligned)["abs_rel"] > 0.1
    capped = Depth(activation="sigmoid", max_depth=8.0)
    assert float(capped.predict(jnp.zeros((1, 1, 1, 1)))[0, 0, 0]) == 4.0


def test_tasks_survive_the_file_and_bad_options_are_named():
    for task in (Depth("l1", "softplus", max_depth=80.0, unit="px"), Normals(auxiliary_weight=0.1)):
        assert from_description(describe(task)) == task
    for options, message in (
        ({"activation": "tanh"}, "activation must be one of exp"),
        ({"max_depth": 0.0}, "0 < min_depth < max_depth"),
        ({"activation": "sigmoid"}, "activation=sigmoid needs max_depth"),
        ({"criterion": "silg"}, "did you mean 'silog'"),
        ({"criterion": "dice"}, "there are: gradient, l1"),
    ):
        with pytest.raises(ValueError, match=message):
            Depth(**options)
    batch = {"image": jnp.zeros((1, 4, 4, 3)), "depth": jnp.ones((1, 4, 4))}
    with pytest.raises(ValueError, match="Depth needs a model with num_classes=1, and this one has 3"):
        Depth().measure(lambda images: images, batch)
    with pytest.raises(ValueError, match=r"has no \['normals'\]"):
        Normals().measure(lambda images: images, batch)
    with pytest.raises(ValueError, match=r"expected depth of shape \(1, 4, 4\)"):
        Depth().measure(lambda images: images[..., :1], batch | {"depth": jnp.ones((1, 4, 4, 1))})
