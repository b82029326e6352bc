"""A diffusion U-Net that removes noise from a photograph.

Usage: python examples/denoise.py --out out/denoise

Trains on crops of scikit-image's photographs (no download), and restores another one after adding Gaussian noise of
several strengths: one network for all strengths, which it is told as the time of the diffusion. Writes restored.png and
the model. The last line on standard output is a JSON object with the PSNR in dB of the noisy picture, of the restored
one, and of scikit-image's non-local means, which is told the strength too.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import command_line, keep_compiled
from matplotlib.figure import Figure

import densezoo as dz
from densezoo import viz
from densezoo.extras import require
from densezoo.train import Recipe, train

PREPROCESSING = dz.Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)
TRAIN, VAL = ("coffee", "rocket", "astronaut"), "chelsea"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/denoise")
    """Output folder for the picture, the checkpoints and the model."""
    steps: int = 1000
    """Number of training steps of 16 crops each."""
    crop_size: int = 40
    """Side of the crops in pixels."""
    sigmas: tuple[float, ...] = (15.0, 25.0, 50.0)
    """Standard deviations of the noise to remove, in units of 8-bit pixels."""
    seed: int = 0
    """Seed of training and noise."""
    resume: bool = False
    """Continue the run in --out."""
    quick: bool = False
    """Check that the script works, with a tiny network and three steps. Overrides --steps."""


def main(arguments: Arguments) -> None:
    started, quick = time.perf_counter(), arguments.quick
    if not arguments.sigmas or min(arguments.sigmas) <= 0:
        raise ValueError(f"--sigmas must be positive, got {arguments.sigmas}")
    task = dz.tasks.Diffusion(schedule="cosine", target="v")
    model = dz.create_model(
        "diffusion_unet",
        features=(8, 16) if quick else (32, 64, 96),
        layers=1,
        attention_levels=(),
    )
    # Without any attention, because the picture is larger than the crops.
    model = model.clone(middle=functools.partial(model.middle, attention=None))
    # Repeated, so that a batch has several crops of each photograph.
    photographs: Any = [{"image": photograph(name)} for name in TRAIN] * 32
    picture = photograph(VAL)[:64, :64] if quick else photograph(VAL)
    held_out: Any = [{"image": picture}]
    steps = 3 if quick else arguments.steps
    recipe = Recipe(
        crop_size=arguments.crop_size,
        batch_size=16,
        steps=steps,
        learning_rate=1e-3,
        clip_norm=1.0,
        seed=arguments.seed,
        evaluate_every=max(1, steps // 3),
    )
    state, history = train(
        task,
        model,
        photographs,
        held_out,
        recipe,
        preprocessing=PREPROCESSING,
        directory=arguments.out,
        resume=arguments.resume,
    )

    noise = np.random.default_rng(arguments.seed).standard_normal(picture.shape).astype(np.float32)
    clean, scores, rows = picture / np.float32(255), {}, []
    for sigma in arguments.sigmas:
        noisy = clean + noise * np.float32(sigma / 255)
        found = {
            "noisy": noisy,
            "diffusion U-Net": restore(task, model, state.ema_variables, noisy, sigma / 255),
            "non-local means": non_local_means(noisy, sigma / 255),
        }
        errors = {name: np.square(np.float64(image) - clean).mean() for name, image in found.items()}
        scores[f"{sigma:g}"] = {name: round(float(dz.metrics.psnr(error, 1.0)), 2) for name, error in errors.items()}
        rows.append(found | {"original": clean})
    shown = viz.save(draw(rows, arguments.sigmas, scores), arguments.out / "restored.png")
    result = {
        "psnr": scores,
        "val_psnr": history[-1]["scores"]["psnr"],
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - started, 1),
        "picture": str(shown),
    }
    print(json.dumps(result))


def photograph(name: str) -> np.ndarray:
    """A photograph of scikit-image, uint8 (h, w, 3)."""
    return getattr(require("skimage.data"), name)()


def restore(task: Any, model: Any, variables: Any, noisy: np.ndarray, sigma: float) -> np.ndarray:
    """The image that the network predicts from one with noise of this standard deviation; both in 0..1.

    A diffusion's noisy image is `signal * image + noise`. The time is the one whose share of noise is nearest.
    """
    signal, noise = (np.asarray(x) for x in task.process.at(jnp.arange(task.steps)))
    t = int(np.abs(np.log(noise / signal) - np.log(2 * sigma)).argmin())  # -1..1 is twice as wide as 0..1

    @jax.jit
    def predict(variables: Any, image: jax.Array) -> jax.Array:
        x = signal[t] * (2 * image[None] - 1)
        output = model.apply(variables, x, jnp.full((1,), t))
        return (task.process.split(output, x, signal[t], noise[t])[0][0] + 1) / 2

    return np.clip(np.asarray(predict(variables, noisy)), 0, 1)


def non_local_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """The image that scikit-image's non-local means finds, with the settings of its documentation."""
    filtered = require("skimage.restoration").denoise_nl_means(
        noisy, h=0.6 * sigma, sigma=sigma, patch_size=5, patch_distance=6, fast_mode=True, channel_axis=-1
    )
    return np.clip(filtered, 0, 1)


def draw(rows: list[dict[str, np.ndarray]], sigmas: tuple[float, ...], scores: dict[str, dict[str, float]]) -> Figure:
    """A row of enlarged parts for each strength of the noise, with the PSNR of the whole pictures."""
    figure = Figure(figsize=(2.6 * len(rows[0]), 2.6 * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    top, left = (max(0, side // 2 - 80) for side in rows[0]["noisy"].shape[:2])
    for line, row, sigma in zip(axes, rows, sigmas, strict=True):
        for axis, (name, image) in zip(line, row.items(), strict=True):
            decibels = scores[f"{sigma:g}"].get(name)
            axis.set_title(name if decibels is None else f"{name}: {decibels:.1f} dB", fontsize=9)
            axis.imshow(np.clip(image[top : top + 160, left : left + 160], 0, 1))
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(f"noise {sigma:g} of 255", fontsize=9)
    return figure


if __name__ == "__main__":
    matplotlib.use("agg")
    keep_compiled()
    command_line(main, Arguments)
