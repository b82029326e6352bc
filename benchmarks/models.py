"""Times inference of whole models, as they are and with folded batch norms, beside segmentation_models_pytorch.

Usage: python -m benchmarks.models --models unet:resnet34 fpn:resnet18 --against torch

Both sides have the same weights, and their outputs are compared before anything is timed. The results are a JSON and a
CSV file in --out and a Markdown table on stdout; `benchmarks.report` makes documents of them.
"""

import contextlib
import dataclasses
import functools
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

import densezoo as dz
from benchmarks.machine import compiler_options, console, measure_limits, memory_stats, peak_flops
from benchmarks.networks import (
    NetworkOptions,
    cast_params,
    compile_torch,
    frozen_weights,
    load_smp,
    make_model,
    make_smp_model,
    place_smp_model,
    random_images,
    random_variables,
    smp_variables,
)
from benchmarks.options import Mismatch, machine_of, progress_bar, run_command, sweep_fields
from benchmarks.record import TORCH_FORMS, fits_of, fits_text, models_table, shape_text, timing_fields, write
from benchmarks.timing import Compiled, compile_apart, measure, wait_for

Shape = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the benchmark of inference."""

    part: Literal["model", "decoder"] = "model"
    """The whole model, or the decoder alone on the encoder's maps."""
    folded: Literal["both", "yes", "no"] = "both"
    """Batch norms folded into the convolutions, or not, or both."""


def forms_of(arguments: Arguments) -> list[tuple[str, str, bool]]:
    """(name, impl, folded) of densezoo's forms."""
    folds = {"both": (False, True), "yes": (True,), "no": (False,)}[arguments.folded]
    return [(impl + ", folded" * fold, impl, fold) for impl in dict.fromkeys(arguments.impl) for fold in folds]


def function_of(model: Any, impl: str, part: str) -> Callable[[Any, Any], jax.Array]:
    """What is compiled: (variables, images or pyramid) to logits or the decoder's map."""
    if part == "model":
        return lambda variables, images: model.apply(variables, images)

    def decode(variables: Any, pyramid: Any) -> jax.Array:
        with dz.ops.implementation(impl):
            return model.decoder.apply(_subtree(variables, "decoder"), pyramid)

    return decode


def pyramid_of(model: Any, variables: Any, images: jax.Array) -> Any:
    """What the encoder gives the decoder."""
    pyramid = jax.jit(model.encoder.apply)(_subtree(variables, "encoder"), images)
    return pyramid.replace(reductions=model.encoder.reductions, image_size=images.shape[1:3])


def check(label: str, output: Any, truth: np.ndarray, dtype: str, platform: str) -> float:
    """The error of an output against the plain form in float32, in the Euclidean norm.

    Not the largest difference: where two values in a pooling's window are equal up to rounding, unpooling may put the
    greater one a pixel aside.

    Raises:
        Mismatch: it is too large.
    """
    limit = 1e-1 if dtype == "bfloat16" or platform == "tpu" else 2e-2 if platform == "gpu" else 1e-3
    error = float(np.linalg.norm(np.asarray(output, np.float32) - truth) / np.linalg.norm(truth))
    if not error <= limit:
        raise Mismatch(
            f"{label}: the output differs from the reference by {error:.2g} of its norm, and {limit:.0e}"
            " is allowed: nothing is timed"
        )
    return error


