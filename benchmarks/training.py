"""Times the train step of whole models beside segmentation_models_pytorch.

Usage: python -m benchmarks.training --models unet:resnet34 --impl auto reference --against torch

Forward and backward pass, batch statistics, cross-entropy, and AdamW with a one-cycle learning rate, on one batch that
stays. Both sides start with the same weights; the losses of two steps and the gradient's norm are compared before
anything is timed. Compilation is timed once without and once with jax's persistent cache.
"""

import contextlib
import dataclasses
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import densezoo as dz
from benchmarks.machine import console, memory_stats
from benchmarks.models import facts_of, run
from benchmarks.networks import (
    NetworkOptions,
    compile_torch,
    make_model,
    make_smp_model,
    place_smp_model,
    random_images,
    random_variables,
    smp_variables,
)
from benchmarks.options import Mismatch, run_command
from benchmarks.record import shape_text, timing_fields
from benchmarks.timing import Compiled, compile_apart, measure, wait_for

Shape = tuple[int, int, int]
STEPS = (
    1_000_000  # of the learning rate's cycle: in all samples it stays near its start, and the weights where they are
)
PEAK = 1e-3
WEIGHT_DECAY = 1e-4


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the benchmark of training."""


@contextlib.contextmanager
def persistent_cache() -> Iterator[None]:
    """Jax's persistent compilation cache in a folder of its own."""
    settings = {
        "jax_compilation_cache_dir": None,
        "jax_enable_compilation_cache": True,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in (settings | {"jax_compilation_cache_dir": folder}).items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def make_step() -> Any:
    """The train step of densezoo.train for cross-entropy."""
    return dz.train.make_train_step(lambda logits, batch: dz.losses.cross_entropy(logits, batch["mask"]))


def make_state(pair: tuple[str, str], arguments: Arguments, impl: str, variables: Any, images: jax.Array) -> Any:
    """A training at its start."""
    optimizer = dz.train.make_optimizer(PEAK, STEPS, weight_decay=WEIGHT_DECAY)
    model = make_model(pair, arguments, impl)
    return dz.train.create_state(model, optimizer, jax.random.key(0), images, variables=variables)


def compile_step(state: Any, batch: Any) -> tuple[Compiled, dict[str, float]]:
    """The compiled step, and the seconds of tracing and compiling again with the persistent cache filled."""
    with persistent_cache():
        compiled = compile_apart(make_step(), state, batch)
        jax.clear_caches()
        again = compile_apart(make_step(), state, batch)
    cached = {"cached_trace_seconds": again.trace_seconds, "cached_compile_seconds": again.compile_seconds}
    return compiled, cached


def densezoo_call(compiled: Compiled, state: Any, batch: Any) -> Callable[[], Any]:
    """A call that does one step; the state that it keeps is donated and replaced."""
    own = [state]

    def call() -> Any:
        own[0], metrics = compiled.call(own[0], batch)
        return own[0].params, metrics

    return call


def torch_call(smp_model: Any, batch: Any, arguments: Arguments, platform: str, *, compiled: bool) -> Callable[[], Any]:
    """A call that does one step of torch's model and gives its loss; the gradients stay in the model."""
    torch: Any = importlib.import_module("torch")
    kernels: Any = importlib.import_module("benchmarks.torch_kernels")
    device = kernels.to_device(platform)
    model = place_smp_model(smp_model, device, arguments.dtype).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS, cycle_momentum=False)
    images = kernels.to_tensor(batch["image"].astype(arguments.dtype), device)
    masks = torch.from_numpy(np.array(batch["mask"])).long().to(device)
    function = compile_torch(model, device) if compiled else model

    def call() -> Any:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(function(images), masks)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.detach()

    return call


def torch_grad_norm(smp_model: Any) -> float:
    """The norm of the gradient that the last step of torch's model left."""
    squares = [float(p.grad.float().square().sum()) for p in smp_model.parameters() if p.grad is not None]
    return float(np.sqrt(sum(squares)))


def check(label: str, found: dict[str, float], truth: dict[str, float], dtype: str, platform: str) -> None:
    """Compares the losses of two steps and the gradient's norm.

    Raises:
        Mismatch: they differ by too much.
    """
    loose = 30 if dtype == "bfloat16" or platform == "tpu" else 5 if platform == "gpu" else 1
    for name, limit in (("first loss", 1e-3), ("gradient norm", 1e-2), ("second loss", 5e-3)):
        error = abs(found[name] - truth[name]) / abs(truth[name])
        if not error <= limit * loose:
            raise Mismatch(
                f"{label}: the {name} is {found[name]:.6g} and the reference's {truth[name]:.6g}: nothing is timed"
            )


