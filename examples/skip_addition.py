"""Exercise 2: U-Net skips by addition instead of concatenation, and the boundary quality of both.

Usage: python examples/skip_addition.py --out out/skip_addition

Trains the same tiny U-Net with both skips, several seeds each, on scenes of digits. Prints mean IoU, boundary IoU and
boundary F-score with 95% intervals over the seeds, the difference seed by seed, and the cost; draws the boundaries.
The last line on standard output is a JSON object with all of it.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tyro
from common import (
    PREPROCESSING,
    TASK,
    digit_recipe,
    digit_scenes,
    keep_compiled,
    score,
    summarise,
    tiny_unet,
    user_errors,
)
from rich.console import Console
from rich.table import Table

from densezoo import viz
from densezoo.predictor import Predictor
from densezoo.train import train as train_model
from densezoo.zoo import SKIPS as ALL_SKIPS

SKIPS = {name: ALL_SKIPS[name] for name in ("concat", "add")}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/skip_addition")
    """Where the picture and the numbers go."""
    seeds: int = 3
    """Runs of each skip, 2 to 10."""
    steps: int = 450
    """Training steps of 32 scenes each."""
    val: int = 200
    """Scenes to validate on."""
    tolerance: int = 1
    """Pixels by which a predicted boundary may be off."""


def main(arguments: Arguments) -> None:
    if arguments.val < 3:
        raise ValueError(f"--val is at least 3, for the picture; got {arguments.val}")
    if not 2 <= arguments.seeds <= 10:
        raise ValueError(f"--seeds is 2 to 10, for an interval; got {arguments.seeds}")
    val = digit_scenes(arguments.val, "val")
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in SKIPS}
    examples: dict[str, list[np.ndarray]] = {}
    parameters = {}
    for seed in range(arguments.seeds):
        train = digit_scenes(20_000, "train", seed=seed)
        for name, skip in SKIPS.items():
            model = tiny_unet(skip=skip)
            recipe = digit_recipe(arguments.steps, seed=seed)
            state, _ = train_model(TASK, model, train, val, recipe, preprocessing=PREPROCESSING)
            parameters[name] = sum(leaf.size for leaf in jax.tree.leaves(state.params))
            predict = Predictor(TASK, model, state.variables, PREPROCESSING)
            scores[name].append(score(predict, val, arguments.tolerance))
            if seed == 0:
                examples[name] = [predict(val[index]["image"]) for index in range(3)]

    summary = {name: {"parameters": parameters[name]} | summarise(runs) for name, runs in scores.items()}
    difference = [
        {key: add[key] - concat[key] for key in concat}
        for concat, add in zip(scores["concat"], scores["add"], strict=True)
    ]
    summary["add - concat, by seed"] = summarise(difference)
    show(summary)
    samples = [val[index] for index in range(3)]
    figure = viz.boundaries([sample["image"] for sample in samples], [sample["mask"] for sample in samples], examples)
    picture = viz.save(figure, arguments.out / "boundaries.png")
    print(json.dumps({"seeds": arguments.seeds, "scores": summary, "picture": str(picture)}))


def show(summary: dict) -> None:
    table = Table("skip", "parameters", "mean IoU", "boundary IoU", "boundary F-score")
    for name, row in summary.items():
        numbers = [f"{row[key][0]:+.3f} ± {row[key][1]:.3f}" for key in ("mean_iou", "boundary_iou", "boundary_f")]
        table.add_row(name, str(row.get("parameters", "")), *numbers)
    Console().print(table)


if __name__ == "__main__":
    with user_errors():
        keep_compiled()
        main(tyro.cli(Arguments))
