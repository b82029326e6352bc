"""Trains a small model for every task on meshes of 2 to 8 devices, and compares with one device.

Usage: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 JAX_DISABLE_MOST_OPTIMIZATIONS=1 python -m benchmarks.mesh_tasks
[--tasks depth] [--meshes "data 2"] [--report]

`train(..., mesh=mesh)` reads the same samples on every mesh, so the losses, their parts, the norm of the gradients and
the scores must agree with those of one device up to rounding. Each finished training is a line of --out and not run
again. `--report` writes the table of --docs from --out. JAX_DISABLE_MOST_OPTIMIZATIONS=1 halves the time of compiling.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import densezoo as dz
from benchmarks.meshes import mesh_of
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from densezoo import tasks
from densezoo.data import ChangeScenes, DigitScenes, RenderedScenes
from densezoo.train import Recipe, train

MESHES = (
    *(f"{axis} {count}" for axis in ("data", "fsdp", "rows") for count in (2, 4, 8)),
    "rows 2, columns 2",
    "data 2, rows 2, columns 2",
    "data 2, fsdp 2, rows 2",
)
_plain = dz.PlainEncoder((8, 16))
_resnet = dz.ResNet((1, 1), dz.BasicBlock, width=8, coarsest=8)
_regions = {"features": 8, "hidden": (16,), "sizes": None}


@dataclasses.dataclass(frozen=True)
class Case:
    """A training: a task, a model, and a source of samples."""

    task: Any
    model: Any
    source: Callable[..., Any]
    """A function from the number of samples, and `split` for validation, to samples."""
    crop: int = 32
    """Height and width of the training crops."""
    size: int = 48
    """Height and width of the samples."""
    centred: bool = False
    """Whether the images are mapped to -1..1, which some tasks need."""


def _latents(count: int, size: tuple[int, int], split: str = "train") -> list[dict[str, Any]]:
    """Samples like those of an autoencoder's encoder, of three classes."""
    rng = np.random.default_rng([count, split == "val"])
    images = rng.standard_normal((count, *size, 4)).astype(np.float32)
    return [{"image": image, "label": np.int32(number % 3)} for number, image in enumerate(images)]


_unet = partial(dz.create_model, "unet", _plain)
_denoiser = partial(dz.create_model, "diffusion_unet", features=(8, 16), layers=1, head_features=8)
CASES: dict[str, Callable[[], Case]] = {
    "segmentation": lambda: Case(tasks.Segmentation(11), _unet(11), DigitScenes),
    "change detection": lambda: Case(tasks.ChangeDetection(), dz.create_model("siamese_unet", _plain, 2), ChangeScenes),
    "depth": lambda: Case(tasks.Depth(), _unet(1), RenderedScenes),
    "normals": lambda: Case(tasks.Normals(), _unet(3), RenderedScenes),
    "detection, RetinaNet": lambda: Case(
        tasks.Detection(10), dz.create_model("retinanet", _resnet, 10, features=8), DigitScenes, crop=64, size=64
    ),
    "detection, FCOS": lambda: Case(
        tasks.Detection(10),
        dz.create_model("fcos", _resnet, 10, features=8, head_norm=None),
        DigitScenes,
        crop=64,
        size=64,
    ),
    "detection, Mask R-CNN": lambda: Case(
        tasks.Detection(11, masks=True, first_label=1, anchor_samples=16, region_samples=16),
        dz.create_model("mask_rcnn", _resnet, 11, **_regions).clone(candidates=(50, 50), proposals=(20, 20)),
        DigitScenes,
        crop=64,
        size=64,
    ),
    "panoptic segmentation": lambda: Case(
        tasks.PanopticSegmentation(11, anchor_samples=16, region_samples=16),
        dz.create_model(
            "panoptic_fpn", _resnet, 11, stuff_classes=1, semantic_features=8, semantic_norm=None, **_regions
        ).clone(candidates=(50, 50), proposals=(20, 20)),
        DigitScenes,
        crop=64,
        size=64,
    ),
    "autoencoding": lambda: Case(
        tasks.Autoencoding(), dz.create_model("autoencoder", _plain, 3), DigitScenes, centred=True
    ),
    "autoencoding, VAE": lambda: Case(
        tasks.Autoencoding(), dz.create_model("vae", _plain, 3), DigitScenes, centred=True
    ),
    "diffusion": lambda: Case(tasks.Diffusion(), _denoiser(num_classes=1), DigitScenes, crop=16, centred=True),
    "diffusion of latents": lambda: Case(
        tasks.Diffusion(3, clip=None), _denoiser(num_classes=3), _latents, crop=8, size=8
    ),
}
"""Functions that prepare the trainings."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares the trainings of tasks on meshes."""

    tasks: tuple[str, ...] = tuple(CASES)
    """Names of trainings."""
    meshes: tuple[str, ...] = MESHES
    """Meshes: the names of axes with their numbers of devices."""
    steps: int = 2
    """Steps to train."""
    out: Path = Path("benchmarks/results/mesh_tasks.jsonl")
    """Finished trainings, one a line."""
    report: bool = False
    """Write the table and train nothing."""
    docs: Path = Path("docs/guides/devices.md")
    """The document with the table."""


