"""Exercise 3: a detector with a feature pyramid (FPN) against a head of the same form on one map of the encoder.

Usage: python examples/fpn_vs_plain_head.py --out out/fpn_vs_plain_head

Trains RetinaNet, which has an FPN, and `plain_detector` to find digits of many sizes, with several seeds. Both have the
same encoder, training, anchor sizes and nearly the same number of parameters. Prints the average precision (AP) over
all objects and over small, medium and large ones, the paired differences, and what they say of the claim that a
pyramid helps across scales. A number after ± is half the width of the 95 % interval (Student's t) of the mean over the
seeds. Draws both curves over the sizes.

Finished work is kept in files under --out, so that the same command continues an interrupted run. Writes
fpn_vs_plain_head.png and results.jsonl, a line for each training run. The last line on standard output is a JSON object
with all numbers. docs/fpn_vs_plain_head.md has the results of a full run.
"""

import bisect
import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    PREPROCESSING,
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
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import densezoo as dz
from densezoo import viz
from densezoo.data import DigitScenes
from densezoo.files import replace
from densezoo.tasks import Detection
from densezoo.train import Recipe
from densezoo.train import train as train_model

LIMITS = (16, 32)
"""Sides of squares in pixels, whose areas separate small, medium and large objects."""
SCORES = {"box_ap": "AP", "box_ap_small": "small", "box_ap_medium": "medium", "box_ap_large": "large"}
TASK = Detection(1, class_names=("digit",), size_limits=LIMITS)
PYRAMID = "FPN"
TOLERANCE = 0.1
QUICK: dict[str, Any] = {"encoder": "tiny-encoder", "strides": (16,), "seeds": 2, "steps": 2, "val": 4}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/fpn_vs_plain_head")
    """Output folder for the picture, the numbers and finished training runs."""
    encoder: str = "resnet18"
    """Encoder of both detectors, such as resnet50 on an accelerator."""
    strides: tuple[int, ...] = (16,)
    """Image size over size of the map that the plain head reads, 16 or 8; a detector for each."""
    seeds: int = 3
    """Number of training runs of each detector, 2 to 10."""
    steps: int = 300
    """Number of training steps of 8 scenes each."""
    val: int = 200
    """Number of validation scenes, the same for all seeds."""
    quick: bool = False
    """Check that the script works: a tiny encoder, two seeds, two steps. Overrides these options."""


class Digits(DigitScenes):
    """Scenes with digits of one class, whose boxes have the area of squares of about 8 to 51 pixels."""

    def __init__(self, count: int, split: Any, seed: int = 0):
        super().__init__(
            count, size=(128, 128), split=split, seed=seed, digits=(3, 6), scales=(1.5, 7.0), min_visible=0.6
        )

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """A scene whose objects have the label 0."""
        scene = super().__getitem__(index)
        return scene | {"labels": np.minimum(scene["labels"], 0)}


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check_runs(arguments)
    console = Console()
    val = Digits(arguments.val, "val")
    check_sizes(val)
    models = detectors(arguments)
    parameters = {name: count_parameters(model) for name, model in models.items()}
    check_parameters(parameters)
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for seed in range(arguments.seeds):
        for name, model in models.items():
            numbers = trained(name, model, seed, val, arguments)
            scores[name].append(numbers)
            listed = ", ".join(f"{SCORES[key]} {value:.3f}" for key, value in numbers.items())
            console.print(f"seed {seed}, {name}: {listed}", soft_wrap=True)

    summary: dict[str, dict[str, Any]] = {
        name: {"parameters": parameters[name]} | summarise(runs) for name, runs in scores.items()
    }
    compared = {name: differences(scores[PYRAMID], scores[name]) for name in models if name != PYRAMID}
    show(console, summary | {f"{PYRAMID} - {name}": row for name, row in compared.items()}, arguments)
    verdicts = [judge(name, difference) for name, difference in compared.items()]
    if arguments.quick:
        verdicts = [QUICK_NOTE]
    for sentence in verdicts:
        console.print(sentence, soft_wrap=True)
    picture = viz.save(draw(scores, arguments), arguments.out / "fpn_vs_plain_head.png")
    settings = {"quick": arguments.quick, "encoder": arguments.encoder, "steps": arguments.steps, "val": arguments.val}
    lines = [
        json.dumps({"detector": name, "parameters": parameters[name], "seed": seed} | settings | run)
        for name, runs in scores.items()
        for seed, run in enumerate(runs)
    ]
    replace(arguments.out / "results.jsonl", lambda temporary: temporary.write_text("\n".join(lines) + "\n"))
    result = settings | {
        "seeds": arguments.seeds,
        "size_limits": LIMITS,
        "interval": "95 %, Student's t, of the mean over seeds: [mean, half width]",
        "scores": summary,
        "differences_by_seed": compared,
        "verdicts": verdicts,
        "picture": str(picture),
    }
    print(json.dumps(result))


