"""Times inference of whole models in densezoo, torch, torch.compile, onnxruntime and OpenVINO.

Usage: python -m benchmarks.models --against all --peer-python /path/of/a/python/with/torch

transformers' models, if the other Python has it, are `--models transformers:depth_anything_small` (ViT-S),
`transformers:dpt_dinov2_small` and `transformers:segformer_b0`, with `--shapes 1x518x518 1x252x336`. The network of a
diffusion model, at a fixed time, is `--models diffusers:ddpm_cifar10 --shapes 8x32x32`.

`--onnx` also times the file of `dz.export_onnx` in onnxruntime, by default for every architecture that
segmentation_models_pytorch has too (`benchmarks.exports` writes the table).

"densezoo" is `dz.compile`; `--impl auto reference` adds plain `jax.jit`. All have the same weights, and their outputs
are compared before timing. The other libraries run in a second process, in turn with this one. Each model is written to
the result files of --out as soon as it is measured; a Markdown table goes to stdout, and `benchmarks.report` writes
documents.
"""

import dataclasses
import datetime
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import densezoo as dz
from benchmarks.machine import busy_cores, compiler_options, console, measure_limits
from benchmarks.networks import (
    NetworkOptions,
    Shape,
    cast_params,
    compile_model,
    make_model,
    peer_variables,
    random_variables,
)
from benchmarks.options import Mismatch, PeerForm, machine_of, open_results, peers, progress_bar, run_command
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import OWN, PEERS, forms_table, shape_text, timing_fields
from benchmarks.seeded import random_images
from benchmarks.smp_models import SMP_MODELS
from benchmarks.timing import compile_apart, measure, wait_for
from densezoo.extras import require

MODELS = (
    "unet:resnet34",
    "unet:efficientnet-b0",
    "unet:convnext_tiny",
    "unetplusplus:resnet34",
    "fpn:resnet18",
    "deeplabv3plus:resnet50",
    "segformer:mit_b0",
    "upernet:swin_tiny_patch4_window7_224",
    "hrnet:hrnet_w18",
    "segnet:vgg11_bn",
)
SHAPES = ("4x256x256", "1x512x512")
ONNX_MODELS = (
    *(f"{name}:resnet18" for name in SMP_MODELS if name != "dpt"),
    *("dpt:vit_tiny_patch16_224", "unet:resnet34", "segformer:mit_b0"),
)
"""Networks with --onnx: all architectures of segmentation_models_pytorch with a small encoder, and three more."""
FLOAT32 = f"{OWN}, float32"
"""densezoo's float32 form in a comparison in bfloat16."""
ONNX = f"{OWN}, onnxruntime"
"""The file of `dz.export_onnx` in onnxruntime, in float32."""


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the inference benchmark."""

    models: tuple[str, ...] = ()
    """model:encoder of the zoo; by default those of MODELS, or with --onnx those of ONNX_MODELS."""
    onnx: bool = False
    """Also time what `dz.export_onnx` writes, in onnxruntime, by default for 1x256x256 only."""

    def pairs(self) -> list[tuple[str, str]]:
        """(model, encoder) for each of --models."""
        models = self.models or (ONNX_MODELS if self.onnx else MODELS)
        return NetworkOptions.pairs(dataclasses.replace(self, models=models))


def forms_of(arguments: Arguments) -> list[str]:
    """Our forms."""
    others = [FLOAT32] * (arguments.dtype == "bfloat16") + [ONNX] * arguments.onnx
    return [OWN, *others, *dict.fromkeys(arguments.impl)]


def check(label: str, output: Any, truth: np.ndarray, dtype: str, platform: str) -> float:
    """The error of an output relative to the plain form in float32, in the Euclidean norm.

    The maximum difference is unsuitable: if two values in a pooling window are equal up to rounding, unpooling may put
    the maximum at another pixel.

    Raises:
        Mismatch: if it is too large.
    """
    limit = 1e-1 if dtype == "bfloat16" or platform == "tpu" else 2e-2 if platform == "gpu" else 1e-3
    output = np.asarray(output, np.float32)
    error = float(np.linalg.norm(output - truth) / np.linalg.norm(truth)) if output.shape == truth.shape else np.inf
    if not error <= limit:
        raise Mismatch(
            f"{label}: the output differs from the reference by {error:.2g} of its norm, but only {limit:.0e}"
            " is allowed: not timed"
        )
    return error


def compare(
    pair: tuple[str, str],
    shape: Shape,
    arguments: Arguments,
    platform: str,
    worker: Worker | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Checks, then times all forms of a model. Returns a row for each; those of skipped forms give the reason."""
    dtype, label = arguments.dtype, f"{':'.join(pair)} {shape_text(shape)}"
    head = {"model": ":".join(pair), "mode": "inference", "shape": list(shape), "dtype": dtype}
    say(f"{label}: weights")
    exact, missing = variables_of(worker, pair, arguments, shape)
    images = random_images(shape, arguments.seed)
    plain = make_model(pair, arguments, shape, "reference", "float32")
    with jax.default_matmul_precision("highest"):
        truth = np.asarray(jax.jit(plain.apply)(exact, images))

    calls: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    left_out = []
    for form in forms_of(arguments):
        say(f"{label}: {form}")
        form_dtype = "float32" if form in (FLOAT32, ONNX) else dtype
        calls[form], facts[form] = own_call(form, pair, exact, images, form_dtype, arguments, shape)
        facts[form]["error"] = check(f"{label}, {form}", calls[form](), truth, form_dtype, platform)
    sent = worker.send("images", images) if worker else ""
    for form in arguments.forms(PEERS):
        say(f"{label}: {form}")
        try:
            if worker is None or missing:
                raise PeerError(missing)
            answer = worker.ask("infer", form=form, images=sent, dtype=dtype, platform=platform)
            output = np.load(worker.ask("output", form=form)["outputs"][0])
        except PeerError as error:
            console.print(f"{label}: {form} is skipped: {error}")
            left_out.append(head | {"form": form, "left_out": str(error)[:200]})
            continue
        facts[form] = {"compile_seconds": answer["seconds"] if form != "torch" else None}
        facts[form]["error"] = check(f"{label}, {form}", output, truth, dtype, platform)
        calls[form] = PeerForm(worker, form)

    say(f"{label}: timing")
    return timed_rows(head, calls, facts, arguments) + left_out


