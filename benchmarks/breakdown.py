"""Profiles a model's inference, operation by operation.

Usage: python -m benchmarks.breakdown --model unet:efficientnet-b0 --shape 4x256x256 --top 15

The program is that of `dz.compile`; a detector's returns detections. An untrained detector finds no object, so its
masks take no time. The first table has a row per kind of operation of the compiled program (a oneDNN convolution, a
fused loop, a padding). The second one lists the slowest single operations with their layers. The times are XLA's own,
averaged over passes. If operations run concurrently, their sum exceeds the time of a pass.
"""

import collections
import dataclasses
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from benchmarks.machine import Refused
from densezoo.compiling import jitted_once


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Options of the profile."""

    model: str = "unet:resnet34"
    """model:encoder of the zoo."""
    shape: str = "4x256x256"
    """BxHxW of the images."""
    dtype: str = "float32"
    """float32 or bfloat16."""
    impl: str = "auto"
    """Implementation: auto or reference."""
    num_classes: int = 2
    """Channels of the logits."""
    passes: int = 5
    """Number of passes to average."""
    top: int = 10
    """Number of single operations to list."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction of a compiled program."""

    kind: str
    shape: str
    layer: str


def operations_of(text: str) -> dict[str, Operation]:
    """Parses the instructions of a program in XLA's text format, by name.

    Example:
        >>> operations_of('  %add.1 = f32[2]{0} add(%a, %b), metadata={op_name="jit(f)/head/add"}')
        {'add.1': Operation(kind='add', shape='f32[2]', layer='head/add')}
    """
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?:ROOT )?%([\w.\-]+) = \(?(\w+\[[\d,]*\]).*? ([a-z][a-z\-]*)\(", line)
        if not match:
            continue
        name, shape, kind = match.groups()
        if target := re.search(r'custom_call_target="([^"]+)"', line):
            kind = target[1].replace("__onednn$", "oneDNN ")
        elif kind == "fusion":
            kind = "loop: " + " ".join(re.sub(r"[\d.]+|wrapped|fusion|clone", "", name).split("_")).strip()
        layer = re.search(r'op_name="([^"]*)"', line)
        found[name] = Operation(kind, shape, re.sub(r"(jit|jvp)\([^)]*\)/", "", layer[1]) if layer else "")
    return found


def milliseconds_of(call: Any, names: set[str], passes: int) -> dict[str, float]:
    """The time per pass of each instruction, from XLA's trace."""
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(passes):
                jax.block_until_ready(call())
        (path,) = Path(folder).rglob("*.xplane.pb")
        trace = jax.profiler.ProfileData.from_file(str(path))
    times: dict[str, float] = collections.defaultdict(float)
    # A GPU's kernels have their own plane; the host's plane then only has launch times.
    planes = list(trace.planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    for plane in gpus or planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name.split("__onednn")[0]
                if gpus and name not in names:  # a kernel's name beside that of its instruction
                    name = dict(event.stats).get("hlo_op", name)
                if name in names:
                    times[name] += event.duration_ns / 1e6 / passes
    return dict(times)


def table(operations: dict[str, Operation], times: dict[str, float], top: int) -> str:
    """Formats the times by kind, and the slowest operations."""
    kinds: dict[str, list[float]] = collections.defaultdict(list)
    for name, time_ in times.items():
        kinds[operations[name].kind].append(time_)
    total = sum(times.values()) or 1.0
    lines = ["| operation | count | ms | share |", "| --- | --- | --- | --- |"]
    for kind, values in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| {kind} | {len(values)} | {sum(values):.2f} | {sum(values) / total:.0%} |")
    lines += ["", "| slowest | ms | result | layer |", "| --- | --- | --- | --- |"]
    for name, time_ in sorted(times.items(), key=lambda item: -item[1])[:top]:
        each = operations[name]
        lines.append(f"| {each.kind} | {time_:.2f} | {each.shape} | {each.layer} |")
    return "\n".join(lines)


def main(arguments: Arguments) -> None:
    """Compiles, runs and prints the profile."""
    name, _, encoder = arguments.model.partition(":")
    # These need tyro, which the profile of a GPU session does not have.
    from benchmarks.networks import create
    from benchmarks.options import parse_shape

    shape: Any = parse_shape(arguments.shape, "BxHxW")
    try:
        model = create((name, encoder), arguments.num_classes, impl=arguments.impl)
        dtype = None if arguments.dtype == "float32" else jnp.dtype(arguments.dtype)
    except (TypeError, ValueError) as error:
        raise Refused(str(error)) from error
    images = jnp.asarray(np.random.default_rng(0).standard_normal((*shape, 3), np.float32))
    variables = jitted_once(model.init)(jax.random.key(0), images[:1])
    infer = dz.compile(model, variables, dtype=dtype, method="detect" if hasattr(model, "detect") else None)
    program = infer.lower(images).compile()
    seconds = []
    for _ in range(arguments.passes + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(images))
        seconds.append(time.perf_counter() - start)
    operations = operations_of(program.as_text())
    times = milliseconds_of(lambda: program(images), set(operations), arguments.passes)
    print(
        f"{arguments.model} {arguments.shape} {arguments.dtype}: {1e3 * statistics.median(seconds[1:]):.1f} ms a pass\n"
    )
    print(table(operations, times, arguments.top))


if __name__ == "__main__":
    import tyro

    try:
        main(tyro.cli(Arguments))
    except Refused as refusal:
        print(refusal, file=sys.stderr)
        sys.exit(2)
