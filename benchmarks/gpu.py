"""A benchmark session on a GPU: the machine's limits, densezoo's kernels, convolutions, a whole U-Net, and torch.

Usage: benchmarks/gpu_session.sh [FOLDER], which runs every part in its own process with its own time limit.
       python -m benchmarks.gpu --part kernels --out out/gpu
       python -m benchmarks.gpu --table --out out/gpu

A part rewrites FOLDER/PART.json after each row, so an interrupted part keeps its measurements. Failures are recorded in
the same file, and the part continues. `--table` converts the files to Markdown.

The kernels are compared in densezoo's two forms, "auto" and "reference"; there is no Pallas kernel for NVIDIA GPUs. In
addition to densezoo and its core packages, the two parts of torch need torch and segmentation_models_pytorch.
"""

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks import gpu_jax, gpu_torch
from benchmarks.record import COMPILED, OWN, SCHEMA, markdown_table, read, shape_text, timing_fields, write_text
from benchmarks.timing import measure


class Report:
    """The file of one part, rewritten after every change.

    Args:
        part: the part's name.
        folder: folder of the files.
        quick: tiny shapes and few rounds, to test the session.
    """

    def __init__(self, part: str, folder: Path, quick: bool):
        self.path, self.quick, self._start = folder / f"{part}.json", quick, time.perf_counter()
        self.content: dict[str, Any] = {"schema": SCHEMA, "mode": f"gpu-{part}", "quick": quick, "status": "running"}
        self.content |= {"notes": [], "rows": []}
        self.failed = False
        self.write()

    def write(self) -> None:
        """Writes the file."""
        self.content["seconds"] = round(time.perf_counter() - self._start, 1)
        write_text(self.path, json.dumps(self.content, indent=1) + "\n")

    def add(self, **row: Any) -> None:
        """Adds a row."""
        self.content["rows"].append(row)
        print(f"  {self.content['seconds']:6.1f} s  {_brief(row)}", flush=True)
        self.write()

    def note(self, line: str) -> None:
        """Adds a note about something that was skipped or failed."""
        self.content["notes"].append(line)
        print(f"  {line}", flush=True)
        self.write()

    def attempt(self, label: str, function: Callable[[], Any]) -> Any:
        """Returns the function's result, or None with a note if it fails."""
        try:
            return function()
        except Exception as error:  # whatever a compiler or a driver raises, the remaining parts are worth measuring
            self.failed |= not isinstance(error, ImportError)  # a missing package does not fail a test run
            message = (str(error).strip().splitlines() or [""])[0]
            self.note(f"{label}: {type(error).__name__}: {message}"[:400])
            return None

    def compare(self, head: Mapping[str, Any], forms: Mapping[str, Callable[[], tuple[Any, dict[str, Any]]]]) -> None:
        """Compiles each form and times it in turn with the first one; adds a row as soon as it is measured.

        Args:
            head: fields that all rows share.
            forms: by name, functions that compile a form and return its call and additional fields of its row.
        """
        base: dict[str, Any] = {}
        for form, make in forms.items():
            label = " ".join(map(str, (*head.values(), form)))

            def run(form: str = form, make: Any = make) -> None:
                call, facts = make()
                if not base:
                    base[form] = call
                calls = base | {form: call}
                timings = measure(calls, **self.times())
                self.add(**head, form=form, **facts, **timing_fields(timings, form, tuple(base)))

            self.attempt(label, run)

    def times(self) -> dict[str, Any]:
        """Measurement options; a GPU's queue stays filled, and each sample waits once."""
        wait = not (gpu_torch.has_cuda() or jax.default_backend() == "gpu")  # torch first, because the check starts jax
        if self.quick:
            return {"rounds": 2, "min_seconds": 1e-4, "max_seconds": 0.5, "wait_each_call": wait}
        return {"rounds": 20, "min_seconds": 0.02, "max_seconds": 4.0, "wait_each_call": wait}


_DEEPER = "resnet50"
PARTS: dict[str, Callable[[Report], None]] = {
    "limits": gpu_jax.limits,
    "kernels": gpu_jax.kernels,
    "convolutions": gpu_jax.convolutions,
    "inference": gpu_jax.inference,
    "training": gpu_jax.training,
    "torch-training": gpu_torch.training,
    "torch-inference": gpu_torch.inference,
    f"inference-{_DEEPER}": functools.partial(gpu_jax.inference, encoder=_DEEPER),
    f"training-{_DEEPER}": functools.partial(gpu_jax.training, encoder=_DEEPER),
    f"torch-training-{_DEEPER}": functools.partial(gpu_torch.training, encoder=_DEEPER),
    f"torch-inference-{_DEEPER}": functools.partial(gpu_torch.inference, encoder=_DEEPER),
}
"""The parts by name; those of the U-Net with another encoder than ResNet-34 end with its name."""


def _brief(row: Mapping[str, Any]) -> str:
    name = " ".join(str(row[key]) for key in _NAMES if key in row)
    return f"{name}, {row['form']}: {row['milliseconds']['median']:.4g} ms"


_NAMES = ("what", "kernel", "convolution", "model", "dtype", "mode")


