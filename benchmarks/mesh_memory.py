"""Compiles the train step of a U-Net for up to 256 devices, and predicts memory and communication without running it.

Usage: JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=256 JAX_DISABLE_MOST_OPTIMIZATIONS=1 python -m benchmarks.mesh_memory
[--meshes "data 256"] [--report]

State and batch are abstract, so nothing is allocated. The memory is that of `memory_analysis()` for one device. The
prediction is a line through the temporary bytes of data parallelism on 2, 4 and 8 devices, which have 4, 2 and 1
pictures of a batch of 8: bytes = fixed + slope * pixels of a device. Each compiled mesh is a line of --out and not
compiled again; `--report` writes the table of --docs from --out. JAX_DISABLE_MOST_OPTIMIZATIONS=1 makes no difference
to the numbers and halves the time of compiling.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
from benchmarks.mesh_tasks import axes_of
from benchmarks.meshes import KINDS, mesh_of, traffic
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from densezoo.tasks import Segmentation
from densezoo.train import create_state, make_optimizer, make_train_step
from densezoo.train.sharding import SPATIAL

CLASSES = 4
BASE = {"data 2": 8, "data 4": 8, "data 8": 8}
MESHES = {
    **BASE,
    "fsdp 8": 8,
    "data 2, rows 2, columns 2": 2,
    "data 256": 256,
    "fsdp 256": 256,
    "fsdp 64, rows 2, columns 2": 64,
}
"""Meshes with the number of pictures of their batch."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compiles a train step for meshes."""

    meshes: tuple[str, ...] = tuple(MESHES)
    """Meshes: the names of axes with their numbers of devices."""
    encoder: str = "resnet34"
    """Encoder of the U-Net."""
    size: int = 1504
    """Height and width of the pictures."""
    out: Path = Path("benchmarks/results/mesh_memory.jsonl")
    """Compiled meshes, one a line."""
    report: bool = False
    """Write the table and compile nothing."""
    docs: Path = Path("docs/guides/devices.md")
    """The document with the table."""


def plan(model: Any, axes: Mapping[str, int], batch: int, size: int) -> dict[str, Any]:
    """XLA's plan of a segmentation model's train step on one device of a mesh: memory, and bytes of collectives.

    Returns:
        Bytes of all `parameters`; of the state and batch (`arguments`) and of the temporary arrays of one device; of
        the results of each kind of collective (`traffic`); and the `pixels` of one device's part of the pictures.
    """
    images = jax.ShapeDtypeStruct((batch, size, size, 3), jnp.float32)
    mesh, optimizer = mesh_of(axes), make_optimizer(1e-3, steps=10)
    state = jax.eval_shape(lambda key: create_state(model, optimizer, key, images, mesh=mesh), jax.random.key(0))
    shardings = state.layout.shardings(state)
    state = jax.tree.map(lambda x, sharding: x.update(sharding=sharding), state, shardings)
    fields = state.layout.batch({"image": images, "mask": jax.ShapeDtypeStruct(images.shape[:3], jnp.int32)})
    step: Any = make_train_step(Segmentation(CLASSES, ignore_index=None).loss)
    # Without oneDNN, whose convolutions have temporary arrays for each thread, and a thread for each simulated device.
    jitted = jax.jit(step.__wrapped__, donate_argnums=0, compiler_options=dz.compiler_options(training=True))
    compiled: Any = jitted.lower(state, fields).compile()
    memory = compiled.memory_analysis()
    return {
        "parameters": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.params)),
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "traffic": dict(traffic(compiled.as_text())),
        "pixels": batch * size**2 // int(np.prod(list(axes.values()))),
    }


def predicted(rows: Sequence[Mapping[str, Any]], pixels: int) -> float:
    """The temporary bytes for a number of pixels on each device, by a line through measured rows.

    Example:
        >>> rows = [{"pixels": 1, "temporary": 5}, {"pixels": 2, "temporary": 7}]
        >>> round(predicted(rows, 10), 6)
        23.0
    """
    slope, fixed = np.polyfit([row["pixels"] for row in rows], [row["temporary"] for row in rows], 1)
    return float(fixed + slope * pixels)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of the document."""
    header = ("mesh", "pictures", "megapixels of a device", "state and batch, MB", "temporary, MB", "predicted, MB")
    base, lines = [row for row in rows if row["mesh"] in BASE], []
    for row in rows:
        memory = row["arguments"], row["temporary"], predicted(base, row["pixels"])
        numbers = [f"{size / 1e6:.0f}" for size in memory]
        moved = [f"{row['traffic'].get(kind, 0) / 1e6:.1f}" for kind in KINDS]
        pictures = f"{row['pictures']}x{row['size']}x{row['size']}"
        lines.append((row["mesh"], pictures, f"{row['pixels'] / 1e6:.2f}", *numbers, *moved))
    return markdown_table((*header, *(f"{kind}, MB" for kind in KINDS)), lines)


def main(arguments: Arguments) -> int:
    """Compiles the missing meshes."""
    rows = read_lines(arguments.out)
    if arguments.report:
        insert(arguments.docs, {"mesh_memory": table(rows)})
        return 0
    model = dz.create_model("unet", encoder=arguments.encoder, num_classes=CLASSES)
    for name in arguments.meshes:
        axes = axes_of(name)
        if (needed := int(np.prod(list(axes.values())))) > jax.device_count():
            raise ValueError(f"expected {needed} devices: on a CPU, start with JAX_NUM_CPU_DEVICES={needed}")
        if any((row["mesh"], row["size"], row["encoder"]) == (name, arguments.size, arguments.encoder) for row in rows):
            continue
        # Without a known mesh, one picture for each part of the batch.
        parts = int(np.prod([count for axis, count in axes.items() if axis not in SPATIAL]))
        pictures, start = MESHES.get(name, parts), time.perf_counter()
        row = {"mesh": name, "pictures": pictures, "size": arguments.size, "encoder": arguments.encoder}
        row |= plan(model, axes, pictures, arguments.size)
        append_line(arguments.out, row | {"seconds": time.perf_counter() - start, "jax": jax.__version__})
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
