"""Times the first inference and the first train step of the whole zoo: tracing and compiling.

Usage: python -m benchmarks.compilation [--models unet fpn] [--remat] [--report]

Each model has its default encoder and images of 2x256x256. The memory is what XLA reserves for the train step in
addition to its arguments; `--remat` fills its last column. Each finished model is a line of --out and is not measured
again. `--report` writes the table of --docs from --out without measuring.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

import densezoo as dz
from benchmarks.machine import choose_platform, describe
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from benchmarks.timing import compile_apart
from densezoo.encoders import ENCODERS
from densezoo.lookup import look_up
from densezoo.tasks import Segmentation
from densezoo.zoo import MODELS

IMAGES = (2, 256, 256, 3)
CLASSES = 11


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Times tracing and compiling."""

    models: tuple[str, ...] = tuple(dz.list_models(task="segmentation"))
    """model, or model:encoder."""
    remat: bool = False
    """Measure the models with `remat=True`."""
    out: Path = Path("benchmarks/results/compilation.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/zoo.md")
    """The document that contains the table."""
    report: bool = False
    """Only write the document's table, without measuring."""


def main(arguments: Arguments) -> int:
    """Measures or reports; returns the exit code."""
    rows = read_lines(arguments.out)
    if arguments.report:
        insert(arguments.docs, {"compilation": table(rows)})
        return 0
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    choose_platform(None)  # checks the platform and disables the compilation cache, whose reads would be timed
    pairs = [text.partition(":")[::2] for text in arguments.models]
    for name, encoder in pairs:  # checks all of them before the first one takes its time
        look_up(name, MODELS, "model")
        if encoder:
            look_up(encoder, ENCODERS, "encoder")
    for name, encoder in pairs:
        encoder = encoder or MODELS[name].encoder
        if any((row["model"], row["encoder"], row["remat"]) == (name, encoder, arguments.remat) for row in rows):
            continue
        machine = describe()
        kept = {key: machine[key] for key in ("device_kind", "cores", "versions")}
        try:
            facts = measure(name, encoder, arguments.remat)
        except ValueError as error:  # for example, SegNet has nothing that remat affects
            print(f"{name}, {encoder}: {error}", flush=True)
            continue
        rows.append({"model": name, "encoder": encoder, "remat": arguments.remat} | facts | {"machine": kept})
        append_line(arguments.out, rows[-1])
    return 0


def measure(name: str, encoder: str, remat: bool) -> dict[str, Any]:
    """Times in seconds, and the train step's memory in bytes."""
    model = dz.create_model(name, encoder, CLASSES, remat=remat)
    images = jax.ShapeDtypeStruct(IMAGES, jnp.float32)
    started = time.perf_counter()
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    shapes = time.perf_counter() - started
    inference = compile_apart(jax.jit(model.apply, compiler_options=dz.compiler_options()), variables, images)
    optimizer = optax.adamw(1e-3)
    state = jax.eval_shape(
        lambda key: dz.train.create_state(model, optimizer, key, jnp.zeros(IMAGES)), jax.random.key(0)
    )
    batch = {"image": images, "mask": jax.ShapeDtypeStruct(IMAGES[:3], jnp.int32)}
    step = compile_apart(dz.train.make_train_step(Segmentation(CLASSES, ignore_index=None).loss), state, batch)
    return {
        "eval_shape": round(shapes, 2),
        "inference": [round(inference.trace_seconds, 2), round(inference.compile_seconds, 2)],
        "train_step": [round(step.trace_seconds, 2), round(step.compile_seconds, 2)],
        "train_bytes": step.costs()["temp_bytes"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each model."""
    found = {(row["model"], row["encoder"], row["remat"]): row for row in rows}

    def memory(row: dict[str, Any], remat: bool) -> str:
        other = found.get((row["model"], row["encoder"], remat))
        if other is None:
            return "-"
        version = other["machine"]["versions"]["jax"]
        older = "" if version == row["machine"]["versions"]["jax"] else f" (jax {version})"
        return f"{other['train_bytes'] / 2**20:.0f}{older}"

    lines = [
        (
            f"{row['model']}, {row['encoder']}",
            f"{row['eval_shape']:.1f}",
            *("{:.1f} + {:.1f}".format(*row[key]) for key in ("inference", "train_step")),
            *(memory(row, remat) for remat in (False, True)),
            "jax {versions[jax]}, {device_kind}, {cores} cores".format(**row["machine"]),
        )
        for row in sorted(rows, key=lambda row: (row["model"], row["encoder"]))
        if not row["remat"]
    ]
    if not lines:
        return "Not measured yet."
    times = ("eval_shape, s", "inference: trace + compile, s", "train step: trace + compile, s")
    return markdown_table(("model", *times, "memory, MiB", "with `remat=True`", "measured with"), lines)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
