"""Runtimes for a torch model: torch itself, torch.compile, onnxruntime, OpenVINO. Needs torch, not jax."""

import contextlib
import copy
import importlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]

from benchmarks.torch_kernels import to_array, to_tensor

Form = tuple[Callable[[], Any], Callable[[Any], np.ndarray]]
"""A call, and a function that converts its result to a float32 NHWC array."""


def make_form(form: str, model: Any, images: np.ndarray, dtype: str, device: Any, folder: Path) -> Form:
    """Prepares a model in one of the forms for one batch of images; compiled forms may compile on the first call.

    Args:
        form: "torch", "torch.compile", "torch.compile, frozen", "onnxruntime" or "openvino".
        model: float32, in evaluation mode; it is not modified.
        images: NHWC, float32.
        dtype: "float32", or "bfloat16" if the runtime supports it.
        device: torch's device.
        folder: folder for the model's ONNX file, which the runtimes share.

    Raises:
        ValueError: if the runtime does not support the dtype or device.
    """
    if form.startswith("torch"):
        return _torch(form, model, images, dtype, device)
    if device.type != "cpu":
        raise ValueError(f"{form} is only compared on CPUs")
    return {"onnxruntime": _onnxruntime, "openvino": _openvino}[form](model, images, dtype, folder)


def place(model: Any, device: Any, dtype: str) -> Any:
    """Copies a model to its device, in channels_last and in its dtype, which all computations use (no autocast)."""
    return copy.deepcopy(model).to(device=device, dtype=getattr(torch, dtype), memory_format=torch.channels_last)


def compile_model(function: Any, device: Any, *, frozen: bool = False, training: bool = False) -> Any:
    """Compiles a model with torch.compile; on a GPU with CUDA graphs, and for inference with all tuning enabled."""
    inductor: Any = importlib.import_module("torch._inductor")
    mode = "reduce-overhead" if training else "max-autotune"
    options = inductor.list_mode_options(mode) if device.type == "cuda" else {}
    return torch.compile(function, dynamic=False, options=options | ({"freezing": True} if frozen else {}))


def _torch(form: str, model: Any, images: np.ndarray, dtype: str, device: Any) -> Form:
    frozen = form.endswith("frozen")
    function = place(model, device, dtype)
    if form != "torch":
        function = compile_model(function, device, frozen=frozen)
    x = to_tensor(images, device).to(getattr(torch, dtype))

    def call() -> Any:
        with torch.inference_mode():
            return function(x)

    # Setting only the option would reach inductor, but dynamo would already have made the weights arguments.
    inductor_config: Any = importlib.import_module("torch._inductor.config") if frozen else None
    with inductor_config.patch(freezing=True) if frozen else contextlib.nullcontext():
        call()
    return call, to_array


def _onnxruntime(model: Any, images: np.ndarray, dtype: str, folder: Path) -> Form:
    runtime: Any = importlib.import_module("onnxruntime")
    if dtype != "float32":
        raise ValueError("onnxruntime has no bfloat16 convolutions on CPUs")
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = runtime.InferenceSession(str(_onnx(model, images, folder)), options, providers=["CPUExecutionProvider"])
    name, x = session.get_inputs()[0].name, _nchw(images)
    return lambda: session.run(None, {name: x}), lambda result: _nhwc(result[0])


def _openvino(model: Any, images: np.ndarray, dtype: str, folder: Path) -> Form:
    openvino: Any = importlib.import_module("openvino")
    core, x = openvino.Core(), _nchw(images)
    if dtype != "float32" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("openvino does not support bfloat16 on this processor")
    try:
        read = core.read_model(str(_onnx(model, images, folder)))
    except Exception:  # OpenVINO may convert models that ONNX cannot represent
        read = openvino.convert_model(_contiguous(model), example_input=torch.from_numpy(x))
    read.reshape(list(x.shape))
    precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
    }
    request = core.compile_model(read, "CPU", options).create_infer_request()
    call = lambda: request.infer([x], share_inputs=True, share_outputs=True)  # noqa: E731
    return call, lambda result: _nhwc(result[0])


def _onnx(model: Any, images: np.ndarray, folder: Path) -> Path:
    """The model's ONNX file for one image shape, created once."""
    path = folder / f"{'x'.join(map(str, images.shape))}.onnx"
    if not path.exists():
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            given = (torch.from_numpy(_nchw(images)),)
            try:
                if not getattr(model, "old_exporter", True):
                    raise NotImplementedError
                torch.onnx.export(_contiguous(model), given, str(path), opset_version=17, dynamo=False)
            except Exception:
                path.unlink(missing_ok=True)
                importlib.import_module("onnxscript")  # the newer exporter needs it
                torch.onnx.export(_contiguous(model), given, str(path), opset_version=18, dynamo=True)
    return path


def _contiguous(model: Any) -> Any:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def _nchw(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def _nhwc(maps: Any) -> np.ndarray:
    return np.asarray(maps, np.float32).transpose(0, 2, 3, 1)
