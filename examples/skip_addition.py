"""Exercise 2: U-Net skips by addition instead of concatenation, and the boundary quality of both.

Usage: python examples/skip_addition.py --out out/skip_addition

Trains the same tiny U-Net with both skips on scenes of digits, with several seeds. Prints mean IoU, boundary IoU and
boundary F-score, the paired differences between the skips, and the parameters. A number after ± is half the width of
the 95 % interval (Student's t) of the mean over the seeds. Draws ground truth, predictions and boundaries.

Finished work is kept in files under --out, so that the same command continues an interrupted run. The last line on
standard output is a JSON object with all numbers. docs/skip_addition.md has the results of a full run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    CLASSES,
    PREPROCESSING,
    QUICK_NOTE,
    TASK,
    Finished,
    check_runs,
    command_line,
    count_parameters,
    differences,
    digit_recipe,
    digit_scenes,
    finished,
    keep_compiled,
    number,
    score,
    spread,
    summarise,
    tiny_unet,
)
from rich.console import Console
from rich.table import Table

from densezoo import viz
from densezoo.predictor import Predictor
from densezoo.train import train as train_model
from densezoo.zoo import SKIPS as ALL_SKIPS

SKIPS = {name: ALL_SKIPS[name] for name in ("concat", "add")}
SCORES = {"mean_iou": "mean IoU", "boundary_iou": "boundary IoU", "boundary_f": "boundary F-score"}
PICTURES = 3
QUICK: dict[str, Any] = {"seeds": 2, "steps": 2, "val": 6}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/skip_addition")
    """Output folder for the picture, the numbers and finished training runs."""
    seeds: int = 5
    """Number of training runs with each skip, 2 to 10."""
    steps: int = 450
    """Number of training steps of 32 scenes each."""
    val: int = 200
    """Number of validation scenes, the same for all seeds."""
    tolerance: int = 1
    """Tolerance in pixels of the boundary F-score."""
    quick: bool = False
    """Check that the script works: a smaller network, two seeds, two steps. Overrides --seeds, --steps, --val."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check_runs(arguments)
    console = Console()
    val = digit_scenes(arguments.val, "val")
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in SKIPS}
    predictions: dict[str, np.ndarray] = {}
    for seed in range(arguments.seeds):
        for name in SKIPS:
            numbers, arrays = trained(name, seed, val, arguments)
            scores[name].append(numbers)
            predictions.setdefault(name, arrays["predictions"])
            listed = ", ".join(f"{SCORES[key]} {value:.3f}" for key, value in numbers.items())
            console.print(f"seed {seed}, {name}: {listed}", soft_wrap=True)

    summary: dict[str, dict[str, Any]] = {
        name: {"parameters": count_parameters(tiny_unet(SKIPS[name], quick=arguments.quick))} | summarise(runs)
        for name, runs in scores.items()
    }
    summary["add - concat, by seed"] = differences(scores["add"], scores["concat"])
    show(console, summary, arguments)
    picture = viz.save(draw(spread(val, PICTURES), predictions, summary, arguments), arguments.out / "boundaries.png")
    result = {
        "quick": arguments.quick,
        "seeds": arguments.seeds,
        "interval": "95 %, Student's t, of the mean over seeds: [mean, half width]",
        "scores": summary,
        "runs": scores,
        "picture": str(picture),
    }
    print(json.dumps(result))


def trained(name: str, seed: int, val: Any, arguments: Arguments) -> Finished:
    """The scores of the network with this skip, and its predictions for the picture."""

    def work(checkpoints: Path) -> Finished:
        model, train = tiny_unet(SKIPS[name], quick=arguments.quick), digit_scenes(20_000, "train", seed=seed)
        recipe = digit_recipe(arguments.steps, seed=seed)
        options = {"preprocessing": PREPROCESSING, "directory": checkpoints, "resume": True}
        state, _ = train_model(TASK, model, train, val, recipe, **options)
        predict = Predictor(TASK, model, state.variables, PREPROCESSING)
        shown = np.stack([predict(sample["image"]) for sample in spread(val, PICTURES)])
        return score(predict, val, arguments.tolerance), {"predictions": shown}

    settings = f"steps{arguments.steps}_val{arguments.val}_tolerance{arguments.tolerance}"
    folder = arguments.out / ("trained_quick" if arguments.quick else "trained")
    return finished(folder / f"{name}_seed{seed}_{settings}.npz", work)


def show(console: Console, summary: dict[str, dict[str, Any]], arguments: Arguments) -> None:
    caption = (
        f"mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds; a difference whose interval"
        " contains 0 may be chance"
    )
    table = Table("skip", "parameters", *SCORES.values(), caption=caption)
    for name, row in summary.items():
        parameters = f"{row['parameters']:,}" if "parameters" in row else ""
        sign = "" if parameters else "+"
        table.add_row(name, parameters, *(number(row, key, sign) for key in SCORES))
    console.print(table)
    if arguments.quick:
        console.print(QUICK_NOTE)


def draw(
    samples: list[Any], predictions: dict[str, np.ndarray], summary: dict[str, dict[str, Any]], arguments: Arguments
) -> Any:
    figure = viz.boundaries(
        [sample["image"] for sample in samples],
        [sample["mask"] for sample in samples],
        {name: list(masks) for name, masks in predictions.items()},
        class_names=CLASSES,
    )
    lines = [
        f"{name}: boundary F-score {number(summary[name], 'boundary_f')}, mean IoU {number(summary[name], 'mean_iou')}"
        for name in predictions
    ]
    lines += [
        f"Mean ± 95 % t interval over {arguments.seeds} seeds, {arguments.val} scenes; pictures: seed 0.",
        "A boundary is drawn as found only at the same pixel; the F-score allows a distance of"
        f" {arguments.tolerance} pixel{'s' * (arguments.tolerance != 1)}.",
    ]
    figure.suptitle("\n".join([QUICK_NOTE, *lines] if arguments.quick else lines), fontsize=11)
    return figure


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
