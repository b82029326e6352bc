"""The claims about U-Net: sharp boundaries, little data, quick convergence.

Usage: python examples/unet_claims.py --out out/unet_claims

Trains three networks over the same encoder on scenes of digits: a U-Net, the same without skips, and an FPN. Each gets
few, more and many different training scenes, with several seeds; the number of steps is the same. Prints mean IoU,
boundary F-score and mean IoU after an eighth of the steps, and the paired differences to the U-Net. A number after ± is
half the width of the 95 % interval (Student's t) of the mean over the seeds. Draws mean IoU by step and by number of
scenes.

Finished runs are kept in files under --out, so that the same command continues an interrupted one. The last line on
standard output is a JSON object with all numbers.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    NUM_CLASSES,
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
    summarise,
    tiny_unet,
    training,
)
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import viz
from densezoo.predictor import Predictor
from densezoo.train import evaluator

NETWORKS = ("unet", "no skips", "fpn")
SCORES = {
    "mean_iou_early": "mean IoU, early",
    "mean_iou": "mean IoU, end",
    "boundary_f": "boundary F-score, end",
}
QUICK: dict[str, Any] = {"seeds": 2, "steps": 2, "val": 4, "scenes": (4, 8)}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/unet_claims")
    """Output folder for the picture, the numbers and finished runs."""
    scenes: tuple[int, ...] = (30, 200, 20_000)
    """Numbers of different training scenes, ascending."""
    seeds: int = 3
    """Number of training runs of each network with each number of scenes, 2 to 10."""
    steps: int = 240
    """Number of training steps of 32 scenes each."""
    val: int = 100
    """Number of validation scenes, the same for all runs."""
    quick: bool = False
    """Check that the script works: smaller networks, few scenes, two seeds, two steps. Overrides the rest."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check_runs(arguments)
    if arguments.steps < 2:
        raise ValueError(f"--steps must be at least 2, for an early score and an end; got {arguments.steps}")
    if not arguments.scenes or min(arguments.scenes) < 1 or list(arguments.scenes) != sorted(set(arguments.scenes)):
        raise ValueError(f"--scenes must be at least 1, ascending; got {' '.join(map(str, arguments.scenes))}")
    console = Console()
    runs: dict[tuple[str, int], list[Finished]] = {}
    for seed in range(arguments.seeds):
        for scenes in arguments.scenes:
            for name in NETWORKS:
                result = trained(name, scenes, seed, arguments)
                runs.setdefault((name, scenes), []).append(result)
                line = f"seed {seed}, {name}, {scenes} scenes: mean IoU {result[0]['mean_iou']:.3f}"
                console.print(line, soft_wrap=True)
    summary = {}
    for scenes in arguments.scenes:
        scores = {name: [numbers for numbers, _ in runs[name, scenes]] for name in NETWORKS}
        summary[str(scenes)] = {name: summarise(scores[name]) for name in NETWORKS} | {
            f"{name} - unet": differences(scores[name], scores["unet"]) for name in NETWORKS[1:]
        }
    show(console, summary, arguments)
    picture = viz.save(draw(runs, arguments), arguments.out / "unet_claims.png")
    print(
        json.dumps(
            {
                "quick": arguments.quick,
                "seeds": arguments.seeds,
                "steps": arguments.steps,
                "scores": summary,
                "picture": str(picture),
            }
        )
    )


def network(name: str, quick: bool) -> dz.SegmentationModel:
    """One of the networks. All have the tiny U-Net's encoder."""
    if name != "fpn":
        return tiny_unet({"unet": dz.ConcatSkip, "no skips": dz.NoSkip}[name], quick=quick)
    encoder = tiny_unet(quick=quick).encoder
    # 64 channels make about as many parameters as the U-Net's decoder has.
    return dz.SegmentationModel(
        encoder=encoder,
        decoder=dz.FPNDecoder(features=64, segmentation_features=64, dropout=0.0),
        head=dz.SegmentationHead(NUM_CLASSES),
    )


