"""Samplers, with a network that is exact for normally distributed images."""

import runpy
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import densezoo as dz
from densezoo.diffusion import Process, make_sampler

MEAN, DEVIATION = 0.3, 0.5
NOISE = np.random.default_rng(0).standard_normal((2, 3, 4, 1)).astype(np.float32)
KEY = jax.random.key(0)
GOLDEN = Path(__file__).parents[1] / "golden"


class Exact(nn.Module):
    """The best prediction for images whose pixels are normally distributed; the label is added to the mean."""

    process: Process
    num_classes: int = 4
    null_label: bool = True

    def __call__(self, x, t, labels=None, *, train=False):
        signal, sigma = (value[:, None, None, None] for value in self.process.at(t))
        mean = MEAN + (
            0
            if labels is None
            else jnp.where(labels == self.num_classes, 0, labels).astype(x.dtype)[:, None, None, None]
        )
        share = DEVIATION**2 * signal / (signal**2 * DEVIATION**2 + sigma**2)
        image = mean + share * (x - signal * mean)
        return self.process.target_of(image, (x - signal * image) / sigma, t)


def exact_end(process):
    """Where the noise ends if the process is followed exactly."""
    last = process.steps if process.is_flow else process.steps - 1
    signal, sigma = (float(x[0]) for x in process.at(jnp.array([last])))
    return MEAN + DEVIATION * (NOISE - signal * MEAN) / (signal**2 * DEVIATION**2 + sigma**2) ** 0.5


@pytest.mark.parametrize(
    "process", [Process("cosine", "v", zero_terminal_snr=True), Process("linear"), Process("flow")]
)
def test_samplers_follow_the_process(process):
    def error(method, steps):
        sample = make_sampler(Exact(process), process, method=method, steps=steps)
        return float(np.abs(sample({}, KEY, noise=NOISE) - exact_end(process)).max())

    assert error("ddim", 200) < 0.2 * error("ddim", 20) < 0.06
    # Of second order: better than the first order with as many evaluations.
    assert error("dpm", 20) < 0.5 * error("ddim", 20)
    assert error("heun", 40) < 0.5 * error("ddim", 80)


def test_random_samplers_keep_the_distribution():
    process = Process("cosine", "x0")
    for options in ({"method": "ddpm"}, {"eta": 1.0}):
        sample = make_sampler(Exact(process), process, steps=100, **options)
        images = np.asarray(sample({}, KEY, (1, 64, 64, 1)))
        assert abs(images.mean() - MEAN) < 0.05 and abs(images.std() - DEVIATION) < 0.05
    sample = make_sampler(Exact(process), process, steps=100)
    assert bool((sample({}, KEY, noise=NOISE) == sample({}, jax.random.key(1), noise=NOISE)).all())


class Simple(nn.Module):
    """The function of `make_diffusers.write_samplers`."""

    def __call__(self, x, t, labels=None, *, train=False):
        return jnp.tanh(x) * (0.5 + 0.4 * t[:, None, None, None] / 1000)


def test_times_are_those_of_diffusers():
    golden = np.load(GOLDEN / "diffusers_samplers.npz")
    noise = runpy.run_path(str(GOLDEN / "seeded.py"))["array"]("image", tuple(golden["image_shape"].tolist()))
    for method, clip in (("ddim", 1.0), ("dpm", None)):  # diffusers' defaults
        for spacing in ("leading", "trailing", "linspace"):
            sample = make_sampler(Simple(), Process(clip=clip), method=method, steps=8, spacing=spacing)
            found, expected = sample({}, KEY, noise=noise), golden[f"{method}_{spacing}"]
            same = np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
            # diffusers' DDIM misses the next of these times.
            assert bool(same) == ((method, spacing) != ("ddim", "linspace")), (method, spacing)


def test_guidance_moves_away_from_no_class():
    process = Process("cosine", "v")
    sample = make_sampler(Exact(process), process, steps=20, trajectory=True)
    labels = np.array([1, 3], np.int32)
    means = {scale: sample({}, KEY, noise=NOISE, labels=labels, guidance=scale)[0].mean((1, 2, 3)) for scale in (1, 3)}
    unlabelled, states = sample({}, KEY, noise=NOISE)
    np.testing.assert_allclose(means[1] - unlabelled.mean((1, 2, 3)), labels, atol=0.05)
    np.testing.assert_allclose(means[3] - unlabelled.mean((1, 2, 3)), 3 * labels, atol=0.15)
    assert states.shape == (20, *NOISE.shape) and bool((states[-1] == unlabelled).all())
    clipped = make_sampler(Exact(process), Process("cosine", "v", clip=0.2), steps=3)
    assert np.abs(clipped({}, KEY, noise=NOISE)).max() == np.float32(0.2)


def test_with_guidance_the_noise_fits_the_clipped_image():
    process = Process(clip=0.25, target="v")
    model, labels = Exact(process), jnp.zeros(2, jnp.int32)
    found = make_sampler(model, process, steps=3)({}, KEY, noise=NOISE, labels=labels, guidance=1.5)
    x, image, before = NOISE, NOISE, None
    for t in (999, 666, 332):
        times = jnp.full((2,), t)
        signal, sigma = (float(value[0]) for value in process.at(times))
        x = x if before is None else signal * image + sigma * before
        image = np.clip(process.split(model.apply({}, x, times, labels), x, signal, sigma)[0], -0.25, 0.25)
        before = (x - signal * image) / sigma
    np.testing.assert_allclose(found, image, atol=1e-5)


def test_one_program_for_all_steps(compilations):
    process = Process()
    sample = make_sampler(Exact(process), process, steps=30)
    sample({}, KEY, noise=NOISE)
    with compilations() as found:
        sample({}, KEY, noise=NOISE + 1)
    assert not found and sample.evaluations == 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "magic.*ddim"),
        ({"steps": 0}, "steps must be from 1"),
        ({"steps": 1001}, "1000"),
        ({"steps": 1000, "method": "dpm", "spacing": "linspace"}, "999"),
        ({"spacing": "even"}, "even.*trailing"),
        ({"eta": 0.5, "method": "dpm"}, "eta"),
        ({"process": Process("flow"), "method": "ddpm"}, "no fresh noise"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(Exact(Process()), options.pop("process", Process()), **options)


def test_bad_calls_are_named():
    sample = make_sampler(Exact(Process()), Process(), steps=2)
    for arguments, message in (
        ({}, "shape of the images, or the noise"),
        ({"noise": NOISE, "labels": np.array([0, 5])}, r"from 0 to 4.*got 0 to 5"),
        ({"noise": NOISE, "guidance": 2.0}, "guidance needs labels"),
        ({"noise": NOISE, "labels": np.array([0.5, 1])}, "whole numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            sample({}, KEY, **arguments)
    with pytest.raises(ValueError, match=r"expected the model's variables, .*not their params alone"):
        sample({"conv_in": {}}, KEY, noise=NOISE)
    without = dz.create_model("diffusion_unet", features=(8,), layers=1)
    with pytest.raises(ValueError, match="null label"):
        make_sampler(without, Process(), steps=2)({}, KEY, (1, 8, 8, 1), labels=0, guidance=2.0)