def axes_of(name: str) -> dict[str, int]:
    """The axes of a mesh.

    Example:
        >>> axes_of("data 2, rows 4")
        {'data': 2, 'rows': 4}
    """
    return {axis: int(count) for axis, count in (part.split() for part in name.split(", "))}


def trained(case: Case, axes: Mapping[str, int], steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics, averaged over all steps, and the scores of a training on one mesh."""
    size = (case.size, case.size)
    train_source, val_source = case.source(8, size=size, split="train"), case.source(4, size=size, split="val")
    recipe = Recipe(crop_size=case.crop, batch_size=8, steps=steps, eval_batch_size=2)
    channels = 4 if case.source is _latents else 3
    middle, deviation = (0.5, 0.5) if case.centred else (0.0, 1.0)
    preprocessing = dz.Preprocessing(channels, mean=(middle,) * channels, std=(deviation,) * channels)
    options: dict[str, Any] = {"preprocessing": preprocessing, "mesh": mesh_of(axes), "progress": False}
    _, (metrics, scores) = train(case.task, case.model, train_source, val_source, recipe, **options)
    timings = ("step", "images_per_second", "input_wait", "recompilations")
    return {name: value for name, value in metrics.items() if name not in timings}, scores["scores"]


def difference(found: Mapping[str, float | None], wanted: Mapping[str, float | None]) -> float:
    """The largest difference of two dicts of numbers, relative to each number, or to 1e-3 if it is smaller.

    Example:
        >>> difference({"a": 1.0, "b": None}, {"a": 1.25, "b": None})
        0.2
    """
    if found.keys() != wanted.keys() or any((found[name] is None) != (wanted[name] is None) for name in found):
        return float("inf")
    pairs = [(found[name], value) for name, value in wanted.items() if value is not None]
    return max((abs(x - y) / max(abs(y), 1e-3) for x, y in pairs if x is not None), default=0.0)


def agree(row: Mapping[str, Any]) -> bool:
    """Whether a training differs from that on one device by rounding only, which can change the class of a pixel."""
    return row["difference"] < 1e-3 and row["difference_of_scores"] < 2e-2


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the document: the largest difference for each task and mesh."""
    found = {(row["task"], row["mesh"]): f"{row['difference']:.0e}" for row in rows}
    meshes = [mesh for mesh in MESHES if any(mesh == of_row for _, of_row in found)]
    tasks = [task for task in CASES if any(task == of_row for of_row, _ in found)]
    lines = [(task, *(found.get((task, mesh), "-") for mesh in meshes)) for task in tasks]
    return markdown_table(("task", *meshes), lines)


def main(arguments: Arguments) -> int:
    """Compares; returns 1 if a training differs by more than rounding."""
    rows = read_lines(arguments.out)
    if arguments.report:
        insert(arguments.docs, {"mesh_tasks": table(rows)})
        return 0
    if jax.device_count() < 8:
        raise ValueError("expected 8 devices: on a CPU, start with JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8")
    done = {(row["task"], row["mesh"]) for row in rows}
    for name in arguments.tasks:
        missing = [mesh for mesh in arguments.meshes if (name, mesh) not in done]
        if not missing:
            continue
        case = CASES[name]()
        metrics, scores = trained(case, {}, arguments.steps)
        for mesh in missing:
            found, found_scores = trained(case, axes_of(mesh), arguments.steps)
            row = {"task": name, "mesh": mesh, "steps": arguments.steps, "difference": difference(found, metrics)}
            row |= {"difference_of_scores": difference(found_scores, scores), "jax": jax.__version__}
            rows.append(row)
            append_line(arguments.out, row)
            if not agree(row):
                print(found, metrics, found_scores, scores, sep="\n", flush=True)
    return int(not all(map(agree, rows)))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
