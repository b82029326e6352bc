"""Rebuilds the generated parts of docs/benchmarks.md, and its pictures, from the result files.

Usage: python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--check]

The parts are between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; text outside them is unchanged.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks import gpu
from benchmarks.detection import table as operations_table
from benchmarks.model_tables import (
    comparisons,
    compile_table,
    detectors_table,
    disturbed,
    memory_table,
    ratios_table,
)
from benchmarks.plots import roofline_figure, title_of
from benchmarks.record import KERNEL_BASELINES, file_stem, markdown_table, read, read_lines, shape_text, write_text
from benchmarks.targets import goals_table, missed_table
from benchmarks.timing import geometric_mean
from densezoo.viz.figures import save

Results = Mapping[str, Mapping[str, Any]]
"""Result files by name."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Rebuilds the tables and pictures of the benchmarks page."""

    results: Path = Path("benchmarks/results")
    """Folder of the result files."""
    docs: Path = Path("docs")
    """Folder with benchmarks.md and images."""
    check: bool = False
    """Write nothing; exit with 1 if the tables do not match the files."""


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The results of a folder, sorted by file name, including those of benchmarks.compilation.

    Raises:
        ValueError: if a .json file there is not a result.
    """
    results = {path.name: read(path) for path in sorted(folder.glob("*.json"))}
    path = folder / "compilation.jsonl"
    rows = read_lines(path)
    if rows:
        machine = rows[-1]["machine"] | {"platform": "cpu"}
        results[path.name] = {"mode": "compilation", "dtype": "float32", "machine": machine, "rows": rows}
    return results


def kernels_part(results: Results) -> str:
    """A table for each file of upsampling kernels: geometric means over the shapes, with the minimum and maximum."""
    return _each(results, "upsampling", _kernel_table, "the kernels")


def models_part(results: Results) -> str:
    """A table for each file of inference: all forms of all models, with a line for each model and shape."""
    return _each(results, "models", ratios_table, "inference")


def training_part(results: Results) -> str:
    """A table for each file of train steps."""
    return _each(results, "training", ratios_table, "training")


def detectors_part(results: Results) -> str:
    """A table for each file of detectors and of their operations."""
    operations = _each(results, "detection", lambda result: operations_table(result["rows"]), "operations")
    return _each(results, "detectors", detectors_table, "detectors") + "\n\n" + operations


def memory_part(results: Results) -> str:
    """A table for each file of peak memory."""
    return _each(results, "memory", memory_table, "memory")


def compile_part(results: Results) -> str:
    """Compile times of a train step: densezoo's without and with the cache, and torch.compile's."""
    return _each(results, "training", compile_table, "compilation")


def machines_part(results: Results) -> str:
    """The source of each file, the machine's limits in that run, and how busy other programs kept it."""
    lines = []
    for name, result in results.items():
        machine, limits = result["machine"], result.get("limits") or {}
        if "busy_cores" not in machine:  # compile times, whose table lists the machine of each row
            continue
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items() if value)
        peaks = ", ".join(f"{value / 1e9:.0f} ({dtype})" for dtype, value in limits.get("matmul_peak", {}).items())
        copy, busy = limits.get("copy_bandwidth"), machine["busy_cores"]
        lines.append(
            (
                f"`{name}`",
                f"{machine['device_kind']}, {machine['cores']} cores",
                versions,
                machine["malloc"],
                "-" if copy is None else f"{copy / 1e9:.1f}",
                peaks or "-",
                "-" if busy is None else f"{busy:.1f}",
                _marked(result),
            )
        )
    head = ("file", "machine", "versions", "malloc", "copy, GB/s", "matrix product, GFLOP/s", "cores busy with others")
    return markdown_table((*head, "rows with an asterisk"), lines) if lines else "Not measured yet."


def _marked(result: Mapping[str, Any]) -> str:
    if result["mode"] not in ("models", "training", "detectors"):
        return "-"
    groups = comparisons(result).values()
    return f"{sum(map(disturbed, groups))} of {len(groups)}"


GOALS: dict[str, Callable[[Results], str]] = {"goals": goals_table, "missed": missed_table}
"""The parts that are made of all files, those of a GPU session too."""

PARTS: dict[str, Callable[[Results], str]] = {
    "kernels": kernels_part,
    "models": models_part,
    "training": training_part,
    "detectors": detectors_part,
    "memory": memory_part,
    "compile": compile_part,
    "machines": machines_part,
}
"""The other generated parts of the document by their names."""


def gpu_part(folder: Path) -> str:
    """The tables of a GPU session, from its files."""
    if not any(folder.glob("*.json")):
        return "Not measured yet: `benchmarks/gpu_session.sh benchmarks/results/gpu` on a machine with a GPU."
    return gpu.table(folder)


def with_parts(text: str, parts: Mapping[str, str]) -> str:
    r"""Inserts each part between its markers in a Markdown text. Replaces previous parts.

    Raises:
        ValueError: if a marker is missing, repeated, or in the wrong order.

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


def insert(path: Path, parts: Mapping[str, str]) -> None:
    """Writes a document with these parts; see `with_parts`."""
    write_text(path, with_parts(path.read_text(encoding="utf-8"), parts))


def draw(results: Results, folder: Path) -> list[Path]:
    """Draws the pictures of all results; gives their paths."""
    drawn = []
    for result in results.values():
        if result["mode"] == "upsampling" and (figure := roofline_figure(result)) is not None:
            drawn.append(save(figure, folder / _picture(result)))
    return drawn


def main(arguments: Arguments) -> int:
    """Rebuilds or checks the document; gives the exit code."""
    file = arguments.docs / "benchmarks.md"
    try:
        results = load(arguments.results)
        text = file.read_text(encoding="utf-8")
        session = gpu.results(arguments.results / "gpu")
        parts = {name: part({**results, **session}) for name, part in GOALS.items()}
        parts |= {name: part(results) for name, part in PARTS.items()}
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


def _each(results: Results, mode: str, make: Callable[[Mapping[str, Any]], str], what: str) -> str:
    sections = [
        f"### {title_of(result)}, malloc {result['machine']['malloc']}\n\n{make(result)}\n\nFrom `{name}`."
        for name, result in results.items()
        if result["mode"] == mode
    ]
    return "\n\n".join(sections) or f"Not measured yet: {what}."


def _kernel_table(result: Mapping[str, Any]) -> str:
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
    return f"{note}\n\n{table}\n\n![share of the roofline](images/{_picture(result)})"


def _range(values: Sequence[float], style: str) -> str:
    values = [value for value in values if value > 0 and math.isfinite(value)]
    if not values:
        return "-"
    middle = format(geometric_mean(values), style)
    return middle if len(values) == 1 else f"{middle} ({min(values):{style}} to {max(values):{style}})"


def _picture(result: Mapping[str, Any]) -> str:
    return f"roofline-{file_stem(result['mode'], result['dtype'], result['machine'])}.png"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