def detectors(arguments: Arguments) -> dict[str, Any]:
    """The detectors by name. A plain one has the smallest width with at least as many parameters as the FPN.

    Strides and anchors are half of the paper's, because the objects are smaller: the encoder ends at 1/16 of the image,
    so the pyramid's maps are at 1/4 to 1/64. A plain head reads the encoder's last map, with the anchors of all of
    them. For a map at 1/8, dilation replaces the stride of the encoder's last stage.
    """
    if not arguments.strides or set(arguments.strides) - {8, 16}:
        raise ValueError(f"--strides must be 16, 8 or both, got {arguments.strides}")
    make: Any = functools.partial(dz.create_encoder, arguments.encoder, coarsest=16)
    depth, features = 2, 64
    if arguments.quick:
        make, depth, features = functools.partial(dz.PlainEncoder, (8, 16, 32, 32)), 1, 16
    octaves = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = [[8.0 * 2**level * octave for octave in octaves] for level in range(5)]
    every = [size for level in sizes for size in level]
    options = {"num_classes": TASK.num_classes, "depth": depth, "head_norm": dz.GroupNorm}
    pyramid = dz.create_model("retinanet", make(), features=features, sizes=sizes, **options)

    def plain(width: int, stride: int = 16) -> Any:
        encoder = make() if stride == 16 else make(output_stride=stride)
        return dz.create_model("plain_detector", encoder, features=width, sizes=every, **options)

    widths = range(features // 2, 2 * features, features // 8)
    place = bisect.bisect_left(widths, count_parameters(pyramid), key=lambda width: count_parameters(plain(width)))
    return {PYRAMID: pyramid} | {
        f"plain, stride {stride}": plain(widths[place], stride) for stride in arguments.strides
    }


def check_parameters(parameters: Mapping[str, int]) -> None:
    if max(parameters.values()) > (1 + TOLERANCE) * min(parameters.values()):
        raise ValueError(f"the detectors' numbers of parameters differ by over {TOLERANCE:.0%}: {dict(parameters)}")


def check_sizes(val: Any) -> None:
    """Raises a ValueError if the scenes have no object of some size, whose average precision would be undefined."""
    counts = np.zeros(3, int)
    for index in range(len(val)):
        scene = val[index]
        x0, y0, x1, y1 = scene["boxes"][scene["labels"] >= 0].T
        counts += np.bincount(np.digitize((x1 - x0) * (y1 - y0), [side**2 for side in LIMITS]), minlength=3)
    if not counts.all():
        raise ValueError(f"the {len(val)} validation scenes have no object of some size: increase --val")


def trained(name: str, model: Any, seed: int, val: Digits, arguments: Arguments) -> dict[str, float]:
    """The scores of one training run."""

    def work(checkpoints: Path) -> Finished:
        recipe = Recipe(
            crop_size=128,
            batch_size=8,
            steps=arguments.steps,
            learning_rate=2e-3,
            clip_norm=1.0,
            flip_horizontal=False,
            seed=seed,
            eval_batch_size=8,
        )
        options = {"preprocessing": PREPROCESSING, "directory": checkpoints, "resume": True}
        _, history = train_model(TASK, model, Digits(20_000, "train", seed), val, recipe, **options)
        return {key: history[-1]["scores"][key] for key in SCORES}, {}

    settings = f"{arguments.encoder}_steps{arguments.steps}_val{arguments.val}"
    folder = arguments.out / ("trained_quick" if arguments.quick else "trained")
    return finished(folder / f"{name.replace(', ', '_').replace(' ', '')}_seed{seed}_{settings}.npz", work)[0]


def judge(plain: str, difference: Mapping[str, tuple[float, float]]) -> str:
    """What the intervals of the differences say of the claim; a size whose interval contains 0 is undecided."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "undecided": []}
    for key in list(SCORES)[1:]:
        mean, half = difference[key]
        outcome = "better" if mean - half > 0 else "worse" if mean + half < 0 else "undecided"
        found[outcome].append(f"{SCORES[key]} ({mean:+.3f} ± {half:.3f})")
    if found["worse"]:
        answer = "refuted"
    elif not found["undecided"]:
        answer = "confirmed"
    else:
        answer = "confirmed in part" if found["better"] else "undecided"
    listed = "; ".join(f"{outcome} for {', '.join(sizes)}" for outcome, sizes in found.items() if sizes)
    return f"A pyramid helps across scales: {answer}. The {PYRAMID}, compared with '{plain}', is {listed}."


def show(console: Console, rows: Mapping[str, dict[str, Any]], arguments: Arguments) -> None:
    parameters = "; ".join(f"{name}: {row['parameters']:,}" for name, row in rows.items() if "parameters" in row)
    console.print(f"parameters: {parameters}", soft_wrap=True)
    caption = (
        f"average precision, mean ± half of the 95 % interval (Student's t) over {arguments.seeds} seeds; differences"
        f" by seed; small: below {LIMITS[0]}x{LIMITS[0]} pixels, large: from {LIMITS[1]}x{LIMITS[1]} on"
    )
    table = Table("detector", caption=caption)
    for title in SCORES.values():
        table.add_column(title, no_wrap=True)
    for name, row in rows.items():
        table.add_row(name, *(number(row, key, "" if "parameters" in row else "+") for key in SCORES))
    console.print(table)


def draw(scores: Mapping[str, list[dict[str, float]]], arguments: Arguments) -> Figure:
    """Average precision over the size of the objects: mean and interval as a line, the seeds as dots."""
    figure = Figure(figsize=(7, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    places = np.arange(len(SCORES) - 1)
    for (name, runs), color, marker, shift in zip(scores.items(), (5, 6, 3), "os^", (-0.04, 0.04, 0.12), strict=False):
        rows = summarise(runs)
        mean, half = np.array([rows[key] for key in list(SCORES)[1:]]).T
        rgb = tuple(viz.palette(8)[color] / 255)
        label = f"{name}: AP of all sizes {number(rows, 'box_ap')}"
        axes.errorbar(places + shift, mean, half, color=rgb, marker=marker, capsize=5, linewidth=1.8, label=label)
        for run in runs:
            dots = [run[key] for key in list(SCORES)[1:]]
            axes.plot(places + shift + 0.03, dots, ".", color=rgb, markersize=5, alpha=0.6)
    small, large = LIMITS
    names = (
        f"small\nbelow {small}x{small}",
        f"medium\n{small}x{small} to {large}x{large}",
        f"large\nfrom {large}x{large}",
    )
    axes.set_xticks(places, names)
    axes.set_xlim(-0.4, len(places) - 0.6)
    axes.set_ylim(0, 1)
    axes.set_xlabel("size of the object's box in pixels")
    axes.set_ylabel("average precision (IoU 0.50 to 0.95)")
    axes.set_title(
        "Detection of digits: a head on a pyramid (FPN),\n"
        "and one of the same form, with as many parameters, on one map (plain)\n"
        + (QUICK_NOTE if arguments.quick else f"{arguments.encoder}, {arguments.steps} training steps, 128x128 scenes"),
        fontsize=11,
    )
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", title=f"mean ± 95 % t interval; dots: {arguments.seeds} seeds")
    return figure


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