def moments(steps: int) -> list[int]:
    """The steps after which mean IoU is measured: the first one is "early", the last the end."""
    return sorted({max(1, steps * part // 8) for part in (1, 2, 4, 8)})


def trained(name: str, scenes: int, seed: int, arguments: Arguments) -> Finished:
    """The scores of a training run, and its mean IoU by moment."""

    def work(checkpoints: Path) -> Finished:
        del checkpoints  # a run takes about a minute
        model, recipe = network(name, arguments.quick), digit_recipe(arguments.steps, seed=seed)
        source, val = digit_scenes(scenes, "train", seed=seed), digit_scenes(arguments.val, "val")
        evaluate = evaluator(TASK, val, preprocessing=PREPROCESSING, batch_size=20)
        scores, state = [], None
        for count, state in training(model, source, recipe):
            if count in moments(arguments.steps):
                scores.append(evaluate(state)["mean_iou"])
        assert state is not None
        predict = Predictor(TASK, model, state.variables, PREPROCESSING)
        end = score(predict, val, tolerance=1)
        numbers = {"mean_iou_early": scores[0], "mean_iou": end["mean_iou"], "boundary_f": end["boundary_f"]}
        return numbers, {"mean_iou": np.array(scores)}

    settings = f"{scenes}scenes_steps{arguments.steps}_val{arguments.val}{'_quick' if arguments.quick else ''}"
    return finished(arguments.out / "runs" / f"{name.replace(' ', '_')}_seed{seed}_{settings}.npz", work)


def show(console: Console, summary: dict[str, dict[str, Any]], arguments: Arguments) -> None:
    sizes = ", ".join(f"{name} {count_parameters(network(name, arguments.quick)):,}" for name in NETWORKS)
    caption = (
        f"mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds; a difference whose interval"
        f" contains 0 may be chance. Early: after {moments(arguments.steps)[0]} of {arguments.steps} steps."
        f" Parameters: {sizes}."
    )
    table = Table("training scenes", "network", *SCORES.values(), caption=caption)
    for scenes, rows in summary.items():
        for name, row in rows.items():
            table.add_row(f"{int(scenes):,}", name, *(number(row, key, "+" if " - " in name else "") for key in SCORES))
        table.add_section()
    console.print(table)
    if arguments.quick:
        console.print(QUICK_NOTE)


def draw(runs: dict[tuple[str, int], list[Finished]], arguments: Arguments) -> Figure:
    """Mean IoU by step, a panel for each number of scenes, and the scores at the end by number of scenes."""
    figure = Figure(figsize=(3.4 * (len(arguments.scenes) + 2), 3.8), layout="constrained")
    panels = figure.subplots(1, len(arguments.scenes) + 2)
    steps = moments(arguments.steps)
    for index, name in enumerate(NETWORKS):
        style = {"color": f"C{index}", "marker": "o", "markersize": 4, "label": name}
        for panel, scenes in zip(panels, arguments.scenes, strict=False):
            curves = np.stack([arrays["mean_iou"] for _, arrays in runs[name, scenes]])
            panel.plot(steps, curves.mean(0), **style)
            panel.fill_between(steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.12)
            panel.set(title=f"{scenes:,} training scenes", xlabel="step", ylim=(0, 1))
        for panel, key in zip(panels[-2:], ("mean_iou", "boundary_f"), strict=True):
            values = np.array([[numbers[key] for numbers, _ in runs[name, scenes]] for scenes in arguments.scenes])
            panel.plot(arguments.scenes, values.mean(1), **style)
            panel.fill_between(arguments.scenes, values.min(1), values.max(1), color=style["color"], alpha=0.12)
            panel.set(title=SCORES[key], xlabel="training scenes", xscale="log", ylim=(0, 1))
            panel.set_xticks(arguments.scenes, [f"{scenes:,}" for scenes in arguments.scenes])
            panel.minorticks_off()
    if arguments.quick:
        figure.suptitle(QUICK_NOTE)
    panels[0].set(ylabel="mean IoU of unseen scenes")
    panels[0].legend(title=f"mean of {arguments.seeds} seeds;\nband: least to greatest", fontsize=8, title_fontsize=8)
    return figure


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
