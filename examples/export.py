"""Exports a model to StableHLO and to ONNX, runs both files, and compares their outputs with the model's.

Usage: python examples/export.py --model out/run/model.safetensors --out out/export

Writes model.stablehlo, which runs in any program with JAX, on CPU, GPU and TPU, and model.onnx, which runs in
onnxruntime. Neither needs densezoo. The program of a trained model takes pictures as files hold them: uint8, or uint16
if the model's range of values is larger. The last line on standard output is a JSON object with both files and the
largest difference of each, relative to the largest output; null where a file could not be written, with the reason on
standard error.
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
from densezoo.inspect.walk import inference_method
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
    outputs = outputs_of(task, arguments.outputs)
    options = {"preprocessing": preprocessing, "outputs": outputs}

    file = arguments.out / "model.stablehlo"
    exported = dz.export(model, variables, file, size=size, **options)
    print(f"{file} takes {', '.join(map(str, exported.in_avals))}", file=sys.stderr)
    program = jax.export.deserialize(bytearray(file.read_bytes()))  # all that a deployed program needs, with its call
    inputs = [example(x, checked, seed) for seed, x in enumerate(program.in_avals)]
    expected = by_model(model, variables, preprocessing, inputs)
    expected = expected if outputs is None else outputs(expected)
    error = largest_difference(jax.jit(program.call)(*inputs), plain(expected))
    result: dict[str, Any] = {"stablehlo": str(file), "stablehlo_error": error, "onnx": None, "onnx_error": None}

    onnx = arguments.out / "model.onnx"
    try:
        result["onnx_error"] = dz.export_onnx(model, variables, onnx, size=checked, **options)
        result["onnx"] = str(onnx)
    except (ValueError, ModuleNotFoundError) as reason:
        print(f"no ONNX file: {reason}", file=sys.stderr)
    print(json.dumps(result | {"seconds": round(time.perf_counter() - started, 1)}))


def chosen(arguments: Arguments, size: tuple[int, int]) -> tuple[Any, Any, Any, dz.Preprocessing | None]:
    """The model, its variables, its task and its preprocessing; None where the model has none."""
    path = Path(arguments.model)
    if path.exists() and not arguments.quick:
        model, variables, metadata = weights.load_with_metadata(path / MODEL_FILE if path.is_dir() else path)
        described, given = metadata.get("task"), metadata.get("preprocessing")
        task = None if described is None else tasks.from_description(described)
        preprocessing = None if given is None else dz.Preprocessing(**given)
        if preprocessing is not None and preprocessing.resizes:
            print("the exported program does not resize pictures: resize them as in training before", file=sys.stderr)
            preprocessing = dataclasses.replace(preprocessing, shortest=None, longest=None, size=None)
        return model, variables, task, preprocessing
    model = dz.create_model("unet", dz.PlainEncoder((4, 8)), 3) if arguments.quick else None
    model = model or dz.create_model(arguments.model, arguments.encoder)
    shapes = example_inputs(model, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    variables = jax.jit(model.init)(jax.random.key(0), *(jnp.zeros(x.shape, x.dtype) for x in shapes))
    return model, variables, None, None


def outputs_of(task: Any, name: str) -> Any:
    """The function of the model's outputs."""
    if name == "model":
        return None
    member = {"classes": "predict", "probabilities": "probabilities"}[name]
    if not hasattr(task, member):
        what = "an untrained model" if task is None else f"a model for {type(task).__name__}"
        raise ValueError(f"{what} has no {name}: omit --outputs {name}")
    return getattr(task, member)


def example(aval: Any, size: tuple[int, int], seed: int) -> np.ndarray:
    """Random pixels for two images, or zeros for another input, such as a time."""
    if len(aval.shape) != 4:
        return np.zeros((2, *aval.shape[1:]), aval.dtype)
    random, shape = np.random.default_rng(seed), (2, *size, aval.shape[3])
    if np.issubdtype(aval.dtype, np.integer):
        return random.integers(0, np.iinfo(aval.dtype).max, shape, aval.dtype, endpoint=True)
    return random.standard_normal(shape).astype(aval.dtype)


def by_model(model: Any, variables: Any, preprocessing: dz.Preprocessing | None, inputs: list[np.ndarray]) -> Any:
    """The outputs of the model itself."""
    if preprocessing is not None:
        prepared = [np.stack([preprocessing.prepare(picture) for picture in batch]) for batch in inputs]
        inputs = [preprocessing.normalize()(None, {"image": batch})["image"] for batch in prepared]
    return jax.jit(lambda *inputs: model.apply(variables, *inputs, method=inference_method(model)))(*inputs)


def plain(outputs: Any) -> Any:
    """Outputs as the program returns them: dictionaries instead of objects."""
    if not dataclasses.is_dataclass(outputs):
        return outputs
    return {name: plain(part) for name, part in vars(outputs).items() if part is not None}


def largest_difference(found: Any, expected: Any) -> float:
    """Relative to the largest value of each output."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    differences = [
        np.abs(np.float64(a) - np.float64(b)).max() / max(np.abs(np.float64(b)).max(), 1e-6) for a, b in pairs
    ]
    return float(max(differences))


if __name__ == "__main__":
    command_line(main, Arguments)
