"""Compares the operations of detectors with torchvision's: non-maximum suppression and RoIAlign.

Usage: python -m benchmarks.detection [--quick] [--against torch] [--peer-python PYTHON] [--platform gpu]

Before timing, the selected boxes, values and gradients are compared with torchvision's. All forms of a case are timed
in turn, in a different order each round; torch runs in a separate process. The peer is torchvision with its compiled
operators. If they cannot be loaded, `--peer-setup` names a module that provides them, and the results record it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import console
from benchmarks.options import (
    Mismatch,
    Options,
    PeerForm,
    machine_of,
    open_results,
    peers,
    progress_bar,
    relative_error,
    run_command,
    tolerance,
)
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import markdown_table, ratio_text, shape_text, timing_fields
from benchmarks.timing import compile_apart, measure
from densezoo import ops
from densezoo.compiling import Jitted

IMAGE = (320, 480)
THRESHOLD = 0.5


def candidates(count: int, seed: int) -> list[np.ndarray]:
    """Boxes, twenty around each object, and scores."""
    rng = np.random.default_rng(seed)
    objects = rng.random((max(count // 20, 1), 2)) * IMAGE[::-1]
    centres = objects[rng.integers(0, len(objects), count)] + rng.normal(0, 6, (count, 2))
    sides = np.exp(rng.normal(3.7, 0.6, (count, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
    return [boxes.astype(np.float32), rng.random(count).astype(np.float32)]


def regions(count: int, bins: int, channels: int, seed: int) -> list[np.ndarray]:
    """A pyramid of strides 4 to 32 of one image, boxes of all sizes, and the cotangent of the result."""
    rng = np.random.default_rng(seed)
    sizes = [tuple(-(-side // stride) for side in IMAGE) for stride in (4, 8, 16, 32)]
    maps = [rng.standard_normal((1, *size, channels), np.float32) for size in sizes]
    centres, sides = rng.random((count, 2)) * IMAGE[::-1], np.exp(rng.normal(4.2, 0.8, (count, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], 1).clip(0, IMAGE[::-1] * 2)
    cotangent = rng.standard_normal((1, count, bins, bins, channels), np.float32)
    return [*maps, boxes[None].astype(np.float32), cotangent]


def suppress(boxes: jax.Array, scores: jax.Array) -> list[jax.Array]:
    """The indices of all kept boxes, and which are real."""
    return list(ops.nms(boxes, scores, THRESHOLD, boxes.shape[0]))


def align(*arrays: jax.Array, backward: bool) -> list[jax.Array]:
    """A map for each box; with `backward`, also the gradients of the pyramid."""
    *maps, boxes, cotangent = arrays
    read = functools.partial(ops.multiscale_roi_align, boxes=boxes, image_size=IMAGE, output_size=cotangent.shape[2])
    if not backward:
        return [read(maps)]
    y, pull_back = jax.vjp(read, maps)
    return [y, *pull_back(cotangent)[0]]


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation on inputs of one size.

    Attributes:
        kernel: the operation's name.
        mode: "forward" or "forward+backward".
        shape: number of candidates; or boxes, bins, bins, channels.
        function: maps the inputs to a list of arrays.
        inputs: creates the inputs from a seed.
    """

    kernel: str
    mode: str
    shape: tuple[int, ...]
    function: Callable[..., list[jax.Array]]
    inputs: Callable[[int], list[np.ndarray]]


def cases(*, quick: bool) -> list[Case]:
    """All cases to measure."""
    counts, boxes = ((100, 1_000), 64) if quick else ((100, 1_000, 10_000), 512)
    suppressions = [Case("nms", "forward", (n,), suppress, functools.partial(candidates, n)) for n in counts]
    inputs = functools.partial(regions, boxes, 7, 256)
    alignments = [
        Case("multiscale_roi_align", mode, (boxes, 7, 7, 256), functools.partial(align, backward=backward), inputs)
        for mode, backward in (("forward", False), ("forward+backward", True))
    ]
    return suppressions + alignments