def variables_of(
    worker: Worker | None, pair: tuple[str, str], arguments: NetworkOptions, shape: Shape
) -> tuple[dict[str, Any], str]:
    """The float32 variables of the model, from the worker's model if it has one, else with the reason why not."""
    missing = ""
    if worker is not None:
        try:
            return peer_variables(worker, pair, arguments, shape), missing
        except PeerError as error:
            missing = str(error)
    return random_variables(pair, arguments, shape), missing


def own_call(
    form: str,
    pair: tuple[str, str],
    exact: Any,
    images: np.ndarray,
    dtype: str,
    arguments: NetworkOptions,
    shape: Shape,
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """The call of one of densezoo's forms, and its compile statistics."""
    if form == ONNX:
        start = time.perf_counter()
        call = onnx_call(make_model(pair, arguments, shape, "auto", "float32"), exact, images)
        return call, {"compile_seconds": time.perf_counter() - start}
    if form.startswith(OWN):
        infer, x = (
            compile_model(make_model(pair, arguments, shape, "auto", "float32"), exact, dtype),
            jax.device_put(images),
        )
        start = time.perf_counter()
        wait_for(infer(x))
        return functools.partial(infer, x), {"compile_seconds": time.perf_counter() - start}
    model, variables = make_model(pair, arguments, shape, form, dtype), cast_params(exact, dtype)
    x = jax.device_put(images.astype(dtype))
    compiled = compile_apart(jax.jit(model.apply, compiler_options=compiler_options() or None), variables, x)
    times = {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
    return functools.partial(compiled.call, variables, x), times | compiled.costs()


def onnx_call(model: Any, variables: Any, images: np.ndarray) -> Callable[[], Any]:
    """A call of the model's ONNX file in onnxruntime."""
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        dz.export_onnx(model, variables, path, size=(images.shape[1], images.shape[2]), batch=images.shape[0])
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {session.get_inputs()[0].name: images})[0]


def timed_rows(
    head: dict[str, Any], calls: dict[str, Any], facts: dict[str, dict[str, Any]], arguments: NetworkOptions
) -> list[dict[str, Any]]:
    """Times the calls in turn. Returns a row for each, with its ratios to all others."""
    when = {"measured": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "busy_cores": busy_cores()}
    timings = measure(calls, **arguments.times())
    rows = []
    for form in calls:
        row = head | {"form": form} | facts[form] | when
        row["images_per_second"] = head["shape"][0] / timings[form].seconds.median
        rows.append(row | timing_fields(timings, form, list(calls)))
    return rows


def run(
    mode: str,
    arguments: NetworkOptions,
    platform: str,
    compare_one: Callable[..., list[dict[str, Any]]],
    plan: list[tuple[tuple[str, str], Shape]],
    row_mode: str,
    forms: list[str],
) -> int:
    """Runs a comparison for each model and shape, writes each at once and prints the table; returns the exit code."""
    failed = False
    with peers(arguments, platform) as (_, peer_facts):
        machine = machine_of(platform, peer_facts)
    with progress_bar() as progress:
        task = progress.add_task("the machine's limits", total=len(plan))

        def say(text: str) -> None:
            progress.update(task, description=text)

        head = {
            "mode": mode + "-quick" * arguments.quick,
            "dtype": arguments.dtype,
            "machine": machine,
            "limits": measure_limits(quick=arguments.quick),
            "method": arguments.times() | {"num_classes": arguments.num_classes},
        }
        results = open_results(arguments, head)
        for pair, shape in plan:
            if arguments.again or not results.has((":".join(pair), row_mode, shape), forms):
                # A fresh worker for each, without leftovers of earlier models.
                with peers(arguments, platform) as (worker, _):
                    try:
                        results.put(compare_one(pair, shape, arguments, platform, worker, say))
                    except (Mismatch, PeerError) as error:
                        console.print(error if isinstance(error, Mismatch) else f"{':'.join(pair)}: {error}")
                        failed = True
                jax.clear_caches()
            progress.advance(task)
    asked = {(":".join(pair), shape) for pair, shape in plan}
    rows = [row for row in results.rows if (row["model"], tuple(row["shape"])) in asked]
    if rows:
        print(forms_table(rows))
        console.print(f"wrote {results.path}, and a .csv file beside it")
    return int(failed)


def main(arguments: Arguments, platform: str) -> int:
    """Runs the benchmark."""
    shapes = ("1x256x256",) if arguments.onnx else SHAPES
    plan = [(pair, shape) for pair in arguments.pairs() for shape in arguments.shapes_of(pair, shapes)]
    forms = forms_of(arguments) + arguments.forms(PEERS)
    return run("models", arguments, platform, compare, plan, "inference", forms)


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
