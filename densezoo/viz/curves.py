"""Training curves from a log."""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from densezoo.viz.colors import palette

_RATES = ("learning_rate", "lr")
_NOT_SHOWN = ("step", "epoch", "time", "seconds", "images_per_second", "input_wait", "recompilations")
_SMOOTHED = ("loss", "reported", "gradient norm")
_TRAINING = (*_SMOOTHED, "learning rate")
_OF_CLASSES = "of each class"
_Y_LABELS = {
    "loss": "loss on training batches",
    "reported": "value on training batches",
    "gradient norm": "norm of the loss's gradient",
    "learning rate": "learning rate",
    "scores": "score on validation data",
}
_SHORT = 100  # a curve with at most this many records is not smoothed
_SPELT = {"iou": "IoU", "dice": "Dice"}
_LEGEND = 16  # the maximum number of curves in a panel's legend
_PER_LINE = 3
_COLOURS = [5, 6, 3, 7, 1, 2]  # indices of the palette's colours that are visible on white
_DASHES = ["-", "--", ":", "-."]
Curve = tuple[list[float], list[float]]
"""Steps, and values."""


def training_curves(log: str | Path | Iterable[Mapping[str, Any]], *, smoothing: float | None = None) -> Figure:
    """Draws a training log: a panel each for the losses, scores, learning rate and gradient norm that it contains.

    Training records are flat, such as `{"step": 10, "loss": 0.7}`. Evaluation records have their scores in a mapping,
    such as `{"step": 50, "scores": {"mean_iou": 0.6}}`. Other values that a loss reports get panels of their own. If
    there is a score `mean_iou`, the scores `iou_<class>` also get a panel, with the mean as a bold line on top; other
    means work in the same way. Lines that are not such records (the last line of an interrupted run) are ignored, and
    so are NaN and infinite values.

    Args:
        log: a `log.jsonl`, the directory that contains it, or the records that `train.fit` returns.
        smoothing: decay of the exponential moving average that is drawn as a thin black line over a training curve. 0
            draws none. By default 0.9 for curves of more than 100 records, and none for shorter ones.

    Returns:
        A matplotlib figure, for `viz.save`.

    Raises:
        FileNotFoundError: if there is no such log.
        ValueError: if the log has no records, or `smoothing` is not within [0, 1).

    Example:
        >>> records = [{"step": step, "loss": 1 / step} for step in range(1, 9)] + [{"step": 8, "scores": {"iou": 0.6}}]
        >>> [axes.get_title() for axes in training_curves(records).axes]
        ['loss', 'scores']
    """
    if smoothing is not None and not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be at least 0 and less than 1; got {smoothing}")
    panels = _panels(_records(log))
    if not panels:
        named = f"the log {log}" if isinstance(log, str | Path) else "the log"
        raise ValueError(f'{named} has no record such as {{"step": 10, "loss": 0.7}}')
    lines = -(-len(panels) // _PER_LINE)
    columns = -(-len(panels) // lines)
    figure = Figure(figsize=(4.2 * columns, 3.2 * lines), layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        _draw(axes, title, curves, smoothing)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def _draw(axes: Any, title: str, curves: dict[str, Curve], smoothing: float | None) -> None:
    of_training, of_classes = title in _TRAINING, title.endswith(_OF_CLASSES)
    # Means come first in the legend. The first one, mean IoU for segmentation, is black and above all other lines.
    ordered = dict(sorted(curves.items(), key=lambda item: not item[0].startswith("mean_")))
    for number, (name, (steps, values)) in enumerate(ordered.items()):
        first_mean = number == 0 and name.startswith("mean_")
        bold = first_mean or not of_classes
        axes.plot(
            steps,
            values,
            color="black" if first_mean else tuple(palette(8)[_COLOURS[number % len(_COLOURS)]] / 255),
            linestyle=_DASHES[number // len(_COLOURS) % len(_DASHES)],
            linewidth=1.9 if bold else 1.1,
            marker="o" if len(steps) == 1 or not of_training else "",
            markersize=4 if bold else 2.5,
            zorder=4 if first_mean else 3,
            label=name,
        )
        keep = (0.9 if len(steps) > _SHORT else 0.0) if smoothing is None else smoothing
        if title in _SMOOTHED and keep > 0 and len(steps) > 3:
            label = f"{name}, moving average ({keep:g})"
            axes.plot(steps, _smoothed(values, keep), color="black", linewidth=1.0, zorder=4, label=label)
    axes.set_title(title, fontsize=11)
    axes.set_xlabel("training step")
    axes.set_ylabel(_Y_LABELS.get(title) or f"{title.removesuffix(_OF_CLASSES).strip()} on validation data")
    every = [value for _, values in curves.values() for value in values]
    if not of_training and min(every) >= 0 and max(every) <= 1:
        axes.set_ylim(-0.02, 1.02)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles = axes.get_legend_handles_labels()[0]
    if len(handles) > 1 or title in ("scores", "reported"):
        # With many entries the legend is beside the axes, so that it hides no curve.
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5), "frameon": False}
        axes.legend(
            handles=handles[:_LEGEND],
            title=f"{_LEGEND} of {len(handles)}" if len(handles) > _LEGEND else None,
            fontsize=9,
            **(beside if len(handles) > 4 else {"loc": "best"}),
        )


def _records(log: str | Path | Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if isinstance(log, str | Path):
        path = Path(log) / "log.jsonl" if Path(log).is_dir() else Path(log)
        if not path.is_file():
            raise FileNotFoundError(f"there is no log {path}: pass a log.jsonl or the directory of a run")
        log = [
            record
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
            if (record := _parse(line))
        ]
    return [record for record in log if isinstance(record, Mapping) and _finite(record.get("step"))]


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # also numbers of thousands of digits
        return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _panels(records: list[Mapping[str, Any]]) -> dict[str, dict[str, Curve]]:
    """Titles of panels, each with its named curves, without empty panels."""
    panels: dict[str, dict[str, Curve]] = {}
    for record in records:
        values = [(_panel(name), name, value) for name, value in record.items() if name not in _NOT_SHOWN]
        for title, name, value in [*values, *_score_values(record)]:
            if _finite(value):
                steps, curve = panels.setdefault(title, {}).setdefault(name, ([], []))
                steps.append(float(record["step"]))
                curve.append(float(value))
    of_classes = sorted(title for title in panels if title.endswith(_OF_CLASSES))
    order = ["loss", "reported", "scores", *of_classes, "learning rate", "gradient norm"]
    return {title: panels[title] for title in order if title in panels}


def _score_values(record: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """Panel, name and value of each score; a mean over classes is in two panels."""
    scores = {name: value for key in record if isinstance(record[key], Mapping) for name, value in record[key].items()}
    values = []
    for kind in [name.removeprefix("mean_") for name in scores if name.startswith("mean_")]:
        classes = [name for name in scores if name.startswith(f"{kind}_")]
        title = f"{_SPELT.get(kind, kind)} {_OF_CLASSES}"
        if classes:
            values.append((title, f"mean_{kind}", scores[f"mean_{kind}"]))
        values += [(title, name.removeprefix(f"{kind}_"), scores.pop(name)) for name in classes]
    return values + [("scores", name, value) for name, value in scores.items()]


def _panel(name: str) -> str:
    if name in _RATES:
        return "learning rate"
    if name == "grad_norm":
        return "gradient norm"
    return "loss" if "loss" in name else "reported"


def _smoothed(values: list[float], keep: float) -> list[float]:
    """Exponential moving average, normalised by the sum of its weights, so that the start is not biased to zero."""
    total = weight = 0.0
    means = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means
