"""A diffusion U-Net that draws digits of a chosen class.

Usage: python examples/diffusion_digits.py --out out/diffusion_digits

Trains on scikit-learn's digits (8x8 pixels, no download). Writes a grid of samples under real digits, the denoising as
a strip, and the model. The last line on standard output is a JSON object with the accuracy on the samples of a
classifier that was trained on real digits, beside its accuracy on real test digits, and with the Frechet distance of
the samples to the training digits in the classifier's features, beside that of the test digits.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import command_line, keep_compiled
from digits import HELD_OUT, PREPROCESSING, classifier, digits, with_interval
from matplotlib.figure import Figure

import densezoo as dz
from densezoo import viz
from densezoo.compiling import Jitted
from densezoo.ops.implementation import within_loop
from densezoo.train import Recipe, train


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/diffusion_digits")
    """Output folder for the pictures, the checkpoints and the model."""
    steps: int = 2000
    """Number of training steps of 128 digits each."""
    schedule: str = "cosine"
    """Noise schedule: linear, cosine, sigmoid, or flow for flow matching."""
    target: str = ""
    """What the network predicts: epsilon, x0, v or velocity; by default v, or velocity for a flow."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last time step is only noise."""
    skip: str = "concat"
    """Skips of the U-Net: concat, add or none."""
    latent: Path | None = None
    """Output folder of autoencoder.py. The network then generates latents of its VAE, which decodes them to digits."""
    method: str = "ddim"
    """Sampler: ddim, ddpm, dpm, heun or euler."""
    sampling_steps: int = 50
    """Number of sampling steps."""
    guidance: tuple[float, ...] = (1.0, 2.0, 4.0)
    """Scales of classifier-free guidance to compare. The pictures show the second one, or the first if it is alone."""
    seed: int = 0
    """Seed of training and sampling."""
    resume: bool = False
    """Continue the run in --out."""
    quick: bool = False
    """Check that the script works, with a tiny network, three steps and few samples. Overrides --steps."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    quick = arguments.quick
    train_digits, test_digits = digits()
    target = arguments.target or ("velocity" if arguments.schedule == "flow" else "v")
    task = dz.tasks.Diffusion(
        10,
        arguments.schedule,
        target,
        zero_terminal_snr=arguments.zero_terminal_snr,
        clip=1.0 if arguments.latent is None else None,  # latents have no limits
    )
    train_source, test_source, preprocessing, decode = train_digits, test_digits, PREPROCESSING, np.asarray
    if arguments.latent is not None:
        train_source, test_source, preprocessing, decode = latents_of(arguments.latent, train_digits, test_digits)
    shape = train_source[0]["image"].shape
    model = dz.create_model(
        "diffusion_unet",
        num_classes=10,
        features=(8, 16) if quick else (32, 64),
        layers=1 if quick else 2,
        skip=arguments.skip,
    )
    steps = 3 if quick else arguments.steps
    sampler = task.sampler(model, method=arguments.method, steps=2 if quick else arguments.sampling_steps)
    recipe = Recipe(
        crop_size=shape[0],
        batch_size=128,
        steps=steps,
        learning_rate=2e-3,
        clip_norm=1.0,
        flip_horizontal=False,  # a flipped digit is not a digit
        seed=arguments.seed,
        evaluate_every=max(1, steps // 3),
        eval_batch_size=250,
    )
    state, history = train(
        task,
        model,
        train_source,
        test_source,
        recipe,
        preprocessing=preprocessing,
        directory=arguments.out,
        resume=arguments.resume,
    )
    trained = time.perf_counter() - started

    classes, features = classifier(train_digits, 20 if quick else 800)
    real, labels = (np.stack([sample[name] for sample in test_digits]) for name in ("image", "label"))
    known = features(2 * np.stack([sample["image"] for sample in train_digits]) - 1)

    def judged(images: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
        distance, low, high = with_interval(features(images), known, 10 if quick else 200)
        return {
            "class_accuracy": float((classes(images) == wanted).mean()),
            "frechet_distance": round(distance, 3),
            "interval": [round(low, 3), round(high, 3)],
        }

    count = 20 if quick else HELD_OUT
    wanted = np.arange(count, dtype=np.int32) % 10
    found, samples = {}, {}
    for scale in arguments.guidance:
        key = jax.random.key(arguments.seed + 1)
        samples[scale] = decode(sampler(state.ema_variables, key, (count, *shape), labels=wanted, guidance=scale))
        found[str(scale)] = judged(samples[scale], wanted)
    shown = arguments.guidance[min(1, len(arguments.guidance) - 1)]
    pictures = [
        viz.save(grid(samples[shown], real, labels), arguments.out / "samples.png"),
        viz.save(strip(task, model, state.ema_variables, shape, decode, shown, quick), arguments.out / "denoising.png"),
    ]
    result = {
        "guidance": found,
        "real": judged(2 * real - 1, labels),
        "psnr": history[-1]["scores"]["psnr"],
        "steps": int(state.step),
        **speed(sampler, model, state.ema_variables, shape),
        "training_seconds": round(trained, 1),
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": [str(picture) for picture in pictures],
    }
    if arguments.latent is not None:  # the best that samples can be
        latents = np.stack([sample["image"] for sample in test_source])
        result["reconstructed"] = judged(decode((latents - preprocessing.mean) / preprocessing.std), labels)
    print(json.dumps(result))


def speed(sampler: Any, model: Any, variables: Any, shape: Any) -> dict[str, float]:
    """Samples per second of a batch of 64 without guidance, and the network's share of the time."""
    labels = np.arange(64, dtype=np.int32) % 10

    def network(variables: Any, x: jax.Array, times: jax.Array) -> jax.Array:
        def step(x: jax.Array, time: jax.Array) -> Any:
            with within_loop():
                return model.apply(variables, x, jnp.broadcast_to(time, x.shape[:1]), labels), None

        return jax.lax.scan(step, x, times)[0]

    alone, x = Jitted(network), jax.random.normal(jax.random.key(0), (64, *shape))
    times = jnp.linspace(999, 0, sampler.evaluations)
    whole = median_seconds(lambda: sampler(variables, jax.random.key(0), x.shape, labels=labels))
    share = median_seconds(lambda: alone(variables, x, times)) / whole
    return {"samples_per_second": round(64 / whole, 1), "network_share": round(share, 2)}


