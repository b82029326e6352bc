"""Exercise 4: which upsamplers make checkerboards, at initialisation and after training, and at what cost.

Usage: python examples/upsampling_artifacts.py --out out/upsampling_artifacts

At initialisation, each upsampler enlarges smooth random maps, once and three times in a row. The script reports the
share of the result's energy at the frequencies of the lattice (`viz.lattice_energy`). Then the same tiny U-Net is
trained with each upsampler on scenes of digits. For images of a single grey value, its logits should be constant away
from the borders. The script reports their deviation, relative to that on scenes, with mean IoU, boundary F-score,
parameters and milliseconds. A number after ± is half the width of the 95 % interval (Student's t) of the mean over the
seeds.

Finished work is kept in files under --out, so that the same command continues an interrupted run. Writes
upsampling_artifacts.png and results.json, and reports whether the intervals support two claims: that transposed
convolution makes checkerboards, and that resize + convolution is the stable choice. The last line on standard output
is a JSON object. docs/upsampling.md has the results of a full run.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from checkerboards import (
    STACKS,
    UPSAMPLERS,
    at_initialisation,
    larger_scenes,
    milliseconds,
    network,
    on_scenes_and_greys,
)
from common import (
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
    score,
    summarise,
)
from rich.console import Console
from rich.table import Table

from densezoo import viz
from densezoo.files import replace
from densezoo.predictor import Predictor
from densezoo.train import train as train_model

PATTERNS = {"initial_x2": "initial x2", "initial_x8": "initial x8", "on_greys": "on greys"}
ACCURACY = {"mean_iou": "mean IoU", "boundary_f": "boundary F-score"}
MARGIN = 0.01
"""Differences of up to one percentage point are considered negligible."""
QUICK: dict[str, Any] = {"seeds": 2, "steps": 2, "val": 6, "upsamplers": ("resize_conv", "transposed_2x2")}


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    out: Path = Path("out/upsampling_artifacts")
    """Output folder for the picture, the numbers and finished training runs."""
    upsamplers: tuple[str, ...] = tuple(UPSAMPLERS)
    """Upsamplers to compare, including resize_conv and a transposed convolution."""
    seeds: int = 3
    """Number of training runs with each upsampler, 2 to 10."""
    steps: int = 450
    """Number of training steps of 32 scenes each."""
    val: int = 200
    """Number of validation scenes, the same for all seeds."""
    quick: bool = False
    """Check that the script works: a smaller network, two upsamplers, two seeds, two steps. Overrides these options."""


def main(arguments: Arguments) -> None:
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    check(arguments)
    console = Console()
    start = {name: at_initialisation(name) for name in arguments.upsamplers}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.upsamplers}
    pictures = {f"{row} at initialisation": {name: start[name][1][row] for name in runs} for row in STACKS}
    logits: dict[str, dict[str, np.ndarray]] = {"a scene, trained": {}, "one grey, trained": {}}
    val = digit_scenes(arguments.val, "val")
    for seed in range(arguments.seeds):
        train = digit_scenes(20_000, "train", seed=seed)
        for name in runs:
            numbers, maps = trained(name, seed, train, val, arguments)
            runs[name].append(numbers)
            if seed == 0:
                for row in logits:
                    logits[row][name] = maps[row]
            scores = ", ".join(f"{key} {value:.4f}" for key, value in numbers.items())
            console.print(f"seed {seed}, {name}: {scores}", soft_wrap=True)

    costs = milliseconds(arguments.upsamplers)
    summary = {
        name: {"parameters": count_parameters(network(name, quick=arguments.quick))}
        | costs[name]
        | summarise(start[name][0])
        | summarise(runs[name])
        for name in runs
    }
    logits = {row.replace("trained", f"after {arguments.steps} steps"): maps for row, maps in logits.items()}
    strides = {row: 2 ** STACKS[row.split()[0]] for row in pictures} | dict.fromkeys(logits, 8)
    figure = viz.spectra(pictures | logits, strides)
    picture = viz.save(figure, arguments.out / "upsampling_artifacts.png")
    truth = viz.lattice_energy(larger_scenes()[1], 8)
    show(console, summary, truth, arguments.seeds)
    verdict = judge({name: start[name][0] for name in runs}, runs)
    if arguments.quick:
        verdict = {"none": QUICK_NOTE}
    for sentence in verdict.values():
        console.print(sentence, soft_wrap=True)
    result = {
        "quick": arguments.quick,
        "seeds": arguments.seeds,
        "interval": "95 %, Student's t, of the mean over seeds: [mean, half width]",
        "scores": summary,
        "truth_on_scenes": truth,
        "verdict": verdict,
        "picture": str(picture),
    }
    write(arguments.out / "results.json", {"arguments": vars(arguments), "runs": runs} | result)
    print(json.dumps(result))


def check(arguments: Arguments) -> None:
    names = arguments.upsamplers
    if unknown := set(names) - set(UPSAMPLERS):
        raise ValueError(f"unknown upsamplers {sorted(unknown)}; there are: {', '.join(UPSAMPLERS)}")
    if "resize_conv" not in names or not any(name.startswith("transposed") for name in names):
        raise ValueError(f"--upsamplers needs resize_conv and a transposed one, to be compared; got {' '.join(names)}")
    check_runs(arguments)


def trained(name: str, seed: int, train: Any, val: Any, arguments: Arguments) -> Finished:
    """The scores of the network with this upsampler, and crops of its logits for the picture."""

    def work(checkpoints: Path) -> Finished:
        model, recipe = network(name, quick=arguments.quick), digit_recipe(arguments.steps, seed=seed)
        options = {"preprocessing": PREPROCESSING, "directory": checkpoints, "resume": True}
        state, _ = train_model(TASK, model, train, val, recipe, **options)
        numbers, maps = on_scenes_and_greys(model, state.variables)
        return numbers | score(Predictor(TASK, model, state.variables, PREPROCESSING), val, 1), maps

    folder = arguments.out / ("trained_quick" if arguments.quick else "trained")
    return finished(folder / f"{name}_seed{seed}_steps{arguments.steps}_val{arguments.val}.npz", work)


def show(console: Console, summary: dict[str, Any], truth: float, seeds: int) -> None:
    shares = PATTERNS | {"on_scenes": "on scenes"}
    caption = (
        "All in percent, mean ± half of the 95 % interval (Student's t). initial, on scenes: energy at the lattice's"
        " frequencies, of random maps and of a trained network's logits (true masks of scenes have"
        f" {100 * truth:.1f} %). on greys: deviation of the logits on flat images over that on scenes; 0 is no pattern."
    )
    table = Table("checkerboards, %", *shares.values(), caption=caption)
    for name, row in summary.items():
        table.add_row(name, *(f"{100 * row[key][0]:.2f} ± {100 * row[key][1]:.2f}" for key in shares))
    console.print(table)
    device = jax.devices()[0].device_kind
    caption = (
        f"Scores: mean ± half of the 95 % interval (Student's t) over {seeds} seeds; parameters: of the whole network."
        f" Times: of the layer alone from (8, 32, 32, 32) to 64x64, median of 15 turns on this machine ({device});"
        " in training: its result and the gradients to its input and its parameters."
    )
    table = Table("upsampler", *ACCURACY.values(), "parameters", "inference, ms", "in training, ms", caption=caption)
    for name, row in summary.items():
        scores = (f"{row[key][0]:.3f} ± {row[key][1]:.3f}" for key in ACCURACY)
        table.add_row(name, *scores, f"{row['parameters']:,}", f"{row['forward_ms']:.2f}", f"{row['train_ms']:.2f}")
    console.print(table)


Runs = dict[str, list[dict[str, float]]]


def judge(start: Runs, runs: Runs) -> dict[str, str]:
    """Evaluates the two claims with the paired differences from resize + convolution.

    A comparison is decided only if the whole 95 % interval of the difference is on one side of `MARGIN`; all others
    are undecided, and so is a claim that depends on them.
    """

    def compare(name: str, key: str) -> tuple[str, str]:
        values = start if key in start[name][0] else runs
        mean, half = differences(values[name], values["resize_conv"])[key]
        text = f"{name} {(PATTERNS | ACCURACY)[key]} {100 * mean:+.2f} ± {100 * half:.2f} points"
        if mean - half > MARGIN:
            return "more", text
        if mean + half < -MARGIN:
            return "less", text
        return "same" if abs(mean) + half <= MARGIN else "undecided", text

    def group(names: list[str], keys: dict[str, str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {"more": [], "less": [], "same": [], "undecided": []}
        for name in names:
            for key in keys:
                outcome, text = compare(name, key)
                found[outcome].append(text)
        return found

    boards = group([name for name in runs if name.startswith("transposed")], PATTERNS)
    against = boards["less"] + boards["same"]
    if boards["more"]:
        first = "confirmed" if not against and not boards["undecided"] else "confirmed in part"
    else:
        first = "undecided" if boards["undecided"] else "refuted"
    others = [name for name in runs if name != "resize_conv"]
    patterns, accuracy = group(others, PATTERNS), group(others, ACCURACY)
    halves = [
        f"in its pattern {_least(patterns, 'less')}",
        f"in its accuracy {_least(accuracy, 'more')}",
    ]
    return {
        "transposed convolution makes checkerboards": f"Transposed convolution makes checkerboards: {first}. Compared"
        f" with resize + convolution, {_listed(boards)}",
        "resize + convolution is the stable choice": f"Resize + convolution is the stable choice: {'; '.join(halves)}.",
    }


def _least(found: dict[str, list[str]], better: str) -> str:
    """Whether nothing is better than resize + convolution."""
    if found[better]:
        return f"refuted, by {', '.join(found[better])}"
    return f"undecided: {', '.join(found['undecided'])}" if found["undecided"] else "confirmed"


def _listed(found: dict[str, list[str]]) -> str:
    return "; ".join(f"{outcome}: {', '.join(texts)}" for outcome, texts in found.items() if texts) + "."


def write(path: Path, contents: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda temporary: temporary.write_text(json.dumps(contents, indent=1, default=str)))


if __name__ == "__main__":
    keep_compiled()
    command_line(main, Arguments)
