"""An autoencoder and a VAE of digits, beside a U-Net whose skips carry the image past the bottleneck.

Usage: python examples/autoencoder.py --out out/autoencoder

Trains three networks with the same encoder and decoder to return scikit-learn's digits (8x8 pixels, no download).
Writes a picture of their reconstructions of test digits, and of digits that the VAE makes of random latents. The last
line on standard output is a JSON object with the PSNR of each on test digits.
"""

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from common import command_line, keep_compiled
from digits import PREPROCESSING, digits
from matplotlib.figure import Figure

import densezoo as dz
from densezoo import viz
from densezoo.train import Recipe, train


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/autoencoder")
    """Output folder for the picture, the checkpoints and the models."""
    steps: int = 1000
    """Number of training steps of 64 digits each, for each of the three networks."""
    latent_features: int = 2
    """Channels of the latents, which are a map of 2x2 pixels: 2 are 8 numbers for the 64 pixels of a digit."""
    kl_weight: float = 0.2
    """Weight of the divergence in the loss of the VAE."""
    seed: int = 0
    """Seed of the training."""
    resume: bool = False
    """Continue the run in --out."""
    quick: bool = False
    """Check that the script works, with three steps. Overrides --steps."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    steps = 3 if arguments.quick else arguments.steps
    train_digits, test_digits = digits()
    task = dz.tasks.Autoencoding(kl_weight=arguments.kl_weight)
    encoder = dz.PlainEncoder((8, 16, 32) if arguments.quick else (32, 64, 128))
    models = {
        name: dz.create_model(name, encoder, num_classes=1, latent_features=arguments.latent_features)
        for name in ("autoencoder", "vae")
    }
    models["unet"] = dz.create_model("unet", encoder, num_classes=1)
    recipe = Recipe(
        crop_size=8,
        batch_size=64,
        steps=steps,
        learning_rate=3e-3,
        flip_horizontal=False,  # a flipped digit is not a digit
        seed=arguments.seed,
        eval_batch_size=250,
    )
    scores, restored, made = {}, {}, np.zeros(0)
    shown = np.stack([next(x["image"] for x in test_digits if x["label"] == digit) for digit in range(10)])
    for name, model in models.items():
        state, history = train(
            task,
            model,
            train_digits,
            test_digits,
            recipe,
            preprocessing=PREPROCESSING,
            directory=arguments.out / name,
            resume=arguments.resume,
        )
        scores[name] = history[-1]["scores"]["psnr"]
        apply = jax.jit(model.apply)
        restored[name] = np.asarray(task.predict(apply(state.variables, jnp.asarray(2 * shown - 1))))
        if name == "vae":
            latents = jax.random.normal(jax.random.key(arguments.seed), (10, 2, 2, arguments.latent_features))
            made = np.asarray(model.apply(state.variables, latents, method="decode"))
    numbers = 4 * arguments.latent_features
    rows = {"test digits": 2 * shown - 1}
    rows |= {f"{name}, {scores[name]:.1f} dB": images for name, images in restored.items()}
    picture = viz.save(draw(rows | {"vae, random latents": made}), arguments.out / "reconstructions.png")
    # The PSNR of the best constant image, for comparison.
    pixels = np.stack([sample["image"] for sample in train_digits])
    error = np.mean([np.square(sample["image"] - pixels.mean(0)).mean() for sample in test_digits])
    result = {
        "psnr": {name: round(value, 2) for name, value in scores.items()},
        "psnr_of_the_mean_digit": round(-10 * math.log10(error), 2),
        "latents_per_pixel": numbers / 64,
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "picture": str(picture),
    }
    print(json.dumps(result))


def draw(rows: dict[str, Any]) -> Figure:
    """A row of digits for each title, with values from -1 to 1."""
    figure = Figure(figsize=(7, 0.95 * len(rows)), layout="constrained")
    parts: Any = figure.subfigures(len(rows))
    for part, (title, images) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, fontsize=9)
        for axis, image in zip(part.subplots(1, len(images)), images, strict=True):
            axis.imshow((image[..., 0] + 1) / 2, cmap="gray_r", vmin=0, vmax=1)
            axis.set_axis_off()
    return figure


if __name__ == "__main__":
    matplotlib.use("agg")
    keep_compiled()
    command_line(main, Arguments)
