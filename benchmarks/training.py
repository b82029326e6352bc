"""Times the train step of whole models in densezoo and in torch, eager and compiled.

Usage: python -m benchmarks.training --against all --peer-python /path/of/a/python/with/torch

A step has the forward and backward pass, batch statistics, cross-entropy, and AdamW with a one-cycle learning rate, on
a fixed batch; `siamese_unet` gets images and their mirror images. Both sides start with the same weights; the losses of
two steps and the gradient's norm are compared before timing. Compilation is timed once without and once with jax's
persistent cache.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

import densezoo as dz
from benchmarks.hub_models import DIFFUSERS
from benchmarks.machine import console
from benchmarks.models import run, timed_rows, variables_of
from benchmarks.networks import NetworkOptions, Shape, make_model
from benchmarks.options import Mismatch, PeerForm, run_command
from benchmarks.protocol import PeerError, Worker
from benchmarks.record import OWN, shape_text
from benchmarks.seeded import PEAK, STEPS, WEIGHT_DECAY, random_images
from benchmarks.timing import Compiled, compile_apart, wait_for

MODELS = ("unet:resnet34", "fpn:resnet18", "deeplabv3plus:resnet50", "unet:convnext_tiny", "segformer:mit_b0")
PEERS = ("torch", "torch.compile")
SHAPES = ("4x256x256",)


@dataclasses.dataclass(frozen=True)
class Arguments(NetworkOptions):
    """Options of the training benchmark."""

    models: tuple[str, ...] = MODELS
    """model:encoder of the zoo."""


def forms_of(arguments: NetworkOptions) -> list[str]:
    """Forms of densezoo. The first one that works is the reference for the others, so the plain form comes first."""
    return sorted([*dict.fromkeys(arguments.impl), OWN], key=lambda form: form != "reference")


@contextlib.contextmanager
def persistent_cache() -> Iterator[None]:
    """Uses jax's persistent compilation cache in a separate folder."""
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
    """The train step of densezoo.train for cross-entropy, or for the squared error of a diffusion model's noise."""

    def loss(apply: Any, batch: Any, key: Any) -> jax.Array:
        del key
        output, target = apply(batch["image"]), batch["mask"]
        return jnp.square(output - target).mean() if target.ndim == 4 else dz.losses.cross_entropy(output, target)

    return dz.train.make_train_step(loss)


def make_state(
    pair: tuple[str, str], arguments: NetworkOptions, shape: Shape, impl: str, variables: Any, images: jax.Array
) -> Any:
    """The initial state of a training."""
    optimizer = dz.train.make_optimizer(PEAK, STEPS, weight_decay=WEIGHT_DECAY)
    model = make_model(pair, arguments, shape, impl, arguments.dtype)
    return dz.train.create_state(model, optimizer, jax.random.key(0), images, variables=variables)


def compile_step(state: Any, batch: Any) -> tuple[Compiled, dict[str, float]]:
    """The compiled step, and the seconds of tracing and compiling again with a filled persistent cache.

    The cache cannot store programs with oneDNN, so the cached program differs from the timed one.
    """
    compiled = compile_apart(make_step(), state, batch)
    with persistent_cache():
        make_step().lower(state, batch).compile()
        jax.clear_caches()
        again = compile_apart(make_step(), state, batch)
    cached = {"cached_trace_seconds": again.trace_seconds, "cached_compile_seconds": again.compile_seconds}
    return compiled, cached


def densezoo_call(compiled: Compiled, state: Any, batch: Any) -> Callable[[], Any]:
    """A call that runs one step; its state is donated and replaced."""
    own = [state]

    def call() -> Any:
        own[0], metrics = compiled.call(own[0], batch)
        return own[0].params, metrics

    return call


