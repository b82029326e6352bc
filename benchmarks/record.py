"""Results as files: JSON with everything, CSV with the rows, both whole or not at all."""

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread, Timing, fit_exponent
from densezoo.files import replace

SCHEMA = 1
TORCH_FORMS = ("torch", "torch compiled", "torch compiled, frozen")
"""Forms of whole models in torch; the last one takes the weights for constants, which folds its batch norms."""

KERNEL_BASELINES = ("reference", "jax", "pallas", "torch", "torch compiled")
"""Forms of kernels that "auto" is compared with, in the order of the tables."""


def file_stem(mode: str, dtype: str, machine: Mapping[str, Any]) -> str:
    """The name of a result's files: mode, device, dtype, versions, and the malloc where it is not the usual one.

    Example:
        >>> machine = {"platform": "cpu", "device_kind": "Some(R) CPU", "cores": 2, "malloc": "default"}
        >>> file_stem("upsampling", "float32", machine | {"versions": {"jax": "0.10.2", "torch": "2.13.0+cpu"}})
        'upsampling-cpu_some-r-cpu_2c-float32-jax0.10.2-torch2.13.0-malloc_default'
    """
    platform = machine["platform"]
    device = f"{platform}_{_slug(machine['device_kind'])}" + (f"_{machine['cores']}c" if platform == "cpu" else "")
    parts = [mode, device, dtype, f"jax{machine['versions']['jax']}"]
    if machine["versions"].get("torch"):
        parts.append("torch" + machine["versions"]["torch"].split("+")[0])
    if platform == "cpu" and machine["malloc"] == "default":
        parts.append("malloc_default")
    return "-".join(parts)


def timing_fields(timings: Mapping[str, Timing], name: str, baselines: Sequence[str]) -> dict[str, Any]:
    """What a row says about one candidate's time: milliseconds, and ratios to those baselines that were measured."""
    timing = timings[name]
    others = [other for other in baselines if other in timings and other != name]
    return {
        "milliseconds": _rounded(timing.seconds, 1e3),
        "rounds": len(timing.samples),
        "calls": timing.calls,
        "ratios": {
            other: _rounded(timing.ratio_to(timings[other]))
            # What no neighbour disturbed: it tells a slow candidate from a crowded machine.
            | {"of_minima": _digits(timing.seconds.minimum / timings[other].seconds.minimum)}
            for other in others
        },
        "samples_milliseconds": [_digits(1e3 * sample) for sample in timing.samples],
    }


def write(folder: Path, result: Mapping[str, Any]) -> Path:
    """Writes a result as JSON and its rows as CSV; gives the JSON file's path.

    Args:
        folder: is made if it is not there.
        result: has mode, dtype, machine and rows.
    """
    stem = file_stem(result["mode"], result["dtype"], result["machine"])
    result = {"schema": SCHEMA, **result}
    rows = result["rows"]
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in rows)
    text = head.removesuffix("\n}") + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    json.loads(text)  # it was put together by hand
    write_text(folder / f"{stem}.csv", to_csv(rows))
    return write_text(folder / f"{stem}.json", text)


def write_text(path: Path, text: str) -> Path:
    """Writes a file, whole or not at all."""
    return replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def read(path: Path) -> dict[str, Any]:
    """A result file.

    Raises:
        ValueError: it is no result file, or of another schema.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        schema = result["schema"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of these benchmarks: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}, and this reads {SCHEMA}: run the benchmark again")
    return result


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, nested fields with dots in their names (milliseconds.median), the samples left out."""
    flat = [_flatten({key: value for key, value in row.items() if not key.startswith("samples_")}) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def fits_of(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Exponents of time and of peak memory in the pixels, for each series of a sweep.

    Args:
        rows: those of a sweep have series, pixels, and milliseconds if they were measured.
        keys: the fields by which the series of one file differ, such as kernel, mode and form.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("series") and "milliseconds" in row:
            groups.setdefault(tuple(row[key] for key in (*keys, "series")), []).append(row)
    fits = []
    for group, members in groups.items():
        pixels = [row["pixels"] for row in members]
        fit: dict[str, Any] = dict(zip((*keys, "series"), group, strict=True)) | {"sizes": len(members)}
        measured = {
            "time": [row["milliseconds"]["median"] for row in members],
            "memory": [row.get("peak_bytes") or 0 for row in members],
        }
        for what, values in measured.items():
            if len(set(pixels)) > 1 and min(values) > 0:
                fit[f"{what}_exponent"], fit[f"{what}_factor_off"] = fit_exponent(pixels, values)
        fits.append(fit)
    return fits


def fits_text(fits: Sequence[Mapping[str, Any]]) -> str:
    """The fits as a Markdown table; empty if there are none."""
    lines = []
    for fit in fits:
        values = [f"{fit[key]:.2f}" if key in fit else "-" for key in ("time_exponent", "memory_exponent")]
        what = [str(value) for key, value in fit.items() if isinstance(value, str)]
        lines.append((", ".join(what[:-1]), what[-1], str(fit["sizes"]), *values))
    head = ("what", "over", "sizes", "time's exponent", "memory's exponent")
    return markdown_table(head, lines) if lines else ""


def ratio_text(ratio: Mapping[str, float] | None) -> str:
    """A ratio with its quartiles, such as 0.52 (0.50 to 0.55)."""
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def models_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of whole models, or of their decoders, as a Markdown table: a line for each form."""
    baselines = [form for form in ("reference", *TORCH_FORMS) if any(form in row.get("ratios", {}) for row in rows)]
    lines = []
    for row in rows:
        if "milliseconds" not in row:
            continue
        times, peak = row["milliseconds"], row.get("peak_bytes")
        lines.append(
            (
                row["model"] + (f", {row['part']}" if row.get("part", "model") != "model" else ""),
                shape_text(row["shape"]),
                row["form"],
                f"{times['median']:.4g} ({times['q1']:.4g} to {times['q3']:.4g})",
                *(ratio_text(row["ratios"].get(form)) for form in baselines),
                "-" if row.get("compile_seconds") is None else f"{row['compile_seconds']:.1f}",
                "-" if peak is None else f"{peak / 2**20:.0f}",
            )
        )
    head = ("model", "images", "form", "ms", *(f"/ {form}" for form in baselines), "compile, s", "peak, MiB")
    return markdown_table(head, lines)


def shape_text(shape: Sequence[int]) -> str:
    """4x64x64x64."""
    return "x".join(map(str, shape))


def _flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = shape_text(value) if key == "shape" else value
    return flat


def _rounded(spread: Spread, scale: float = 1.0) -> dict[str, float]:
    values = {"median": spread.median, "q1": spread.q1, "q3": spread.q3, "min": spread.minimum}
    return {name: _digits(scale * value) for name, value in values.items()}


def _digits(value: float, digits: int = 5) -> float:
    return value if value == 0 or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unknown"