def median_seconds(call: Callable[[], Any]) -> float:
    """The median time of five calls, after one that compiles."""
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def latents_of(folder: Path, *sources: Any) -> tuple[Any, Any, dz.Preprocessing, Callable[[Any], np.ndarray]]:
    """Two sources with a VAE's latents as images, the preprocessing to unit variance, and the decoder of the result."""
    path = folder / "vae" / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: train it by python examples/autoencoder.py --out {folder}")
    vae: Any
    vae, variables = dz.load(path)
    encode = jax.jit(lambda images: vae.apply(variables, 2 * images - 1, method="encode")[0])
    encoded = []
    for source in sources:
        latents = np.asarray(encode(np.stack([sample["image"] for sample in source])))
        encoded.append([sample | {"image": image} for sample, image in zip(source, latents, strict=True)])
    known = np.stack([sample["image"] for sample in encoded[0]])
    mean, std = known.mean((0, 1, 2)), known.std((0, 1, 2))
    decode = jax.jit(lambda scaled: vae.apply(variables, scaled * std + mean, method="decode"))
    return *encoded, dz.Preprocessing(len(mean), tuple(mean), tuple(std)), lambda scaled: np.asarray(decode(scaled))


def grid(samples: np.ndarray, real: np.ndarray, labels: np.ndarray, rows: int = 6) -> Figure:
    """Samples of every class, a column each, under two rows of real test digits."""
    top = np.stack([real[labels == digit][:2] for digit in range(10)], axis=1)
    drawn = np.stack([samples[digit::10][:rows] for digit in range(10)], axis=1)
    figure = Figure(figsize=(7, 0.7 * (len(top) + len(drawn)) + 0.9), layout="constrained")
    parts: Any = figure.subfigures(2, height_ratios=[len(top), len(drawn)])
    for part, images, title in ((parts[0], top, "real test digits"), (parts[1], (drawn + 1) / 2, "samples")):
        part.suptitle(title)
        show(part, images)
    return figure


def strip(task: Any, model: Any, variables: Any, shape: Any, decode: Any, guidance: float, quick: bool) -> Figure:
    """The predicted images of ten steps of sampling, a row for each of four digits."""
    sampler = task.sampler(model, steps=2 if quick else 10, trajectory=True)
    wanted = np.array([3, 5, 8, 0], np.int32)
    _, predicted = sampler(variables, jax.random.key(7), (4, *shape), labels=wanted, guidance=guidance)
    images = np.stack([(decode(images) + 1) / 2 for images in predicted], axis=1)
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    figure.suptitle("the predicted image at each step of sampling, from noise to the digit")
    show(figure, images)
    return figure


def show(figure: Any, images: np.ndarray) -> None:
    """Draws images (rows, columns, h, w, 1) in 0..1."""
    axes = figure.subplots(*images.shape[:2], squeeze=False)
    for axis, image in zip(axes.flat, images.reshape(-1, *images.shape[2:]), strict=True):
        axis.imshow(np.clip(image[..., 0], 0, 1), cmap="gray_r", vmin=0, vmax=1)
        axis.set_axis_off()


if __name__ == "__main__":
    matplotlib.use("agg")
    keep_compiled()
    command_line(main, Arguments)
