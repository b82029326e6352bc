"""The goals that the project set itself, and what the result files say of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.record import markdown_table

Row = Mapping[str, Any]

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


@dataclasses.dataclass(frozen=True)
class Target:
    """A goal.

    Attributes:
        what: in words.
        platform: of jax.
        mode: of the result files that can tell.
        select: fields that a row must have with these values; a tuple stands for any of several values.
        value: the number that a row gives; None if it has none.
        limit: what the number is to be.
        at_least: whether it is to be that or more, or that or less.
        dtype: of the file; None for any.
        kind: "ratio" (written 1.23), "share" (written 80%), "seconds".
    """

    what: str
    platform: str
    mode: str
    select: Mapping[str, Any]
    value: Callable[[Row], float | None]
    limit: float
    at_least: bool = False
    dtype: str | None = None
    kind: str = "ratio"


def ratio_to(*baselines: str) -> Callable[[Row], float | None]:
    """The time over that of the first of some baselines that was measured."""

    def value(row: Row) -> float | None:
        return next((row["ratios"][b]["median"] for b in baselines if b in row["ratios"]), None)

    return value


def faster_than(*baselines: str) -> Callable[[Row], float | None]:
    """How many times faster than the first of some baselines that was measured."""
    ratio = ratio_to(*baselines)

    def value(row: Row) -> float | None:
        found = ratio(row)
        return None if found is None else 1 / found

    return value


def total(*fields: str) -> Callable[[Row], float | None]:
    """The sum of some fields."""

    def value(row: Row) -> float | None:
        return sum(row[field] for field in fields) if all(row.get(field) is not None for field in fields) else None

    return value


_UNET = {"model": "unet:resnet34", "shape": [4, 256, 256]}
_BOTH = {"mode": "forward+backward", "form": "auto", "shape": [4, 64, 64, 64]}
_LARGE = {"model": ("unet:resnet34", "unet:resnet50")}
_COMPILED = ("torch compiled",)

TARGETS = (
    Target(
        "U-Net-ResNet34 4x256x256 inference, folded, over torch.compile",
        "cpu",
        "models",
        {**_UNET, "form": "auto, folded"},
        ratio_to(*_COMPILED),
        1.1,
    ),
    Target(
        "U-Net-ResNet34 4x256x256 train step over torch",
        "cpu",
        "training",
        {**_UNET, "form": "auto"},
        ratio_to("torch"),
        1.2,
    ),
    Target(
        "every decoder, inference, folded, over torch.compile",
        "cpu",
        "decoders",
        {"form": "auto, folded"},
        ratio_to(*_COMPILED),
        1.2,
    ),
    Target(
        "nearest and bilinear x2, forward and backward: faster than jax.image.resize",
        "cpu",
        "upsampling",
        {**_BOTH, "kernel": ("nearest_x2", "bilinear_x2")},
        faster_than("jax"),
        5.0,
        at_least=True,
    ),
    *(
        Target(
            f"{name} x2, forward and backward, over torch",
            "cpu",
            "upsampling",
            {**_BOTH, "kernel": kernel},
            ratio_to("torch"),
            limit,
        )
        for name, kernel, limit in (
            ("bilinear", "bilinear_x2", 1.5),
            ("bilinear align-corners", "bilinear_align_corners_x2", 1.6),
            ("nearest", "nearest_x2", 1.1),
        )
    ),
    Target(
        "max-unpool, forward and backward: faster than torch",
        "cpu",
        "upsampling",
        {**_BOTH, "kernel": "max_unpool"},
        faster_than("torch"),
        2.0,
        at_least=True,
    ),
    Target(
        "compiling a train step of U-Net-ResNet34",
        "cpu",
        "training",
        {**_UNET, "form": "auto"},
        total("trace_seconds", "compile_seconds"),
        6.0,
        kind="seconds",
    ),
    Target(
        "compiling it with the persistent cache",
        "cpu",
        "training",
        {**_UNET, "form": "auto"},
        total("cached_trace_seconds", "cached_compile_seconds"),
        1.0,
        kind="seconds",
    ),
    Target(
        "bandwidth-bound kernels, forward and backward: share of the copy bandwidth",
        "gpu",
        "upsampling",
        {"form": "auto", "kernel": BANDWIDTH_BOUND},
        lambda row: row.get("bandwidth_share"),
        0.8,
        at_least=True,
        dtype="bfloat16",
        kind="share",
    ),
    *(
        Target(
            f"U-Net-ResNet34 and 50 512x512 {what}: faster than torch.compile, max-autotune",
            "gpu",
            mode,
            {**_LARGE, "form": form, "side": 512},
            faster_than(*_COMPILED),
            1.2,
            at_least=True,
            dtype="bfloat16",
        )
        for what, mode, form in (("inference", "models", "auto, folded"), ("train step", "training", "auto"))
    ),
    Target(
        "decoder: faster than our reference implementation",
        "gpu",
        "decoders",
        {"form": "auto"},
        faster_than("reference"),
        1.4,
        at_least=True,
        dtype="bfloat16",
    ),
)
"""All goals; where several rows are asked for, the worst counts."""


def reached(target: Target, result: Mapping[str, Any]) -> list[float]:
    """The numbers that a result file has for a goal, the worst first; none if it does not tell.

    Example:
        >>> target = Target("", "cpu", "models", {"form": "auto"}, lambda row: row["x"], 1.0)
        >>> rows = [{"form": "auto", "x": 0.5}, {"form": "auto", "x": 2.0}, {"form": "torch", "x": 9.0}]
        >>> machine = {"platform": "cpu"}
        >>> reached(target, {"mode": "models", "dtype": "float32", "machine": machine, "rows": rows})
        [2.0, 0.5]
    """
    fits = result["machine"]["platform"] == target.platform and result["mode"] == target.mode
    if not fits or target.dtype not in (None, result["dtype"]):
        return []
    rows = [row for row in result["rows"] if "skipped" not in row and _selected(row, target.select)]
    values = [value for row in rows if (value := target.value(row)) is not None]
    return sorted(values, reverse=not target.at_least)


def goals_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The goals as a Markdown table: target, what each file that tells reached, and the file."""
    lines = []
    for target in TARGETS:
        sign = "at least" if target.at_least else "at most"
        head = (target.what, target.platform.upper(), f"{sign} {_text(target, target.limit)}")
        found = [(name, values) for name, result in results.items() if (values := reached(target, result))]
        for name, values in found:
            met = values[0] >= target.limit if target.at_least else values[0] <= target.limit
            others = f" (worst of {len(values)}; best {_text(target, values[-1])})" if len(values) > 1 else ""
            lines.append((*head, _text(target, values[0]) + others, "yes" if met else "no", f"`{name}`"))
        if not found:
            lines.append((*head, "not measured", "-", "-"))
    return markdown_table(("what", "on", "target", "reached", "met", "from"), lines)


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
