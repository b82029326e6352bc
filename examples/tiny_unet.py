"""Exercise 1: a tiny U-Net on scenes of digits, and the feature maps of its encoder and decoder. `make demo` runs it.

Usage: python examples/tiny_unet.py --out out/tiny_unet

Needs no data: the scenes are real handwritten digits on real textures, generated from a seed. Writes predictions, the
feature maps of encoder and decoder at every scale, and the training curves. The last line on standard output is a JSON
object with the mean IoU on scenes with held-out digits and textures.
"""

import dataclasses
import json
import time
from pathlib import Path

import jax.numpy as jnp
from common import (
    CLASSES,
    PREPROCESSING,
    TASK,
    command_line,
    digit_recipe,
    digit_scenes,
    keep_compiled,
    spread,
    tiny_unet,
)

from densezoo import viz
from densezoo.data import to_float
from densezoo.predictor import Predictor
from densezoo.train import train


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/tiny_unet")
    """Output folder for the pictures, the checkpoints and the log."""
    steps: int = 450
    """Number of training steps of 32 scenes each."""
    seed: int = 0
    """Seed of scenes and training."""
    resume: bool = False
    """Continue the run in --out."""
    quick: bool = False
    """Check that the script works, with three steps and few scenes. Overrides --steps."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    if arguments.quick:
        arguments = dataclasses.replace(arguments, steps=3)
    model = tiny_unet()
    state, history = train(
        TASK,
        model,
        digit_scenes(20_000, "train", seed=arguments.seed),
        digit_scenes(6 if arguments.quick else 200, "val", seed=arguments.seed),
        digit_recipe(arguments.steps, seed=arguments.seed),
        preprocessing=PREPROCESSING,
        directory=arguments.out,
        resume=arguments.resume,
    )

    predict = Predictor(TASK, model, state.variables, PREPROCESSING)
    # The network accepts any size, so the pictures can show larger scenes than the training used.
    scenes = digit_scenes(4, "val", size=88, digits=(8, 10), seed=arguments.seed + 1)
    samples = spread(scenes, 4)
    images = [sample["image"] for sample in samples]
    figure = viz.predictions(
        images,
        [sample["mask"] for sample in samples],
        [predict(image) for image in images],
        class_names=CLASSES,
    )
    pictures = [viz.save(figure, arguments.out / "predictions.png")]
    figure = viz.feature_maps(
        model,
        state.variables,
        jnp.asarray((to_float(images[0]) - PREPROCESSING.mean[0]) / PREPROCESSING.std[0]),
        class_names=CLASSES,
    )
    pictures.append(viz.save(figure, arguments.out / "feature_maps.png"))
    pictures.append(viz.save(viz.training_curves(arguments.out / "log.jsonl"), arguments.out / "curves.png"))

    scores = next(record["scores"] for record in reversed(history) if "scores" in record)
    result = {
        "quick": arguments.quick,
        "mean_iou": scores["mean_iou"],
        "per_class_iou": {name: scores[f"iou_{name}"] for name in CLASSES},
        "steps": int(state.step),
        "seconds": round(time.perf_counter() - started, 1),
        "pictures": [str(picture) for picture in pictures],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
