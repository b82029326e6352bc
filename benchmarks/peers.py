"""A worker program that runs models and kernels in torch, onnxruntime and OpenVINO; it does not need jax.

The benchmarks start it as `PYTHON -m benchmarks.peers FOLDER [MODULE]`, with the interpreter of `--peer-python`. For
the protocol, see benchmarks/protocol.py. MODULE (`--peer-setup`) is imported first.
"""

import gc
import importlib
import importlib.metadata
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import protocol, resident

PACKAGES = ("torch", "onnxruntime", "openvino", "timm", "segmentation-models-pytorch", "diffusers")


class Peers:
    """The worker's commands: its public methods.

    Args:
        folder: folder for exchanged arrays.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._model: Any = None
        self._calls: dict[str, Callable[[], Any]] = {}
        self._arrays: dict[str, Callable[[Any], Any]] = {}
        self._baseline = 0

    def commands(self) -> dict[str, Callable[..., Any]]:
        """The commands by name."""
        return {name: getattr(self, name) for name in dir(type(self)) if name[0] != "_" and name != "commands"}

    def describe(self) -> dict[str, Any]:
        """Versions of Python and the libraries, and torch's number of threads."""
        versions = {}
        for package in PACKAGES:
            try:
                versions[package] = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                versions[package] = None
        torch: Any = importlib.import_module("torch")
        facts = {"python": platform.python_version(), "versions": versions, "threads": torch.get_num_threads()}
        return facts | {"cuda": torch.cuda.is_available()}

    def prepare(self, form: str) -> dict[str, Any]:
        """Imports the dependencies of a form, so that a model's memory excludes them."""
        importlib.import_module("benchmarks.torch_models")
        importlib.import_module("benchmarks.runtimes")
        torch: Any = importlib.import_module("torch")
        if form in ("onnxruntime", "openvino"):
            importlib.import_module(form)
        torch.ones(1).add_(1)  # starts its threads
        return {}

    def model(self, model: str, encoder: str, classes: int, image_size: list[int], seed: int) -> dict[str, Any]:
        """Creates a model with seeded weights and writes these to a file."""
        torch_models: Any = importlib.import_module("benchmarks.torch_models")
        self.clear()
        for file in self._folder.glob("*.onnx"):  # from another model
            file.unlink()
        height, width = image_size
        self._model = torch_models.make_model(model, encoder, classes, (height, width), seed)
        path = self._folder / "weights.npz"
        np.savez(path, **{name: x.numpy() for name, x in self._model.state_dict().items()})
        return {"weights": str(path)}

    def infer(self, form: str, images: str, dtype: str, platform: str) -> dict[str, Any]:
        """Prepares a form of the model, including the first call; returns its seconds."""
        runtimes: Any = importlib.import_module("benchmarks.runtimes")
        device = importlib.import_module("benchmarks.torch_kernels").to_device(platform)
        x = np.load(images)
        start = time.perf_counter()
        call, to_array = runtimes.make_form(form, self._model, x, dtype, device, self._folder)
        self._run(call)
        self._calls[form], self._arrays[form] = call, to_array
        return {"seconds": time.perf_counter() - start}

    def train(self, form: str, images: str, masks: str, dtype: str, platform: str) -> dict[str, Any]:
        """Prepares a form of the model's train step and runs two steps; returns the losses and the gradient's norm."""
        torch: Any = importlib.import_module("torch")
        runtimes: Any = importlib.import_module("benchmarks.runtimes")
        torch_models: Any = importlib.import_module("benchmarks.torch_models")
        kernels: Any = importlib.import_module("benchmarks.torch_kernels")
        device = kernels.to_device(platform)
        start = time.perf_counter()
        model = runtimes.place(self._model, device, dtype).train()
        function = model if form == "torch" else runtimes.compile_model(model, device, training=True)
        x = kernels.to_tensor(np.load(images), device).to(getattr(torch, dtype))
        y = np.load(masks)
        y = kernels.to_tensor(y, device) if y.ndim == 4 else torch.from_numpy(y).long().to(device)
        call = torch_models.make_step(model, function, x, y)
        first = float(call())
        seconds = time.perf_counter() - start
        norm = torch_models.gradient_norm(model)
        checked = {"first loss": first, "gradient norm": norm, "second loss": float(call())}
        self._calls[form] = call
        return {"seconds": seconds, "checked": checked}

    def kernel(
        self,
        form: str,
        kernel: str,
        inputs: list[tuple[str, str]],
        cotangent: tuple[str, str],
        backward: bool,
        platform: str,
    ) -> dict[str, Any]:
        """Prepares a kernel; arrays are (path, dtype)."""
        kernels: Any = importlib.import_module("benchmarks.torch_kernels")
        device = kernels.to_device(platform)
        arrays = [(np.load(path), dtype) for path, dtype in (*inputs, cotangent)]
        compiled = form.startswith("torch.compile")
        start = time.perf_counter()
        call = kernels.make_calls(kernel, arrays[:-1], arrays[-1], device, backward=backward, compiled=compiled)
        self._run(call)
        self._calls[form], self._arrays[form] = call, lambda result: kernels.arrays_of(kernel, result)
        return {"seconds": time.perf_counter() - start}

    def detection(
        self,
        form: str,
        kernel: str,
        inputs: list[str],
        backward: bool,
        platform: str,
        image_size: list[int],
        threshold: float,
    ) -> dict[str, Any]:
        """Prepares an operation of torchvision's detectors; returns torchvision's version."""
        module: Any = importlib.import_module("benchmarks.torch_detection")
        device = importlib.import_module("benchmarks.torch_kernels").to_device(platform)
        found, arrays = self._torchvision(), [np.load(path) for path in inputs]
        options = {"backward": backward, "image_size": image_size, "threshold": threshold}
        self._calls[form] = module.make_call(kernel, arrays, device, **options)
        self._arrays[form] = lambda result: (module.arrays_of(kernel, result), [])
        return found

    def detector(self, model: str, classes: int, seed: int, images: str) -> dict[str, Any]:
        """Makes a detector that finds a usual number of objects in the images, and writes its weights to a file."""
        module: Any = importlib.import_module("benchmarks.torch_detectors")
        self._torchvision()
        self.clear()
        self._model = module.make_model(model, classes, seed, np.load(images))
        path = self._folder / "weights.npz"
        np.savez(path, **{name: x.numpy() for name, x in self._model.state_dict().items()})
        return {"weights": str(path)}

    def detect(self, form: str, images: str) -> dict[str, Any]:
        """Makes the detector ready in a form, with the first call; the seconds of that, and torchvision's version."""
        module: Any = importlib.import_module("benchmarks.torch_detectors")
        start = time.perf_counter()
        self._calls[form] = module.make_call(form, self._model, np.load(images))
        self._arrays[form] = lambda result: (module.arrays_of(result), [])
        return {"seconds": time.perf_counter() - start} | self._torchvision()

    def detector_losses(self, images: str, boxes: str, labels: str) -> dict[str, Any]:
        """The sum of the detector's losses in training mode, with every anchor and proposal in them."""
        module: Any = importlib.import_module("benchmarks.torch_detectors")
        return {"losses": module.losses_of(self._model, *(np.load(path) for path in (images, boxes, labels)))}

    def detector_step(self, form: str, images: str, boxes: str, labels: str) -> dict[str, Any]:
        """Makes the detector's train step ready; torchvision's version."""
        module: Any = importlib.import_module("benchmarks.torch_detectors")
        self._calls[form] = module.make_step(self._model, *(np.load(path) for path in (images, boxes, labels)))
        return self._torchvision()

    def output(self, form: str) -> dict[str, Any]:
        """Calls a form and writes its result: a model's map, or a kernel's outputs and gradients."""
        arrays = self._arrays[form](self._run(self._calls[form]))
        parts = ([arrays], []) if isinstance(arrays, np.ndarray) else arrays
        paths: list[list[str]] = []
        for part, values in zip(("output", "gradient"), parts, strict=True):
            paths.append([])
            for number, value in enumerate(values):
                paths[-1].append(str(self._folder / f"{part}{number}.npy"))
                np.save(paths[-1][-1], value)
        return {"outputs": paths[0], "gradients": paths[1]}

    def sample(self, form: str, calls: int) -> dict[str, Any]:
        """Seconds per call, after an uncounted call that fills the caches and wakes the threads."""
        call = self._calls[form]
        gc.disable()
        self._run(call)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self._wait()
        seconds = (time.perf_counter() - start) / calls
        gc.enable()
        return {"seconds": seconds}

    def used(self) -> dict[str, Any]:
        """CPU seconds of this process so far, over all threads."""
        return {"seconds": time.process_time()}

    def forget_peak(self, baseline: bool = False) -> dict[str, Any]:
        """Resets the peak of the resident memory; with `baseline`, the current resident memory counts as 0."""
        now = resident.forget_peak()
        self._baseline = now if baseline else self._baseline
        return {"bytes": now}

    def peak(self) -> dict[str, Any]:
        """The peak of the resident memory above the baseline."""
        return {"bytes": resident.resident_bytes("VmHWM") - self._baseline}

    def clear(self) -> dict[str, Any]:
        """Drops all forms and torch.compile's caches, because torch.compile stops compiling after several shapes."""
        self._calls.clear()
        self._arrays.clear()
        torch: Any = importlib.import_module("torch")
        torch._dynamo.reset()
        gc.collect()
        return {}

    def _torchvision(self) -> dict[str, Any]:
        """The version of torchvision, and whether its operators are compiled; if they are, they are used."""
        module: Any = importlib.import_module("benchmarks.torch_detection")
        operators = module.use_compiled_operators()
        return {"torchvision": importlib.metadata.version("torchvision"), "operators": operators}

    def _run(self, call: Callable[[], Any]) -> Any:
        result = call()
        self._wait()
        return result

    def _wait(self) -> None:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.synchronize()


if __name__ == "__main__":
    protocol.serve_process(lambda folder: Peers(folder).commands(), sys.argv[1:])
