"""The verdict of exercise 4 follows the numbers, and its random maps are smooth."""

import dataclasses
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

import checkerboards  # noqa: E402
import common  # noqa: E402
import upsampling_artifacts as exercise  # noqa: E402

NAMES = ("resize_conv", "transposed_2x2", "dysample")
CLAIMS = ("transposed convolution makes checkerboards", "resize + convolution is the stable choice")


def judged(patterns, accuracy, noise=0.001):
    """The verdicts where each upsampler has the same three patterns and this accuracy, but for the seeds' noise.

    The noise of resize + convolution is that of the others with the opposite sign.
    """
    start, runs = {}, {}
    for name, value in patterns.items():
        noises = [noise * e * (-1 if name == "resize_conv" else 1) for e in (-1, 0, 1)]
        start[name] = [{"initial_x2": value + e, "initial_x8": value - e} for e in noises]
        runs[name] = [
            {"on_greys": value + e} | dict.fromkeys(("mean_iou", "boundary_f"), accuracy[name] - e) for e in noises
        ]
    verdict = exercise.judge(start, runs)
    assert tuple(verdict) == CLAIMS
    first, second = verdict.values()
    return re.findall(r"checkerboards: ([a-z ]+)|(?:pattern|accuracy) ([a-z]+)", f"{first} {second}")


@pytest.mark.parametrize(
    ("patterns", "accuracy", "verdict"),
    [
        ((0.1, 0.8, 0.2), (0.6, 0.6, 0.6), ("confirmed", "confirmed", "confirmed")),
        ((0.1, 0.1, 0.2), (0.6, 0.6, 0.6), ("refuted", "confirmed", "confirmed")),
        ((0.1, 0.0, 0.0), (0.6, 0.6, 0.6), ("refuted", "refuted", "confirmed")),
        ((0.1, 0.8, 0.0), (0.6, 0.6, 0.6), ("confirmed", "refuted", "confirmed")),
        ((0.1, 0.8, 0.2), (0.6, 0.7, 0.5), ("confirmed", "confirmed", "refuted")),
    ],
)
def test_verdict_follows_the_numbers(patterns, accuracy, verdict):
    found = judged(dict(zip(NAMES, patterns, strict=True)), dict(zip(NAMES, accuracy, strict=True)))
    assert tuple(first or second for first, second in found) == verdict


def test_wide_intervals_decide_nothing():
    found = judged(dict(zip(NAMES, (0.1, 0.8, 0.0), strict=True)), dict.fromkeys(NAMES, 0.6), noise=0.5)
    assert {first or second for first, second in found} == {"undecided"}


def test_maps_are_smooth_with_mean_and_deviation_one():
    maps = checkerboards.smooth_maps(3, 32)
    assert maps.shape == (1, 32, 32, 16) and maps.dtype == np.float32
    np.testing.assert_allclose(maps.mean((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(maps.std((1, 2)), 1, atol=1e-5)
    power = np.abs(np.fft.fft2(maps, axes=(1, 2))).max((0, 3))
    frequency = np.abs(np.fft.fftfreq(32))
    assert power[frequency > 1 / 8].max() < 1e-2 and power[:, frequency > 1 / 8].max() < 1e-2
    assert not np.array_equal(maps, checkerboards.smooth_maps(4, 32))


@pytest.mark.parametrize("name", checkerboards.UPSAMPLERS)
def test_every_upsampler_fits_the_network(name):
    model = checkerboards.network(name)
    logits, _ = jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x), jnp.zeros((1, 40, 88, 3)))
    assert logits.shape == (1, 40, 88, common.NUM_CLASSES)


def test_a_finished_training_is_not_repeated(tmp_path, monkeypatch):
    trainings = []

    def train_model(_, model, *__, **___):
        trainings.append(model.decoder.upsample)
        state = type("State", (), {"variables": None})
        return state, []

    monkeypatch.setattr(exercise, "train_model", train_model)
    monkeypatch.setattr(exercise, "Predictor", lambda *_, **__: None)
    monkeypatch.setattr(exercise, "score", lambda *_: {"mean_iou": 0.5})
    monkeypatch.setattr(exercise, "on_scenes_and_greys", lambda *_: ({"on_greys": 0.1}, {"a scene": np.eye(2)}))
    arguments = exercise.Arguments(out=tmp_path, steps=3)
    for name, seed in (("nearest", 0), ("nearest", 0), ("nearest", 1), ("bilinear", 0)):
        numbers, maps = exercise.trained(name, seed, None, None, arguments)
        assert numbers == {"on_greys": 0.1, "mean_iou": 0.5}
        np.testing.assert_array_equal(maps["a scene"], np.eye(2))
    assert trainings == [dz.Nearest, dz.Nearest, dz.Bilinear]
    exercise.trained("nearest", 0, None, None, dataclasses.replace(arguments, steps=4))
    assert len(trainings) == 4


def test_3x3_transposed_convolution_overlaps_on_every_other_row():
    x = jnp.ones((1, 3, 3, 1))
    params = {"kernel": jnp.ones((3, 3, 1, 1)), "bias": jnp.zeros(1)}
    y = checkerboards.TransposedConv3x3().apply({"params": params}, x, (6, 6))
    np.testing.assert_array_equal(y[0, :5, :5, 0], np.outer([1, 2, 1, 2, 1], [1, 2, 1, 2, 1]))
    with pytest.raises(ValueError, match="only doubles"):
        checkerboards.TransposedConv3x3().apply({"params": params}, x, (7, 6))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upsamplers": ("resize_conv", "cubic")}, "unknown upsamplers"),
        ({"upsamplers": ("resize_conv", "nearest")}, "needs resize_conv and a transposed one"),
        ({"seeds": 1}, "--seeds must be 2 to 10"),
        ({"steps": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        exercise.check(exercise.Arguments(**fields))
