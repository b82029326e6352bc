"""Compares upsampling kernels: densezoo's fast and plain forms, stock JAX, and PyTorch.

Usage: python -m benchmarks.upsampling [--quick] [--against all] [--platform gpu] [--dtype bfloat16]

Every form's values and gradients are checked against the plain form, computed in float32 at the highest precision,
before timing. All forms of a kernel are timed in turn, in a different order each round; torch runs in a separate
process, and compilation is excluded. Each kernel is written to the result files of --out as soon as it is measured; a
Markdown table goes to stdout, and `benchmarks.report` writes documents from the files.
"""

import dataclasses
import difflib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import KERNELS, Kernel, Shape, is_float, least_bytes, make_inputs
from benchmarks.machine import (
    Refused,
    console,
    measure_limits,
    roofline_share,
)
from benchmarks.options import (
    Mismatch,
    Options,
    PeerForm,
    machine_of,
    open_results,
    parse_shape,
    peers,
    progress_bar,
    relative_error,
    run_command,
    tolerance,
)
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import KERNEL_BASELINES, markdown_table, ratio_text, shape_text, timing_fields
from benchmarks.timing import compile_apart, measure
from densezoo import ops
from densezoo.compiling import Jitted

MODES = ("forward", "forward+backward")
PEERS = ("torch", "torch.compile")