def compare(
    pair: tuple[str, str], shape: Shape, arguments: Arguments, platform: str, smp: Any, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Checks, then times all forms of a model; a row for each. A sweep's shape that is too large gives none."""
    dtype, part = arguments.dtype, arguments.part
    name = ":".join(pair)
    smp_model = None if smp is None else make_smp_model(pair, arguments)
    exact = smp_variables(smp_model, pair, arguments) if smp_model else random_variables(pair, arguments)
    images = jax.numpy.asarray(random_images(shape, arguments.seed))
    plain = make_model(pair, arguments, "reference", "float32")
    with jax.default_matmul_precision("highest"):
        inputs = pyramid_of(plain, exact, images) if part == "decoder" else images
        truth = np.asarray(jax.jit(function_of(plain, "reference", part))(exact, inputs))
    inputs = jax.tree.map(lambda x: x.astype(dtype) if x.dtype == np.float32 else x, inputs)

    calls: dict[str, Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    for form, impl, folded in forms_of(arguments):
        say(f"{name} {shape_text(shape)}: {form}")
        model = make_model(pair, arguments, impl)
        variables = cast_params(dz.fold_batch_norm(plain, exact) if folded else exact, dtype)
        function = jax.jit(function_of(model, impl, part), compiler_options=compiler_options() or None)
        compiled = compile_apart(function, variables, inputs)
        facts[form] = facts_of(compiled)
        if arguments.sweep and (facts[form]["peak_bytes"] or 0) > arguments.budget():
            need = facts[form]["peak_bytes"] / 2**30
            return [_head(name, shape, arguments) | {"form": form, "skipped": f"needs {need:.1f} GiB"}]
        calls[form] = functools.partial(compiled.call, variables, inputs)
        facts[form]["error"] = check(f"{name} {shape_text(shape)}, {form}", calls[form](), truth, dtype, platform)
    if smp_model is not None:
        importlib.import_module("benchmarks.torch_kernels").forget_compiled()
        for form in TORCH_FORMS[: 1 if arguments.sweep or (arguments.quick and platform == "cpu") else None]:
            say(f"{name} {shape_text(shape)}: {form}")
            try:
                call, to_array, seconds = torch_call(smp_model, images, arguments, platform, form)
            except Exception as error:  # what it raises depends on the backend that it compiles with
                if form == "torch":
                    raise
                console.print(f"{name}: torch cannot compile it ({type(error).__name__})")
                continue
            calls[form], facts[form] = call, {"compile_seconds": seconds if form != "torch" else None}
            output = to_array(call())
            facts[form]["error"] = check(f"{name} {shape_text(shape)}, {form}", output, truth, dtype, platform)

    say(f"{name} {shape_text(shape)}: timing")
    timings = measure(calls, **arguments.times())
    rows = []
    for form in calls:
        row = _head(name, shape, arguments) | {"form": form} | facts[form]
        row["images_per_second"] = shape[0] / timings[form].seconds.median
        rows.append(row | timing_fields(timings, form, ("reference", *TORCH_FORMS)))
    if peak := memory_stats().get("peak_bytes_in_use"):
        rows[0]["process_peak_bytes"] = peak
    return rows


def torch_call(
    smp_model: Any, images: jax.Array, arguments: Arguments, platform: str, form: str
) -> tuple[Callable[[], Any], Callable[[Any], np.ndarray], float]:
    """A call of torch's model, what makes a float32 NHWC array of its result, and the seconds of the first call."""
    torch: Any = importlib.import_module("torch")
    kernels: Any = importlib.import_module("benchmarks.torch_kernels")
    device = kernels.to_device(platform)
    model = place_smp_model(smp_model, device, arguments.dtype).eval()
    x = kernels.to_tensor(images.astype(arguments.dtype), device)
    function, given = model, x
    if arguments.part == "decoder":
        with torch.inference_mode():
            given = model.encoder(x)
        function = model.decoder
    if form != "torch":
        function = compile_torch(function, device, frozen=form == TORCH_FORMS[2])

    def call() -> Any:
        with torch.inference_mode():
            return function(given)

    start = time.perf_counter()
    with frozen_weights() if form == TORCH_FORMS[2] else contextlib.nullcontext():
        wait_for(call())
    return call, kernels.to_array, time.perf_counter() - start


def facts_of(compiled: Compiled) -> dict[str, Any]:
    """What compiling tells of a form."""
    times = {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
    return times | compiled.costs()


def run(
    mode: str, arguments: NetworkOptions, platform: str, compare_one: Callable[..., list[dict[str, Any]]], keys: tuple
) -> None:
    """Runs a comparison for every model and shape, writes the files and prints the table."""
    pairs, series = arguments.pairs(), arguments.series()
    smp = load_smp() if arguments.against == "torch" else None
    rows: list[dict[str, Any]] = []
    machine = machine_of(platform)
    with progress_bar() as progress:
        task = progress.add_task("the machine's limits", total=len(pairs) * len(series))

        def say(text: str) -> None:
            progress.update(task, description=text)

        limits = measure_limits(quick=arguments.quick)
        for pair in pairs:
            full: set[str] = set()
            for kind, shape in series:
                if kind not in full:  # once one is too large, so are those after it
                    new = compare_one(pair, shape, arguments, platform, smp, say)
                    full |= {kind for row in new if "skipped" in row}
                    rows += [sweep_fields(kind, *shape) | row for row in new]
                progress.advance(task)
                jax.clear_caches()
    for row in rows:
        if row.get("xla_flops") and "milliseconds" in row:
            seconds = row["milliseconds"]["median"] / 1e3
            row["flops_share"] = row["xla_flops"] / peak_flops(limits, arguments.dtype) / seconds
    result = {
        "mode": mode + "-sweep" * arguments.sweep + "-quick" * arguments.quick,
        "dtype": arguments.dtype,
        "machine": machine,
        "limits": limits,
        "method": arguments.times() | {"memory_budget": arguments.budget(), "num_classes": arguments.num_classes},
        "fits": fits_of(rows, keys),
        "rows": rows,
    }
    path = write(arguments.out, result)
    print(models_table(rows), fits_text(result["fits"]), sep="\n\n")
    console.print(f"written: {path} and .csv beside it")


def main(arguments: Arguments, platform: str) -> None:
    """Runs the benchmark."""
    mode = "models" if arguments.part == "model" else "decoders"
    run(mode, arguments, platform, compare, ("model", "form"))


def _head(name: str, shape: Shape, arguments: Arguments) -> dict[str, Any]:
    return {"model": name, "part": arguments.part, "mode": "inference", "shape": list(shape), "dtype": arguments.dtype}


def _subtree(variables: Any, part: str) -> dict[str, Any]:
    return {collection: tree[part] for collection, tree in variables.items() if part in tree}


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
