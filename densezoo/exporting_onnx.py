"""Export to ONNX, checked in onnxruntime."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo.exporting import Program, check_shape
from densezoo.extras import require
from densezoo.files import replace
from densezoo.inference import Method
from densezoo.onnx.convert import convert
from densezoo.ops import implementation
from densezoo.ops.implementation import whole_operations
from densezoo.preprocessing import Preprocessing
from densezoo.types import Dtype, Size

TOLERANCE = 1e-4
"""The largest accepted difference, relative to the largest output."""


def export_onnx(
    model: nn.Module,
    variables: Any,
    path: str | os.PathLike[str],
    *,
    size: Size,
    batch: int | None = None,
    preprocessing: Preprocessing | None = None,
    image_dtype: Dtype | None = None,
    outputs: Callable[[Any], Any] | None = None,
    method: Method = None,
) -> float:
    """Exports a model with its variables to ONNX, and checks the file's outputs in onnxruntime.

    The file has ONNX's operations of opset 18, with maps in NCHW. Images and outputs are NHWC, as in JAX. An output
    with the name of an input gets the ending `_out`. The file is only written if onnxruntime computes the same outputs
    as JAX for random images, up to 1e-4 of the largest one. Outputs that are whole numbers, such as classes, may differ
    in one of 1,000, where two logits are equal up to rounding.

    Args:
        model: any model whose first input is images.
        variables: the model's variables.
        path: path of the file.
        size: (height, width) of the images.
        batch: number of images. None exports for any number.
        preprocessing: as in `export`.
        image_dtype: as in `export`.
        outputs: as in `export`.
        method: as in `export`.

    Returns:
        The largest difference between the outputs of onnxruntime and of JAX, relative to the largest output.

    Raises:
        TypeError: if the model and the variables are swapped, or `outputs` is not a function.
        ValueError: if the variables belong to another model, if `size` or `batch` is invalid, if an operation of the
            model is not converted, or if the outputs differ. Nothing is written then.
        ModuleNotFoundError: if onnx or onnxruntime is not installed: `pip install "densezoo[onnx]"`.

    Example:
        >>> import densezoo as dz
        >>> error = dz.export_onnx(model, variables, "unet.onnx", size=(512, 512))  # doctest: +SKIP
    """
    require("onnxruntime")
    require("onnx")
    check_shape(size, batch)
    program = Program(model, variables, preprocessing, outputs, method)
    given = [_example(x, seed) for seed, x in enumerate(program.inputs(size, batch or 2, image_dtype))]
    expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(program.run)(*given))]
    try:
        content = program.traced(partial(_converted, program), size, batch, image_dtype)
        error = _check(content, program, given, expected)
    except (ValueError, NotImplementedError) as failure:
        raise ValueError(f"{type(model).__name__} was not exported to ONNX: {failure}") from failure
    replace(Path(path), partial(Path.write_bytes, data=content))
    return error


def _converted(program: Program, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> bytes:
    """The ONNX model of a program."""
    names = program.names[: len(inputs)]
    with implementation("reference"), whole_operations():
        tree = jax.eval_shape(program.run, *inputs)
        results = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
        # An autoencoder takes and returns images, but ONNX needs different names.
        results = [f"{name}_out" if name in names else name for name in results]
        return convert(program.run, inputs, names, results)


def _check(content: bytes, program: Program, given: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """The largest difference between onnxruntime's outputs and the expected ones; an error if it is too large."""
    try:
        session = require("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
        found = session.run(None, dict(zip(program.names, given, strict=False)))
    except Exception as error:  # onnxruntime's errors share no other class
        raise ValueError(f"onnxruntime cannot run it: {error}") from error
    difference = max(_difference(a, b) for a, b in zip(found, expected, strict=True))
    if not difference <= TOLERANCE:
        raise ValueError(
            f"onnxruntime's outputs differ from JAX's by {difference:.1e} of the largest one, more than {TOLERANCE:.0e}"
        )
    return difference


def _name(path: Any) -> str:
    """The name of an output: the keys of the dictionaries that contain it."""
    return "_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) or "output"


def _example(x: jax.ShapeDtypeStruct, seed: int) -> np.ndarray:
    """An input for the check: random pixels, or zeros for labels and times."""
    random = np.random.default_rng(seed)
    if len(x.shape) < 4:
        return np.zeros(x.shape, x.dtype)
    if jnp.issubdtype(x.dtype, jnp.integer):
        return random.integers(0, np.iinfo(x.dtype).max, x.shape, x.dtype, endpoint=True)
    return random.standard_normal(x.shape).astype(x.dtype)


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest value; of whole numbers the share that differs, per 10."""
    if found.shape != expected.shape:
        return float("inf")
    if expected.dtype.kind in "iub":
        return float((found != expected).mean()) / 10
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-6))
