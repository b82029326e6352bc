"""The parts of the GPU session in torch: the U-Net of segmentation_models_pytorch in channels_last and bfloat16.

A part only writes to the report that it receives; `benchmarks.gpu` runs them.
"""

import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.timing import wait_for

CLASSES = 8
PEAK = 1e-3
STEPS = 1_000_000  # length of the learning rate's cycle: all samples stay near its start


def shape_of(quick: bool) -> tuple[int, int, int]:
    """Batch, height and width of the images."""
    return (1, 64, 64) if quick else (16, 512, 512)


def masks(shape: tuple[int, ...]) -> np.ndarray:
    """Random classes, int32."""
    return np.random.default_rng(0).integers(0, CLASSES, shape, np.int32)


def has_cuda() -> bool:
    """Whether torch is installed and sees a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_available()


def inference(report: Any, encoder: str = "resnet34") -> None:
    """Eager, compiled with max-autotune, and also with constant weights, which folds the batch norms."""
    torch, device = _start(report)
    if device is None:
        return
    model = _unet(torch, device, report.quick, encoder).to(torch.bfloat16).eval()
    images = _images(torch, device, report.quick).to(torch.bfloat16)
    truth: list[Any] = []

    def make(mode: str | None, frozen: bool = False) -> tuple[Any, dict[str, Any]]:
        function = model if mode is None else torch.compile(model, mode=mode, dynamic=False)
        config: Any = importlib.import_module("torch._inductor.config")
        # Only cuDNN's convolutions: trying Triton's too takes minutes, and cuDNN won in 3 of 4 layers.
        options = {"freezing": frozen, "max_autotune_conv_backends": "ATEN"}
        # no_grad instead of inference_mode, because freezing needs it.
        with torch.no_grad(), config.patch(options):
            found, seconds = _timed(lambda: function(images).clone())
        truth.append(found)
        error = float((found - truth[0]).float().norm() / truth[0].float().norm())

        def call() -> Any:
            with torch.no_grad():
                return function(images)

        return call, {"compile_seconds": seconds, "error": error}

    forms: dict[str, Callable[[], Any]] = {"torch": lambda: make(None)}
    if not report.quick:
        forms["torch compiled, max-autotune, frozen"] = lambda: make("max-autotune", True)
        forms["torch compiled, max-autotune"] = lambda: make("max-autotune")
    else:
        forms["torch compiled"] = lambda: make("default")
    report.compare(_head("inference", report.quick, encoder), forms)


def training(report: Any, encoder: str = "resnet34") -> None:
    """A train step: eager and compiled with reduce-overhead, under autocast; then compiled with all in bfloat16."""
    torch, device = _start(report)
    if device is None:
        return
    images, target = _images(torch, device, report.quick), torch.from_numpy(masks(shape_of(report.quick))).long()
    target = target.to(device)

    def make(mode: str | None, autocast: bool = True) -> tuple[Any, dict[str, Any]]:
        model = _unet(torch, device, report.quick, encoder).train()
        model, x = (model, images) if autocast else (model.to(torch.bfloat16), images.to(torch.bfloat16))
        optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK / 25, weight_decay=1e-4, fused=True)
        function = model if mode is None else torch.compile(model, mode=mode, dynamic=False)

        def call() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16, enabled=autocast):
                loss = torch.nn.functional.cross_entropy(function(x).float(), target)
            loss.backward()
            optimizer.step()
            return loss.detach()

        loss, seconds = _timed(lambda: call().clone())
        return call, {"compile_seconds": seconds, "loss": float(loss)}

    mode = "default" if report.quick else "reduce-overhead"
    forms: dict[str, Callable[[], Any]] = {"torch, autocast": lambda: make(None)}
    forms[f"torch compiled, {mode}, autocast"] = lambda: make(mode)
    if not report.quick:
        forms[f"torch compiled, {mode}, all bfloat16"] = lambda: make(mode, autocast=False)
    report.compare(_head("training", report.quick, encoder), forms)


def _start(report: Any) -> tuple[Any, str | None]:
    """Returns torch and its device's name, or None with a note if the part cannot run."""
    torch: Any = report.attempt("torch is skipped", lambda: importlib.import_module("torch"))
    if torch is None:
        return None, None
    if not (torch.cuda.is_available() or report.quick):
        report.note("torch is skipped: this part needs a GPU, but torch sees none")
        return torch, None
    package = "segmentation_models_pytorch"
    if report.attempt("torch is skipped", lambda: importlib.import_module(package)) is None:
        return torch, None
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report.content["machine"] = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        report.content["machine"]["device"] = torch.cuda.get_device_name()
        torch.backends.cudnn.benchmark = True
        # jax multiplies float32 in TF32 by default.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch, device


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    wait_for(result)
    return result, time.perf_counter() - start


def _unet(torch: Any, device: str, quick: bool, encoder: str) -> Any:
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    torch.manual_seed(0)
    model = smp.Unet("resnet18" if quick else encoder, encoder_weights=None, classes=CLASSES)
    return model.to(device=device, memory_format=torch.channels_last)


def _images(torch: Any, device: str, quick: bool) -> Any:
    batch, height, width = shape_of(quick)
    x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return x.to(device=device, memory_format=torch.channels_last)


def _head(mode: str, quick: bool, encoder: str) -> dict[str, Any]:
    return {"model": f"unet:{encoder}", "mode": mode, "shape": [*shape_of(quick), 3]}
