"""Prediction by tiles beside one pass: difference, time per megapixel, and peak memory.

`python -m benchmarks.tiling` prints a Markdown table of all networks of the zoo, and one of peak memory. The time of
tiles includes tracing and compiling. Networks have a small encoder. Each number of memory is the peak of a process of
its own.
"""

import dataclasses
import json
import math
import resource
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
from benchmarks.seeded import perturbed


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    side: int = 1500
    """Side of the picture for differences and times."""
    max_pixels: int = 1 << 20
    """Most pixels that are computed at once."""
    memory: tuple[int, ...] = (2000, 5000, 10000)
    """Sides of the pictures for peak memory. Empty for no measurement."""
    classes: tuple[int, ...] = (2, 20, 100)
    """Numbers of classes for peak memory, at the second side."""
    probe: tuple[int, int] | None = None
    """Measures the peak memory of one side and number of classes in this process."""


def model_of(name: str, classes: int = 5) -> Any:
    """A network with a small encoder; None if it does not work with it, or has group norms that can be replaced."""
    encoders = [dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=16), dz.PlainEncoder((8, 16, 32))]
    fields: dict[str, Any] = {"norm": dz.BatchNorm} if name == "fpn" else {}
    for encoder in encoders:
        try:
            return dz.create_model(name, encoder, classes, **fields)
        except ValueError:
            continue
    return None


def variables_of(model: Any) -> Any:
    """Variables of a network, with statistics that differ from 0 and 1."""
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    generator = np.random.default_rng(0)
    return jax.tree_util.tree_map_with_path(
        lambda path, x: perturbed(path[-1].key, np.asarray(x), generator) if path[0].key == "batch_stats" else x,
        variables,
    )


def compare(name: str, side: int, max_pixels: int) -> str | None:
    """A row of the table; None if the network cannot be computed by tiles."""
    model = model_of(name)
    if model is None:
        return None
    image = np.random.default_rng(0).normal(size=(side, side + 37, 3)).astype(np.float32)
    variables = variables_of(model)
    images = jnp.asarray(image[None])
    infer, megapixels = dz.compile(model, variables), math.prod(image.shape[:2]) / 1e6
    start = time.perf_counter()
    try:
        logits = dz.predict_tiled(model, variables, image, max_pixels=max_pixels)
    except ValueError:
        return f"| {name} | reads the whole picture | | |"
    times = [(time.perf_counter() - start) / megapixels]
    expected = np.asarray(infer(images))[0]
    start = time.perf_counter()
    jax.block_until_ready(infer(images))
    times.insert(0, (time.perf_counter() - start) / megapixels)
    worst = np.abs(logits - expected).max() / np.abs(expected).max()
    return f"| {name} | {worst:.1e} | {times[0]:.2f} | {times[1]:.2f} |"


def peak(side: int, classes: int, max_pixels: int) -> float:
    """Peak memory in GiB of a process that writes the classes of a memory-mapped picture."""
    options = ["--probe", str(side), str(classes), "--max-pixels", str(max_pixels)]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.tiling", *options], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])["gib"]


def probe(side: int, classes: int, max_pixels: int) -> None:
    """Prints the peak memory of this process."""
    import tempfile

    model = model_of("unet", classes)
    variables = variables_of(model)
    with tempfile.TemporaryDirectory() as folder:
        image = np.memmap(f"{folder}/image", np.uint8, "w+", shape=(side, side, 3))
        mask = np.memmap(f"{folder}/mask", np.uint8, "w+", shape=(side, side))
        dz.predict_tiled(
            model, variables, image, max_pixels=max_pixels, reduce="classes", out=mask, preprocessing=dz.Preprocessing()
        )
    print(json.dumps({"gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def main(arguments: Arguments) -> None:
    """Prints the tables."""
    if arguments.probe is not None:
        probe(*arguments.probe, arguments.max_pixels)
        return
    if arguments.side:
        print("| network | largest difference | one pass, s/Mpx | tiles, s/Mpx |\n| --- | --- | --- | --- |")
        for name in dz.list_models(task="segmentation"):
            if row := compare(name, arguments.side, arguments.max_pixels):
                print(row, flush=True)
    if arguments.memory:
        print("\n| side | classes | peak memory, GiB |\n| --- | --- | --- |")
        cases = [(side, 2) for side in arguments.memory]
        cases += [(arguments.memory[min(1, len(arguments.memory) - 1)], classes) for classes in arguments.classes]
        for side, classes in dict.fromkeys(cases):
            print(f"| {side} | {classes} | {peak(side, classes, arguments.max_pixels):.2f} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
