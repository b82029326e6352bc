"""Result files: JSON with everything, CSV with the rows, both written atomically."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.timing import Spread, Timing
from densezoo.files import replace

SCHEMA = 2
OWN = "densezoo"
"""The form for users: `dz.compile` of a model, the step of `dz.train`."""
COMPILED = ("torch.compile", "torch.compile, frozen")
"""Both count as torch.compile; the second treats the weights as constants, which folds batch norms."""
DEPLOYED = (*COMPILED, "onnxruntime", "openvino")
PEERS = ("torch", *DEPLOYED)

KERNEL_BASELINES = ("reference", "jax", "pallas", "torch", "torch.compile")
"""Forms of kernels that "auto" is compared with, in the order of the tables."""


def file_stem(mode: str, dtype: str, machine: Mapping[str, Any]) -> str:
    """The name of a result's files: mode, device, dtype, versions, the malloc unless it is the default, and the label.

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
    if machine.get("label"):
        parts.append(_slug(machine["label"]))
    return "-".join(parts)


def timing_fields(timings: Mapping[str, Timing], name: str, baselines: Sequence[str]) -> dict[str, Any]:
    """The fields of a row about a candidate's time: milliseconds, and ratios to the measured baselines."""
    timing = timings[name]
    others = [other for other in baselines if other in timings and other != name]
    return {
        "milliseconds": _rounded(timing.seconds, 1e3),
        "rounds": len(timing.samples),
        "calls": timing.calls,
        "ratios": {
            other: _rounded(timing.ratio_to(timings[other]))
            # The minimum is least affected by other programs, so it distinguishes a slow candidate from a busy machine.
            | {"of_minima": _digits(timing.seconds.minimum / timings[other].seconds.minimum)}
            for other in others
        },
        "samples_milliseconds": [_digits(1e3 * sample) for sample in timing.samples],
    }


Comparison = tuple[str, str, tuple[int, ...]]
"""Model or kernel, mode, shape: their forms were measured in turn and belong together."""


def comparison_of(row: Mapping[str, Any]) -> Comparison:
    """The comparison that a row belongs to."""
    return row.get("kernel") or row["model"], row["mode"], tuple(row["shape"])


class ResultFile:
    """A growing result file: each comparison is written when it is finished, and replaces its older version.

    Args:
        folder: folder of the files.
        head: all fields of a result except the rows.

    Raises:
        ValueError: if a file of this name is not a result.

    Attributes:
        path: path of the JSON file; the rows are beside it as CSV.
        rows: all rows, including those of earlier runs.
    """

    def __init__(self, folder: Path, head: Mapping[str, Any]):
        self._head = head
        self.path = folder / f"{file_stem(head['mode'], head['dtype'], head['machine'])}.json"
        self.rows: list[dict[str, Any]] = read(self.path)["rows"] if self.path.exists() else []

    def has(self, comparison: Comparison, forms: Iterable[str]) -> bool:
        """Whether a comparison of at least these forms exists, measured or skipped for a reason."""
        return set(forms) <= {row["form"] for row in self.rows if comparison_of(row) == comparison}

    def put(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds the rows of comparisons, replacing older ones, and writes the files."""
        new = {comparison_of(row) for row in rows}
        self.rows = [row for row in self.rows if comparison_of(row) not in new] + list(rows)
        write(self.path, {**self._head, "rows": self.rows})


def write(path: Path, result: Mapping[str, Any]) -> Path:
    """Writes a result as JSON and its rows as CSV beside it; returns the JSON file's path."""
    result = {"schema": SCHEMA, **result}
    rows = result["rows"]
    head = json.dumps({key: value for key, value in result.items() if key != "rows"}, indent=1, allow_nan=False)
    lines = ",\n".join("  " + json.dumps(row, allow_nan=False) for row in rows)
    text = head.removesuffix("\n}") + ',\n "rows": [\n' + lines + "\n ]\n}\n"
    json.loads(text)  # checks the manually composed text
    write_text(path.with_suffix(".csv"), to_csv(rows))
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    """Writes a file atomically."""
    return replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline=""))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads a file with a JSON object on each line; an empty list if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Appends a row to such a file, and prints it, as soon as it is measured."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def read(path: Path) -> dict[str, Any]:
    """Reads a result file.

    Raises:
        ValueError: if it is not a result file, or has another schema.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        schema = result["schema"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a result of these benchmarks: {error!r}") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema}, but this version reads {SCHEMA}: run the benchmark again")
    return result


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with dots in the names of nested fields (milliseconds.median), without the samples."""
    flat = [_flatten({key: value for key, value in row.items() if not key.startswith("samples_")}) for row in rows]
    columns = list(dict.fromkeys(column for row in flat for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def ratio_text(ratio: Mapping[str, float] | None) -> str:
    """A ratio with its quartiles, such as 0.52 (0.50 to 0.55)."""
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['q1']:.2f} to {ratio['q3']:.2f})"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table.

    Example:
        >>> print(markdown_table(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def ratio_to(row: Mapping[str, Any], *forms: str) -> float | None:
    """A row's time over that of the fastest of some forms; None if none of them was measured.

    Example:
        >>> ratio_to({"ratios": {"torch": {"median": 0.8}, "openvino": {"median": 1.1}}}, "torch", "openvino")
        1.1
    """
    return max((row["ratios"][form]["median"] for form in forms if form in row.get("ratios", {})), default=None)


def forms_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the rows of whole models as a Markdown table with a line for each form."""
    lines = []
    for row in rows:
        head = (row["model"], shape_text(row["shape"]), row["form"])
        if "left_out" in row:
            lines.append((*head, "-", "-", "-", row["left_out"]))
            continue
        times = row["milliseconds"]
        time = f"{times['median']:.4g} ({times['q1']:.4g} to {times['q3']:.4g})"
        seconds = "-" if row.get("compile_seconds") is None else f"{row['compile_seconds']:.1f}"
        lines.append((*head, time, ratio_text(row["ratios"].get(OWN)), seconds, ""))
    return markdown_table(("model", "images", "form", "ms", f"/ {OWN}", "compile, s", "left out"), lines)


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
