"""The same kernels in PyTorch, on channels_last tensors, eager and compiled. Importing this imports torch."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]

# Conversion of NHWC maps, and of kernels of (transposed) convolutions (height, width, in, out), to torch's layout.
AXES = {"map": (0, 3, 1, 2), "conv": (3, 2, 0, 1), "transposed": (2, 3, 0, 1), "as is": None, "indices": (0, 3, 1, 2)}


@dataclasses.dataclass(frozen=True)
class TorchForm:
    """A kernel in torch: the function, and the layout of each input; outputs are maps."""

    function: Callable[..., Any]
    layouts: tuple[str, ...] = ("map",)


def to_device(platform: str) -> Any:
    """Torch's device for a platform of jax, with the same rounding of float32 products as in jax."""
    if platform == "gpu":
        # On a GPU, jax multiplies float32 in TF32 by default; torch does so only in convolutions.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    return torch.device("cpu")


def to_tensor(x: np.ndarray, device: Any, axes: Sequence[int] | None = AXES["map"], dtype: str | None = None) -> Any:
    """Copies an array to a tensor; axes are permuted, so that NHWC arrays become channels_last."""
    tensor = torch.from_numpy(np.array(x)).to(device)
    tensor = tensor if dtype is None else tensor.to(getattr(torch, dtype))
    return tensor if axes is None else tensor.permute(*axes)


def to_array(tensor: Any, axes: Sequence[int] | None = AXES["map"]) -> np.ndarray:
    """The inverse of `to_tensor`, in float32."""
    tensor = tensor.detach().float().cpu()
    return (tensor if axes is None else tensor.permute(*(axes.index(axis) for axis in range(len(axes))))).numpy()


def make_calls(
    name: str,
    inputs: Sequence[tuple[np.ndarray, str]],
    cotangent: tuple[np.ndarray, str],
    device: Any,
    *,
    backward: bool,
    compiled: bool,
) -> Callable[[], Any]:
    """A call without arguments that returns (outputs, gradients): lists of tensors; no gradients without `backward`.

    Args:
        name: name of the kernel.
        inputs: NHWC arrays, and their dtypes in torch.
        cotangent: of the first output, likewise.
        device: torch's device.
        backward: also compute the gradients of all float inputs.
        compiled: use torch.compile, on a GPU with max-autotune.
    """
    form = TORCH_FORMS[name]
    tensors = []
    for (x, dtype), layout in zip(inputs, form.layouts, strict=True):
        tensor = to_tensor(x, device, AXES[layout], dtype)
        if layout == "indices":
            tensor = _flat_indices(tensor)
        elif layout in ("conv", "transposed"):
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        tensors.append(tensor)
    function = form.function
    if compiled:
        mode = "max-autotune" if device.type == "cuda" else None
        function = torch.compile(function, mode=mode, dynamic=False)
    graphs = compiled and device.type == "cuda"

    def outputs_of() -> list[Any]:
        if graphs:
            torch.compiler.cudagraph_mark_step_begin()
        result = function(*tensors)
        return list(result) if isinstance(result, tuple) else [result]

    if not backward:

        def forward() -> tuple[list[Any], list[Any]]:
            with torch.no_grad():
                return outputs_of(), []

        return forward

    floats = [tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point()]
    given = to_tensor(cotangent[0], device, dtype=cotangent[1])

    def forward_and_backward() -> tuple[list[Any], list[Any]]:
        outputs = outputs_of()
        return outputs, list(torch.autograd.grad(outputs[0], floats, given))

    return forward_and_backward