def table(folder: Path) -> str:
    """Formats the files of a session as Markdown: a line for each row, and the notes of each part.

    Args:
        folder: folder with the parts' files; missing parts are skipped.

    Returns:
        A table for each part. Interrupted parts are marked.
    """
    found = _parts(folder)
    peaks = _peaks(found)
    sections = []
    for part, content in found.items():
        lines = []
        for row in content["rows"]:
            seconds = row["milliseconds"]["median"] / 1e3
            ratios = [ratio["median"] for ratio in row["ratios"].values()]
            rates = [row[key] / seconds / 1e12 if key in row else math.nan for key in ("bytes", "flops")]
            limit = [peaks.get(("copy", row.get("dtype"))), peaks.get(("matmul", row.get("dtype")))]
            shares = [rate / most for rate, most in zip(rates, limit, strict=True) if most and rate == rate]
            name = " ".join(str(row[key]) for key in _NAMES if key in row)
            images = row["shape"][0] / seconds if "model" in row else math.nan
            numbers = [1e3 * seconds, *(ratios or [math.nan]), *rates, max(shares, default=math.nan), images]
            shape = shape_text(row["shape"]) if "shape" in row else "-"
            lines.append([name, shape, row["form"], *("-" if x != x else f"{x:.3g}" for x in numbers)])
        stopped = "" if content["status"] == "done" else ", stopped before its end"
        quick = ", a test run with tiny shapes" if content["quick"] else ""
        head = ("what", "shape", "form", "ms", "/ first form", "TB/s", "TFLOP/s", "share of the limit", "images/s")
        text = [
            f"### {part} ({content['seconds']:.0f} s{stopped}{quick})",
            *([markdown_table(head, lines)] * bool(lines)),
        ]
        text += ["\n".join(f"- {line}" for line in content["notes"])] * bool(content["notes"])
        sections.append("\n\n".join([*text, *([content["profile"]] if "profile" in content else [])]))
    return "\n\n".join([*_machines(found.values()), *sections]) or "Not measured yet: a GPU."


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Converts a bfloat16 session to the format of the other result files, for the goals; test runs are skipped.

    densezoo and torch run one after the other in separate processes, so a ratio is that of two medians. If a side has
    several forms, the fastest counts. Ratios to eager and compiled torch are separate.
    """
    found = {part: content for part, content in _parts(folder).items() if not content["quick"]}
    converted: dict[str, list[dict[str, Any]]] = {}
    if copy := _peaks(found).get(("copy", "bfloat16")):
        converted["kernels"] = [
            {**row, "bandwidth_share": row["bytes"] / row["milliseconds"]["median"] / 1e9 / copy}
            for row in found.get("kernels", {"rows": []})["rows"]
            if row["dtype"] == "bfloat16"
        ]
    for part in ("inference", "training"):
        for encoder, suffix in (("resnet34", ""), (_DEEPER, f"-{_DEEPER}")):
            rows = [row for name in (part, f"torch-{part}") for row in found.get(name + suffix, {"rows": []})["rows"]]
            times: dict[str, list[float]] = {}
            for row in rows:
                times.setdefault(_side(row["form"]), []).append(row["milliseconds"]["median"])
            if OWN in times:
                ratios = {name: {"median": min(times[OWN]) / min(times[name])} for name in times if name != OWN}
                row = {"model": f"unet:{encoder}", "form": OWN, "shape": rows[0]["shape"], "ratios": ratios}
                converted.setdefault(part, []).append(row)
    modes = {"kernels": "upsampling", "inference": "models", "training": "training"}
    head = {"dtype": "bfloat16", "machine": {"platform": "gpu"}}
    return {f"gpu/{part}.json": {**head, "mode": modes[part], "rows": rows} for part, rows in converted.items()}


def _side(form: str) -> str:
    """The group of a form: densezoo, eager torch or compiled torch."""
    if form.startswith("torch compiled"):
        return COMPILED[0]
    return "torch" if form.startswith("torch") else OWN


def _machines(contents: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each machine and set of versions in the parts."""
    lines = []
    for machine in (content.get("machine", {}) for content in contents):
        device = machine.get("device", machine.get("device_kind"))
        versions = machine.get("versions", {}) | {"torch": machine.get("torch")}
        named = ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if versions.get(name))
        lines += [f"{device}, {named}."] if device else []
    return list(dict.fromkeys(lines))


def _parts(folder: Path) -> dict[str, dict[str, Any]]:
    """The files of a session by part."""
    return {part: read(folder / f"{part}.json") for part in PARTS if (folder / f"{part}.json").is_file()}


def _peaks(found: Mapping[str, Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """The machine's maximum terabytes and teraflops per second, by (copy or matmul, dtype)."""
    rows = found["limits"]["rows"] if "limits" in found else []
    return {
        (row["what"], row["dtype"]): row.get("bytes", row.get("flops")) / row["milliseconds"]["min"] / 1e9
        for row in rows
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one part, or prints the table. The exit code is 1 only if something failed in a test run."""
    parser = argparse.ArgumentParser(description="Runs one part of a GPU session, or prints the table of its files.")
    parser.add_argument("--part", choices=PARTS, help="the part to run")
    parser.add_argument("--out", type=Path, default=Path("out/gpu"), help="folder of the files")
    parser.add_argument("--quick", action="store_true", help="test run with tiny shapes, also on CPU")
    parser.add_argument("--table", action="store_true", help="print the table of the folder's files")
    arguments = parser.parse_args(argv)
    if arguments.table == bool(arguments.part):
        parser.error("pass either --part or --table")
    if arguments.table:
        print(table(arguments.out))
        return 0
    report = Report(arguments.part, arguments.out, arguments.quick)
    is_torch = arguments.part.startswith("torch")
    if not is_torch and jax.default_backend() != "gpu" and not arguments.quick:
        report.note(f"skipped: this part needs a GPU, but jax only sees {jax.default_backend()}")
    else:
        report.attempt(arguments.part, lambda: PARTS[arguments.part](report))
    report.content["status"] = "done"
    report.write()
    return int(report.quick and report.failed)


if __name__ == "__main__":
    sys.exit(main())
