"""Exports every family to StableHLO and to ONNX, and writes the table of what works.

Usage: python -m benchmarks.exports [--models unet "unet, ResNeXt"] [--report]

Each model is tiny, and exported with the images of `SIZE`, or, where it allows it, for any multiples of its coarsest
step. Its StableHLO program is for CPU, CUDA and TPU together. onnxruntime's outputs are compared with JAX's. Each
finished model is a line of --out and not exported again. `--report` writes the table of --docs from --out, and that of
the time in onnxruntime from the results of `python -m benchmarks.models --onnx --against onnxruntime` in --times.
"""

import dataclasses
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import densezoo as dz
from benchmarks.models import ONNX, ONNX_MODELS
from benchmarks.record import OWN, append_line, markdown_table, read, read_lines, shape_text
from benchmarks.report import insert
from benchmarks.sharding import CASES
from densezoo.extras import require
from densezoo.inputs import example_inputs

SIZE = (64, 96)
_plain = dz.PlainEncoder((4, 8, 8))
MODELS: dict[str, Callable[[], Any]] = CASES | {
    **{name: partial(dz.create_model, name, _plain) for name in ("siamese_unet", "snunet", "autoencoder", "vae")},
    "diffusion_unet": partial(dz.create_model, "diffusion_unet", features=(8, 16), layers=1),
}
"""Functions that build the models, by name: every family, every kind of encoder, every upsampler."""
SEEDS = dict.fromkeys(MODELS, 1) | {"retinanet": 3}
"""Seeds of the weights. With 1, two boxes of RetinaNet have scores that are equal up to rounding, and change places."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Exports models."""

    models: tuple[str, ...] = tuple(MODELS)
    """Names of models."""
    out: Path = Path("benchmarks/results/exports.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/guides/deploy.md")
    """The document that contains the table."""
    times: Path = Path("benchmarks/results/onnx")
    """Folder with the results of the time in onnxruntime."""
    report: bool = False
    """Only write the document's table, without exporting."""


def main(arguments: Arguments) -> None:
    """Exports or reports."""
    rows = read_lines(arguments.out)
    if arguments.report:
        times = [row for path in sorted(arguments.times.glob("*.json")) for row in read(path)["rows"]]
        parts = {"exports": table(rows), "onnx": times_table(times)}
        insert(arguments.docs, parts)
        return
    if unknown := [name for name in arguments.models if name not in MODELS]:
        raise ValueError(f"unknown models {unknown}; expected some of {', '.join(MODELS)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["model"] for row in rows}
    for name in arguments.models:
        if name not in done:
            row = {"model": name} | measure(MODELS[name](), SEEDS[name]) | {"jax": jax.__version__}
            append_line(arguments.out, row)


def measure(model: Any, seed: int) -> dict[str, Any]:
    """What can be symbolic in both formats, the error of ONNX, and the reasons where something fails."""
    started = time.perf_counter()
    variables = random_weights(model, seed)
    row: dict[str, Any] = {"reasons": []}
    with tempfile.TemporaryDirectory() as folder:
        for size, batch in ((None, None), (SIZE, None), (SIZE, 1)):
            try:
                dz.export(model, variables, Path(folder, "model.stablehlo"), size=size, batch=batch)
                row["stablehlo"] = {"size": size is None, "batch": batch is None}
                break
            except ValueError as error:
                row["reasons"].append(str(error)[:200])
    return row | of_onnx(model, variables, row["reasons"]) | {"seconds": round(time.perf_counter() - started, 1)}


def of_onnx(model: Any, variables: Any, reasons: list[str]) -> dict[str, Any]:
    """The part of a row that is about ONNX; adds the reasons where something fails."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        for batch in (None, 1):
            try:
                error = dz.export_onnx(model, variables, file, size=SIZE, batch=batch)
            except ValueError as failure:
                reasons.append(str(failure)[:200])
                continue
            row = {"onnx_error": error, "onnx": {"batch": batch is None}}
            return row | ({"boxes": _boxes(file, batch or 2)} if hasattr(model, "detect") else {})
    return {}


def _boxes(file: Path, batch: int) -> int:
    """The number of boxes that a file finds in random images."""
    session = require("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((batch, *SIZE, 3)).astype(np.float32)
    (name,) = [x.name for x in session.get_outputs() if x.name.endswith("valid")]
    return int(session.run([name], {"images": images})[0].sum())


def random_weights(model: Any, seed: int = 1) -> Any:
    """Random weights of the size that keeps maps of order one, so that detectors find boxes with different scores.

    With some seeds, two scores or overlaps are equal up to rounding, which then decides on boxes.
    """
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model, images))
    random = np.random.default_rng(seed)

    def values(path: Any, x: Any) -> Any:
        noise = random.standard_normal(x.shape)
        if path[-1].key == "kernel":
            noise = noise / math.sqrt(max(1, math.prod(x.shape[:-1])))
        elif path[-1].key in ("scale", "var"):
            noise = 1 + 0.1 * noise
        else:
            noise = 0.1 * noise
        return jnp.asarray(noise, x.dtype)

    return jax.tree_util.tree_map_with_path(values, shapes)


def times_table(rows: Sequence[dict[str, Any]]) -> str:
    """The time of our file beside that of segmentation_models_pytorch's, for each network."""
    by_network: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        by_network.setdefault((row["model"], shape_text(row["shape"])), {})[row["form"]] = row
    lines = []
    for model, shape in sorted(by_network, key=lambda key: ((*ONNX_MODELS, key[0]).index(key[0]), key)):
        forms = by_network[model, shape]
        times = [forms[form]["milliseconds"]["median"] for form in (OWN, ONNX, "onnxruntime") if form in forms]
        if len(times) == 3:
            ratio = forms[ONNX]["ratios"]["onnxruntime"]["median"]
            lines.append((f"`{model}`", shape, *(f"{time:.1f}" for time in times), f"{ratio:.2f}"))
    head = ("network", "images", "`dz.compile`, ms", "our file, ms", "smp's file, ms", "our file / smp's")
    return markdown_table(head, lines)


def table(rows: list[dict[str, Any]]) -> str:
    """The document's table, in the order of `MODELS`."""
    order = list(MODELS)
    lines = []
    for row in sorted(rows, key=lambda row: order.index(row["model"])):
        hlo, onnx = row.get("stablehlo"), row.get("onnx")
        cells = ["no", "no"] if hlo is None else [_any(hlo["batch"], "1"), _any(hlo["size"], "fixed")]
        cells += ["no", ""] if onnx is None else [_any(onnx["batch"], "1"), f"{row['onnx_error']:.1e}"]
        cells[-1] += f" ({row['boxes']} boxes)" if "boxes" in row and onnx is not None else ""
        lines.append((f"`{row['model']}`", *cells))
    return markdown_table(("model", "StableHLO: batch", "size", "ONNX: batch", "largest error"), lines)


def _any(symbolic: bool, otherwise: str) -> str:
    return "any" if symbolic else otherwise


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
