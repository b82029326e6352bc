"""What the skips of a diffusion U-Net contribute: concatenation, addition, and none.

Usage: python examples/diffusion_skips.py --out out/diffusion_skips

Trains the same small diffusion U-Net with each of them on scikit-learn's digits (8x8 pixels, no download), with several
seeds. Prints the loss and the PSNR on test digits, the share of samples that a classifier of real digits reads as the
wanted class, and the paired differences to concatenation. A number after ± is half the width of the 95 % interval
(Student's t) of the mean over the seeds.

Finished work is kept in files under --out, so that the same command continues an interrupted run. The last line on
standard output is a JSON object with all numbers. The guide "Generate images" has the results of a full run.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import (
    QUICK_NOTE,
    Finished,
    check_runs,
    command_line,
    count_parameters,
    differences,
    finished,
    keep_compiled,
    number,
    summarise,
)
from digits import PREPROCESSING, classifier, digits
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo.train import Recipe, train

SKIPS = ("concat", "add", "none")
SCORES = {"loss": "loss", "psnr": "PSNR in dB", "class_accuracy": "class accuracy of samples"}
TASK = dz.tasks.Diffusion(10, schedule="cosine", target="v")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/diffusion_skips")
    """Output folder for the numbers and finished training runs."""
    seeds: int = 3
    """Number of training runs with each kind of skips, 2 to 10."""
    steps: int = 300
    """Number of training steps of 32 digits each."""
    samples: int = 300
    """Number of digits to sample after each training, with 20 steps of DDIM."""
    quick: bool = False
    """Check that the script works: a tiny network, two seeds, two steps. Overrides --seeds, --steps, --samples."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, seeds=2, steps=2, samples=10)
    check_runs(arguments)
    console = Console()
    scores: dict[str, list[dict[str, float]]] = {skip: [] for skip in SKIPS}
    for seed in range(arguments.seeds):
        for skip in SKIPS:
            numbers = trained(skip, seed, arguments)
            scores[skip].append(numbers)
            listed = ", ".join(f"{SCORES[key]} {value:.3f}" for key, value in numbers.items())
            console.print(f"seed {seed}, {skip}: {listed}", soft_wrap=True)

    summary: dict[str, dict[str, Any]] = {
        skip: {"parameters": count_parameters(network(skip, arguments.quick), (1, 8, 8, 1))} | summarise(runs)
        for skip, runs in scores.items()
    }
    for skip in SKIPS[1:]:
        summary[f"{skip} - {SKIPS[0]}, by seed"] = differences(scores[skip], scores[SKIPS[0]])
    show(console, summary, arguments)
    result = {
        "quick": arguments.quick,
        "seeds": arguments.seeds,
        "steps": arguments.steps,
        "interval": "95 %, Student's t, of the mean over seeds: [mean, half width]",
        "scores": summary,
        "runs": scores,
    }
    print(json.dumps(result))


def network(skip: str, quick: bool) -> Any:
    """Three levels, of 8x8, 4x4 and 2x2 pixels."""
    features = (4,) if quick else (16, 32, 64)
    return dz.create_model("diffusion_unet", num_classes=10, features=features, layers=1, skip=skip)


@functools.cache
def reader(quick: bool) -> Callable[[np.ndarray], np.ndarray]:
    """A function from digits to the classes that a classifier of real digits finds."""
    return classifier(digits()[0], 20 if quick else 800)[0]


def trained(skip: str, seed: int, arguments: Arguments) -> dict[str, float]:
    """The scores of the network with these skips."""

    def work(checkpoints: Path) -> Finished:
        model, (train_digits, test_digits) = network(skip, arguments.quick), digits()
        recipe = Recipe(
            crop_size=8,
            batch_size=32,
            steps=arguments.steps,
            learning_rate=2e-3,
            clip_norm=1.0,
            flip_horizontal=False,  # a flipped digit is not a digit
            seed=seed,
            eval_batch_size=250,
        )
        options: dict[str, Any] = {"preprocessing": PREPROCESSING, "directory": checkpoints, "resume": True}
        state, history = train(TASK, model, train_digits, test_digits, recipe, **options)
        wanted = np.arange(arguments.samples, dtype=np.int32) % 10
        sampler = TASK.sampler(model, steps=2 if arguments.quick else 20)
        images = sampler(state.ema_variables, jax.random.key(seed), (len(wanted), 8, 8, 1), labels=wanted)
        right = reader(arguments.quick)(np.asarray(images)) == wanted
        scores = {name: history[-1]["scores"][name] for name in ("loss", "psnr")}
        return scores | {"class_accuracy": float(right.mean())}, {}

    folder = arguments.out / ("trained_quick" if arguments.quick else "trained")
    settings = f"steps{arguments.steps}_samples{arguments.samples}"
    return finished(folder / f"{skip}_seed{seed}_{settings}.npz", work)[0]


def show(console: Console, summary: dict[str, dict[str, Any]], arguments: Arguments) -> None:
    caption = (
        f"mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds; a difference whose interval"
        " contains 0 may be chance"
    )
    table = Table("skips", "parameters", *SCORES.values(), caption=caption)
    for name, row in summary.items():
        parameters = f"{row['parameters']:,}" if "parameters" in row else ""
        sign = "" if parameters else "+"
        table.add_row(name, parameters, *(number(row, key, sign) for key in SCORES))
    console.print(table)
    if arguments.quick:
        console.print(QUICK_NOTE)


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
