"""Exports a model to StableHLO and to ONNX, runs both files, and compares their outputs with the model's.

Usage: python examples/export.py --model out/run/model.safetensors --out out/export

Writes model.stablehlo, which runs in any program with JAX, on CPU, GPU and TPU, and model.onnx, which runs in
onnxruntime. Neither needs densezoo. The program of a trained model takes uint8 pictures, as files hold them. The last
line on standard output is a JSON object with both files and the largest difference of each, relative to the largest
output; null where a file could not be written, with the reason on standard error.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from common import command_line

import densezoo as dz
from densezoo import tasks, weights
from densezoo.inputs import example_inputs
from densezoo.train.recipe import MODEL_FILE


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the script."""

    model: str = "unet"
    """A model file, the --out folder of a training, or a name of the zoo for an untrained model."""
    encoder: str | None = None
    """Encoder of an untrained model; its family's default if not given."""
    outputs: Literal["model", "classes", "probabilities"] = "model"
    """What the program returns: the model's outputs, such as logits, or the task's prediction or probabilities."""
    size: tuple[int, int] | None = None
    """Height and width. By default any size for StableHLO, where the model allows it, and 256 256 for ONNX."""
    out: Path = Path("out/export")
    """Output folder."""
    quick: bool = False
    """Check that the script works, with a tiny model of 32x32 pixels. Overrides --model, --encoder and --size."""


def main(arguments: Arguments) -> None:
    started = time.perf_counter()
    size = (32, 32) if arguments.quick else arguments.size
    checked = size or (256, 256)
    model, variables, task, preprocessing = chosen(arguments, checked)
    options = {"preprocessing": preprocessing, "outputs": outputs_of(task, arguments.outputs)}
    arguments.out.mkdir(parents=True, exist_ok=True)

    file = arguments.out / "model.stablehlo"
    dz.export(model, variables, file, size=size, **options)
    # A deployed program only needs these two lines.
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    call = jax.jit(program.call)
    inputs = [example(x, checked) for x in program.in_avals]
    expected = dz.export(model, variables, size=checked, batch=2, platforms=[jax.default_backend()], **options)
    result: dict[str, Any] = {"stablehlo": str(file)}
    result["stablehlo_error"] = largest_difference(call(*inputs), reference(model, variables, inputs, options))
    del expected

    onnx = arguments.out / "model.onnx"
    try:
        result["onnx_error"] = dz.export_onnx(model, variables, onnx, size=checked, **options)
        result["onnx"] = str(onnx)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"no ONNX: {error}", file=sys.stderr)
        result |= {"onnx": None, "onnx_error": None}
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(result))
