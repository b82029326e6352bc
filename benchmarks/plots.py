"""Pictures of results: time against size, and the roofline."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from densezoo.viz.colors import palette

MODE_MARKERS = {"forward": "o", "forward+backward": "s", "inference": "o", "training": "s"}
FORM_LINES: dict[str, Any] = {"torch": "--", "jax": ":", "reference": ":"}


def colours(count: int) -> list[Any]:
    """Colours of lines on white."""
    size = max(8, count + 2)
    order = [5, 6, 3, 7, 1, 2, *range(8, size)]
    return [tuple(colour / 255) for colour in palette(size)[order]][:count]


def size_figure(result: Mapping[str, Any]) -> Figure | None:
    """Time and peak memory against the pixels of a sweep, in logarithmic axes; None if it measured nothing.

    A column for the sizes at batch 1 and one for the batches; solid lines are densezoo's, dashed ones torch's, dotted
    ones plain JAX's. A grey line shows what is linear in pixels.
    """
    rows = [row for row in result["rows"] if "milliseconds" in row]
    if not rows:
        return None
    named = [(row.get("kernel") or row["model"]) for row in rows]
    names = list(dict.fromkeys(named))
    colour = dict(zip(names, colours(len(names)), strict=True))
    mode = rows[0]["mode"] if len({row["mode"] for row in rows}) == 1 else "forward+backward"
    figure = Figure(figsize=(10.5, 7), layout="constrained", facecolor="white")
    axes = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, series in enumerate(("pixels", "batch")):
        for name in names:
            for form in dict.fromkeys(row["form"] for row in rows):
                members = [
                    row
                    for row, its_name in zip(rows, named, strict=True)
                    if (its_name, row["form"], row["series"], row["mode"]) == (name, form, series, mode)
                ]
                style = {"color": colour[name], "linestyle": FORM_LINES.get(form, "-"), "linewidth": 1.6}
                if len(members) > 1:
                    style |= {"marker": "o", "markersize": 3.5}
                    pixels = [row["pixels"] for row in members]
                    axes[0, column].plot(pixels, [row["milliseconds"]["median"] for row in members], **style)
                    peaks = [row.get("peak_bytes") for row in members]
                    if form in ("auto", "auto, folded") and all(peaks):
                        axes[1, column].plot(pixels, [peak / 2**20 for peak in peaks], **style)
        for row in range(2):
            _linear_guide(axes[row, column])
            axes[row, column].grid(alpha=0.25)
            axes[row, column].spines[["top", "right"]].set_visible(False)
        axes[0, column].set_title(
            {"pixels": "one image, growing", "batch": "a growing batch of small images"}[series], fontsize=11
        )
        ticks = {row["pixels"]: str(row["size"]) for row in rows if row["series"] == series}
        axes[1, column].set_xticks(list(ticks), list(ticks.values()))
        axes[1, column].set_xticks([], minor=True)
        axes[1, column].set_xlabel({"pixels": "pixels a side", "batch": "images"}[series])
    axes[0, 0].set_ylabel(f"{mode}, ms")
    axes[1, 0].set_ylabel("peak memory (XLA), MiB")
    handles = [Line2D([], [], color=colour[name], label=name) for name in names]
    forms = dict.fromkeys(row["form"] for row in rows)
    handles += [Line2D([], [], color="black", linestyle=FORM_LINES.get(form, "-"), label=form) for form in forms]
    handles.append(Line2D([], [], color="0.6", linewidth=1, label="linear"))
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(title_of(result), fontsize=11)
    return figure


def roofline_figure(result: Mapping[str, Any]) -> Figure | None:
    """Each kernel's share of the roofline, and the roofline itself with the kernels that compute; None without rows."""
    rows = [row for row in result["rows"] if row.get("form") == "auto" and "roofline_share" in row]
    if not rows:
        return None
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    colour = dict(zip(modes, colours(len(modes)), strict=True))
    figure = Figure(figsize=(11.5, 0.27 * len(names) + 2.2), layout="constrained", facecolor="white")
    shares, roof = figure.subplots(1, 2)
    for row in rows:
        up = -0.14 if row["mode"] == modes[0] else 0.14
        style = {"color": colour[row["mode"]], "marker": MODE_MARKERS[row["mode"]], "s": 16, "linewidths": 0}
        shares.scatter(row["roofline_share"], names.index(row["kernel"]) + up, alpha=0.8, **style)
        if row["flops"]:
            roof.scatter(row["flops"] / row["bytes"], row["flops_per_second"] / 1e9, alpha=0.8, **style)
    shares.axvline(1, color="black", linewidth=1)
    shares.set_yticks(range(len(names)), names, fontsize=8)
    shares.invert_yaxis()
    shares.set_xscale("log")
    shares.set_xlabel("share of the roofline (1: as fast as a copy or a matrix product)")
    shares.grid(alpha=0.25)
    limits, dtype = result["limits"], result["dtype"]
    peak = limits["matmul_peak"].get(dtype, limits["matmul_peak"]["float32"]) / 1e9
    bandwidth = limits["copy_bandwidth"] / 1e9
    furthest = max([row["flops"] / row["bytes"] for row in rows] + [10 * peak / bandwidth])
    intensity = np.geomspace(0.02, 1.5 * furthest, 100)
    roof.plot(intensity, np.minimum(intensity * bandwidth, peak), color="black", linewidth=1.4)
    middle = np.sqrt(intensity[0] * peak / bandwidth)
    roof.text(0.8 * middle, bandwidth * middle, f"{bandwidth:.0f} GB/s", fontsize=8, ha="right")
    roof.text(intensity[-1], 1.1 * peak, f"{peak:.0f} GFLOP/s", fontsize=8, ha="right")
    roof.set_xscale("log")
    roof.set_yscale("log")
    roof.set_xlabel("FLOPs a byte")
    roof.set_ylabel("GFLOP/s")
    roof.grid(alpha=0.25)
    for axes in (shares, roof):
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=colour[mode], marker=MODE_MARKERS[mode], linestyle="", markersize=4, label=mode)
        for mode in modes
    ]
    roof.legend(handles=handles, fontsize=8, frameon=False, loc="lower right")
    figure.suptitle(title_of(result), fontsize=11)
    return figure


def title_of(result: Mapping[str, Any]) -> str:
    """What ran where."""
    machine = result["machine"]
    cores = f", {machine['cores']} cores" if machine["platform"] == "cpu" else ""
    return f"{result['mode']}: {machine['device_kind']}{cores}, {result['dtype']}, jax {machine['versions']['jax']}"


def _linear_guide(axes: Any) -> None:
    """A line of slope 1 through the middle of what is drawn; also makes the axes logarithmic."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    points: Sequence[np.ndarray] = [np.asarray(line.get_xydata()) for line in axes.get_lines()]
    if not points:
        return
    logs = np.log(np.concatenate(points))
    (x, y), low, high = logs.mean(0), logs[:, 0].min(), logs[:, 0].max()
    axes.plot(np.exp([low, high]), np.exp([y + low - x, y + high - x]), color="0.6", linewidth=1, zorder=0)
