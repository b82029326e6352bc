"""Tables of whole models: times and ratios, peak memory, and compile times."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.record import COMPILED, DEPLOYED, OWN, markdown_table, ratio_to, shape_text
from benchmarks.timing import geometric_mean

DISTURBED = 0.3
"""Limits for marking a comparison: cores that other processes used, and the quartiles' distance over the median."""


def ratios_table(result: Mapping[str, Any]) -> str:
    """Times of all forms, with a line for each model and shape; an asterisk marks those that were `disturbed`."""
    groups = comparisons(result)
    forms = [OWN, f"{OWN}, float32", "torch", "torch.compile", "onnxruntime", "openvino", "auto", "reference"]
    times = {key: {form: _fastest(rows, form) for form in forms} for key, rows in groups.items()}
    forms = [form for form in forms if any(found[form] for found in times.values())]
    peers = DEPLOYED if result["mode"] == "models" else ("torch", *COMPILED)
    baselines = {f"{OWN}, float32": (f"{OWN}, float32",), "torch.compile": COMPILED, "the fastest": peers}
    ratios = {
        title: [ratio_to(row, *names) for rows in groups.values() for row in rows if row["form"] == OWN]
        for title, names in baselines.items()
    }
    ratios = {title: values for title, values in ratios.items() if any(values)}
    lines = []
    for number, ((model, shape), found) in enumerate(times.items()):
        cells = [_number(found[form], ".4g") for form in forms]
        mark = r" \*" if disturbed(groups[model, shape]) else ""
        lines.append((model + mark, shape, *cells, *(_number(values[number], ".2f") for values in ratios.values())))
    for label, reduce in (("geometric mean", geometric_mean), ("worst", max)):
        cells = [_number(reduce([value for value in values if value]), ".2f") for values in ratios.values()]
        lines.append((label, "", *[""] * len(forms), *cells))
    head = ("model", "images", *(f"{form}, ms" for form in forms), *(f"{OWN} / {title}" for title in ratios))
    left_out = [
        f"- {row['model']} {shape_text(row['shape'])}, {row['form']}: {row['left_out']}"
        for row in result["rows"]
        if "left_out" in row
    ]
    note = "\n\nLeft out:\n\n" + "\n".join(left_out) if left_out else ""
    fastest = " and ".join(peers).replace(f"{COMPILED[0]} and {COMPILED[1]}", COMPILED[0])
    return f"The fastest is that of {fastest}.\n\n{markdown_table(head, lines)}{note}"


def memory_table(result: Mapping[str, Any]) -> str:
    """Peak memory of all forms."""
    forms = list(dict.fromkeys(row["form"] for row in result["rows"]))
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in result["rows"]:
        if "peak_bytes" in row:
            groups.setdefault((row["mode"], row["model"], shape_text(row["shape"])), {})[row["form"]] = row[
                "peak_bytes"
            ]
    lines = []
    for key, found in groups.items():
        torch = [found[form] for form in ("torch", *COMPILED) if form in found]
        ratio = found[OWN] / min(torch) if torch and OWN in found else None
        cells = [_number(found[form] / 2**20 if form in found else None, ".0f") for form in forms]
        lines.append((*key, *cells, _number(ratio, ".2f")))
    head = ("mode", "model", "images", *(f"{form}, MiB" for form in forms), f"{OWN} / the least of torch's")
    return markdown_table(head, lines)


def compile_table(result: Mapping[str, Any]) -> str:
    """Seconds until the first train step."""
    lines = []
    for (model, shape), rows in comparisons(result).items():
        own = next((row for row in rows if row["form"] == OWN), {})
        other = next((row for row in rows if row["form"] == COMPILED[0]), {})
        seconds = [
            own.get("trace_seconds"),
            own.get("compile_seconds"),
            own["cached_trace_seconds"] + own["cached_compile_seconds"] if own else None,
            other.get("compile_seconds"),
        ]
        lines.append((model, shape, *(_number(value, ".1f") for value in seconds)))
    head = ("train step", "images", "tracing, s", "compiling, s", "both, with the cache, s", "torch.compile, s")
    return markdown_table(head, lines)


def detectors_table(result: Mapping[str, Any]) -> str:
    """Times of detectors; an asterisk marks the comparisons that were `disturbed`."""
    lines = []
    for mode in ("inference", "training"):
        rows = [row for row in result["rows"] if row["mode"] == mode]
        for (model, shape), members in comparisons({"rows": rows}).items():
            own = next((row for row in members if row["form"] == OWN), {})
            mark = r" \*" if disturbed(members) else ""
            times = [_fastest(members, form) for form in (OWN, "torch", COMPILED[0])]
            seconds = own["trace_seconds"] + own["compile_seconds"] if own else None
            ratio = _number(ratio_to(own, "torch", *COMPILED), ".2f")
            cells = (*(_number(time, ".4g") for time in times), ratio, _number(seconds, ".1f"))
            lines.append((model + mark, mode, shape, str(own.get("detections", "-")), *cells))
    head = ("model", "mode", "images", "detections", f"{OWN}, ms", "torchvision, ms", "with torch.compile, ms")
    return markdown_table((*head, f"{OWN} / the faster", "tracing and compiling, s"), lines)


def disturbed(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether other programs ran during a comparison, or its times vary as if they had.

    Example:
        >>> times = {"median": 10.0, "q1": 9.5, "q3": 10.5}
        >>> disturbed([{"milliseconds": times, "busy_cores": 0.1}])
        False
        >>> disturbed([{"milliseconds": times | {"q3": 14.0}, "busy_cores": 0.1}])
        True
    """
    busy = max((row.get("busy_cores") or 0.0 for row in rows), default=0.0)
    spreads = [(times["q3"] - times["q1"]) / times["median"] for row in rows if (times := row.get("milliseconds"))]
    return max([busy, *spreads]) > DISTURBED


def comparisons(result: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    """The measured rows by model and shape."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        if "milliseconds" in row:
            groups.setdefault((row["model"], shape_text(row["shape"])), []).append(row)
    return groups


def _fastest(rows: Sequence[Mapping[str, Any]], form: str) -> float | None:
    names = COMPILED if form == COMPILED[0] else (form,)
    return min((row["milliseconds"]["median"] for row in rows if row["form"] in names), default=None)


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)
