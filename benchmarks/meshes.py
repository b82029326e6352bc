"""Trains a small U-Net on meshes of 1 to 8 devices: losses, bytes of collectives, and memory per device.

Usage: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 python -m benchmarks.meshes [--docs docs/guides/devices.md]

Every mesh trains on the same batches from the same parameters, so the losses must agree up to rounding. The bytes are
those of the results of the collectives in the compiled train step of one device. The memory is that of
`memory_analysis()`: the state and the batch, and the temporary arrays of a step.
"""

import dataclasses
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from jax.sharding import Mesh

import densezoo as dz
from benchmarks.record import markdown_table
from benchmarks.report import insert
from benchmarks.sharding import COLLECTIVE
from densezoo.tasks import Segmentation
from densezoo.train import create_state, make_optimizer, make_train_step

MESHES: tuple[dict[str, int], ...] = (
    {},
    *({axis: count} for axis in ("data", "fsdp", "rows") for count in (2, 4, 8)),
    {"rows": 2, "columns": 2},
    {"rows": 4, "columns": 2},
    {"data": 2, "rows": 2, "columns": 2},
    {"data": 2, "fsdp": 2, "rows": 2},
)
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}
KINDS = ("all-reduce", "all-gather", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares meshes."""

    size: int = 64
    """Height and width of the images."""
    batch: int = 8
    """Images per step."""
    features: tuple[int, ...] = (16, 32, 64, 128)
    """Channels of the U-Net's encoder."""
    steps: int = 4
    """Steps to train."""
    docs: Path | None = None
    """The document to write the table into."""


def mesh_of(axes: Mapping[str, int]) -> Mesh | None:
    """A mesh of the first devices, or None for one device without a mesh."""
    if not axes:
        return None
    count = int(np.prod(list(axes.values())))
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:count])


def measure(axes: Mapping[str, int], arguments: Arguments) -> dict[str, Any]:
    """The losses, the bytes of each kind of collective and the memory per device on one mesh."""
    model = dz.create_model("unet", dz.PlainEncoder(arguments.features), num_classes=4)
    draw = np.random.default_rng(0)
    shape = (arguments.batch, arguments.size, arguments.size)
    batch = {
        "image": draw.standard_normal((*shape, 3)).astype(np.float32),
        "mask": draw.integers(0, 4, shape).astype(np.int32),
    }
    optimizer = make_optimizer(1e-3, arguments.steps)
    state = create_state(model, optimizer, jax.random.key(0), batch["image"], mesh=mesh_of(axes))
    if state.layout is not None:
        batch = state.layout.batch(batch)
    step = make_train_step(Segmentation(4, ignore_index=None).loss)
    compiled = step.lower(state, batch).compile()  # pyright: ignore[reportFunctionMemberAccess]
    memory = compiled.memory_analysis()
    row = {"traffic": traffic(compiled.as_text()), "arguments": memory.argument_size_in_bytes}
    row |= {"temporary": memory.temp_size_in_bytes, "losses": []}
    for _ in range(arguments.steps):
        state, metrics = compiled(state, batch)
        row["losses"].append(float(metrics["loss"]))
    return row


def traffic(program: str) -> Counter[str]:
    """The bytes of the results of each kind of collective in a compiled program.

    Example:
        >>> dict(traffic("%a = (f32[3,4]{1,0}, bf16[2]) all-reduce(%b, %c)"))
        {'all-reduce': 52}
    """
    counted: Counter[str] = Counter()
    for found in COLLECTIVE.finditer(program):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", found["results"]):
            counted[found["kind"]] += BYTES[dtype] * int(np.prod([int(side) for side in shape.split(",") if side]))
    return counted


def table(rows: list[tuple[Mapping[str, int], dict[str, Any]]]) -> str:
    """The table of the document."""
    header = ("mesh", "last loss", *(f"{kind}, KB" for kind in KINDS), "state and batch, MB", "temporary, MB")
    lines = []
    for axes, row in rows:
        name = ", ".join(f"{axis} {count}" for axis, count in axes.items()) or "one device"
        bytes_of = [f"{row['traffic'][kind] / 1e3:.1f}" for kind in KINDS]
        memory = [f"{row[kind] / 1e6:.2f}" for kind in ("arguments", "temporary")]
        lines.append((name, f"{row['losses'][-1]:.6f}", *bytes_of, *memory))
    return markdown_table(header, lines)


def main(arguments: Arguments) -> int:
    """Measures all meshes; returns 1 if the losses differ by more than rounding."""
    if jax.device_count() < 8:
        raise ValueError("expected 8 devices: on a CPU, start with JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8")
    rows = []
    for axes in MESHES:
        rows.append((axes, measure(axes, arguments)))
        print(axes, rows[-1][1], flush=True)
    text = table(rows)
    print(text)
    if arguments.docs is not None:
        insert(arguments.docs, {"meshes": text})
    losses = np.array([row["losses"] for _, row in rows])
    return int(not np.allclose(losses, losses[0], rtol=1e-4))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
