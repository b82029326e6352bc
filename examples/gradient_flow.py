"""Gradient flow: do skips and losses at several scales shorten the way to the first layers, and does it pay?

Usage: python examples/gradient_flow.py --out out/gradient_flow

Trains the same tiny U-Net with concatenated, added and no skips, each with and without deep supervision (losses at
coarser scales), on scenes of digits, with several seeds. At the start and during training it measures, for each layer
of the encoder, the gradient relative to the kernel and the mean path length: the mean number of layers that the
gradient has passed on its way from the loss (`densezoo.inspect.gradient_flow`). Beside them stands the mean IoU at the
same steps. A number after ± is half the width of the 95 % interval (Student's t) of the mean over the seeds.

Finished runs are kept in files under --out, so that the same command continues an interrupted one. The last line on
standard output is a JSON object with all numbers. docs/lesson/gradient_flow.md explains the quantities.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common import (
    NUM_CLASSES,
    PREPROCESSING,
    QUICK_NOTE,
    TASK,
    Finished,
    check_runs,
    command_line,
    digit_recipe,
    digit_scenes,
    finished,
    keep_compiled,
    number,
    summarise,
    training,
)
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import viz
from densezoo.data import train_batches
from densezoo.heads import AuxiliaryHeads
from densezoo.inspect import GradientFlow, gradient_flow
from densezoo.train import evaluator
from densezoo.zoo import SKIPS

VARIANTS = [(skip, deep) for skip in ("concat", "add", "none") for deep in (False, True)]
FEATURES = (16, 32, 64, 128)
QUICK: dict[str, Any] = {"seeds": 2, "steps": 2, "val": 4}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/gradient_flow")
    """Output folder for the picture, the numbers and finished runs."""
    seeds: int = 3
    """Number of training runs of each variant, 2 to 10."""
    steps: int = 240
    """Number of training steps of 32 scenes each."""
    val: int = 60
    """Number of validation scenes, the same for all runs."""
    quick: bool = False
    """Check that the script works: a smaller network, two variants and seeds, two steps. Overrides the rest."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check_runs(arguments)
    if arguments.steps < 2:
        raise ValueError(f"--steps must be at least 2, for a start and an end; got {arguments.steps}")
    console = Console()
    runs: dict[str, list[Finished]] = {}
    for seed in range(arguments.seeds):
        for skip, deep in VARIANTS[1:5:3] if arguments.quick else VARIANTS:
            name = name_of(skip, deep)
            result = trained(skip, deep, seed, arguments)
            runs.setdefault(name, []).append(result)
            console.print(f"seed {seed}, {name}: mean IoU {result[0]['mean_iou']:.3f}", soft_wrap=True)
    summary = {name: summarise([scores for scores, _ in results]) for name, results in runs.items()}
    show(console, summary, arguments)
    picture = viz.save(draw(runs, arguments), arguments.out / "gradient_flow.png")
    print(json.dumps({"quick": arguments.quick, "seeds": arguments.seeds, "scores": summary, "picture": str(picture)}))


def name_of(skip: str, deep: bool) -> str:
    return f"{skip}, deep supervision" if deep else skip


def network(skip: str, deep: bool, features: Sequence[int]) -> dz.SegmentationModel:
    """The tiny U-Net of the other exercises, with heads at coarser scales for deep supervision."""
    return dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=tuple(features)),
        decoder=dz.UNetDecoder(features=tuple(features[-2::-1]), skip=SKIPS[skip]),
        head=dz.SegmentationHead(NUM_CLASSES),
        auxiliary=AuxiliaryHeads(NUM_CLASSES, len(features) - 2) if deep else None,
    )


