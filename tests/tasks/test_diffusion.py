"""The task Diffusion: its loss, scores, labels, and averaged parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo import tasks
from densezoo.train import Recipe, train

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 1)).astype(np.float32)


class Tiny(nn.Module):
    """A network with as little as the task needs."""

    @nn.compact
    def __call__(self, x, t, labels=None, *, train=False):
        rows = nn.Embed(11, 1)(labels) + t.astype(jnp.float32)[:, None] / 1000
        return nn.Conv(1, (1, 1))(x) + rows[:, None, None]

    def example_inputs(self, images):
        of = images.shape[:1]
        return images, jax.ShapeDtypeStruct(of, jnp.float32), jax.ShapeDtypeStruct(of, jnp.int32)


@pytest.mark.parametrize(
    "options", [{}, {"schedule": "flow"}, {"target": "v", "zero_terminal_snr": True, "min_snr": 5.0}]
)
def test_a_perfect_prediction_has_no_loss(options):
    task = tasks.Diffusion(clip=None, **options)
    batch = {"image": jnp.zeros((4, 8, 8, 1))}

    def zeros(x, t, labels):
        return 0 * x

    def perfect(x, t, labels):  # of images that are zero, everything noisy is noise
        _, sigma = task.process.at(t)
        return task.process.target_of(0 * x, x / sigma[:, None, None, None], t)

    loss, parts = task.loss(perfect, batch, KEY)
    assert float(loss) < 1e-6 and float(parts["mse"]) < 1e-6
    loss, parts = task.loss(zeros, batch, KEY)
    assert 0.1 < float(parts["mse"]) < 2 and float(loss) > 0
    scores = [task.scores(task.measure(apply, batch)) for apply in (perfect, zeros)]
    assert scores[0]["loss"] < 1e-6 < scores[1]["loss"]
    assert scores[0]["psnr"] > 80 and scores[1]["psnr"] < 60


def test_labels_are_dropped_or_refused():
    task = tasks.Diffusion(10, label_dropout=0.5)
    seen = []

    def apply(x, t, labels):
        seen.append(labels)
        return x

    batch = {"image": jnp.zeros((400, 1, 1, 1)), "label": jnp.full(400, 3)}
    task.loss(apply, batch, KEY)
    assert set(np.asarray(seen[-1]).tolist()) == {3, 10} and 120 < int((seen[-1] == 10).sum()) < 280
    task.measure(apply, batch)
    assert set(np.asarray(seen[-1]).tolist()) == {3}
    # Otherwise 10 would silently mean no class, and -1 the last row.
    tasks.Diffusion(10, label_dropout=0.0).loss(apply, batch | {"label": jnp.arange(-1, 399)}, KEY)
    assert set(np.asarray(seen[-1]).tolist()) == {*range(10), 11}
    for wrong, message in (({"image": IMAGES}, "label"), (batch | {"label": jnp.zeros((400, 2))}, "class number")):
        with pytest.raises(ValueError, match=message):
            task.loss(apply, wrong, KEY)
    with pytest.raises(ValueError, match="maps like the images"):
        tasks.Diffusion().loss(lambda x, t, labels: x[:, :1], {"image": IMAGES}, KEY)


def test_classes_and_null_label_are_checked_before_training():
    task = tasks.Diffusion(10)
    ten, eleven, none = (dz.create_model("diffusion_unet", num_classes=n, features=(8,)) for n in (10, 11, 1))
    good = [{"image": IMAGES[0], "label": np.int32(index)} for index in range(10)]
    # With 11 classes, the null label 10 of the task would be the last class.
    for model, source, message in (
        (eleven, good, "the task has 10 classes, but the model has 11 classes.*num_classes"),
        (none, good, "10 classes, but the model has no classes"),
        (ten.clone(null_label=False), good, "label_dropout=0.1 replaces labels by the null label"),
        (ten.clone(num_classes=None, labels_as="time"), good, "null label"),
        (ten, [*good, {"image": IMAGES[0], "label": np.int32(10)}], "sample 10 has the label 10.*from 0 to 9"),
        (ten, [*good[::-1] * 500, {"image": IMAGES[0], "label": -1}], "sample 5000 has the label -1"),
    ):
        with pytest.raises(ValueError, match=message):
            train(task, model, good, source, progress=False)
    with pytest.raises(ValueError, match="the task has no classes, but the model has 10"):
        tasks.Diffusion().check(ten, good)
    with pytest.warns(UserWarning, match=r"does not train.*clone\(null_label=False\)"):
        tasks.Diffusion(10, label_dropout=0.0).check(ten, good)
    tasks.Diffusion(10, label_dropout=0.0).check(ten.clone(null_label=False), good)
    task.check(ten, good)
    tasks.Diffusion().check(none, good)


def test_training_averages_parameters():
    task = tasks.Diffusion(10)
    source = [{"image": (image + 1) / 2, "label": np.int32(index)} for index, image in enumerate(IMAGES)]
    options = {"preprocessing": dz.Preprocessing(1, (0.5,), (0.5,)), "progress": False}
    recipe = {"crop_size": 8, "batch_size": 4, "steps": 2, "flip_horizontal": False, "learning_rate": 0.1}
    state, history = train(task, Tiny(), source, source, Recipe(**recipe), **options)
    assert state.ema_decay == 0.999
    same = jax.tree.map(lambda a, b: bool((a == b).all()), state.params, state.ema)
    assert not same["Conv_0"]["kernel"]
    assert {"psnr", "psnr_125", "loss"} <= history[-1]["scores"].keys()
    assert train(task, Tiny(), source, source, Recipe(**recipe, ema_decay=0), **options)[0].ema is None


def test_the_description_is_complete():
    task = tasks.Diffusion(3, "flow", clip=None, class_names=("a", "b", "c"))
    assert tasks.from_description(tasks.describe(task)) == task
    assert task.fields == ("image", "label") and tasks.Diffusion().fields == ("image",)
    for options, message in (
        ({"num_classes": 0}, "num_classes"),
        ({"label_dropout": 1.0}, "label_dropout"),
        ({"min_snr": 0.0}, "min_snr"),
        ({"class_names": ("a", "b")}, "class_names"),
        ({"schedule": "sudden"}, "sudden"),
    ):
        with pytest.raises(ValueError, match=message):
            tasks.Diffusion(**options)
