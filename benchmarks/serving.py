"""A predictor in a service: pictures of many sizes, a few programs, for every family.

Usage: python -m benchmarks.serving [--models unet fcos] [--pictures 1000] [--checked 20] [--report]

Predicts pictures of different sizes with `max_programs=8` in several threads, and compares the results of some of them
with those of a predictor that computes each picture at its own size. Each model is tiny. Each finished model is a line
of --out and not predicted again: the number of compiled programs, the largest difference, seconds per picture, and by
how much the memory grew after a tenth of the pictures. `--report` writes the table of --docs from --out.
"""

import concurrent.futures
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import densezoo as dz
from benchmarks.exports import MODELS
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from benchmarks.resident import resident_bytes
from benchmarks.seeded import perturbed
from densezoo.compiling import jitted_once
from densezoo.inputs import example_inputs

CASES = {
    name: make for name, make in MODELS.items() if name not in ("vae", "diffusion_unet")
}  # which need a random key

LARGEST = {"manet": 256}
"""Largest sides where larger windows need too much memory, for attention between all pixels of a map."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Predicts pictures of many sizes."""

    models: tuple[str, ...] = tuple(CASES)
    """Names of models."""
    pictures: int = 100
    """Number of pictures, each of another size."""
    checked: int = 10
    """Number of pictures to compare; each compiles a program of its own."""
    sides: tuple[int, int] = (32, 600)
    """Smallest and largest side."""
    threads: int = 2
    """Number of threads that predict."""
    out: Path = Path("benchmarks/results/serving.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/guides/deploy.md")
    """The document that contains the table."""
    report: bool = False
    """Only write the document's table, without predicting."""


def main(arguments: Arguments) -> None:
    """Predicts or reports."""
    rows = read_lines(arguments.out)
    if arguments.report:
        insert(arguments.docs, {"serving": table(rows)})
        return
    if unknown := [name for name in arguments.models if name not in CASES]:
        raise ValueError(f"unknown models {unknown}; expected some of {', '.join(CASES)}")
    done = {(row["model"], row["pictures"]) for row in rows}
    for name in arguments.models:
        if (name, arguments.pictures) not in done:
            append_line(arguments.out, {"model": name} | measure(name, arguments) | {"jax": jax.__version__})


class Maps:
    """A task whose prediction is the outputs of the model."""

    def __init__(self, *inputs: str):
        self.inputs = inputs

    def predict(self, outputs: Any) -> Any:
        """The outputs."""
        return outputs


def task_of(name: str, model: Any) -> Any:
    """The task of a tiny model."""
    if name == "autoencoder":
        return dz.tasks.Autoencoding()
    if hasattr(model, "panoptic"):
        return dz.tasks.PanopticSegmentation(3)
    if hasattr(model, "detect"):
        return dz.tasks.Detection(3)
    return Maps("image_before", "image_after") if name in ("siamese_unet", "snunet") else Maps("image")


def variables_of(model: Any) -> Any:
    """Random variables with statistics that differ from 0 and 1, and scores that differ from each other."""
    inputs = [
        np.zeros(x.shape, x.dtype) for x in example_inputs(model, jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32))
    ]
    variables = jitted_once(model.init)(jax.random.key(0), *inputs)
    generator = np.random.default_rng(0)

    def fill(path: Any, x: Any) -> Any:
        x = np.asarray(x)
        if path[0].key == "batch_stats":
            return perturbed(path[-1].key, x, generator)
        if not hasattr(model, "detect"):
            return x
        x = 0 * x if path[-1].key == "bias" else x  # detectors start with the same low score everywhere
        return x + generator.normal(0, 0.05, x.shape).astype(x.dtype)

    return jax.tree_util.tree_map_with_path(fill, variables)


def measure(name: str, arguments: Arguments) -> dict[str, Any]:
    """What a model's predictors do."""
    model = CASES[name]()
    task, variables = task_of(name, model), variables_of(model)
    shared, alone = (dz.Predictor(task, model, variables, max_programs=limit) for limit in (8, None))
    smallest, largest = arguments.sides[0], min(arguments.sides[1], LARGEST.get(name, arguments.sides[1]))
    generator = np.random.default_rng(0)
    numbers = generator.choice((largest - smallest) ** 2, arguments.pictures, replace=False)
    sizes = [(smallest + n // (largest - smallest), smallest + n % (largest - smallest)) for n in numbers]

    def pictures(index: int) -> list[np.ndarray]:
        random = np.random.default_rng(index)
        return [random.integers(0, 256, (*sizes[index], 3), np.uint8) for _ in task.inputs]

    def predict(predictor: dz.Predictor, index: int) -> Any:
        return predictor(*pictures(index))

    memory, tenth = [], max(1, arguments.pictures // 10)
    with concurrent.futures.ThreadPoolExecutor(arguments.threads) as pool:
        list(pool.map(lambda index: predict(shared, index) is None, range(tenth)))
        memory.append(resident_bytes())
        start = time.perf_counter()
        list(pool.map(lambda index: predict(shared, index) is None, range(tenth, arguments.pictures)))
        seconds = (time.perf_counter() - start) / max(1, arguments.pictures - tenth)
        memory.append(resident_bytes())
    programs = shared.compiled
    differences = [
        difference(predict(shared, index), predict(alone, index))
        for index in range(0, arguments.pictures, max(1, arguments.pictures // arguments.checked))
    ]
    return {
        "pictures": len(sizes),
        "programs": programs,
        "checked": len(differences),
        "difference": max(found for found, _ in differences),
        "objects": sum(count for _, count in differences),
        "seconds_per_picture": round(seconds, 4),
        "growth_mib": round((memory[1] - memory[0]) / 2**20),
    }


def difference(found: Any, expected: Any) -> tuple[float, int]:
    """The largest difference between two results, and the number of objects if they have any.

    Of maps, the difference is relative to the largest output; of panoptic segments, the share of pixels. Of detections,
    it is that of the boxes in pixels, to the nearest box of the other result: boxes whose scores are equal up to
    rounding may change places.
    """
    if isinstance(expected, dz.Detections):
        one, other = (np.asarray(part.boxes)[np.asarray(part.valid)] for part in (found, expected))
        if len(one) != len(other):
            return float("inf"), len(other)
        if not len(other):
            return 0.0, 0
        distances = np.abs(one[:, None] - other[None]).max(-1)
        return float(max(distances.min(0).max(), distances.min(1).max())), len(other)
    if isinstance(expected, np.ndarray):
        if np.ptp(expected) < 1e-2 * np.abs(expected).max():
            raise ValueError(f"the model predicts {expected.flat[0]} everywhere, which shows nothing")
        return float(np.abs(found - expected).max() / np.abs(expected).max()), 0
    return float(np.mean(np.asarray(found.segments) != np.asarray(expected.segments))), int(np.max(expected.segments))


def table(rows: list[dict[str, Any]]) -> str:
    """The document's table, in the order of `CASES`; of several runs of a model the one with the most pictures."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["pictures"]):
        best[row["model"]] = row
    lines = []
    for name in CASES:
        if row := best.get(name):
            unit = " pixels" if row["objects"] else ""
            lines.append((f"`{name}`", str(row["pictures"]), str(row["programs"]), f"{row['difference']:.0e}{unit}"))
    header = ("model", "sizes", "programs", "largest difference")
    return markdown_table(header, lines)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