def compare(
    pair: tuple[str, str], shape: Shape, arguments: Arguments, platform: str, smp: Any, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Checks, then times the train step in all forms; a row for each. A sweep's shape that is too large gives none."""
    name, label = ":".join(pair), f"{':'.join(pair)} {shape_text(shape)}"
    head = {"model": name, "mode": "training", "shape": list(shape), "dtype": arguments.dtype}
    smp_model = None if smp is None else make_smp_model(pair, arguments)
    variables = smp_variables(smp_model, pair, arguments) if smp_model else random_variables(pair, arguments)
    generator = np.random.default_rng(arguments.seed)
    images = jnp.asarray(random_images(shape, arguments.seed))
    # For one class a mask of 0 and 1; torch's cross-entropy then has no counterpart.
    masks = generator.integers(0, max(2, arguments.num_classes), shape, np.int32)
    batch = {"image": images, "mask": jnp.asarray(masks)}

    calls: dict[str, Callable[[], Any]] = {}
    facts: dict[str, dict[str, Any]] = {}
    truth: dict[str, float] | None = None
    # The plain form is what the others are compared with, so it comes first.
    for form in sorted(dict.fromkeys(arguments.impl), key=lambda impl: impl != "reference"):
        say(f"{label}: {form}")
        state = make_state(pair, arguments, form, variables, images)
        compiled, cached = compile_step(state, batch)
        facts[form] = facts_of(compiled) | cached
        if arguments.sweep and (facts[form]["peak_bytes"] or 0) > arguments.budget():
            return [head | {"form": form, "skipped": f"needs {facts[form]['peak_bytes'] / 2**30:.1f} GiB"}]
        calls[form] = densezoo_call(compiled, state, batch)
        found = first_steps(lambda call=calls[form]: call()[1])
        facts[form]["checked"] = found
        truth = truth or found
        check(f"{label}, {form}", found, truth, arguments.dtype, platform)
    if smp_model is not None and arguments.num_classes > 1:
        importlib.import_module("benchmarks.torch_kernels").forget_compiled()
        start = {key: value.clone() for key, value in smp_model.state_dict().items()}
        for form in ("torch", "torch compiled")[: 1 if platform == "cpu" or arguments.sweep else None]:
            say(f"{label}: {form}")
            torch_model = make_smp_model(pair, arguments)
            assert torch_model is not None
            torch_model.load_state_dict(start)
            call = torch_call(torch_model, batch, arguments, platform, compiled=form != "torch")
            began = time.perf_counter()
            losses = [float(call())]
            seconds = time.perf_counter() - began
            norm = torch_grad_norm(torch_model)
            losses.append(float(call()))
            found = {"first loss": losses[0], "gradient norm": norm, "second loss": losses[1]}
            facts[form] = {"compile_seconds": seconds if form != "torch" else None, "checked": found}
            check(f"{label}, {form}", found, truth or found, arguments.dtype, platform)
            calls[form] = call

    say(f"{label}: timing")
    timings = measure(calls, **arguments.times())
    rows = [
        head
        | {"form": form, "images_per_second": shape[0] / timings[form].seconds.median}
        | facts[form]
        | timing_fields(timings, form, ("reference", "torch", "torch compiled"))
        for form in calls
    ]
    if peak := memory_stats().get("peak_bytes_in_use"):
        rows[0]["process_peak_bytes"] = peak
    return rows


def first_steps(step: Callable[[], Any]) -> dict[str, float]:
    """The losses of two steps and the first's gradient norm, from the metrics that a step gives."""
    first = step()
    wait_for(first)
    second = step()
    return {
        "first loss": float(first["loss"]),
        "gradient norm": float(first["grad_norm"]),
        "second loss": float(second["loss"]),
    }


def main(arguments: Arguments, platform: str) -> None:
    """Runs the benchmark."""
    run("training", arguments, platform, compare, ("model", "form"))
    if arguments.against == "torch" and platform == "cpu":
        console.print("torch's train step is eager: compiling its backward pass on CPU takes minutes")


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