@dataclasses.dataclass(frozen=True)
class Arguments(Options):
    """Options of the upsampling benchmark."""

    kernels: tuple[str, ...] = ()
    """Kernels to time; by default all."""
    shapes: tuple[str, ...] = ()
    """BxHxWxC of the kernels' inputs."""
    modes: tuple[Literal["forward", "forward+backward"], ...] = MODES
    """What to time: the values, or the values and gradients for a random cotangent."""

    def names(self) -> tuple[str, ...]:
        """The kernels to run."""
        for name in self.kernels:
            if name not in KERNELS:
                near = difflib.get_close_matches(name, KERNELS, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {' '.join(KERNELS)}"
                raise Refused(f"--kernels: there is no kernel {name!r}; {hint}")
        return tuple(dict.fromkeys(self.kernels)) or tuple(KERNELS)

    def inputs(self) -> list[Shape]:
        """The shapes of the inputs."""
        default = ("4x64x64x64",) if self.quick else ("4x64x64x64", "4x128x128x32", "1x256x256x16", "8x32x32x128")
        shapes = [parse_shape(text, "BxHxWxC") for text in self.shapes or default]
        pooling = [name for name in self.names() if "pool" in name]
        for shape in shapes:
            if pooling and (min(shape[1:3]) < 2 or shape[1] % 2 or shape[2] % 2):
                raise Refused(
                    f"--shapes {shape_text(shape)}: {', '.join(pooling)} need an even height and width; choose other"
                    " --kernels or shapes"
                )
        return shapes  # pyright: ignore[reportReturnType]


def jax_forms(kernel: Kernel, platform: str) -> list[str]:
    """The forms that jax runs on a platform."""
    forms = ["auto", "reference", *(["jax"] if kernel.stock else [])]
    return [*forms, "pallas"] if kernel.pallas and platform == "tpu" else forms


def traced(kernel: Kernel, form: str, *, backward: bool) -> Callable[..., Any]:
    """A form of a kernel as a function of (inputs, cotangent) that returns (outputs, gradients).

    Outputs are returned in both modes, so that no compiler can omit the forward pass.
    """

    def function(inputs: Sequence[jax.Array], cotangent: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        def outputs_of(*floats: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            given = iter(floats)
            arguments = [next(given) if is_float(x) else x for x in inputs]
            if form == "jax":
                assert kernel.stock is not None
                result = kernel.stock(*arguments)
            elif form == "pallas":
                assert kernel.pallas is not None
                result = kernel.pallas(*arguments)
            else:
                with ops.implementation(form):
                    result = kernel.op(*arguments)
            first, *others = result if isinstance(result, tuple) else (result,)
            return first, others

        floats = [x for x in inputs if is_float(x)]
        if not backward:
            first, others = outputs_of(*floats)
            return [first, *others], []
        first, pullback, others = jax.vjp(outputs_of, *floats, has_aux=True)
        return [first, *others], list(pullback(cotangent))

    return function


def check(label: str, result: Any, truth: Any, dtype: str, platform: str, *, ours: bool = True) -> dict[str, float]:
    """The errors of the float outputs and gradients of a form.

    Forms of other libraries may have ten times larger errors, because they compute positions in float32.

    Raises:
        Mismatch: if an error exceeds its limit, or an integer output differs.
    """
    errors = {"values": 0.0, "gradients": 0.0}
    for part, values, truths in zip(errors, result, truth, strict=True):
        limit = tolerance(dtype, platform, gradient=part == "gradients") * (1 if ours else 10)
        for number, (value, true) in enumerate(zip(values, truths, strict=False)):
            error = relative_error(value, true)
            errors[part] = max(errors[part], error)
            if not error <= (limit if is_float(true) else 0):
                raise Mismatch(
                    f"{label}: {part}[{number}] differ from the reference by {error:.2g} of its largest magnitude,"
                    f" but only {limit:.0e} is allowed: not timed"
                )
    return errors


@functools.lru_cache(maxsize=1)
def truth_of(name: str, shape: Shape, dtype: str, seed: int) -> Any:
    """(outputs, gradients) of the plain form in float32 at the highest precision, as NumPy arrays, and a cotangent."""
    inputs = make_inputs(name, shape, dtype, seed)
    exact = [x.astype(jnp.float32) if is_float(x) else x for x in inputs]
    kernel = KERNELS[name]
    first = jax.eval_shape(traced(kernel, "reference", backward=False), exact, None)[0][0]
    cotangent = np.random.default_rng(seed).standard_normal(first.shape, np.float32)
    cotangent = jnp.asarray(cotangent, dtype)
    with jax.default_matmul_precision("highest"):
        results = jax.jit(traced(kernel, "reference", backward=True))(exact, cotangent.astype(jnp.float32))
    return jax.tree.map(np.asarray, results), cotangent


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All checked forms of a kernel in a mode: their calls, and the fields of their rows besides the times."""

    calls: dict[str, Any]
    facts: dict[str, dict[str, Any]]
    bytes: int
    flops: float


def prepare(
    name: str,
    shape: Shape,
    mode: str,
    arguments: Arguments,
    platform: str,
    worker: Worker | None,
    say: Callable[[str], None],
) -> Prepared:
    """Compiles all forms of a kernel in a mode and checks them."""
    kernel, backward, dtype = KERNELS[name], mode == "forward+backward", arguments.dtype
    inputs = make_inputs(name, shape, dtype, arguments.seed)
    shapes = jax.eval_shape(traced(kernel, "reference", backward=False), inputs, None)[0]
    bytes_moved = least_bytes(kernel, inputs, shapes, backward=backward)
    flops = sum(kernel.flops(shape)[: 1 + backward])
    (outputs, gradients), cotangent = truth_of(name, shape, dtype, arguments.seed)
    truth = (outputs, gradients if backward else [])

    def label(form: str) -> str:
        return f"{name} ({shape_text(shape)}, {dtype}, {mode}), form {form!r}"

    calls: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for form in jax_forms(kernel, platform):
        say(f"{name} {shape_text(shape)} {mode}: {form}")
        # Compiled as in `dz.compile` and `densezoo.train`: with oneDNN where available.
        compiled = compile_apart(Jitted(traced(kernel, form, backward=backward)), inputs, cotangent)
        calls[form] = functools.partial(compiled.call, inputs, cotangent)
        facts[form] = {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
        facts[form] |= compiled.costs()
        if form == "jax" and kernel.stock_differs:
            facts[form]["not_checked"] = kernel.stock_differs
        else:
            facts[form]["errors"] = check(label(form), calls[form](), truth, dtype, platform, ours=form != "jax")
    if worker is not None:
        sent = [_send(worker, f"input{number}", x) for number, x in enumerate(inputs)]
        asked = {"kernel": name, "inputs": sent, "cotangent": _send(worker, "cotangent", cotangent)}
        for form in arguments.forms(PEERS):
            say(f"{name} {shape_text(shape)} {mode}: {form}")
            # The worker stores several modes of a kernel at once.
            its_name = f"{form}, {mode}"
            try:
                answer = worker.ask("kernel", form=its_name, **asked, backward=backward, platform=platform)
                written = worker.ask("output", form=its_name)
            except PeerError as error:
                console.print(f"{label(form)} is skipped: {error}")
                facts[form] = {"left_out": str(error)[:200]}
                continue
            result = [[np.load(path) for path in written[part]] for part in ("outputs", "gradients")]
            facts[form] = {"compile_seconds": answer["seconds"] if form != "torch" else None}
            facts[form]["errors"] = check(label(form), result, truth, dtype, platform, ours=False)
            calls[form] = PeerForm(worker, its_name)
    return Prepared(calls, facts, bytes_moved, flops)


def compare(
    name: str,
    shape: Shape,
    arguments: Arguments,
    platform: str,
    limits: dict[str, Any],
    worker: Worker | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Checks all forms of a kernel in all modes, then times them. Returns a row for each."""
    if worker is not None:
        worker.ask("clear")
    prepared = {
        mode: prepare(name, shape, mode, arguments, platform, worker, say) for mode in dict.fromkeys(arguments.modes)
    }
    rows = []
    for mode, forms in prepared.items():
        say(f"{name} {shape_text(shape)} {mode}: timing")
        timings = measure(forms.calls, **arguments.times())
        for form, facts in forms.facts.items():
            row = {"kernel": name, "mode": mode, "shape": list(shape), "dtype": arguments.dtype, "form": form}
            row |= {"bytes": forms.bytes, "flops": forms.flops} | facts
            if form in timings:
                seconds = timings[form].seconds.median
                row["roofline_share"] = roofline_share(limits, arguments.dtype, forms.bytes, forms.flops, seconds)
                row["bandwidth_share"] = forms.bytes / limits["copy_bandwidth"] / seconds
                row["bytes_per_second"], row["flops_per_second"] = forms.bytes / seconds, forms.flops / seconds
                row |= timing_fields(timings, form, list(timings))
            rows.append(row)
    return rows


def _send(worker: Worker, name: str, x: jax.Array) -> tuple[str, str]:
    """The file of an array and its dtype; NumPy stores bfloat16 as float32."""
    exact = x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
    return worker.send(name, exact), x.dtype.name


LEGEND = """\
auto: densezoo's choice; reference: its plain form; jax: the equivalent in JAX or Flax; pallas: a kernel for TPUs.
Medians in milliseconds; the time of auto over each other form's, with the quartiles over the rounds; auto's share of
this machine's limits in memory bandwidth and matrix products (the roofline)."""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows as a Markdown table with a line for each comparison."""
    forms = [f for f in ("auto", *KERNEL_BASELINES) if any(r["form"] == f for r in rows)]
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        if "milliseconds" in row:
            groups.setdefault((row["kernel"], shape_text(row["shape"]), row["mode"]), {})[row["form"]] = row
    lines = []
    for group, members in groups.items():
        times = [f"{members[form]['milliseconds']['median']:.3g}" if form in members else "-" for form in forms]
        ratios = members["auto"]["ratios"]
        ratio = [ratio_text(ratios.get(form)) for form in forms[1:]]
        lines.append((*group, *times, *ratio, f"{members['auto']['roofline_share']:.0%}"))
    head = ("kernel", "shape", "mode", *(f"{form}, ms" for form in forms))
    return markdown_table((*head, *(f"auto / {form}" for form in forms[1:]), "auto, of the roofline"), lines)


def main(arguments: Arguments, platform: str) -> int:
    """Runs the benchmark, writes its files and prints its table; returns the exit code."""
    plan = [(name, shape) for name in arguments.names() for shape in arguments.inputs()]
    forms, failed = ["auto", *arguments.forms(PEERS)], False
    with peers(arguments, platform) as (worker, peer_facts), progress_bar() as progress:
        task = progress.add_task("the machine's limits", total=len(plan))
        machine, limits = machine_of(platform, peer_facts), measure_limits(quick=arguments.quick)

        def say(text: str) -> None:
            progress.update(task, description=text)

        mode = "upsampling" + "-quick" * arguments.quick
        head = {"mode": mode, "dtype": arguments.dtype, "machine": machine, "limits": limits}
        results = open_results(arguments, head | {"method": arguments.times()})
        for name, shape in plan:
            if arguments.again or not all(results.has((name, mode, shape), forms) for mode in arguments.modes):
                try:
                    results.put(compare(name, shape, arguments, platform, limits, worker, say))
                except Mismatch as error:
                    console.print(error)
                    failed = True
                jax.clear_caches()
            progress.advance(task)
    rows = [row for row in results.rows if (row["kernel"], tuple(row["shape"])) in plan]
    if rows:
        print(table(rows), LEGEND, sep="\n\n")
        console.print(f"wrote {results.path}, and a .csv file beside it")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