def check(case: Case, result: Sequence[np.ndarray], truth: Sequence[np.ndarray], platform: str) -> dict[str, Any]:
    """Compares two results and returns details for the row.

    Raises:
        Mismatch: if they differ.
    """
    label = f"{case.kernel} ({shape_text(case.shape)}, {case.mode})"
    if case.kernel == "nms":
        indices, real = result
        kept = indices[real]
        if not np.array_equal(kept, truth[0]):
            raise Mismatch(f"{label}: keeps {len(kept)} boxes, torchvision {len(truth[0])}, or others: not timed")
        return {"kept": len(kept)}
    errors = [relative_error(value, true) for value, true in zip(result, truth, strict=True)]
    if not max(errors) <= 10 * tolerance("float32", platform, gradient=True):
        raise Mismatch(f"{label}: differs from torchvision by {max(errors):.2g} of the largest magnitude: not timed")
    return {"error": max(errors)}


def compare(case: Case, arguments: Options, platform: str, worker: Worker | None) -> list[dict[str, Any]]:
    """Checks all forms of a case, then times them; returns a row for each."""
    arrays = case.inputs(arguments.seed)
    inputs = [jnp.asarray(x) for x in arrays]
    compiled = compile_apart(Jitted(case.function), *inputs)
    calls: dict[str, Any] = {"auto": functools.partial(compiled.call, *inputs)}
    facts: dict[str, dict[str, Any]] = {
        "auto": {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
        | compiled.costs()
    }
    if worker is not None:
        sent = [worker.send(f"input{number}", x) for number, x in enumerate(arrays)]
        asked = {"kernel": case.kernel, "inputs": sent, "backward": case.mode != "forward", "platform": platform}
        try:
            operators = worker.ask("detection", form="torch", image_size=IMAGE, threshold=THRESHOLD, **asked)
            truth = [np.load(path) for path in worker.ask("output", form="torch")["outputs"]]
        except PeerError as error:
            console.print(f"{case.kernel}: torch is skipped: {error}")
            facts["torch"] = {"left_out": str(error)[:200]}
        else:
            facts["auto"] |= check(case, [np.asarray(x) for x in calls["auto"]()], truth, platform)
            facts["torch"] = operators | {"setup": arguments.peer_setup}
            calls["torch"] = PeerForm(worker, "torch")
    timings = measure(calls, **arguments.times())
    rows = []
    for form, noted in facts.items():
        row = {"kernel": case.kernel, "mode": case.mode, "shape": list(case.shape), "dtype": "float32", "form": form}
        rows.append(row | noted | (timing_fields(timings, form, list(timings)) if form in timings else {}))
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table with a line for each case."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if "milliseconds" in row:
            groups.setdefault((row["kernel"], shape_text(row["shape"]), row["mode"]), {})[row["form"]] = row
    lines = []
    for group, forms in groups.items():
        times = [f"{forms[form]['milliseconds']['median']:.3g}" if form in forms else "-" for form in ("auto", "torch")]
        kept = str(forms["auto"].get("kept", "-"))
        lines.append((*group, kept, *times, ratio_text(forms["auto"]["ratios"].get("torch"))))
    return markdown_table(("operation", "shape", "mode", "kept", "auto, ms", "torch, ms", "auto / torch"), lines)


def main(arguments: Options, platform: str) -> int:
    """Runs the benchmark, writes its files and prints its table; returns the exit code."""
    plan, forms, failed = cases(quick=arguments.quick), ["auto", *arguments.forms(("torch",))], False
    with peers(arguments, platform) as (worker, peer_facts), progress_bar() as progress:
        task = progress.add_task("", total=len(plan))
        machine = machine_of(platform, peer_facts)
        mode = "detection" + "-quick" * arguments.quick
        head = {"mode": mode, "dtype": "float32", "machine": machine, "method": arguments.times()}
        results = open_results(arguments, head)
        for case in plan:
            progress.update(task, description=f"{case.kernel} {shape_text(case.shape)} {case.mode}")
            if arguments.again or not results.has((case.kernel, case.mode, case.shape), forms):
                try:
                    results.put(compare(case, arguments, platform, worker))
                except Mismatch as error:
                    console.print(error)
                    failed = True
            progress.advance(task)
    print(table(results.rows))
    console.print(f"wrote {results.path}, and a .csv file beside it")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run_command(main, Options))