def arrays_of(name: str, result: tuple[list[Any], list[Any]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Converts a call's result to NHWC arrays: the first output (others are other indices) and the gradients."""
    outputs, gradients = result
    layouts = [layout for layout in TORCH_FORMS[name].layouts if layout != "indices"]
    return [to_array(outputs[0])], [
        to_array(gradient, AXES[layout]) for gradient, layout in zip(gradients, layouts, strict=False)
    ]


def _flat_indices(indices: Any) -> Any:
    """Converts positions 0..3 in 2x2 windows to torch's positions in the plane."""
    height, width = indices.shape[2:]
    indices = indices.long()
    rows = torch.arange(height, device=indices.device).reshape(-1, 1) * 2 + indices // 2
    columns = torch.arange(width, device=indices.device) * 2 + indices % 2
    return (rows * (2 * width) + columns).contiguous(memory_format=torch.channels_last)


def _resize(mode: str, factor: int = 2, **options: Any) -> TorchForm:
    return TorchForm(lambda x: F.interpolate(x, scale_factor=factor, mode=mode, **options))


def _odd(x):
    size = (2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _resize_conv(x, kernel):
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), kernel, padding=1)


def _concat_conv(mode: str) -> TorchForm:
    options = {} if mode == "nearest" else {"align_corners": False}

    def function(x, skip, kernel):
        upsampled = F.interpolate(x, scale_factor=2, mode=mode, **options)
        return F.conv2d(torch.cat([upsampled, skip], 1), kernel, padding=1)

    return TorchForm(function, ("map", "map", "conv"))


def _carafe(x, masks):
    batch, channels, height, width = x.shape
    taps = masks.shape[1]
    unfolded = F.unfold(x, math.isqrt(taps), padding=math.isqrt(taps) // 2)
    unfolded = unfolded.reshape(batch, channels, taps, height, width)
    masks = masks.reshape(batch, taps, height, 2, width, 2)
    y = torch.einsum("bcthw,bthiwj->bchiwj", unfolded, masks)
    return y.reshape(batch, channels, 2 * height, 2 * width).contiguous(memory_format=torch.channels_last)


def _sample(x, positions):
    """grid_sample's coordinates are (x, y) from -1 at the left edge to 1 at the right, in the type of the maps."""
    height, width = x.shape[2:]
    rows, columns = positions.unbind(-1)
    grid = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], -1)
    return F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="border", align_corners=False).to(x.dtype)


TORCH_FORMS: dict[str, TorchForm] = {
    "nearest_x2": _resize("nearest"),
    "nearest_x4": _resize("nearest", 4),
    "bilinear_x2": _resize("bilinear", align_corners=False),
    "bilinear_x4": _resize("bilinear", 4, align_corners=False),
    "bilinear_align_corners_x2": _resize("bilinear", align_corners=True),
    "bilinear_odd": TorchForm(_odd),
    "bicubic_x2": _resize("bicubic", align_corners=False),
    "transposed_2x2": TorchForm(lambda x, kernel: F.conv_transpose2d(x, kernel, stride=2), ("map", "transposed")),
    "transposed_4x4": TorchForm(
        lambda x, kernel: F.conv_transpose2d(x, kernel, stride=2, padding=1), ("map", "transposed")
    ),
    "resize_conv": TorchForm(_resize_conv, ("map", "conv")),
    "pixel_shuffle": TorchForm(lambda x: F.pixel_shuffle(x, 2)),
    "max_pool_2x2_indices": TorchForm(lambda x: F.max_pool2d(x, 2, return_indices=True)),
    "max_pool_3x3_s2": TorchForm(lambda x: F.max_pool2d(x, 3, 2, 1)),
    "max_unpool": TorchForm(lambda x, indices: F.max_unpool2d(x, indices, (2, 2)), ("map", "indices")),
    "upsample_concat_conv_nearest": _concat_conv("nearest"),
    "upsample_concat_conv_bilinear": _concat_conv("bilinear"),
    "batch_norm_relu": TorchForm(
        lambda x, scale, bias: F.relu(F.batch_norm(x, None, None, scale, bias, True)), ("map", "as is", "as is")
    ),
    "conv_1x1": TorchForm(lambda x, kernel: F.conv2d(x, kernel), ("map", "conv")),
    **{
        f"depthwise_{size}x{size}": TorchForm(
            lambda x, kernel, size=size: F.conv2d(x, kernel, padding=size // 2, groups=x.shape[1]), ("map", "conv")
        )
        for size in (3, 7)
    },
    "carafe": TorchForm(_carafe, ("map", "map")),
    "dysample": TorchForm(_sample, ("map", "as is")),
}
"""The kernels of benchmarks.kernels by name."""
