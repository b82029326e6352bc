"""Exports every family to StableHLO and to ONNX, and writes the table of what works.

Usage: python -m benchmarks.exports [--models unet "unet, ResNeXt"] [--report]

Each model is tiny, and exported with the images of `SIZE`, or, where it allows it, for any multiples of its coarsest
step. Its StableHLO program is for CPU, CUDA and TPU together. onnxruntime's outputs are compared with JAX's. Each
finished model is a line of --out and not exported again. `--report` writes the table of --docs from --out.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

import densezoo as dz
from benchmarks.record import append_line, markdown_table, read_lines, write_text
from benchmarks.report import with_parts
from benchmarks.sharding import CASES
from densezoo.compiling import jitted_once
from densezoo.inputs import example_inputs

SIZE = (64, 96)
_plain = dz.PlainEncoder((4, 8, 8))
MODELS: dict[str, Callable[[], Any]] = CASES | {
    **{name: partial(dz.create_model, name, _plain) for name in ("siamese_unet", "snunet", "autoencoder", "vae")},
    "diffusion_unet": partial(dz.create_model, "diffusion_unet", features=(8, 16), layers=1),
}
"""Functions that build the models, by name: every family, every kind of encoder, every upsampler."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Exports models."""

    models: tuple[str, ...] = tuple(MODELS)
    """Names of models."""
    out: Path = Path("benchmarks/results/exports.jsonl")
    """Output file for the results."""
    docs: Path = Path("docs/guides/deploy.md")
    """The document that contains the table."""
    report: bool = False
    """Only write the document's table, without exporting."""


def main(arguments: Arguments) -> None:
    """Exports or reports."""
    rows = read_lines(arguments.out)
    if arguments.report:
        write_text(arguments.docs, with_parts(arguments.docs.read_text(encoding="utf-8"), {"exports": table(rows)}))
        return
    if unknown := [name for name in arguments.models if name not in MODELS]:
        raise ValueError(f"unknown models {unknown}; expected some of {', '.join(MODELS)}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["model"] for row in rows}
    for name in arguments.models:
        if name not in done:
            row = {"model": name} | measure(MODELS[name]()) | {"jax": jax.__version__}
            append_line(arguments.out, row)


def measure(model: Any) -> dict[str, Any]:
    """What can be symbolic in both formats, the error of ONNX, and the reasons where something fails."""
    started = time.perf_counter()
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    inputs = [jnp.zeros(x.shape, x.dtype) for x in example_inputs(model, images)]
    variables = jitted_once(model.init)(jax.random.key(0), *inputs)
    row: dict[str, Any] = {"reasons": []}
    with tempfile.TemporaryDirectory() as folder:
        stablehlo, onnx = Path(folder, "model.stablehlo"), Path(folder, "model.onnx")
        for size, batch in ((None, None), (SIZE, None), (SIZE, 1)):
            try:
                dz.export(model, variables, stablehlo, size=size, batch=batch)
                row["stablehlo"] = {"size": size is None, "batch": batch is None}
                break
            except ValueError as error:
                row["reasons"].append(str(error)[:200])
        for batch in (None, 1):
            try:
                row["onnx_error"] = dz.export_onnx(model, variables, onnx, size=SIZE, batch=batch)
                row["onnx"] = {"batch": batch is None}
                break
            except ValueError as error:
                row["reasons"].append(str(error)[:200])
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """The document's table, in the order of `MODELS`."""
    order = list(MODELS)
    lines = []
    for row in sorted(rows, key=lambda row: order.index(row["model"])):
        hlo, onnx = row.get("stablehlo"), row.get("onnx")
        cells = ["no", "no"] if hlo is None else [_any(hlo["batch"], "1"), _any(hlo["size"], "fixed")]
        cells += ["no", ""] if onnx is None else [_any(onnx["batch"], "1"), f"{row['onnx_error']:.1e}"]
        lines.append((f"`{row['model']}`", *cells))
    return markdown_table(("model", "StableHLO: batch", "size", "ONNX: batch", "largest error"), lines)


def _any(symbolic: bool, otherwise: str) -> str:
    return "any" if symbolic else otherwise


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