def moments(steps: int) -> list[int]:
    """The steps before which gradients and scores are measured."""
    return sorted({0, steps // 12, steps // 4, steps // 2, steps})


def trained(skip: str, deep: bool, seed: int, arguments: Arguments) -> Finished:
    """The measurements of a training run: scores of its end, and arrays by moment and layer."""

    def work(checkpoints: Path) -> Finished:
        del checkpoints  # a run takes a minute
        model = network(skip, deep, FEATURES[:3] if arguments.quick else FEATURES)
        recipe, source = digit_recipe(arguments.steps, seed=seed), digit_scenes(20_000, "train", seed=seed)
        # Gradients are measured on a batch that is not trained on.
        held_out = train_batches(digit_scenes(64, "val", seed=1), batch_size=32, fields=TASK.fields)(0)
        probe = PREPROCESSING.normalize()(jax.random.key(0), next(held_out))
        evaluate = evaluator(TASK, digit_scenes(arguments.val, "val"), preprocessing=PREPROCESSING, batch_size=20)
        flows, scores = [], []
        for count, state in training(model, source, recipe):
            if count in moments(arguments.steps):
                flows.append(gradient_flow(model, state.variables, probe, TASK.loss))
                scores.append(evaluate(state)["mean_iou"])
        return measured(flows, scores)

    settings = f"steps{arguments.steps}_val{arguments.val}{'_quick' if arguments.quick else ''}"
    return finished(arguments.out / "runs" / f"{skip}_{'deep' if deep else 'plain'}_seed{seed}_{settings}.npz", work)


def measured(flows: Sequence[GradientFlow], scores: Sequence[float]) -> Finished:
    encoders = [[layer for layer in flow.layers if layer.path[0] == "encoder"] for flow in flows]
    arrays = {
        "relative": np.array([[layer.relative for layer in layers] for layers in encoders]),
        "path_length": np.array([[layer.path_length for layer in layers] for layers in encoders]),
        "mean_iou": np.array(scores),
    }
    first = encoders[0][0]
    # How evenly the layers learn: the first layer's relative gradient over that of the last in the encoder.
    balance = np.log10(arrays["relative"][:, 0] / arrays["relative"][:, -1])
    summary = {
        "path_length_start": first.path_length,
        "path_length_end": encoders[-1][0].path_length,
        "log10_first_over_last_start": float(balance[0]),
        "log10_first_over_last_end": float(balance[-1]),
        "mean_iou_early": float(scores[len(scores) // 2]),
        "mean_iou": float(scores[-1]),
    }
    return summary, arrays


COLUMNS = {
    "path_length_start": "mean path length, start",
    "path_length_end": "mean path length, end",
    "log10_first_over_last_start": "log10(first / last), start",
    "log10_first_over_last_end": "log10(first / last), end",
    "mean_iou_early": "mean IoU, early",
    "mean_iou": "mean IoU, end",
}


def show(console: Console, summary: dict[str, dict[str, tuple[float, float]]], arguments: Arguments) -> None:
    early = moments(arguments.steps)[len(moments(arguments.steps)) // 2]
    caption = (
        f"mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds. Mean path length: of the layers"
        " between the loss and the encoder's first convolution. First / last: norm of the gradient over norm of the"
        " kernel, for the encoder's first convolution, divided by the same for its last; 0 means that both change"
        f" equally fast. Early: after {early} of {arguments.steps} steps."
    )
    table = Table("skip", *COLUMNS.values(), caption=caption)
    for name, row in summary.items():
        table.add_row(name, *(number(row, key) for key in COLUMNS))
    console.print(table)
    if arguments.quick:
        console.print(QUICK_NOTE)


def draw(runs: dict[str, list[Finished]], arguments: Arguments) -> Figure:
    """Mean path length and relative gradient by layer, at the start and the end, and mean IoU by step."""
    steps, colours = moments(arguments.steps), {"concat": "C0", "add": "C1", "none": "C2"}
    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(2, 3)
    for name, results in runs.items():
        style = {"color": colours[name.split(",")[0]], "linestyle": "--" if "deep" in name else "-", "label": name}
        stacked = {key: np.stack([arrays[key] for _, arrays in results]) for key in results[0][1]}
        for row, moment in enumerate((0, -1)):
            for column, key in enumerate(("path_length", "relative")):
                values = stacked[key][:, moment]
                draw_band(panels[row, column], np.arange(1, values.shape[1] + 1), values, style)
        draw_band(panels[0, 2], steps, stacked["mean_iou"], style)
    for row, when in enumerate(("at the start", f"after {arguments.steps} steps")):
        panels[row, 0].set(title=f"mean path length, {when}", ylabel="layers between the loss and this one")
        panels[row, 1].set(title=f"gradient / kernel, {when}", ylabel="norm of gradient / norm of kernel", yscale="log")
        for panel in panels[row, :2]:
            panel.set(xlabel="convolution of the encoder, first to last")
    panels[0, 2].set(title="mean IoU on held-out scenes", xlabel="training step", ylabel="mean IoU")
    panels[1, 2].axis("off")
    handles, labels = panels[0, 2].get_legend_handles_labels()
    note = f"Lines: mean over {arguments.seeds} seeds.\nBands: its 95 % interval (Student's t)."
    panels[1, 2].legend(handles, labels, loc="upper left", title="skip", frameon=False)
    panels[1, 2].text(0, 0.1, note, transform=panels[1, 2].transAxes)
    if arguments.quick:
        figure.suptitle(QUICK_NOTE)
    return figure


def draw_band(panel: Any, x: Any, values: np.ndarray, style: dict[str, Any]) -> None:
    """Draws the mean of the runs (rows) as a line, and its 95 % interval as a band."""
    mean, half = np.array(list(summarise([dict(enumerate(run)) for run in values]).values())).T  # pyright: ignore
    panel.plot(x, mean, marker="o", markersize=3, **style)
    panel.fill_between(x, mean - half, mean + half, alpha=0.1, color=style["color"])


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
