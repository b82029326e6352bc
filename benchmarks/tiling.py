"""Prediction by tiles beside one pass: difference, time per megapixel, and peak memory.

Usage: python -m benchmarks.tiling [--networks unet fpn] [--report]

Networks have a small encoder. Times are of the second run, with everything traced and compiled. Each number of memory
is the peak of a process of its own, which writes the classes of a memory-mapped picture, without the pages of mapped
files. Each finished measurement is a line of --out and not repeated. `--report` writes the tables of --docs and the
picture --plot from --out.
"""

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

import densezoo as dz
from benchmarks.record import append_line, markdown_table, read_lines
from benchmarks.report import insert
from benchmarks.resident import resident_bytes
from benchmarks.seeded import perturbed
from densezoo.tiling.tiling import Tiling
from densezoo.viz import save


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the benchmark."""

    networks: tuple[str, ...] = tuple(dz.list_models(task="segmentation"))
    """Networks for differences and times."""
    side: int = 1500
    """Side of the picture for differences and times."""
    max_pixels: int = 1 << 20
    """Most pixels that are computed at once."""
    sides: tuple[int, ...] = (1000, 2000, 5000, 10_000, 20_000)
    """Sides of the pictures for peak memory by tiles."""
    whole_sides: tuple[int, ...] = (1000, 2000, 3000)
    """Sides of the pictures for peak memory of one pass."""
    classes: tuple[int, ...] = (2, 20, 100)
    """Numbers of classes for peak memory. The sides are measured with the first."""
    classes_side: int = 2000
    """Side of the pictures for the other numbers of classes."""
    probe: tuple[int, int] | None = None
    """Only measures this process: side and number of classes."""
    out: Path = Path("benchmarks/results/tiling.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/guides/deploy.md")
    """The document that contains the tables."""
    plot: Path = Path("docs/images/tiling_memory.png")
    """The picture of peak memory."""
    report: bool = False
    """Only write the document's tables and the picture, without measuring."""


def main(arguments: Arguments) -> None:
    """Measures or reports."""
    if arguments.probe is not None:
        probe(*arguments.probe, arguments.max_pixels)
        return
    rows = read_lines(arguments.out)
    if arguments.report:
        parts = {"tiling": times_table(rows), "tiling-memory": memory_table(rows)}
        insert(arguments.docs, parts)
        save(memory_figure(rows), arguments.plot)
        return
    for name in arguments.networks:
        if not any(row.get("network") == name for row in rows) and (row := compare(name, arguments)) is not None:
            append_line(arguments.out, {"network": name} | row | {"jax": jax.__version__})
    first, second = arguments.classes[0], arguments.classes_side
    cases = [(side, first, True) for side in arguments.sides] + [(side, first, False) for side in arguments.whole_sides]
    cases += [(second, classes, tiles) for classes in arguments.classes[1:] for tiles in (True, False)]
    for side, classes, tiles in cases:
        case = {"side": side, "classes": classes, "tiles": tiles}
        if not any(row | case == row for row in rows):
            max_pixels = arguments.max_pixels if tiles else max(side**2, arguments.max_pixels)
            append_line(arguments.out, case | measured_apart(side, classes, max_pixels) | {"jax": jax.__version__})


def model_of(name: str, classes: int = 5) -> Any:
    """A network with a small encoder; None if it works with neither of them."""
    encoders = [dz.ResNet((1, 1, 1, 1), dz.BasicBlock, width=16), dz.PlainEncoder((8, 16, 32))]
    fields: dict[str, Any] = {"norm": dz.BatchNorm} if name == "fpn" else {}  # group norms read the whole picture
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


def compare(name: str, arguments: Arguments) -> dict[str, Any] | None:
    """Difference and times, or why there are none; None if the network does not work with a small encoder."""
    if (model := model_of(name)) is None:
        return None
    shape = (arguments.side, arguments.side + 37, 3)
    image = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    variables, megapixels = variables_of(model), math.prod(shape[:2]) / 1e6
    infer = dz.compile(model, variables)

    def one_pass() -> np.ndarray:
        return np.asarray(infer(jnp.asarray(image[None])))[0]

    options: dict[str, Any] = {"reduce": "logits", "augment": False, "blend": False, "preprocessing": None}
    try:
        tiling = Tiling(model, variables, shape, max_pixels=arguments.max_pixels, **options)
    except ValueError as error:
        return {"reason": str(error)[:300]}

    def tiles() -> np.ndarray:
        return tiling(image)

    logits = tiles()
    expected, seconds = one_pass(), []
    for form in (one_pass, tiles):
        start = time.perf_counter()
        form()
        seconds.append(round((time.perf_counter() - start) / megapixels, 3))
    difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
    return {"difference": difference, "one_pass": seconds[0], "tiles": seconds[1]}


