"""The project's performance goals, evaluated on the result files."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.models import MODELS
from benchmarks.record import COMPILED, DEPLOYED, OWN, markdown_table, ratio_to
from benchmarks.timing import geometric_mean

Row = Mapping[str, Any]
Value = Callable[[Row, Mapping[str, Any]], float | None]
"""The number that a row of a result has for a goal; None if it has none."""

BANDWIDTH_BOUND = (
    "nearest_x2",
    "nearest_x4",
    "bilinear_x2",
    "bilinear_x4",
    "bilinear_align_corners_x2",
    "bilinear_odd",
    "bicubic_x2",
    "pixel_shuffle",
    "max_unpool",
)
KERNELS = (
    "transposed_2x2",
    "transposed_4x4",
    "max_pool_3x3_s2",
    "depthwise_3x3",
    "upsample_concat_conv_bilinear",
    "conv_1x1",
    "dysample",
)
TORCH = ("torch", *COMPILED)

_TOPICS = {
    "models": "Speed of inference",
    "training": "Speed of train steps",
    "memory": "Peak memory",
    "upsampling": "Single kernels",
    "detectors": "Detectors",
    "detection": "Detectors",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A goal.

    Attributes:
        what: description.
        mode: mode of the relevant result files.
        select: required values of a row's fields; a tuple allows any of several values.
        value: returns the number of a row.
        limit: the limit for the number.
        mean: whether the geometric mean of the rows counts; otherwise the worst row.
        at_least: whether the limit is a minimum or a maximum.
        platform: jax's platform.
        dtype: dtype of the file; None for any.
        kind: "ratio" (written 1.23), "share" (written 80%), "seconds".
    """

    what: str
    mode: str
    select: Mapping[str, Any]
    value: Value
    limit: float
    mean: bool = False
    at_least: bool = False
    platform: str = "cpu"
    dtype: str | None = "float32"
    kind: str = "ratio"

    @property
    def topic(self) -> str:
        """The heading of the document under which a missed goal is explained."""
        if self.platform == "gpu":
            return "On a GPU"
        return "Time to compile" if self.kind == "seconds" else _TOPICS[self.mode]


def over(*forms: str) -> Value:
    """The time over that of the fastest measured form among some."""
    return lambda row, result: ratio_to(row, *forms)


def faster_than(*forms: str) -> Value:
    """The speed-up over the fastest measured form among some."""

    def value(row: Row, result: Mapping[str, Any]) -> float | None:
        found = ratio_to(row, *forms)
        return None if found is None else 1 / found

    return value


def total(*fields: str) -> Value:
    """The sum of some fields."""

    def value(row: Row, result: Mapping[str, Any]) -> float | None:
        return sum(row[field] for field in fields) if all(row.get(field) is not None for field in fields) else None

    return value


def memory_over(*forms: str) -> Value:
    """The peak memory over the minimum of some forms for the same model."""

    def value(row: Row, result: Mapping[str, Any]) -> float | None:
        keys = ("model", "mode", "shape")
        others = [
            other["peak_bytes"]
            for other in result["rows"]
            if other["form"] in forms and "peak_bytes" in other and all(other[key] == row[key] for key in keys)
        ]
        return row["peak_bytes"] / min(others) if others and "peak_bytes" in row else None

    return value


_OWN = {"form": OWN}
_ZOO = {"form": OWN, "model": MODELS}
_TRANSFORMERS = tuple(f"transformers:{name}" for name in ("depth_anything_small", "dpt_dinov2_small", "segformer_b0"))
_UNET = {"model": "unet:resnet34", "form": OWN}
_GPU: Mapping[str, Any] = {"platform": "gpu", "dtype": "bfloat16", "at_least": True}

