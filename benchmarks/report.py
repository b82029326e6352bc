"""Rebuilds the generated parts of docs/benchmarks.md, and its pictures, from the result files alone.

Usage: python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--check]

The parts stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what is outside them stays.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import gpu
from benchmarks.plots import roofline_figure, title_of
from benchmarks.record import (
    COMPILED,
    DEPLOYED,
    KERNEL_BASELINES,
    OWN,
    markdown_table,
    ratio_to,
    read,
    shape_text,
    write_text,
)
from benchmarks.targets import goals_table
from benchmarks.timing import geometric_mean
from densezoo.viz.figures import save

Results = Mapping[str, Mapping[str, Any]]
"""Result files by their names."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Rebuilds the tables and pictures of the benchmarks' document."""

    results: Path = Path("benchmarks/results")
    """Folder of the result files."""
    docs: Path = Path("docs")
    """Folder with benchmarks.md and images."""
    check: bool = False
    """Write nothing; exit with 1 if the tables are not those of the files."""


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a folder by their files' names, in the order of these; that of benchmarks.compilation too.

    Raises:
        ValueError: a .json file there is no result.
    """
    results = {path.name: read(path) for path in sorted(folder.glob("*.json"))}
    path = folder / "compilation.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if rows:
        machine = rows[-1]["machine"] | {"platform": "cpu"}
        results[path.name] = {"mode": "compilation", "dtype": "float32", "machine": machine, "rows": rows}
    return results


def kernels_part(results: Results) -> str:
    """A table for each file of upsampling kernels: geometric means over the shapes, with the least and the largest."""
    return _each(results, "upsampling", _kernel_table, "the kernels")


def models_part(results: Results) -> str:
    """A table for each file of inference: all forms of all models, a line for each model and shape."""
    return _each(results, "models", _ratios_table, "inference")


def training_part(results: Results) -> str:
    """A table for each file of train steps."""
    return _each(results, "training", _ratios_table, "training")


def memory_part(results: Results) -> str:
    """A table for each file of peak memory."""
    return _each(results, "memory", _memory_table, "memory")


def compile_part(results: Results) -> str:
    """What compiling a train step takes, ours without and with the cache, and torch.compile's."""
    return _each(results, "training", _compile_table, "compilation")


def machines_part(results: Results) -> str:
    """Where each file comes from, and what the machine could do in that run."""
    lines = []
    for name, result in results.items():
        if not (limits := result.get("limits")):
            continue
        machine = result["machine"]
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items() if value)
        peaks = ", ".join(f"{value / 1e9:.0f} ({dtype})" for dtype, value in limits["matmul_peak"].items())
        busy = machine.get("busy_cores")
        lines.append(
            (
                f"`{name}`",
                f"{machine['device_kind']}, {machine['cores']} cores",
                versions,
                machine["malloc"],
                f"{limits['copy_bandwidth'] / 1e9:.1f}",
                peaks,
                "-" if busy is None else f"{busy:.1f}",
            )
        )
    head = ("file", "machine", "versions", "malloc", "copy, GB/s", "matrix product, GFLOP/s", "cores busy with others")
    return markdown_table(head, lines) if lines else "Not measured yet."


PARTS: dict[str, Callable[[Results], str]] = {
    "goals": goals_table,
    "kernels": kernels_part,
    "models": models_part,
    "training": training_part,
    "memory": memory_part,
    "compile": compile_part,
    "machines": machines_part,
}
"""The generated parts of the document by their names."""


def gpu_part(folder: Path) -> str:
    """The tables of a GPU session, from its files."""
    if not any(folder.glob("*.json")):
        return "Not measured yet: `benchmarks/gpu_session.sh benchmarks/results/gpu` on a machine with a GPU."
    return gpu.table(folder)