def measured_apart(side: int, classes: int, max_pixels: int) -> dict[str, Any]:
    """What `probe` prints in a process of its own."""
    options = ["--probe", str(side), str(classes), "--max-pixels", str(max_pixels)]
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.tiling", *options], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def probe(side: int, classes: int, max_pixels: int) -> None:
    """Prints the peak memory and the time of this process."""
    model = model_of("unet", classes)
    variables = variables_of(model)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident_bytes("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        image = np.memmap(f"{folder}/image", np.uint8, "w+", shape=(side, side, 3))
        mask = np.memmap(f"{folder}/mask", np.uint8, "w+", shape=(side, side))
        start = time.perf_counter()
        dz.predict_tiled(
            model, variables, image, max_pixels=max_pixels, reduce="classes", out=mask, preprocessing=dz.Preprocessing()
        )
        seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps({"gib": round(peak[0] / 2**30, 3), "seconds": round(seconds, 1)}))


def times_table(rows: list[dict[str, Any]]) -> str:
    """The table of differences and times."""
    lines = []
    for row in rows:
        if "difference" in row:
            ratio = row["tiles"] / row["one_pass"]
            cells = f"{row['difference']:.1e}", f"{row['one_pass']:.2f}", f"{row['tiles']:.2f}", f"{ratio:.2f}"
            lines.append((f"`{row['network']}`", *cells))
        elif "network" in row:
            lines.append((f"`{row['network']}`", "reads the whole picture", "", "", ""))
    return markdown_table(("network", "difference", "one pass, s/Mpx", "tiles, s/Mpx", "ratio"), lines)


def memory_table(rows: list[dict[str, Any]]) -> str:
    """The table of peak memory."""
    cases = sorted({(row["side"], row["classes"]) for row in rows if "side" in row})
    found = {(row["side"], row["classes"], row["tiles"]): row for row in rows if "side" in row}
    lines = []
    for case in cases:
        peaks = [found.get((*case, tiles)) for tiles in (True, False)]
        cells = ["" if row is None else f"{row['gib']:.2f}" for row in peaks]
        lines.append((f"{case[0]:,}", str(case[1]), *cells, "" if peaks[0] is None else f"{peaks[0]['seconds']:.0f}"))
    return markdown_table(("side", "classes", "tiles, GiB", "one pass, GiB", "tiles, s"), lines)


def memory_figure(rows: list[dict[str, Any]]) -> Figure:
    """Peak memory by the size of the picture, and by the number of classes."""
    memory = [row for row in rows if "side" in row]
    fewest = min(row["classes"] for row in memory)
    middle = next(row["side"] for row in memory if row["classes"] != fewest)
    figure = Figure(figsize=(9, 3.4), layout="constrained", facecolor="white")
    by_size, by_classes = figure.subplots(1, 2, sharey=True)
    for tiles, label, marker in ((True, "tiles", "o"), (False, "one pass", "s")):
        kind = [row for row in memory if row["tiles"] == tiles]
        for axes, found, x in (
            (by_size, [row for row in kind if row["classes"] == fewest], lambda row: row["side"] ** 2 / 1e6),
            (by_classes, [row for row in kind if row["side"] == middle], lambda row: row["classes"]),
        ):
            points = sorted((x(row), row["gib"]) for row in found)
            axes.plot(*zip(*points, strict=True), marker=marker, label=label)
    for axes, name in ((by_size, f"megapixels, {fewest} classes"), (by_classes, f"classes, {middle}x{middle} pixels")):
        axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    by_size.set_ylabel("peak memory, GiB")
    by_size.set_ylim(bottom=0)
    by_size.legend()
    return figure


if __name__ == "__main__":
    main(tyro.cli(Arguments))