TARGETS = (
    Target(
        "inference, each model over the fastest of torch.compile, onnxruntime, OpenVINO",
        "models",
        _ZOO,
        over(*DEPLOYED),
        1.0,
    ),
    Target("the same, geometric mean", "models", _ZOO, over(*DEPLOYED), 0.85, mean=True),
    Target("inference over torch.compile, geometric mean", "models", _ZOO, over(*COMPILED), 0.65, mean=True),
    Target(
        "inference in bfloat16 over our float32, geometric mean",
        "models",
        _ZOO,
        over(f"{OWN}, float32"),
        0.5,
        mean=True,
        dtype="bfloat16",
    ),
    Target(
        "inference in bfloat16 over OpenVINO's, geometric mean",
        "models",
        _ZOO,
        over("openvino"),
        1.0,
        mean=True,
        dtype="bfloat16",
    ),
    Target("train step, each model over the better of torch eager and compiled", "training", _ZOO, over(*TORCH), 0.95),
    Target("the same for training, geometric mean", "training", _ZOO, over(*TORCH), 0.85, mean=True),
    Target(
        "Depth Anything and DPT with a ViT-S, and SegFormer-B0, over the faster of torch.compile and OpenVINO",
        "models",
        {"form": OWN, "model": _TRANSFORMERS},
        over(*COMPILED, "openvino"),
        0.9,
    ),
    *(
        Target(
            f"{what} over the better of torch eager and compiled",
            mode,
            {"form": OWN, "model": model},
            over(*TORCH),
            limit,
        )
        for what, mode, model, limit in (
            ("a denoising step of DDPM CIFAR-10's network, 8x32x32,", "models", "diffusers:ddpm_cifar10", 0.8),
            ("its train step", "training", "diffusers:ddpm_cifar10", 0.9),
            ("train step of a siamese U-Net-ResNet18, 4 pairs of 256x256,", "training", "siamese_unet:resnet18", 0.9),
        )
    ),
    *(
        Target(
            f"peak memory of {mode}, each model over the least of torch's",
            "memory",
            {**_OWN, "mode": mode},
            memory_over(*TORCH),
            1.0,
        )
        for mode in ("inference", "training")
    ),
    Target(
        "compiling the train step of U-Net-ResNet34",
        "training",
        _UNET,
        total("trace_seconds", "compile_seconds"),
        6.0,
        kind="seconds",
    ),
    Target(
        "the same with the persistent cache",
        "training",
        _UNET,
        total("cached_trace_seconds", "cached_compile_seconds"),
        1.5,
        kind="seconds",
    ),
    Target(
        "compiling the train step of HRNet-W18, 2x256x256",
        "compilation",
        {"model": "hrnet", "encoder": "hrnet_w18", "remat": False},
        lambda row, result: sum(row["train_step"]),
        30.0,
        kind="seconds",
    ),
    *(
        Target(
            f"{kernel}, 4x64x64x64, forward and backward, over the better of torch eager and compiled",
            "upsampling",
            {"kernel": kernel, "mode": "forward+backward", "form": "auto", "shape": [4, 64, 64, 64]},
            over("torch", "torch.compile"),
            1.0,
        )
        for kernel in KERNELS
    ),
    Target(
        "detectors, image to detections, over the better of torchvision eager and compiled",
        "detectors",
        {"form": OWN, "mode": "inference"},
        over(*TORCH),
        0.8,
    ),
    Target(
        "train step of Faster R-CNN over torchvision eager",
        "detectors",
        {"form": OWN, "mode": "training"},
        over("torch"),
        0.9,
    ),
    *(
        Target(
            f"compiling {what}",
            "detectors",
            {"form": OWN, "mode": mode},
            total("trace_seconds", "compile_seconds"),
            limit,
            kind="seconds",
        )
        for what, mode, limit in (
            ("the inference of a detector", "inference", 6.0),
            ("the train step of Faster R-CNN", "training", 20.0),
        )
    ),
    Target(
        "non-maximum suppression of 100, 1,000 and 10,000 boxes over torchvision",
        "detection",
        {"kernel": "nms", "form": "auto"},
        over("torch"),
        1.5,
    ),
    Target(
        "RoIAlign of 512 boxes, 7x7, forward and backward, over torchvision",
        "detection",
        {"kernel": "multiscale_roi_align", "mode": "forward+backward", "form": "auto"},
        over("torch"),
        1.0,
    ),
    Target(
        "kernels bound by bandwidth, forward alone and with backward: share of the copy bandwidth",
        "upsampling",
        {"form": "auto", "kernel": BANDWIDTH_BOUND},
        lambda row, result: row.get("bandwidth_share"),
        0.8,
        kind="share",
        **_GPU,
    ),
    *(
        Target(
            f"U-Net-ResNet{depth} 512x512 {what}: times faster than {title}",
            mode,
            {"model": f"unet:resnet{depth}", "form": OWN, "side": 512},
            faster_than(*forms),
            1.2,
            **_GPU,
        )
        for depth in (34, 50)
        for what, mode, title, forms in (
            ("inference", "models", "torch eager", ("torch",)),
            ("inference", "models", "torch.compile", COMPILED),
            ("train step", "training", "the better of torch eager and compiled", TORCH),
        )
    ),
)
"""All goals."""


