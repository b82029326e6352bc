"""Compares upsampling kernels: densezoo's fast and plain forms, stock JAX, and PyTorch.

Usage: python -m benchmarks.upsampling [--quick] [--against torch] [--platform gpu] [--dtype bfloat16] [--sweep]

Every form's values and gradients are checked against the plain form, computed in float32 at the highest precision,
before anything is timed. All forms of a kernel run in one process, in turn, in another order each round; compilation is
timed apart. The results are a JSON and a CSV file in --out and a Markdown table on stdout; `benchmarks.report` makes
documents of them.
"""

import dataclasses
import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kernels import KERNELS, Kernel, Shape, is_float, least_bytes, make_inputs
from benchmarks.machine import (
    Refused,
    compiler_options,
    console,
    measure_limits,
    memory_budget,
    memory_stats,
    roofline_share,
)
from benchmarks.options import (
    Mismatch,
    Options,
    machine_of,
    parse_shape,
    progress_bar,
    relative_error,
    run_command,
    sweep_fields,
    sweep_sizes,
    tolerance,
)
from benchmarks.record import (
    KERNEL_BASELINES,
    fits_of,
    fits_text,
    markdown_table,
    ratio_text,
    shape_text,
    timing_fields,
    write,
)
from benchmarks.timing import compile_apart, measure
from densezoo import ops

