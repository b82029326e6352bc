"""Export to ONNX, through jax2onnx, checked in onnxruntime."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator
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
from densezoo.inspect.inline import inlined
from densezoo.ops import implementation
from densezoo.preprocessing import Preprocessing
from densezoo.types import Dtype, Size

TOLERANCE = 1e-4
"""The largest accepted difference, relative to the largest output."""
FORMS = ("reference", "auto")
"""Forms of the operations, in the order in which they are tried: jax2onnx converts nearly all of the plain ones."""


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

    jax2onnx converts the program, with the plain forms of the operations where it can. Images and outputs are NHWC, as
    in JAX. An output with the name of an input gets the ending `_out`. The file is only written if onnxruntime computes
    the same outputs as JAX, up to 1e-4 of the largest one. Outputs that are whole numbers, such as classes, may differ
    in one of 1,000, where two logits are equal up to rounding.

    Args:
        model: any model whose first input is images.
        variables: the model's variables.
        path: path of the file.
        size: (height, width) of the images.
        batch: number of images. None exports for any number, which a few models do not allow.
        preprocessing: as in `export`.
        image_dtype: as in `export`.
        outputs: as in `export`.
        method: as in `export`.

    Returns:
        The largest difference between the outputs of onnxruntime and of JAX, relative to the largest output.

    Raises:
        TypeError: if the model and the variables are swapped, or `outputs` is not a function.
        ValueError: if the variables belong to another model, if `size` or `batch` is invalid, if jax2onnx or
            onnxruntime lacks an operation of the model, or if the outputs differ. Nothing is written then.
        ModuleNotFoundError: if jax2onnx or onnxruntime is not installed: `pip install "densezoo[onnx]"`.

    Example:
        >>> import densezoo as dz
        >>> error = dz.export_onnx(model, variables, "unet.onnx", size=(512, 512))  # doctest: +SKIP
    """
    require("onnxruntime")
    require("jax2onnx")
    check_shape(size, batch)
    program = Program(model, variables, preprocessing, outputs, method)
    given = [_example(x, seed) for seed, x in enumerate(program.inputs(size, batch or 2, image_dtype))]
    expected = [np.asarray(x) for x in jax.tree.leaves(jax.jit(program.run)(*given))]
    failures = []
    for form in FORMS:
        try:
            content = program.traced(partial(_converted, program, form), size, batch, image_dtype)
            error = _check(content, program, given, expected)
        except (ValueError, NotImplementedError) as failure:
            failures.append(failure)
            continue
        replace(Path(path), partial(Path.write_bytes, data=content))
        return error
    raise ValueError(f"{type(model).__name__} was not exported to ONNX: {failures[0]}") from failures[0]


def _converted(program: Program, form: str, inputs: tuple[jax.ShapeDtypeStruct, ...]) -> bytes:
    """The ONNX model of a program."""
    with implementation(form):
        forms = {"pad": _pad, "stack": _stack} if _is_symbolic(inputs) else {"stack": _stack}
        flat = inlined(program.run, *inputs, platform=None if form == "reference" else "cpu", forms=forms)
        tree = jax.eval_shape(program.run, *inputs)
    input_names = program.names[: len(inputs)]
    output_names = [_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    with _quiet():
        try:
            model = require("jax2onnx").to_onnx(
                lambda *arrays: _distinct(flat(*arrays)),
                list(inputs),
                model_name=type(program.model).__name__,
                input_names=input_names,
                # An autoencoder takes and returns images, but ONNX needs different names.
                output_names=[f"{name}_out" if name in input_names else name for name in output_names],
            )
        except Exception as error:  # its errors share no other class
            raise NotImplementedError(f"jax2onnx cannot convert it: {error}") from error
    return model.SerializeToString()


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


def _is_symbolic(inputs: tuple[jax.ShapeDtypeStruct, ...]) -> bool:
    return any(not isinstance(side, int) for x in inputs for side in x.shape)


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


def _distinct(outputs: list[Any]) -> tuple[Any, ...]:
    """The outputs; an array that occurs twice gets a copy, because jax2onnx gives each array one name."""
    return tuple(x if all(x is not y for y in outputs[:i]) else x + jnp.zeros_like(x) for i, x in enumerate(outputs))


def _stack(*arrays: Any, axis: int, **_: Any) -> Any:
    return jax.lax.concatenate([jax.lax.expand_dims(x, (axis,)) for x in arrays], axis)


def _pad(x: Any, value: Any, *, padding_config: Any) -> Any:
    """Padding by concatenation, because jax2onnx cannot pad arrays of a symbolic shape."""
    if any(before < 0 or after < 0 or inner for before, after, inner in padding_config):
        return jax.lax.pad(x, value, padding_config)
    for axis, (before, after, _) in enumerate(padding_config):
        borders = [jax.lax.broadcast(value, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in (before, after)]
        parts = [borders[0], x, borders[1]]
        x = jax.lax.concatenate([part for part in parts if part is x or part.shape[axis]], axis)
    return x


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides what jax2onnx reports about its own plugins for other libraries, and its warnings of JAX's changes."""
    loggers = [logging.getLogger(name) for name in ("jax2onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