def reached(target: Target, result: Mapping[str, Any]) -> list[float]:
    """The numbers that a result file has for a goal, the worst first; empty if it is not relevant.

    Example:
        >>> target = Target("", "models", {"form": "auto"}, lambda row, result: row["x"], 1.0)
        >>> rows = [{"form": "auto", "x": 0.5}, {"form": "auto", "x": 2.0}, {"form": "torch", "x": 9.0}]
        >>> machine = {"platform": "cpu"}
        >>> reached(target, {"mode": "models", "dtype": "float32", "machine": machine, "rows": rows})
        [2.0, 0.5]
    """
    fits = result["machine"]["platform"] == target.platform and result["mode"] == target.mode
    if not fits or target.dtype not in (None, result["dtype"]):
        return []
    rows = [row for row in result["rows"] if "left_out" not in row and _selected(row, target.select)]
    values = [value for row in rows if (value := target.value(row, result)) is not None]
    return sorted(values, reverse=not target.at_least)


def goals_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats the goals as a Markdown table: target, what each relevant file reached, and the file."""
    lines = []
    for target in TARGETS:
        dtype = f", {target.dtype}" if target.dtype else ""
        head = (target.what, target.platform.upper() + dtype, _limit(target))
        found = _found(target, results)
        for name, values in found:
            value, met = _counted(target, values)
            ends = f"{_text(target, values[0])}; best {_text(target, values[-1])}"
            if target.mean:
                others = f" (of {len(values)}; worst {ends})"
            else:
                others = f" (worst of {len(values)}; best {_text(target, values[-1])})" if len(values) > 1 else ""
            lines.append((*head, _text(target, value) + others, "yes" if met else "no", f"`{name}`"))
        if not found:
            lines.append((*head, "not measured", "-", "-"))
    return markdown_table(("what", "on", "target", "reached", "met", "from"), lines)


def missed_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The goals that were measured and missed, by the headings under which the document explains them."""
    lines = []
    for target in TARGETS:
        for _, values in _found(target, results):
            value, met = _counted(target, values)
            if not met:
                lines.append((target.topic, target.what, _text(target, value), _limit(target)))
    return markdown_table(("explained under", "goal", "reached", "target"), lines) if lines else "None was missed."


def _found(target: Target, results: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """The numbers of each relevant file for a goal."""
    return [(name, values) for name, result in results.items() if (values := reached(target, result))]


def _counted(target: Target, values: list[float]) -> tuple[float, bool]:
    """The number that counts for a goal, and whether the goal is met."""
    value = geometric_mean(values) if target.mean else values[0]
    return value, value >= target.limit if target.at_least else value <= target.limit


def _limit(target: Target) -> str:
    return f"{'at least' if target.at_least else 'at most'} {_text(target, target.limit)}"


def _selected(row: Row, select: Mapping[str, Any]) -> bool:
    for key, wanted in select.items():
        found = row["shape"][1] if key == "side" else row.get(key)
        if found not in wanted if isinstance(wanted, tuple) else found != wanted:
            return False
    return True


def _text(target: Target, value: float) -> str:
    if target.kind == "share":
        return f"{value:.0%}"
    return f"{value:.1f} s" if target.kind == "seconds" else f"{value:.2f}"
