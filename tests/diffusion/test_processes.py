"""Diffusion processes: schedules, targets and weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from densezoo.diffusion import SCHEDULES, TARGETS, Process

RNG = np.random.default_rng(0)
IMAGES, NOISE = (jnp.asarray(RNG.standard_normal((3, 4, 5, 2)).astype(np.float32)) for _ in range(2))


def test_the_linear_schedule_is_the_product_of_its_steps():
    level, levels = 1.0, []
    for step in range(10):
        level *= 1 - (0.1 + (0.5 - 0.1) * step / 9)
        levels.append(level)
    process = Process("linear", steps=10, start=0.1, end=0.5)
    signal, sigma = process.at(jnp.arange(10))
    np.testing.assert_allclose(signal, np.sqrt(levels), rtol=1e-5)
    np.testing.assert_allclose(sigma, np.sqrt(1 - np.array(levels)), rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_from_an_image_to_noise(schedule):
    process = Process(schedule, target="v", zero_terminal_snr=schedule != "flow")
    signal, sigma = process.at(jnp.arange(0, process.steps, 37, dtype=jnp.int32))
    assert bool((jnp.diff(signal) < 0).all() and (jnp.diff(sigma) > 0).all())
    assert signal[0] > 0.99
    last = process.steps if schedule == "flow" else process.steps - 1
    assert [float(x[0]) for x in process.at(jnp.array([last]))] == [0.0, 1.0]
    if schedule != "flow":
        free = Process(schedule, target="v")
        assert free.at(jnp.array([last]))[0][0] > 0
        np.testing.assert_allclose(process.levels[0], free.levels[0])


@pytest.mark.parametrize("schedule", ["cosine", "flow"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_target_implies_image_and_noise(schedule, target):
    if (schedule, target) == ("flow", "epsilon"):
        with pytest.raises(ValueError, match="only noise"):
            Process(schedule, target=target)
        return
    process, t = Process(schedule, target=target), jnp.array([10, 500, 990])
    noisy = process.add_noise(IMAGES, NOISE, t)
    factors = (x[:, None, None, None] for x in process.at(t))
    image, noise = process.split(process.target_of(IMAGES, NOISE, t), noisy, *factors)
    np.testing.assert_allclose(image, IMAGES, atol=2e-3)
    np.testing.assert_allclose(noise, NOISE, atol=2e-3)
    assert Process("flow").target == "velocity" and Process().target == "epsilon"


@pytest.mark.parametrize("target", ["epsilon", "x0", "v", "velocity"])
def test_min_snr_limits_the_weight_of_the_error_of_the_image(target):
    process, t = Process("cosine", target=target), jnp.array([5, 300, 900])
    signal, sigma = process.at(t)
    ratio = np.minimum(np.square(signal / sigma), 5)
    # A small change of the prediction changes the image by some factor; the weight of that change is `ratio`.
    factors = [x[:, None, None, None] for x in (signal, sigma)]
    images = [process.split(jnp.full((3, 1, 1, 1), x), jnp.ones((3, 1, 1, 1)), *factors)[0] for x in (0.0, 1.0)]
    change = np.square(images[1] - images[0])[:, 0, 0, 0]
    np.testing.assert_allclose(process.weights(t, 5.0), ratio * change, rtol=1e-3)
    np.testing.assert_array_equal(process.weights(t, None), np.ones(3))


def test_times_out_of_range():
    for process, bad in ((Process(), [0, 1000]), (Process(), [-1]), (Process("flow"), [1000.5])):
        with pytest.raises(ValueError, match=r"times must be from 0 to (999|1000)"):
            process.at(jnp.array(bad))
        assert bool(jnp.isnan(jax.jit(process.at)(jnp.array(bad))[0][-1]))
    for process in (Process(steps=7), Process("flow", steps=7)):
        times = process.random_times(jax.random.key(0), 500)
        assert times.min() >= 0 and times.max() <= (7 if process.is_flow else 6)
        assert len(np.unique(np.ceil(times))) >= 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosinus"}, "cosinus.*there are: linear"),
        ({"target": "noise"}, "noise.*epsilon"),
        ({"steps": 1}, "at least 2"),
        ({"start": 0.5, "end": 0.1}, "start"),
        ({"clip": 0.0}, "clip"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Process(**options)


def test_configurations_of_schedulers():
    config = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "num_train_timesteps": 50}
    config |= {
        "rescale_betas_zero_snr": True,
        "clip_sample": True,
        "clip_sample_range": 2.0,
        "_class_name": "DDPMScheduler",
    }
    read = Process.from_config(json.loads(json.dumps(config)))
    assert read == Process("cosine", "v", 50, zero_terminal_snr=True, clip=2.0)
    assert Process.from_config({"_class_name": "FlowMatchEulerDiscreteScheduler"}) == Process("flow")
    assert Process.from_config({}).clip == 1 and Process.from_config({"_class_name": "PNDMScheduler"}).clip is None
    with pytest.raises(ValueError, match=r"ScoreSdeVeScheduler.*DDIMScheduler"):
        Process.from_config({"_class_name": "ScoreSdeVeScheduler"})
    for wrong in ({"beta_schedule": "laplace"}, {"prediction_type": "flow"}, {"trained_betas": [0.1]}):
        with pytest.raises(ValueError, match=str(next(iter(wrong)))):
            Process.from_config(config | wrong)
    with pytest.raises(ValueError, match="variances"):
        Process.from_config(config | {"variance_type": "learned_range"})
    for name, value in (("set_alpha_to_one", False), ("timestep_spacing", "linspace")):
        with pytest.warns(UserWarning, match=f"{name}={value!r}"):
            Process.from_config(config | {"_class_name": "DDIMScheduler", name: value})
