"""The roofline plot."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from densezoo.viz.colors import palette

MODE_MARKERS = {"forward": "o", "forward+backward": "s", "inference": "o", "training": "s"}


def colours(count: int) -> list[Any]:
    """Colours of lines that are visible on white."""
    size = max(8, count + 2)
    order = [5, 6, 3, 7, 1, 2, *range(8, size)]
    return [tuple(colour / 255) for colour in palette(size)[order]][:count]


def roofline_figure(result: Mapping[str, Any]) -> Figure | None:
    """Each kernel's share of the roofline, and the roofline with the computing kernels; None without rows."""
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
    roof.set_xlabel("FLOPs per byte")
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
    """Describes the benchmark and the machine."""
    machine = result["machine"]
    cores = f", {machine['cores']} cores" if machine["platform"] == "cpu" else ""
    label = f", {machine['label']}" if machine.get("label") else ""
    versions = f"{result['dtype']}, jax {machine['versions']['jax']}"
    return f"{result['mode']}: {machine['device_kind']}{cores}{label}, {versions}"
