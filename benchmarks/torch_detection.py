"""The operations of benchmarks.detection in torchvision, on contiguous tensors. Importing this imports torchvision."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torchvision  # pyright: ignore[reportMissingImports]


def use_compiled_operators() -> str:
    """Makes torchvision's RoIAlign call its compiled operator if there is one; gives "compiled" or "Python".

    torchvision decides this when it is imported, before a setup module can provide the operator.
    """
    if not torch._C._dispatch_has_kernel_for_dispatch_key("torchvision::roi_align", "CPU"):
        return "Python"
    roi_align: Any = importlib.import_module("torchvision.ops.roi_align")  # the module, which its function hides
    roi_align._has_ops = lambda: True
    return "compiled"


def make_call(
    kernel: str,
    inputs: Sequence[np.ndarray],
    device: Any,
    *,
    backward: bool,
    image_size: Sequence[int],
    threshold: float,
) -> Callable[[], list[Any]]:
    """A call without arguments that returns a list of tensors; with `backward`, also the gradients of the pyramid.

    Args:
        kernel: "nms" or "multiscale_roi_align".
        inputs: NHWC arrays from benchmarks.detection.
        device: torch's device.
        backward: also compute the gradients.
        image_size: (height, width).
        threshold: overlap threshold.
    """
    tensors = [torch.from_numpy(x).to(device) for x in inputs]
    if kernel == "nms":
        return lambda: [torchvision.ops.nms(*tensors, threshold)]
    *maps, boxes, cotangent = tensors
    pyramid = {str(n): x.permute(0, 3, 1, 2).contiguous().requires_grad_(backward) for n, x in enumerate(maps)}
    pool = torchvision.ops.MultiScaleRoIAlign(list(pyramid), cotangent.shape[2], 2)
    given = cotangent.flatten(0, 1).permute(0, 3, 1, 2).contiguous()

    def call() -> list[Any]:
        y = pool(pyramid, list(boxes), [tuple(image_size)] * len(boxes))
        return [y, *(torch.autograd.grad(y, list(pyramid.values()), given) if backward else ())]

    return call


def arrays_of(kernel: str, result: Sequence[Any]) -> list[np.ndarray]:
    """Converts a call's result to the arrays of benchmarks.detection, for one image."""
    if kernel == "nms":
        return [result[0].cpu().numpy()]
    y, *gradients = (x.detach().cpu().permute(0, 2, 3, 1).numpy() for x in result)
    return [y[None], *gradients]