MODES = ("forward", "forward+backward")
SWEPT = ("nearest_x2", "bilinear_x2", "transposed_2x2", "max_unpool", "upsample_concat_conv_nearest", "carafe")
CHECKED_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Arguments(Options):
    """Options of the benchmark of upsampling kernels."""

    kernels: tuple[str, ...] = ()
    """Which; the default is all, with --sweep some."""
    shapes: tuple[str, ...] = ()
    """BxHxWxC of the kernels' inputs."""
    modes: tuple[Literal["forward", "forward+backward"], ...] = MODES
    """What is timed: the values, or values and gradients for a random cotangent."""
    channels: int = 32
    """Of --sweep."""

    def names(self) -> tuple[str, ...]:
        """The kernels to run."""
        for name in self.kernels:
            if name not in KERNELS:
                near = difflib.get_close_matches(name, KERNELS, n=3, cutoff=0.4)
                hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {' '.join(KERNELS)}"
                raise Refused(f"--kernels: there is no kernel {name!r}; {hint}")
        return tuple(dict.fromkeys(self.kernels)) or (SWEPT if self.sweep else tuple(KERNELS))

    def comparisons(self) -> list[tuple[str, Shape]]:
        """(series, shape) of each comparison; the series is empty but in a sweep."""
        if self.channels < 1 or (self.sweep and self.shapes):
            raise Refused("--sweep chooses its shapes: give --channels of at least 1, and no --shapes")
        if self.sweep:
            # The side of the output, twice the input's, is what the sizes are of.
            sizes = sweep_sizes(128, 512) if self.quick else sweep_sizes()
            return [(series, (b, h // 2, w // 2, self.channels)) for series, (b, h, w) in sizes]
        default = ("4x64x64x64",) if self.quick else ("4x64x64x64", "4x128x128x32", "1x256x256x16", "8x32x32x128")
        shapes = [parse_shape(text, "BxHxWxC") for text in self.shapes or default]
        pooling = [name for name in self.names() if "pool" in name]
        for shape in shapes:
            if pooling and (min(shape[1:3]) < 2 or shape[1] % 2 or shape[2] % 2):
                raise Refused(
                    f"--shapes {shape_text(shape)}: {', '.join(pooling)} need an even height and width; choose other"
                    " --kernels or shapes"
                )
        return [("", shape) for shape in shapes]  # pyright: ignore[reportReturnType]


def jax_forms(kernel: Kernel, platform: str, *, sweep: bool = False) -> list[str]:
    """The forms that jax computes on a platform."""
    forms = ["auto", *([] if sweep else ["reference"]), *(["jax"] if kernel.stock else [])]
    return [*forms, "pallas"] if kernel.pallas and platform == "tpu" else forms


def traced(kernel: Kernel, form: str, *, backward: bool) -> Callable[..., Any]:
    """A form of a kernel as a function of (inputs, cotangent) that gives (outputs, gradients).

    Outputs are returned in both modes, so that no compiler can leave the forward pass out.
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
    """The errors of a form's (outputs, gradients), float outputs alone.

    The forms of others may be ten times further off: they work out positions in float32.

    Raises:
        Mismatch: one is larger than it may be, or an integer output differs.
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
                    f" and {limit:.0e} is allowed: nothing is timed"
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
    """All forms of a kernel in a mode, checked: what to call, and what their rows have besides the times."""

    calls: dict[str, Callable[[], Any]]
    facts: dict[str, dict[str, Any]]
    bytes: int
    flops: float


def prepare(
    name: str, shape: Shape, mode: str, arguments: Arguments, platform: str, say: Callable[[str], None]
) -> Prepared:
    """Compiles all forms of a kernel in a mode and checks them."""
    kernel, backward, dtype = KERNELS[name], mode == "forward+backward", arguments.dtype
    inputs = make_inputs(name, shape, dtype, arguments.seed)
    shapes = jax.eval_shape(traced(kernel, "reference", backward=False), inputs, None)[0]
    bytes_moved = least_bytes(kernel, inputs, shapes, backward=backward)
    flops = sum(kernel.flops(shape)[: 1 + backward])
    checked = bytes_moved <= CHECKED_BYTES or not arguments.sweep
    truth: Any
    if checked:
        (outputs, gradients), cotangent = truth_of(name, shape, dtype, arguments.seed)
        truth = (outputs, gradients if backward else [])
    else:
        truth, cotangent = None, jnp.ones(shapes[0].shape, shapes[0].dtype)

    def label(form: str) -> str:
        return f"{name} ({shape_text(shape)}, {dtype}, {mode}), form {form!r}"

    calls: dict[str, Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for form in jax_forms(kernel, platform, sweep=arguments.sweep):
        say(f"{name} {shape_text(shape)} {mode}: {form}")
        function = jax.jit(traced(kernel, form, backward=backward), compiler_options=compiler_options() or None)
        compiled = compile_apart(function, inputs, cotangent)
        calls[form] = functools.partial(compiled.call, inputs, cotangent)
        facts[form] = {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
        facts[form] |= compiled.costs()
        if form == "jax" and kernel.stock_differs:
            facts[form]["not_checked"] = kernel.stock_differs
        elif checked:
            facts[form]["errors"] = check(label(form), calls[form](), truth, dtype, platform, ours=form != "jax")
    if arguments.against == "torch":
        torch_kernels: Any = importlib.import_module("benchmarks.torch_kernels")
        device = torch_kernels.to_device(platform)
        for compiled in (False, True):
            form = "torch compiled" if compiled else "torch"
            if compiled and (arguments.sweep or (arguments.quick and platform == "cpu")):
                continue
            say(f"{name} {shape_text(shape)} {mode}: {form}")
            try:
                call = torch_kernels.make_calls(name, inputs, [cotangent], device, backward=backward, compiled=compiled)
                result = torch_kernels.arrays_of(name, call())
            except Exception as error:  # what it raises depends on the backend that it compiles with
                if not compiled:
                    raise
                console.print(f"{label(form)}: torch cannot compile it ({type(error).__name__})")
                continue
            calls[form], facts[form] = call, {}
            if checked:
                facts[form]["errors"] = check(label(form), result, truth, dtype, platform, ours=False)

    for each in facts.values():
        each["checked"] = checked
    return Prepared(calls, facts, bytes_moved, flops)


def compare(
    name: str, shape: Shape, arguments: Arguments, platform: str, limits: dict[str, Any], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Checks all forms of a kernel in all modes, then times them; a row for each."""
    if arguments.against == "torch":
        importlib.import_module("benchmarks.torch_kernels").forget_compiled()
    prepared = {mode: prepare(name, shape, mode, arguments, platform, say) for mode in arguments.modes}
    rows = []
    for mode, forms in prepared.items():
        say(f"{name} {shape_text(shape)} {mode}: timing")
        timings = measure(forms.calls, **arguments.times())
        for form, timing in timings.items():
            seconds = timing.seconds.median
            row = {"kernel": name, "mode": mode, "shape": list(shape), "dtype": arguments.dtype, "form": form}
            row |= {"bytes": forms.bytes, "flops": forms.flops} | forms.facts[form]
            row["roofline_share"] = roofline_share(limits, arguments.dtype, forms.bytes, forms.flops, seconds)
            row["bandwidth_share"] = forms.bytes / limits["copy_bandwidth"] / seconds
            row["bytes_per_second"], row["flops_per_second"] = forms.bytes / seconds, forms.flops / seconds
            rows.append(row | timing_fields(timings, form, KERNEL_BASELINES))
    if peak := memory_stats().get("peak_bytes_in_use"):
        rows[0]["process_peak_bytes"] = peak
    return rows


LEGEND = """\
auto: what densezoo chooses; reference: its plain form; jax: what JAX or Flax has for it; pallas: a kernel for TPUs.
Medians in milliseconds; the time of auto over each other form's, with the quartiles over the rounds; how near auto
comes to what this machine's memory bandwidth and matrix products allow (the roofline)."""


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table, a line for each comparison."""
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


def main(arguments: Arguments, platform: str) -> None:
    """Runs the benchmark, writes its files and prints its table."""
    names, comparisons = arguments.names(), arguments.comparisons()
    budget = int(arguments.memory_gib * 2**30) if arguments.memory_gib else memory_budget()
    rows: list[dict[str, Any]] = []
    machine = machine_of(platform)
    with progress_bar() as progress:
        task = progress.add_task("the machine's limits", total=len(names) * len(comparisons))
        limits = measure_limits(quick=arguments.quick)

        def say(text: str) -> None:
            progress.update(task, description=text)

        for name in names:
            for series, shape in comparisons:
                fields = sweep_fields(series, shape[0], 2 * shape[1], 2 * shape[2])
                # The output is four times the input, and some six arrays of its size are alive at most.
                need = 6 * 4 * 4 * shape[0] * shape[1] * shape[2] * shape[3]
                if series and need > budget:
                    skipped = f"needs about {need / 2**30:.1f} GiB, more than the {budget / 2**30:.1f} allowed"
                    rows.append(fields | {"kernel": name, "shape": list(shape), "form": "auto", "skipped": skipped})
                else:
                    rows += [fields | row for row in compare(name, shape, arguments, platform, limits, say)]
                progress.advance(task)
                jax.clear_caches()
    result = {
        "mode": "upsampling" + "-sweep" * arguments.sweep + "-quick" * arguments.quick,
        "dtype": arguments.dtype,
        "machine": machine,
        "limits": limits,
        "method": arguments.times() | {"memory_budget": budget},
        "fits": fits_of(rows, ("kernel", "mode", "form")),
        "rows": rows,
    }
    path = write(arguments.out, result)
    print(table(rows), LEGEND, fits_text(result["fits"]), sep="\n\n")
    console.print(f"written: {path} and .csv beside it")


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
