"""Rebuilds the generated parts of docs/benchmarks.md, and its pictures, from the result files alone.

Usage: python -m benchmarks.report [--results benchmarks/results] [--docs docs] [--check]

The parts stand between `<!-- NAME:begin -->` and `<!-- NAME:end -->`; what is outside them stays.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from benchmarks.plots import roofline_figure, size_figure, title_of
from benchmarks.record import KERNEL_BASELINES, fits_text, markdown_table, models_table, read, shape_text, write_text
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
    """The results of a folder by their files' names, in the order of these.

    Raises:
        ValueError: a .json file there is no result.
    """
    return {path.name: read(path) for path in sorted(folder.glob("*.json"))}


def kernels_part(results: Results) -> str:
    """A table for each file of upsampling kernels: geometric means over the shapes, with the least and the largest."""
    return _each(results, ("upsampling",), _kernel_table, "the kernels")


def models_part(results: Results) -> str:
    """A table for each file of inference, whole models and decoders alone."""
    return _each(results, ("models", "decoders"), _model_table, "inference")


def training_part(results: Results) -> str:
    """A table for each file of train steps."""
    return _each(results, ("training",), _model_table, "training")


def sweeps_part(results: Results) -> str:
    """Exponents and a picture for each sweep."""

    def one(name: str, result: Mapping[str, Any]) -> str:
        skipped = [row for row in result["rows"] if "skipped" in row]
        note = f"\n\nLeft out, as they need more memory than was allowed: {len(skipped)} sizes." if skipped else ""
        return f"![time and memory against size](images/{_picture('size', name)})\n\n{fits_text(result['fits'])}{note}"

    sweeps = tuple(f"{mode}-sweep" for mode in ("upsampling", "models", "decoders", "training"))
    return _each(results, sweeps, one, "cost against size")


def machines_part(results: Results) -> str:
    """Where each file comes from, and what the machine could do in that run."""
    lines = []
    for name, result in results.items():
        machine, limits = result["machine"], result["limits"]
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
    "sweeps": sweeps_part,
    "machines": machines_part,
}
"""The generated parts of the document by their names."""


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
        if "-quick" in result["mode"]:
            continue
        kind = "size" if "-sweep" in result["mode"] else "roofline"
        figure = size_figure(result) if kind == "size" else roofline_figure(result)
        if figure is not None:
            drawn.append(save(figure, folder / _picture(kind, name)))
    return drawn


def main(arguments: Arguments) -> int:
    """Rebuilds or checks the document; gives the exit code."""
    file = arguments.docs / "benchmarks.md"
    try:
        results = load(arguments.results)
        text = file.read_text(encoding="utf-8")
        wanted = with_parts(text, {name: part(results) for name, part in PARTS.items()})
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


def _each(results: Results, modes: Sequence[str], make: Callable[[str, Mapping[str, Any]], str], what: str) -> str:
    sections = [
        f"### {title_of(result)}, malloc {result['machine']['malloc']}\n\n{make(name, result)}\n\nFrom `{name}`."
        for name, result in results.items()
        if result["mode"] in modes
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
    return f"{note}\n\n{table}\n\n![share of the roofline](images/{_picture('roofline', name)})"


def _model_table(name: str, result: Mapping[str, Any]) -> str:
    return models_table([row for row in result["rows"] if "milliseconds" in row])


def _range(values: Sequence[float], style: str) -> str:
    values = [value for value in values if value > 0 and math.isfinite(value)]
    if not values:
        return "-"
    middle = format(geometric_mean(values), style)
    return middle if len(values) == 1 else f"{middle} ({min(values):{style}} to {max(values):{style}})"


def _picture(kind: str, name: str) -> str:
    return f"{kind}-{Path(name).stem}.png"


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments)))