def check(label: str, found: dict[str, float], truth: dict[str, float], dtype: str, platform: str) -> None:
    """Compares the losses of two steps and the gradient's norm.

    Raises:
        Mismatch: if they differ too much.
    """
    loose = 30 if dtype == "bfloat16" or platform == "tpu" else 5 if platform == "gpu" else 1
    for name, limit in (("first loss", 1e-3), ("gradient norm", 1e-2), ("second loss", 5e-3)):
        error = abs(found[name] - truth[name]) / abs(truth[name])
        if not error <= limit * loose:
            raise Mismatch(
                f"{label}: the {name} is {found[name]:.6g}, but the reference's is {truth[name]:.6g}: not timed"
            )


def compare(
    pair: tuple[str, str],
    shape: Shape,
    arguments: NetworkOptions,
    platform: str,
    worker: Worker | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Checks, then times the train step in all forms. Returns a row for each, also for skipped ones."""
    name, label = ":".join(pair), f"{':'.join(pair)} {shape_text(shape)}"
    head = {"model": name, "mode": "training", "shape": list(shape), "dtype": arguments.dtype}
    variables, missing = variables_of(worker, pair, arguments, shape)
    generator = np.random.default_rng(arguments.seed)
    images = random_images(shape, arguments.seed)
    # For one class, the mask has 0 and 1, which torch's cross-entropy does not support.
    masks = generator.integers(0, max(2, arguments.num_classes), shape, np.int32)
    if pair[0] == DIFFUSERS:
        masks = random_images(shape, arguments.seed + 1)
    if arguments.num_classes == 1:
        missing = "its cross-entropy has no counterpart for one class"
    batch = {"image": jnp.asarray(images), "mask": jnp.asarray(masks)}

    calls: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    left_out = []
    truth: dict[str, float] | None = None
    for form in forms_of(arguments):
        say(f"{label}: {form}")
        state = make_state(pair, arguments, shape, "auto" if form == OWN else form, variables, batch["image"])
        compiled, cached = compile_step(state, batch)
        times = {"trace_seconds": compiled.trace_seconds, "compile_seconds": compiled.compile_seconds}
        calls[form] = densezoo_call(compiled, state, batch)
        found = first_steps(lambda call=calls[form]: call()[1])
        facts[form] = times | compiled.costs() | cached | {"checked": found}
        truth = truth or found
        check(f"{label}, {form}", found, truth, arguments.dtype, platform)
    sent = {"images": worker.send("images", images), "masks": worker.send("masks", masks)} if worker else {}
    for form in arguments.forms(PEERS):
        say(f"{label}: {form}")
        try:
            if worker is None or missing:
                raise PeerError(missing)
            answer = worker.ask("train", form=form, **sent, dtype=arguments.dtype, platform=platform)
        except PeerError as error:
            console.print(f"{label}: {form} is skipped: {error}")
            left_out.append(head | {"form": form, "left_out": str(error)[:200]})
            continue
        found = answer["checked"]
        facts[form] = {"compile_seconds": answer["seconds"] if form != "torch" else None, "checked": found}
        check(f"{label}, {form}", found, truth or found, arguments.dtype, platform)
        calls[form] = PeerForm(worker, form)

    say(f"{label}: timing")
    return timed_rows(head, calls, facts, arguments) + left_out


def first_steps(step: Callable[[], Any]) -> dict[str, float]:
    """The losses of two steps and the first gradient's norm, from the step's metrics."""
    first = step()
    wait_for(first)
    second = step()
    return {
        "first loss": float(first["loss"]),
        "gradient norm": float(first["grad_norm"]),
        "second loss": float(second["loss"]),
    }


def main(arguments: Arguments, platform: str) -> int:
    """Runs the benchmark."""
    plan = [(pair, shape) for pair in arguments.pairs() for shape in arguments.shapes_of(pair, SHAPES)]
    forms = forms_of(arguments) + arguments.forms(PEERS)
    return run("training", arguments, platform, compare, plan, "training", forms)


if __name__ == "__main__":
    sys.exit(run_command(main, Arguments))