def with_parts(text: str, parts: Mapping[str, str]) -> str:
    r"""A Markdown text with each part between its markers, whatever stands there.

    Raises:
        ValueError: a marker is not there, there twice, or in the wrong order.

    Example:
        >>> with_parts("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n", {"x": "new"}).splitlines()
        ['a', '<!-- x:begin -->', 'new', '<!-- x:end -->', 'b']
    """
    lines = text.splitlines()
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(begin) > lines.index(end):
            raise ValueError(f"it needs a line {begin} and after it a line {end}, each once")
        lines[lines.index(begin) + 1 : lines.index(end)] = part.splitlines()
    return "\n".join(lines) + "\n"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws the pictures of all results; gives their paths."""
    drawn = []
    for name, result in results.items():
        if result["mode"] == "upsampling" and (figure := roofline_figure(result)) is not None:
            drawn.append(save(figure, folder / _picture(name)))
    return drawn


def main(arguments: Arguments) -> int:
    """Rebuilds or checks the document; gives the exit code."""
    file = arguments.docs / "benchmarks.md"
    try:
        results = load(arguments.results)
        text = file.read_text(encoding="utf-8")
        parts = {name: part(results) for name, part in PARTS.items()}
        wanted = with_parts(text, parts | {"gpu": gpu_part(arguments.results / "gpu")})
        if arguments.check:
            if text != wanted:
                print(f"{file} is not what the results give: run python -m benchmarks.report", file=sys.stderr)
            return int(text != wanted)
        pictures = draw(results, arguments.docs / "images")
        write_text(file, wanted)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"{file}: {error}", file=sys.stderr)
        return 1
    print(f"{file}: {len(results)} result files, {len(pictures)} pictures")
    return 0


def _each(results: Results, mode: str, make: Callable[[str, Mapping[str, Any]], str], what: str) -> str:
    sections = [
        f"### {title_of(result)}, malloc {result['machine']['malloc']}\n\n{make(name, result)}\n\nFrom `{name}`."
        for name, result in results.items()
        if result["mode"] == mode
    ]
    return "\n\n".join(sections) or f"Not measured yet: {what}."


def _kernel_table(name: str, result: Mapping[str, Any]) -> str:
    rows = [row for row in result["rows"] if row["form"] == "auto" and "milliseconds" in row]
    baselines = [b for b in KERNEL_BASELINES if any(b in row["ratios"] for row in rows)]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], row["mode"]), []).append(row)
    lines = []
    for (kernel, mode), members in groups.items():
        first = members[0]
        ratios = [[row["ratios"][b]["median"] for row in members if b in row["ratios"]] for b in baselines]
        shares = [row["roofline_share"] for row in members]
        cells = [_range(values, ".2f") for values in (*ratios, shares)]
        lines.append((kernel, mode, f"{first['milliseconds']['median']:.3g}", *cells))
    shapes = list(dict.fromkeys(shape_text(row["shape"]) for row in rows))
    head = ("kernel", "mode", f"ms at {shapes[0] if shapes else '-'}", *(f"/ {b}" for b in baselines))
    table = markdown_table((*head, "share of the roofline"), lines)
    note = (
        f"Shapes: {', '.join(shapes)}. Ratios and shares are geometric means over them, with the least and the largest."
    )
    if not any(row["form"] == "auto" and "roofline_share" in row for row in result["rows"]):
        return f"{note}\n\n{table}"
    return f"{note}\n\n{table}\n\n![share of the roofline](images/{_picture(name)})"


def _ratios_table(name: str, result: Mapping[str, Any]) -> str:
    groups = _groups(result)
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
        lines.append((model, shape, *cells, *(_number(values[number], ".2f") for values in ratios.values())))
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


def _memory_table(name: str, result: Mapping[str, Any]) -> str:
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


def _compile_table(name: str, result: Mapping[str, Any]) -> str:
    lines = []
    for (model, shape), rows in _groups(result).items():
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


def _groups(result: Mapping[str, Any]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
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


def _range(values: Sequence[float], style: str) -> str:
    values = [value for value in values if value > 0 and math.isfinite(value)]
    if not values:
        return "-"
    middle = format(geometric_mean(values), style)
    return middle if len(values) == 1 else f"{middle} ({min(values):{style}} to {max(values):{style}})"


def _picture(name: str) -> str:
    return f"roofline-{Path(name).stem}.png"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
