"""Curves of a training from its log."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from densezoo.viz.colors import palette

_RATES = ("learning_rate", "lr")
_NOT_SHOWN = ("step", "epoch", "time", "seconds", "images_per_second", "input_wait", "recompilations")
_LEGEND = 16  # the most curves that a panel's legend names
Curve = tuple[list[float], list[float]]
"""Steps, and values."""


def training_curves(log: str | Path | Iterable[Mapping[str, Any]], *, smoothing: float = 0.6) -> Figure:
    """Draws the log of a training: losses, scores, learning rate, gradient norm; a panel for each that the log has.

    Training records are flat, such as `{"step": 10, "loss": 0.7}`; evaluation records have their scores in a mapping,
    such as `{"step": 50, "scores": {"mean_iou": 0.6}}`. What else a loss reports has a panel of its own. Lines that are
    not such records (the last one of a run that was killed) are left out, and so are values that are not finite.

    Args:
        log: a `log.jsonl`, the directory that has it, or the records that `train.fit` returns.
        smoothing: how much of the mean so far stays at each record of a training curve; 0 shows the values as they are.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        FileNotFoundError: if there is no such log.
        ValueError: if it has no record, or `smoothing` is not within [0, 1).

    Example:
        >>> records = [{"step": step, "loss": 1 / step} for step in range(1, 9)] + [{"step": 8, "scores": {"iou": 0.6}}]
        >>> [axes.get_title() for axes in training_curves(records).axes]
        ['loss', 'scores']
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is at least 0 and less than 1, got {smoothing}")
    panels = _panels(_records(log))
    if not panels:
        raise ValueError('the log has no record such as {"step": 10, "loss": 0.7}')
    colours = [tuple(colour / 255) for colour in palette(24)[[5, 6, 3, 7, 1, 2, *range(8, 24)]]]
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained", facecolor="white")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        smooth = title in ("loss", "reported", "gradient norm") and smoothing > 0
        for number, (name, (steps, values)) in enumerate(curves.items()):
            colour = colours[number % len(colours)]
            if smooth and len(steps) > 3:
                axes.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
                values = _smoothed(values, smoothing)
            marker = "o" if len(steps) == 1 or title == "scores" else ""
            axes.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=4, label=name)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1 or title in ("scores", "reported"):
            # Beside the axes, so that it hides none of many curves.
            handles = axes.get_legend_handles_labels()[0]
            title = f"{_LEGEND} of {len(handles)}" if len(handles) > _LEGEND else None
            axes.legend(
                handles=handles[:_LEGEND],
                title=title,
                fontsize=8,
                frameon=False,
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
            )
    return figure


def _records(log: str | Path | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if isinstance(log, str | Path):
        path = Path(log) / "log.jsonl" if Path(log).is_dir() else Path(log)
        if not path.is_file():
            raise FileNotFoundError(f"there is no log {path}: give a log.jsonl or the directory of a run")
        log = [
            record
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if (record := _parse(line))
        ]
    return [record for record in log if isinstance(record, Mapping) and _finite(record.get("step"))]


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _panels(records: list[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Titles of panels, each with its named curves; those without any left out."""
    panels: dict[str, dict[str, Curve]] = {
        title: {} for title in ("loss", "reported", "scores", "learning rate", "gradient norm")
    }
    for record in records:
        scores = {
            name: value for key in record if isinstance(record[key], Mapping) for name, value in record[key].items()
        }
        values = [("scores", name, value) for name, value in scores.items()]
        values += [(_panel(name), name, value) for name, value in record.items() if name not in _NOT_SHOWN]
        for title, name, value in values:
            if _finite(value):
                steps, curve = panels[title].setdefault(name, ([], []))
                steps.append(float(record["step"]))
                curve.append(float(value))
    return {title: curves for title, curves in panels.items() if curves}


def _panel(name: str) -> str:
    if name in _RATES:
        return "learning rate"
    if name == "grad_norm":
        return "gradient norm"
    return "loss" if "loss" in name else "reported"


def _smoothed(values: list[float], keep: float) -> list[float]:
    """Exponential moving average, each the weighted mean of the values so far (so the start is not drawn to zero)."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means
